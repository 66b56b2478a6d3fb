"""Histograms against NumPy's, and what a run measures against what its output restores to."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from compressor import api
from compressor.core.histogram import BINS, Histogram, histogram
from compressor.core.workspace import Workspace


def reference(values: Any, power: int) -> list[int]:
    """Counts of what is not zero, by NumPy, in bins that hold their lower edge."""
    edges = (np.arange(BINS + 1) - BINS // 2) * 2.0**power
    flat = values[values != 0].astype(np.float64)
    return [int(np.count_nonzero((flat >= low) & (flat < high))) for low, high in pairwise(edges)]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("scale", [1e-30, 0.02, 1.0, 3e30])
def test_counts_are_those_of_numpy(dtype: type, scale: float) -> None:
    random = np.random.default_rng(1)
    before = (random.standard_normal((30, 40)) * scale).astype(dtype)
    after = np.where(np.abs(before) > scale / 2, np.round(before / scale) * scale, 0).astype(dtype)
    found = histogram(before, after, Workspace())
    assert found is not None
    assert found.before == reference(before, found.power)
    assert found.after == reference(after, found.power)
    assert sum(found.before) == np.count_nonzero(before)
    assert sum(map(bool, found.before)) > BINS // 8  # the bins are neither too wide nor too narrow


def test_of_zeros_there_is_none() -> None:
    assert histogram(np.zeros((2, 3), "f4"), np.zeros((2, 3), "f4"), Workspace()) is None


@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=2, max_size=40), st.integers(1, 39))
def test_blocks_merge_to_the_whole_in_any_order(numbers: list[float], cut: int) -> None:
    whole = np.array(numbers, "f4")
    pieces = [histogram(part, part, Workspace()) for part in (whole[:cut], whole[cut:])]
    expected = histogram(whole, whole, Workspace())
    for order in (pieces, pieces[::-1]):
        found: Histogram | None = None
        for one in order:
            if found is None:
                found = None if one is None else Histogram(one.power, one.before, one.after)
            elif one is not None:
                found.merge(one)
        assert found == expected


WAYS: dict[str, dict[str, Any]] = {
    "int4": {"bits": 4},
    "int4 asymmetric": {"bits": 4, "symmetric": False},
    "int8 channel": {"bits": 8, "granularity": "channel"},
    "fp8": {"scheme": "fp8"},
    "nvfp4": {"scheme": "nvfp4"},
    "nf4": {"scheme": "nf4"},
    "codebook": {"scheme": "codebook"},
    "uniform": {"scheme": "uniform", "step": 0.01},
    "binary": {"scheme": "binary"},
    "dense": {"bits": 4, "store": "dense"},
    "sparse": {"bits": 4, "store": "smallest"},
}


@pytest.mark.parametrize("way", WAYS)
def test_after_is_what_is_restored(way: str, tmp_path: Path) -> None:
    """The same bytes as without, the same figures, and counts of the numbers that `restore` gives."""
    source = tmp_path / "m.safetensors"
    weight = np.random.default_rng(7).standard_normal((600, 512)).astype(np.float32)  # more than a block
    save_file({"a.weight": weight, "b.weight": weight[:4, :128].copy()}, source)
    plain = api.quantize(source, tmp_path / "p.safetensors", **WAYS[way])
    report = api.quantize(source, tmp_path / "q.safetensors", histograms=True, **WAYS[way])
    assert (tmp_path / "p.safetensors").read_bytes() == (tmp_path / "q.safetensors").read_bytes()
    api.restore(tmp_path / "q.safetensors", tmp_path / "r.safetensors")
    restored = load_file(tmp_path / "r.safetensors")
    for (job, change), (_, without) in zip(report.rows, plain.rows, strict=True):
        assert change is not None
        assert without is not None
        assert without.histogram is None
        assert (change.lost, change.energy) == pytest.approx((without.lost, without.energy), rel=1e-6)
        found = change.histogram
        assert found is not None
        original = weight if job.spec.name == "a.weight" else weight[:4, :128]
        assert found.before == reference(original, found.power)
        assert found.after == reference(restored[job.spec.name], found.power)


def test_of_pruned_weights(tmp_path: Path) -> None:
    source = tmp_path / "m.safetensors"
    weight = np.random.default_rng(7).standard_normal((600, 512)).astype(np.float32)
    save_file({"a.weight": weight}, source)
    report = api.prune(source, tmp_path / "p.safetensors", sparsity=0.5, histograms=True)
    ((_, change),) = report.rows
    assert change is not None
    assert change.histogram is not None
    assert change.histogram.before == reference(weight, change.histogram.power)
    assert change.histogram.after == reference(
        load_file(tmp_path / "p.safetensors")["a.weight"], change.histogram.power
    )
