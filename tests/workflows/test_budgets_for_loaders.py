"""Budgets under `--for LOADER`: what is chosen from is what that loader takes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file
from support.moe_folders import runnable_moe

from compressor import api
from compressor.core.errors import UsageError


def schemes(path: Path) -> dict[str, list[str]]:
    """The formats of a folder's codes, with the modules that have them."""
    said = json.loads((path / "config.json").read_text())["quantization_config"]
    return {
        f"{group['format']} {group['weights']['num_bits']}": group["targets"]
        for group in said["config_groups"].values()
    }


@pytest.mark.parametrize("bits", [4.6, 6.0, 7.5])
def test_experts_have_one_scheme_for_transformers_and_one_that_it_joins(tmp_path: Path, bits: float) -> None:
    model = runnable_moe(tmp_path / "model")
    report = api.quantize(model, tmp_path / "out", target_bits=bits, loader="transformers")
    stored = [job for job in report.plan.jobs if job.encoder is not None]
    assert stored
    assert not any(job.encoder.id == "nvfp4" for job in stored if job.encoder)
    experts = {
        json.dumps(job.encoder.config(job.spec), sort_keys=True)
        for job in stored
        if ".experts." in job.spec.name and job.encoder is not None
    }
    assert len(experts) <= 1


def test_what_no_candidate_is_taken_of_stays_dense_with_the_reason(tmp_path: Path) -> None:
    model = runnable_moe(tmp_path / "model")
    report = api.quantize(model, tmp_path / "out", target_bits=5, loader="mlx")
    reasons = {job.spec.name: job.left_alone[0].reason for job in report.plan.jobs if job.left_alone}
    assert "joins their weights without their scales" in reasons["model.layers.0.mlp.experts.0.down_proj.weight"]
    assert any(job.encoder is not None and "self_attn" in job.spec.name for job in report.plan.jobs)


def test_a_candidate_that_the_loader_takes_of_no_tensor_is_an_error(tmp_path: Path) -> None:
    model, options = runnable_moe(tmp_path / "model"), ["int:bits=4,granularity=tensor", "int8g128", "dense"]
    asked: dict[str, Any] = {"target_bits": 9, "candidates": options, "loader": "vllm"}
    with pytest.raises(
        UsageError, match=r"--for vllm: candidate int:bits=4.*no scheme for one scale a tensor"
    ) as got:
        api.quantize(model, tmp_path / "out", **asked)
    assert got.value.remedy == "Leave it out, or give --allow-unmatched"
    report = api.quantize(model, tmp_path / "out", **asked, allow_unmatched=True)
    assert set(schemes(tmp_path / "out")) == {"pack-quantized 8"}
    assert report.allocation is not None
    api.quantize(model, tmp_path / "less", **{**asked, "candidates": options[1:]})


def test_there_is_nothing_to_decide_where_the_loader_takes_nothing(tmp_path: Path) -> None:
    """GPT-2's weights lie transposed, and transformers takes no codes of such layers."""
    (tmp_path / "model").mkdir()
    shapes = {"h.0.attn.c_attn.weight": (64, 192), "h.0.mlp.c_fc.weight": (64, 256)}
    save_file(
        {name: np.ones(shape, np.float32) for name, shape in shapes.items()}, tmp_path / "model/model.safetensors"
    )
    config = {"model_type": "gpt2", "n_embd": 64, "n_head": 2, "n_layer": 1}
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        UsageError, match=r"--for transformers: there is nothing to decide: transformers .* takes no"
    ):
        api.quantize(tmp_path / "model", tmp_path / "out", target_bits=5, loader="transformers")
