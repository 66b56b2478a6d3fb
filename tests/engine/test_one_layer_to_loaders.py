"""What loaders take as one layer has one scheme: fused projections, and all experts of a layer."""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from support.moe_folders import moe_folder

from compressor import api
from compressor.architectures.fused_layers import experts_module, one_scheme
from compressor.core.errors import CompressorError, UsageError, problems_of

BITS: dict[str, Any] = {"bits": 4, "group_size": 32}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return moe_folder(tmp_path / "model")


def schemes(report: Any) -> dict[str, set[str]]:
    """What the tensors of each group become."""
    found = defaultdict(set)
    for job in report.plan.jobs:
        whole = one_scheme(job.spec.name, ("compressed-tensors",))
        if whole is not None:
            found[whole].add(job.dtype_after)
    return dict(found)


@pytest.mark.parametrize(
    ("name", "whole"),
    [
        ("model.layers.0.mlp.experts.11.down_proj.weight", "model.layers.0.mlp.experts"),
        ("model.layers.0.block_sparse_moe.experts.1.w1.weight", "model.layers.0.block_sparse_moe.experts"),
        ("experts.0.up_proj.weight", "experts"),
        ("model.layers.0.mlp.shared_experts.down_proj.weight", None),
        ("model.layers.0.mlp.experts.down_proj", None),
        ("model.layers.0.mlp.experts.0.up_proj.bias", None),
    ],
)
def test_the_experts_of_a_layer_are_one(name: str, whole: str | None) -> None:
    assert experts_module(name) == whole


@pytest.mark.parametrize("layout", ["auto", "gptq"])
def test_the_preset_gives_experts_one_scheme(tmp_path: Path, model: Path, layout: str) -> None:
    report = api.quantize(model, tmp_path / "out", preset="q4_mixed", group_size=32, layout=layout, dry_run=True)
    found = schemes(report)
    assert all(len(one) == 1 for one in found.values()), found
    assert {"int4", "int8"} <= {job.dtype_after for job in report.plan.jobs}


def test_mlx_gets_no_codes_of_experts(tmp_path: Path, model: Path) -> None:
    """mlx-lm stacks the weights of these experts, and no scales."""
    options: dict[str, Any] = {"preset": "q4_mixed", "group_size": 32, "layout": "mlx", "dry_run": True}
    with pytest.raises(UsageError, match="int4 of experts: no loader takes such a folder") as caught:
        api.quantize(model, tmp_path / "out", **options)
    assert caught.value.remedy == "Leave them dense by --exclude '*.experts.*'"
    report = api.quantize(model, tmp_path / "out", exclude=["*.experts.*"], **options)
    assert {"int4", "int6"} <= {job.dtype_after for job in report.plan.jobs}


@pytest.mark.parametrize("target", [{"target_bits": 5.0}, {"target_ratio": 2.5}])
def test_a_budget_gives_them_one_scheme(tmp_path: Path, model: Path, target: dict[str, Any]) -> None:
    candidates = ("int4g32", "int4g64", "int8g32", "dense")
    report = api.quantize(model, tmp_path / "out", scheme="auto", candidates=candidates, **target, dry_run=True)
    found = schemes(report)
    assert all(len(one) == 1 for one in found.values()), found
    assert len({job.dtype_after for job in report.plan.jobs}) > 1


APART: dict[str, dict[str, Any]] = {
    "one projection of the experts excluded": {"exclude": ["*.down_proj.weight"]},
    "one expert excluded": {"exclude": ["*.experts.1.*"]},
    "only some included": {"include": ["*.experts.0.*"]},
    "other bits for some": {"rules": [("*.experts.*.down_proj.weight", {"bits": 8})]},
    "other groups for one": {"rules": [("*.0.mlp.experts.2.up_proj.weight", {"group_size": 64})]},
    "a part of q, k, v excluded": {"exclude": ["*.v_proj.weight"]},
    "other bits for a part of q, k, v": {"rules": [("*.v_proj.weight", {"bits": 8})]},
}


@pytest.mark.parametrize(
    ("said", "layout"), [(said, "auto") for said in APART] + [(said, "gptq") for said in APART if "q, k, v" in said]
)
def test_what_would_tear_them_apart_is_refused_with_the_way_on(
    tmp_path: Path, model: Path, said: str, layout: str
) -> None:
    """And the pattern that the message gives is one by which the command goes through."""
    options: dict[str, Any] = {**APART[said], "layout": layout, **BITS}
    with pytest.raises(CompressorError) as caught:
        api.quantize(model, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()
    problems = problems_of(caught.value)
    assert all(isinstance(one, UsageError) and "has one scheme" in one.reason for one in problems)
    named = {found[1] for one in problems if (found := re.search(r"by '(.*)'$", one.remedy))}
    assert named
    api.quantize(model, tmp_path / "excluded", **{**options, "exclude": sorted(named)})
    rules = [(text, {"bits": 8}) for text in sorted(named)]
    whole = {key: value for key, value in options.items() if key not in ("exclude", "include")}
    report = api.quantize(model, tmp_path / "set", **{**whole, "rules": rules})
    assert all(len(one) == 1 for one in schemes(report).values())


def test_what_stands_in_for_a_scheme_does_so_in_all_of_them(tmp_path: Path) -> None:
    """Rows of 64 and of 32: groups of 64 do not divide the latter."""
    model = moe_folder(tmp_path / "model", inner=32)
    report = api.quantize(model, tmp_path / "out", bits=4, group_size=64, fallback=True)
    experts = [job for job in report.plan.jobs if experts_module(job.spec.name)]
    assert {job.encoder.config(job.spec)["weights"]["strategy"] for job in experts if job.encoder} == {"channel"}
    assert any("as one layer with it" in job.steps[-1].instead for job in experts)
    assert any("do not divide" in job.steps[-1].instead for job in experts)
    api.restore(tmp_path / "out", tmp_path / "back")


def test_a_single_file_is_for_no_loader(tmp_path: Path, model: Path) -> None:
    api.quantize(
        model / "model.safetensors",
        tmp_path / "out.safetensors",
        exclude=["*.v_proj.weight", "*.experts.1.*"],
        **BITS,
    )
