"""Pruning against plain definitions: rows, blocks, N:M, random draws, floors and LAMP over several tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from safetensors.numpy import load_file, save_file
from support.laws import FLOATS, numbers, run, store

import compressor
from compressor.core.errors import Problems, UsageError
from compressor.core.tensor import TensorSpec
from compressor.core.workspace import Workspace
from compressor.methods.contract import Block
from compressor.methods.prune.layer_adaptive import LayerAdaptive
from compressor.methods.registry import methods_of

Array = Any


def made(name: str, **options: Any) -> Any:
    return methods_of("prune")[name](**options)


def matrix(data: st.DataObject, dtype: str, rows: int, columns: int) -> Array:
    """Few different values, so that there are many ties, and zeros of both signs."""
    random = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    values = random.integers(-3, 4, (rows, columns)) * 0.25
    values[random.random((rows, columns)) < 0.1] = -0.0
    return store(values, dtype)


def smallest_first(magnitudes: Array, count: int) -> Array:
    """The mask of what stays when `count` of a vector go by a stable sort."""
    keep = np.ones(magnitudes.size, bool)
    keep[np.argsort(magnitudes, kind="stable")[:count]] = False
    return keep


@given(data=st.data(), dtype=st.sampled_from(FLOATS))
@settings(max_examples=60)
def test_rows_and_blocks_are_stable_sorts(data: st.DataObject, dtype: str) -> None:
    rows, size, blocks = data.draw(st.integers(1, 9)), data.draw(st.integers(2, 12)), data.draw(st.integers(1, 3))
    sparsity = data.draw(st.sampled_from([0.0, 0.1, 0.5, 0.8, 0.99]))
    by_row = data.draw(st.booleans())
    raw = matrix(data, dtype, rows, size * blocks)
    options: dict[str, Any] = {"granularity": "row"} if by_row else {"granularity": "block", "block_size": size}
    found = run(made("magnitude", sparsity=sparsity, **options), TensorSpec("w", dtype, raw.shape), raw).restored
    parts = np.abs(numbers(raw, dtype)).reshape(-1, size * blocks if by_row else size)
    keep = np.array([smallest_first(part, round(sparsity * part.size)) for part in parts]).reshape(raw.shape)
    assert np.array_equal(found, np.where(keep, numbers(raw, dtype), 0))


@given(data=st.data(), dtype=st.sampled_from(FLOATS), m=st.sampled_from([2, 3, 4, 8, 17, 20]))
@settings(max_examples=60)
def test_nm_keeps_the_n_largest_of_every_m(data: st.DataObject, dtype: str, m: int) -> None:
    n, tail = data.draw(st.integers(1, m - 1)), data.draw(st.integers(0, m - 1))
    raw = matrix(data, dtype, data.draw(st.integers(1, 5)), m * data.draw(st.integers(0, 3)) + tail)
    if not raw.size:
        return
    method = made("nm", pattern=f"{n}:{m}")
    spec = TensorSpec("w", dtype, raw.shape)
    found, weights = run(method, spec, raw).restored, numbers(raw, dtype)
    whole = raw.shape[1] - tail
    expected = weights.copy()
    for row, start in np.ndindex(len(raw), whole // m):
        block = expected[row, start * m : (start + 1) * m]
        gone = np.argsort(-np.abs(block), kind="stable")[n:]  # of equals the first stays
        block[gone] = 0
    assert np.array_equal(found, expected)
    assert bool(method.partial_treatment(spec)) == bool(tail)


@pytest.mark.parametrize("pattern", ["4:2", "2:2", "0:4", "2", "2:4:8", "-1:4", "a:b", "٢:٤", ""])
def test_patterns_that_make_no_sense(pattern: str) -> None:
    with pytest.raises(UsageError, match="pattern must be N:M"):
        made("nm", pattern=pattern)


@pytest.mark.parametrize("sparsity", [0.0, 0.25, 0.5, 0.9])
def test_random_draws_exactly_its_share_by_seed_and_name(sparsity: float) -> None:
    raw = store(np.random.default_rng(0).standard_normal((40, 33)) + 10, "F32")

    def draw(seed: int, name: str, size: int = 99) -> Array:
        method = made("random", sparsity=sparsity, seed=seed)
        return run(method, TensorSpec(name, "F32", raw.shape), raw, size=size).restored == 0

    assert np.count_nonzero(draw(1, "w")) == round(sparsity * raw.size)
    assert np.array_equal(draw(1, "w"), draw(1, "w", size=7))
    if sparsity in (0.25, 0.5):
        assert not np.array_equal(draw(1, "w"), draw(2, "w"))
        assert not np.array_equal(draw(1, "w"), draw(1, "v"))
        assert np.abs(draw(1, "w").mean(axis=0) - sparsity).max() < 0.35  # no column is favoured


def test_random_takes_zeros_first_when_asked() -> None:
    raw = store(np.where(np.arange(100) % 4 == 0, 0, 1.0).reshape(10, 10), "F32")
    spec = TensorSpec("w", "F32", raw.shape)
    found = run(made("random", sparsity=0.3, respect_zeros=True), spec, raw).restored
    assert np.count_nonzero(found == 0) == 30
    free = run(made("random", sparsity=0.3), spec, raw).restored
    assert np.count_nonzero(free == 0) > 30


# ---- several tensors -------------------------------------------------------------------------------------------


@pytest.fixture
def layers(tmp_path: Path) -> Path:
    """Layers whose scales differ by orders of magnitude."""
    random = np.random.default_rng(5)
    tensors = {
        f"{name}.weight": (random.standard_normal(shape) * scale).astype(np.float32)
        for name, shape, scale in (("a", (20, 30), 1.0), ("b", (16, 10), 0.01), ("c", (8, 64), 0.1))
    }
    save_file(tensors, tmp_path / "in.safetensors")
    return tmp_path / "in.safetensors"


def pruned(source: Path, **options: Any) -> tuple[dict[str, Array], dict[str, Array]]:
    out = source.with_name("out.safetensors")
    compressor.prune(source, out, force=True, **options)
    return load_file(source), load_file(out)


def share(found: Array) -> float:
    return float(np.mean(found == 0))


@pytest.mark.parametrize("floor", [0.05, 0.2, 0.4])
def test_a_floor_keeps_every_tensor_and_the_total_exact(layers: Path, floor: float) -> None:
    before, plain = pruned(layers, sparsity=0.6, scope="global")
    assert share(plain["b.weight"]) == 1  # what the floor is for
    before, after = pruned(layers, sparsity=0.6, scope="global", min_keep=floor)
    total = sum(weights.size for weights in before.values())
    assert sum(np.count_nonzero(weights == 0) for weights in after.values()) == round(0.6 * total)
    for name, weights in after.items():
        assert share(weights) <= 1 - floor + 1e-9
        kept = weights != 0
        assert np.abs(before[name][~kept]).max() <= np.abs(before[name][kept]).min()  # the smallest of each


def lamp(weights: Array) -> Array:
    """The paper's scores, weight by weight."""
    flat = np.abs(weights.astype(np.float64)).reshape(-1)
    order = np.argsort(flat, kind="stable")
    rest = np.cumsum(flat[order][::-1] ** 2)[::-1]
    scores = np.empty_like(flat)
    scores[order] = flat[order] ** 2 / rest
    return scores


