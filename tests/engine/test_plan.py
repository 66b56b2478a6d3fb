"""What a plan says of itself, and what it leaves alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.console import TEACHER

from compressor import api
from compressor.core.tensor import TensorSpec
from compressor.recipe.selection import left_alone


def test_equal_work_has_equal_plans(tmp_path: Path) -> None:
    plans = []
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        source = tmp_path / folder / "in.safetensors"
        source.write_bytes(TEACHER.read_bytes())
        plans.append(api.quantize(source, tmp_path / folder / "out.safetensors", bits=8, dry_run=True).plan)
    assert plans[0].fingerprint == plans[1].fingerprint
    other = api.quantize(TEACHER, tmp_path / "out.safetensors", bits=7, granularity="channel", dry_run=True).plan
    assert other.fingerprint != plans[0].fingerprint
    assert str(tmp_path) not in json.dumps(plans[0].to_dict())


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("model.embed_tokens.weight", "embedding"),
        ("bert.embeddings.word_embeddings.weight", "embedding"),
        ("transformer.wte.weight", "embedding"),
        ("shared.weight", "embedding"),
        ("lm_head.weight", "output head"),
        ("output.weight", "output head"),
        ("embed_out.weight", "output head"),
        ("model.layers.3.mlp.gate.weight", "router"),
        ("block_sparse_moe.router.weight", "router"),
        ("mlp.shared_expert_gate.weight", "router"),
        ("model.layers.0.mlp.gate_proj.weight", None),
        ("encoder.layer.0.output.dense.weight", None),
        ("mlp.shared.up_proj.weight", None),
        ("fc1.weight", None),
    ],
)
def test_what_is_left_alone_in_language_models(name: str, reason: str | None) -> None:
    spec = TensorSpec(name, "BF16", (4, 4))
    for verb in ("prune", "quantize"):
        found = left_alone(spec, verb, (), ())
        assert (found.reason.split(" (")[0] if found else None) == reason
        assert left_alone(spec, verb, ("*",), ()) is None
    assert left_alone(spec, "distill", (), ()) is None
    excluded = left_alone(spec, "prune", ("*",), ("*weight",))
    assert excluded is not None
    assert excluded.asked
