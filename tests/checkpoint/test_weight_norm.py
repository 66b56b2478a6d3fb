"""A gain beside a direction: left alone and noted, or folded into the weight on request."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from support.fault_injection import invoke, is_one_line

import compressor
from compressor import UsageError

Array = Any
OLD, NEW = ("weight_g", "weight_v"), ("parametrizations.weight.original0", "parametrizations.weight.original1")
SHAPES: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "linear": ((64, 96), (64, 1)),
    "convolution": ((48, 16, 3), (48, 1, 1)),
    "along the last axis": ((32, 8, 128), (1, 1, 128)),
    "along the second": ((8, 16, 3, 3), (1, 16, 1, 1)),
    "one number": ((16, 24), ()),
    "one row": ((1, 24), (1, 1)),
    "several blocks": ((96, 9000), (96, 1)),
    "several blocks along the last": ((600, 900), (1, 900)),
}


def pair(shape: str, spelling: tuple[str, str], dtype: Any = np.float32) -> tuple[dict[str, Array], Array]:
    """The tensors of a layer, and the weight by its definition, rounded where the tool rounds."""
    random = np.random.default_rng(4)
    of_direction, of_gain = SHAPES[shape]
    direction = random.standard_normal(of_direction).astype(dtype)
    gain = np.array(random.random(of_gain) + 0.5, dtype)
    axes = tuple(k for k in range(len(of_direction)) if not of_gain or of_gain[k] == 1)
    norm = np.sqrt((direction.astype(np.float64) ** 2).sum(axis=axes, keepdims=True))
    compute = np.float64 if dtype == np.float64 else np.float32
    weight = (direction.astype(compute) * (gain.astype(compute) / norm.astype(compute))).astype(dtype)
    bias = np.ones(of_direction[0], dtype)
    return {f"conv.{spelling[0]}": gain, f"conv.{spelling[1]}": direction, "conv.bias": bias}, weight


def bits(array: Array) -> bytes:
    return array.tobytes()


@pytest.mark.parametrize("spelling", [OLD, NEW], ids=["old", "new"])
@pytest.mark.parametrize("shape", SHAPES)
def test_they_are_folded_on_request(tmp_path: Path, shape: str, spelling: tuple[str, str]) -> None:
    content, weight = pair(shape, spelling)
    save_file(content, tmp_path / "in.safetensors")
    report = compressor.restore(tmp_path / "in.safetensors", tmp_path / "o.safetensors", fold_weight_norm=True)
    found = load_file(tmp_path / "o.safetensors")
    assert set(found) == {"conv.weight", "conv.bias"}
    # a norm's last bit may go another way where its sum is within a float64's rounding of a tie
    assert (found["conv.weight"] == weight).mean() > 0.98
    np.testing.assert_allclose(found["conv.weight"], weight, rtol=3e-7)
    assert "weights of weight norm (1), as 'conv.weight': gain and direction are folded" in " ".join(
        report.plan.notes
    )


@pytest.mark.parametrize("dtype", [np.float64, np.float16, ml_dtypes.bfloat16])
def test_their_dtypes(tmp_path: Path, dtype: Any) -> None:
    content, weight = pair("convolution", NEW, dtype)
    save_file(content, tmp_path / "in.safetensors")
    compressor.restore(tmp_path / "in.safetensors", tmp_path / "o.safetensors", fold_weight_norm=True)
    found = load_file(tmp_path / "o.safetensors")["conv.weight"]
    assert found.dtype == dtype
    np.testing.assert_allclose(found.astype(np.float64), weight.astype(np.float64), rtol=1e-15)


def test_every_verb_takes_what_is_folded(tmp_path: Path) -> None:
    content, weight = pair("linear", OLD)
    source = tmp_path / "in.safetensors"
    save_file(content, source)
    compressor.prune(source, tmp_path / "p.safetensors", sparsity=0.5, fold_weight_norm=True)
    pruned = load_file(tmp_path / "p.safetensors")["conv.weight"]
    kept = pruned != 0
    assert kept.mean() == 0.5
    np.testing.assert_allclose(pruned[kept], weight[kept], rtol=3e-7)
    assert abs(weight[~kept]).max() <= abs(weight[kept]).min() * (1 + 1e-6)
    compressor.quantize(source, tmp_path / "q.safetensors", bits=8, granularity="channel", fold_weight_norm=True)
    compressor.restore(tmp_path / "q.safetensors", tmp_path / "r.safetensors")
    restored = load_file(tmp_path / "r.safetensors")["conv.weight"]
    np.testing.assert_allclose(restored, weight, atol=abs(weight).max() / 100)
    compressor.distill(source, tmp_path / "d.safetensors", teacher=source, method="blend", fold_weight_norm=True)
    np.testing.assert_allclose(load_file(tmp_path / "d.safetensors")["conv.weight"], weight, rtol=1e-6)
    for name, content in (("b", {"target_ratio": 2.0}), ("t", {"scheme": "auto", "min_sqnr": 20.0})):
        report = compressor.quantize(source, tmp_path / f"{name}.safetensors", fold_weight_norm=True, **content)
        assert any(job.spec.name == "conv.weight" and job.steps for job in report.plan.jobs)


@pytest.mark.parametrize("workers", [1, 3])
def test_workers_give_the_same_bytes(tmp_path: Path, workers: int) -> None:
    content, _ = pair("several blocks", OLD)
    save_file(content, tmp_path / "in.safetensors")
    one, many = tmp_path / "1.safetensors", tmp_path / "n.safetensors"
    compressor.restore(tmp_path / "in.safetensors", one, fold_weight_norm=True, workers=1)
    compressor.restore(tmp_path / "in.safetensors", many, fold_weight_norm=True, workers=workers)
    assert one.read_bytes() == many.read_bytes()


@pytest.mark.parametrize("spelling", [OLD, NEW], ids=["old", "new"])
def test_without_a_request_the_gain_stays_and_the_plan_says_so(tmp_path: Path, spelling: tuple[str, str]) -> None:
    content, _ = pair("convolution", spelling)
    save_file(content, tmp_path / "in.safetensors")
    report = compressor.prune(tmp_path / "in.safetensors", tmp_path / "o.safetensors", sparsity=0.5)
    found = load_file(tmp_path / "o.safetensors")
    assert bits(found[f"conv.{spelling[0]}"]) == bits(content[f"conv.{spelling[0]}"])
    assert (found[f"conv.{spelling[1]}"] == 0).mean() == 0.5
    assert "--fold-weight-norm makes one tensor of both" in " ".join(report.plan.notes)


def test_what_is_no_weight_norm(tmp_path: Path) -> None:
    """A gain of another shape, a direction alone, one whose weight is there, names that only look alike."""
    tensors = {
        "a.weight_g": (4, 3),
        "a.weight_v": (4, 6),
        "b.weight_v": (4, 6),
        "c.weight_g": (4, 1),
        "c.weight_v": (4, 6),
        "c.weight": (4, 6),
        "lora_g": (4, 1),
        "lora_v": (4, 6),
    }
    save_file({name: np.ones(shape, np.float32) for name, shape in tensors.items()}, tmp_path / "in.safetensors")
    with pytest.raises(UsageError, match="no gain"):
        compressor.restore(tmp_path / "in.safetensors", tmp_path / "o.safetensors", fold_weight_norm=True)
    report = compressor.restore(tmp_path / "in.safetensors", tmp_path / "o.safetensors")
    assert not any("weight norm" in note for note in report.plan.notes)


def test_a_direction_of_zeros_is_refused(tmp_path: Path) -> None:
    content, _ = pair("linear", OLD)
    content["conv.weight_v"][5] = 0
    save_file(content, tmp_path / "in.safetensors")
    out = tmp_path / "o.safetensors"
    for command in (["restore"], ["prune", "--sparsity", "0.5"], ["quantize", "--bits", "8"]):
        code, lines = invoke([*command, str(tmp_path / "in.safetensors"), "-o", str(out), "--fold-weight-norm"])
        assert code == 3, lines
        assert is_one_line(lines)
        assert "conv.weight_v': a direction of weight norm is all zeros" in lines[0]
        assert not out.exists()