@pytest.mark.parametrize("sparsity", [0.3, 0.6, 0.95])
def test_layer_adaptive_follows_the_papers_scores(layers: Path, sparsity: float) -> None:
    before, after = pruned(layers, method="layer-adaptive", sparsity=sparsity)
    total = sum(weights.size for weights in before.values())
    gone = round(sparsity * total)
    assert sum(np.count_nonzero(weights == 0) for weights in after.values()) == gone
    scores = {name: lamp(weights) for name, weights in before.items()}
    limit = np.sort(np.concatenate(list(scores.values())))[gone]
    for name, weights in after.items():
        exact = np.count_nonzero(scores[name] < limit)
        assert abs(np.count_nonzero(weights == 0) - exact) <= 0.02 * weights.size + 2  # bins are 1/128 wide
        assert share(weights) < 1


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"sparsity": 0.5, "scope": "global", "granularity": "row"}, "scope cannot be global"),
        ({"sparsity": 0.5, "granularity": "block"}, "go together"),
        ({"sparsity": 0.5, "block_size": 8}, "go together"),
        ({"sparsity": 0.5, "min_keep": 0.1}, "min_keep is for scope global"),
        ({"sparsity": 0.95, "scope": "global", "min_keep": 0.1}, "more than the whole"),
        ({"method": "layer-adaptive", "sparsity": 0.95, "min_keep": 0.1}, "more than the whole"),
    ],
)
def test_options_that_contradict_each_other(options: dict[str, Any], reason: str, layers: Path) -> None:
    with pytest.raises(UsageError, match=reason):
        pruned(layers, **options)


def test_a_block_must_divide_the_row(layers: Path) -> None:
    with pytest.raises((UsageError, Problems)) as caught:
        pruned(layers, sparsity=0.5, granularity="block", block_size=16)
    assert "block size 16 does not divide the row of 30" in str(caught.value)


def test_the_report_tells_of_tails(layers: Path, tmp_path: Path) -> None:
    report = compressor.prune(layers, tmp_path / "o.safetensors", pattern="2:4")
    said = {job.spec.name: step.instead for job in report.plan.jobs for step in job.steps}
    two = "the last 2 columns of a row fill no block of 4, and stay"
    assert said == {"a.weight": two, "b.weight": two, "c.weight": ""}


@pytest.mark.parametrize("sparsity", [0.0, 0.37, 0.5, 0.9])
def test_many_small_tensors_share_a_global_cut_with_ties(sparsity: float, tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    tensors = {f"t{number:03d}": rng.integers(-4, 5, (4, 8)).astype(np.float32) for number in range(300)}
    save_file(tensors, tmp_path / "in.safetensors")
    compressor.prune(tmp_path / "in.safetensors", tmp_path / "out.safetensors", sparsity=sparsity, scope="global")
    every = np.concatenate([tensors[name].reshape(-1) for name in sorted(tensors)])
    every[np.argsort(np.abs(every), kind="stable")[: round(sparsity * every.size)]] = 0
    found = load_file(tmp_path / "out.safetensors")
    assert np.array_equal(np.concatenate([found[name].reshape(-1) for name in sorted(found)]), every)


def test_shares_of_many_tensors_are_few_numbers() -> None:
    """A histogram of 65,536 bins a tensor would be half a gigabyte for a thousand of them."""
    spec = TensorSpec("t", "F32", (4, 8))
    survey = LayerAdaptive(sparsity=0.5).prepare([spec])
    values = np.random.default_rng(0).standard_normal(spec.shape).astype(np.float32)
    stats = survey.observe(Block(values, 0, spec, Workspace(), {}), survey.start())
    assert sum(part.nbytes for part in stats["t"]) <= 16 * spec.size
