"""What loaders of a folder take as codes: the rest stays dense with its reason, or is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file
from support.moe_folders import moe_folder

from compressor import api
from compressor.architectures.fused_layers import experts_module
from compressor.core.errors import UsageError

BITS: dict[str, Any] = {"bits": 4, "group_size": 32}
MULTIMODAL = {
    "score.weight": (2, 64),
    "model.vision_tower.encoder.layers.0.fc1.weight": (64, 64),
    "model.multi_modal_projector.linear_1.weight": (64, 64),
}


def declared(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((path / "config.json").read_text())["quantization_config"]
    return found


@pytest.mark.parametrize("include", [[], ["*"]])
def test_gptq_leaves_dense_what_its_loaders_take_no_codes_of(tmp_path: Path, include: list[str]) -> None:
    """A head of two rows fills no words of codes, and does not make the command refuse."""
    model = moe_folder(tmp_path / "model", more=MULTIMODAL)
    options: dict[str, Any] = {"include": include, "exclude": ["*norm*"] if include else []}
    report = api.quantize(model, tmp_path / "out", layout="gptq", **BITS, **options)
    packed = {job.spec.name for job in report.plan.jobs if job.stores_parts}
    parts = ("q_proj", "k_proj", "v_proj", "o_proj")
    names = {f"model.layers.{layer}.self_attn.{part}.weight" for layer in range(2) for part in parts}
    assert packed == names
    reasons = {job.spec.name: job.left_alone[0].reason for job in report.plan.jobs if job.left_alone}
    assert "an expert" in reasons["model.layers.0.mlp.experts.1.up_proj.weight"]
    assert "outside of the list of layers" in reasons["score.weight"]
    assert "projector" in reasons["model.multi_modal_projector.linear_1.weight"]
    left = [key[2:] for key in declared(tmp_path / "out")["dynamic"] if key.startswith("-:")]
    for module in ("model.layers.1.mlp.experts", "model.layers.1.mlp.experts.2.down_proj", "score"):
        assert any(re.match(text, module) for text in left), module
    assert not any(re.match(text, "model.layers.0.self_attn.qkv_proj") for text in left)
    api.restore(tmp_path / "out", tmp_path / "back")
    before, after = (load_file(path / "model.safetensors") for path in (model, tmp_path / "back"))
    assert all(np.array_equal(before[name], after[name]) for name in before.keys() - packed)


@pytest.mark.parametrize("verb", ["quantize", "prune"])
def test_towers_stay_dense_unless_included(tmp_path: Path, verb: str) -> None:
    model = moe_folder(tmp_path / "model", more=MULTIMODAL)
    run, options = getattr(api, verb), BITS if verb == "quantize" else {"sparsity": 0.5}
    tower = "model.vision_tower.encoder.layers.0.fc1.weight"
    jobs = {job.spec.name: job for job in run(model, tmp_path / "a", **options, dry_run=True).plan.jobs}
    assert bool(jobs[tower].steps) == (verb == "prune")
    if verb == "quantize":
        assert "--include treats it" in jobs[tower].left_alone[0].reason
    jobs = {job.spec.name: job for job in run(model, tmp_path / "b", **options, include=[tower]).plan.jobs}
    assert jobs[tower].steps


@pytest.mark.parametrize("options", [BITS, {"scheme": "nf4"}, {"scheme": "fp8"}, {**BITS, "layout": "gptq"}])
def test_an_included_vector_is_refused(tmp_path: Path, options: dict[str, Any]) -> None:
    """It would make the folder one that no loader takes; each way on that the message names goes through."""
    model = moe_folder(tmp_path / "model", more={"model.layers.0.conv.weight": (64, 64, 3)})
    include = ["model.layers.0.conv.weight", "*_proj.weight"]
    with pytest.raises(UsageError, match="loaders take codes of matrices only") as caught:
        api.quantize(model, tmp_path / "out", include=include, **options)
    assert "--layout compressor" in caught.value.remedy
    assert not (tmp_path / "out").exists()
    api.quantize(model, tmp_path / "excluded", include=include, exclude=include[:1], **options)
    assert "restore" not in declared(tmp_path / "excluded").get("format", "")
    rules = [(include[0], {"scheme": "int", "layout": "compressor", "bits": 8})]
    api.quantize(model, tmp_path / "own", include=include, rules=rules, **options)
    assert declared(tmp_path / "own")["format"] == "run `compressor restore`"


def test_our_own_layout_is_marked_by_a_scheme_that_loaders_can_parse(tmp_path: Path) -> None:
    """So that their messages end in the format, which says what to do."""
    api.quantize(moe_folder(tmp_path / "model"), tmp_path / "out", bits=3, group_size=32)
    group = declared(tmp_path / "out")["config_groups"]["compressor"]
    assert group["format"] == "run `compressor restore`"
    assert group["weights"] == {
        "num_bits": 8,
        "type": "int",
        "symmetric": True,
        "strategy": "tensor",
        "dynamic": False,
    }


def test_a_quantized_head_is_named_in_the_targets(tmp_path: Path) -> None:
    """vLLM's head is no Linear."""
    model = moe_folder(tmp_path / "model")
    api.quantize(model, tmp_path / "out", include=["*_proj.weight", "lm_head.weight"], **BITS)
    (group,) = declared(tmp_path / "out")["config_groups"].values()
    assert group["targets"] == ["Linear", r"re:(.*\.)?lm_head$"]
    assert experts_module("lm_head.weight") is None


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"bits": 8, "layout": "int-quantized"}, "refuses to load them"),
        ({"scheme": "nvfp4"}, "off by orders of magnitude"),
        ({"scheme": "mxfp8"}, "refuses to load them"),
        ({**BITS, "rules": [("*.1.mlp.experts.*", {"bits": 8})]}, "experts of some layers have another scheme"),
        (BITS, ""),
        ({"bits": 8, "granularity": "group", "group_size": 32}, ""),
        ({"scheme": "mxfp4"}, ""),
        ({"scheme": "fp8", "granularity": "channel"}, ""),
    ],
)
def test_what_transformers_does_with_experts_is_said(tmp_path: Path, options: dict[str, Any], said: str) -> None:
    report = api.quantize(moe_folder(tmp_path / "model"), tmp_path / "out", dry_run=True, **options)
    notes = [note for note in report.plan.notes if note.startswith("experts ")]
    assert any(said in note for note in notes) if said else not notes
