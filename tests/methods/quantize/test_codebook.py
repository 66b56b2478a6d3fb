"""Codebooks, binary and ternary weights: optimal where they say so, and in bytes as documented."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import example, given, settings
from support import archives
from support.laws import FLOATS, Array, check_laws, decode, edges, numbers, run, same_bits, store

from compressor import api
from compressor.core.errors import InputError, Problems, UsageError
from compressor.core.floats import largest
from compressor.core.tensor import DTYPES, TensorSpec
from compressor.core.workspace import Workspace
from compressor.methods.numerics import bit_patterns
from compressor.methods.numerics import nearest as nearest_codes
from compressor.methods.numerics.bit_patterns import Patterns
from compressor.methods.numerics.kmeans import centroids, sort_points
from compressor.methods.numerics.nearest import nearest
from compressor.methods.quantize import codebook
from compressor.methods.quantize.binary import Binary
from compressor.methods.quantize.codebook import Codebook
from compressor.methods.quantize.ternary import Ternary, pack_base3, unpack_base3
from compressor.methods.registry import methods_of


def spec_of(raw: Array, dtype: str = "F32", name: str = "w") -> TensorSpec:
    return TensorSpec(name, dtype, raw.shape)


def lost(weights: Array, restored: Array) -> float:
    difference = weights.astype(np.float64) - restored
    return float(np.sum(difference * difference))


def error(method: Any, weights: Array) -> float:
    found = run(method, spec_of(weights), weights, size=128).restored
    return float(np.sqrt(lost(weights, found) / np.sum(weights.astype(np.float64) ** 2)))


@pytest.fixture(scope="module")
def normal() -> Array:
    """Normally distributed, none of them zero."""
    return np.random.default_rng(0).standard_normal((512, 4096)).astype(np.float32)


# ---- codebooks: the optimum ----------------------------------------------------------------------------


def best_loss(weights: Array, entries: int) -> float:
    """Of all partitions of the sorted weights into cells; with zeros among them one centroid is zero."""
    ordered = np.sort(weights.reshape(-1).astype(np.float64))
    size, zeros = ordered.size, bool((ordered == 0).any())
    best = np.inf
    for cells in range(1, min(entries, size) + 1):
        for cuts in combinations(range(1, size), cells - 1):
            total = 0.0
            for first, last in pairwise((0, *cuts, size)):
                cell = ordered[first:last]
                centre = 0.0 if zeros and (cell == 0).any() else cell.mean()
                total += float(np.sum((cell - centre) ** 2))
            best = min(best, total)
    return best


@given(
    weights=st.lists(st.integers(-12, 12).map(lambda n: n / 4), min_size=1, max_size=9),
    entries=st.integers(2, 5),
    rows=st.sampled_from([None, 1]),
    dtype=st.sampled_from(["F64", "F32"]),
)
@settings(max_examples=150)
@example(weights=[-1.0, 0.0, 0.25, 3.0, 3.0], entries=2, rows=None, dtype="F32")
@example(weights=[0.0], entries=2, rows=1, dtype="F32")
def test_no_partition_loses_less(weights: list[float], entries: int, rows: int | None, dtype: str) -> None:
    raw = store([weights], dtype)
    found = run(Codebook(entries=entries, rows=rows), spec_of(raw, dtype), raw)
    assert lost(raw, found.restored) <= best_loss(raw, entries) * (1 + 1e-6) + 1e-12


def by_definition(ordered: Array, entries: int) -> float:
    """The recursion over all last cells, quadratic."""
    size = ordered.size
    sums = [np.concatenate([[0.0], np.cumsum(ordered**power)]) for power in (0, 1, 2)]
    cost = np.full((size + 1, size + 1), np.inf)
    for first in range(size):
        n, s, q = (total[first + 1 :] - total[first] for total in sums)
        cost[first, first + 1 :] = q - s * s / n
    best = np.concatenate([[0.0], np.full(size, np.inf)])
    for _ in range(entries):
        best = np.minimum(best, (best[:, None] + cost).min(axis=0))
    return float(best[-1])


@pytest.mark.parametrize("entries", [2, 7, 16, 64])
@pytest.mark.parametrize("tail", ["normal", "heavy", "clumps"])
def test_dynamic_programming_finds_the_optimum(entries: int, tail: str) -> None:
    random = np.random.default_rng(entries)
    weights = {
        "normal": random.standard_normal(400),
        "heavy": random.standard_t(2, 400),
        "clumps": random.integers(0, 30, 400) + 0.01 * random.standard_normal(400),
    }[tail]
    found = centroids(sort_points(weights[None]), entries, "optimal", False, 400, draws)[0]
    nearest_one = np.abs(weights[:, None] - found).min(axis=1)
    assert float(nearest_one @ nearest_one) == pytest.approx(by_definition(np.sort(weights), entries), rel=1e-6)


def test_buckets_lose_next_to_nothing() -> None:
    random = np.random.default_rng(3)
    for weights in (random.standard_normal((1, 4096)), random.standard_t(2, (1, 4096))):
        points = sort_points(weights)
        exact, near = (centroids(points, 16, "optimal", False, buckets, draws)[0] for buckets in (4096, 256))
        losses = [float(np.sum(np.abs(weights.reshape(-1, 1) - found).min(axis=1) ** 2)) for found in (exact, near)]
        assert losses[0] * (1 - 1e-9) <= losses[1] <= losses[0] * 1.002


def draws(problem: int) -> Callable[[int], float]:
    return lambda number: 0.5


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("rows", [None, 2])
def test_as_many_entries_as_numbers_lose_nothing(dtype: str, rows: int | None) -> None:
    values = [[-3.5, 0, 0.25, 1], [1, 7, -0.0, -3.5]]
    raw = store(values, dtype)
    for entries in (6, 7, 256):
        found = run(Codebook(entries=entries, rows=rows), spec_of(raw, dtype), raw)
        assert np.array_equal(found.restored, values)


def test_the_documents_example() -> None:
    raw = np.float32([[0, 0, 3, 5]])
    found = run(Codebook(entries=2), spec_of(raw), raw)
    assert found.parts is not None
    assert found.parts[".codes"].tolist() == [[0b1100]]
    assert found.parts[".codebook"].tolist() == [0, 4]


def test_error_of_normally_distributed_weights(normal: Array) -> None:
    assert error(Codebook(), normal) <= 0.0976
    assert error(Codebook(), normal) == pytest.approx(0.0974, abs=1e-4)
    assert error(Codebook(rows=4), normal) < 0.0974
    assert error(Codebook(entries=256), normal) < 0.00645
    for start in ("linear", "density", "kmeans++"):
        assert error(Codebook(init=start), normal) < 0.0985


def test_random_starts_depend_on_seed_and_name_alone() -> None:
    raw = np.random.default_rng(1).standard_normal((16, 64)).astype(np.float32)
    for rows in (None, 4):
        made = [
            run(Codebook(init="kmeans++", seed=seed, rows=rows), spec_of(raw, name=name), raw, size=size).restored
            for seed, name, size in ((1, "a", 16), (1, "a", 4), (2, "a", 16), (1, "b", 16))
        ]
        assert same_bits(made[0], made[1])
        assert not same_bits(made[0], made[2])
        assert not same_bits(made[0], made[3])
    repeated = np.tile(raw[:4], (2, 1))  # each group of rows draws for itself
    parts = run(Codebook(init="kmeans++", rows=4, entries=64), spec_of(repeated), repeated).parts
    assert parts is not None
    assert not same_bits(*parts[".codebook"])


# ---- codebooks: what is counted ------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", FLOATS)
def test_patterns_are_counted_alike_in_any_grouping(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bit_patterns, "FEW", 100)
    random = np.random.default_rng(2)
    scales = 2.0 ** random.integers(-6, 3, (60, 1))
    raw = store(random.standard_normal((60, 700)) * (random.random((60, 700)) > 0.1) * scales, dtype)
    spec, values, work = spec_of(raw, dtype), numbers(raw, dtype), Workspace()
    seen = []
    for order in (range(60), range(59, -1, -1), random.permutation(60)):
        pieces = []
        for row in order:
            pieces.append(Patterns.of(spec))
            pieces[-1].add(values[row : row + 1], work)
        while len(pieces) > 1:
            one, other = pieces.pop(0), pieces.pop(int(random.integers(len(pieces))))
            one.merge(other)
            pieces.append(one)
        points = pieces[0].points(values.dtype.str)
        seen.append((points.values.tobytes(), points.counts.tobytes(), points.exponent.tolist(), pieces[0].zeros))
    assert seen[0] == seen[1] == seen[2]
    assert seen[0][3] == np.count_nonzero(values == 0)
    found = points.values[0] * 2.0 ** int(points.exponent[0])
    assert points.counts.sum() == values.size
    assert float(found @ points.counts[0]) == pytest.approx(float(values.sum(dtype=np.float64)), rel=1e-12)
    if dtype not in ("F32", "F64"):
        assert points.width is None
        assert np.array_equal(np.unique(found), np.unique(values.astype(np.float64)))


@pytest.mark.parametrize("dtype", ["F64", "F32", "F16", "BF16"])
def test_large_tensors_are_cut_and_merged_alike(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bit_patterns, "FEW", 64)
    monkeypatch.setattr(codebook, "FEW", 64)
    raw = store(np.random.default_rng(4).standard_normal((48, 64)), dtype)
    for method in (Codebook(entries=6), Codebook(entries=6, rows=7)):
        outcomes = [run(method, spec_of(raw, dtype), raw, size=size) for size in (48, 5, 1)]
        assert same_bits(outcomes[0].restored, outcomes[1].restored)
        assert same_bits(outcomes[0].restored, outcomes[2].restored)
        assert same_bits(decode(outcomes[0], spec_of(raw, dtype), 3), outcomes[0].restored)


@pytest.mark.parametrize("dtype", FLOATS)
def test_laws_hold_where_weights_are_counted_by_classes(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bit_patterns, "FEW", 4)
    monkeypatch.setattr(codebook, "FEW", 4)
    random = np.random.default_rng(11)
    storage = np.dtype(DTYPES[dtype].storage)
    wild = np.frombuffer(random.bytes(40 * 16 * storage.itemsize), storage).reshape(40, 16).copy()
    with np.errstate(invalid="ignore"):
        wild[~np.isfinite(numbers(wild, dtype))] = 0
    for method in (Codebook(entries=5), Codebook(entries=4, rows=3), Codebook(entries=40, init="linear")):
        for edge, raw in {**edges(dtype), "any bits": wild}.items():
            assert check_laws(method, edge, dtype, raw)


@pytest.mark.parametrize("dtype", ["F64", "F32"])
def test_classes_of_weights_are_as_good_as_the_weights(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = store(np.random.default_rng(6).standard_normal((8, 4096)) + 0.3, dtype)
    exact = lost(raw, run(Codebook(), spec_of(raw, dtype), raw).restored)
    monkeypatch.setattr(bit_patterns, "FEW", 64)
    assert lost(raw, run(Codebook(), spec_of(raw, dtype), raw).restored) <= exact * 1.00005


def test_a_large_constant_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bit_patterns, "FEW", 4)
    raw = np.full((4, 8), 0.1, np.float32)
    assert np.array_equal(run(Codebook(), spec_of(raw), raw).restored, raw)


def test_counts_of_many_weights_are_small() -> None:
    raw = np.random.default_rng(0).standard_normal((64, 1 << 15)).astype(np.float32)
    stats, work = Patterns.of(spec_of(raw)), Workspace()
    for start in range(0, 64, 8):
        stats.add(raw[start : start + 8], work)
    assert sum(table.nbytes for table in stats.tables) < 4e6


# ---- codebooks: the nearest entry ----------------------------------------------------------------------

FLOAT32 = st.floats(width=32, allow_nan=False, allow_infinity=False)


@given(
    book=st.lists(FLOAT32, min_size=2, max_size=6),
    weights=st.lists(FLOAT32, max_size=10),
    way=st.sampled_from(["compare", "table", "search"]),
)
@settings(max_examples=200)
@example(book=[-(2.0**-60), 1.0], weights=[0.5], way="compare")
@example(book=[0.0, 2.0**-149], weights=[0.0, 2.0**-149], way="table")
@example(book=[-(2.0**-149), 0.0], weights=[-0.0, -(2.0**-149)], way="search")
def test_the_nearest_is_exact(book: list[float], weights: list[float], way: str) -> None:
    entries = np.sort(np.array(book, np.float32))
    middles = (entries[1:].astype(np.float64) / 2 + entries[:-1].astype(np.float64) / 2).astype(np.float32)
    values = np.concatenate([np.array(weights, np.float32), entries, middles])[None]
    codes = np.full(values.shape, 77, np.uint8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nearest_codes, "_COMPARED", 99 if way == "compare" else 0)
        patch.setattr(nearest_codes, "_TABLE", 0 if way == "table" else 1 << 30)
        nearest(values, entries[None], codes, Workspace())
    for value, code in zip(values[0].tolist(), codes[0].tolist(), strict=True):
        distances = [abs(Fraction(value) - Fraction(entry)) for entry in entries.tolist()]
        assert distances[code] == min(distances)
        # of different numbers as near as each other, the lower
        assert entries[code] == entries[distances.index(min(distances))]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_all_ways_to_the_nearest_agree(dtype: type, monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(8)
    values = random.standard_normal((2, 5000)).astype(dtype)
    for count in (2, 40, 256):
        books = np.sort(random.standard_normal((2, count)) ** 3, axis=1).astype(dtype)
        seen = []
        for compared, table in ((300, 0), (0, 0), (0, 1 << 30)):
            monkeypatch.setattr(nearest_codes, "_COMPARED", compared)
            monkeypatch.setattr(nearest_codes, "_TABLE", table)
            codes = np.full(values.shape, 255, np.uint8)
            nearest(values, books, codes, Workspace())
            seen.append(codes.tobytes())
        assert seen[0] == seen[1] == seen[2]


# ---- codebooks: zeros, bytes, strangers' files ---------------------------------------------------------


@pytest.mark.parametrize("entries", [2, 3, 16])
@pytest.mark.parametrize("rows", [None, 3])
@pytest.mark.parametrize("start", ["optimal", "linear", "kmeans++", "density"])
def test_zeros_have_their_own_centroid(entries: int, rows: int | None, start: str) -> None:
    random = np.random.default_rng(9)
    raw = (random.standard_normal((7, 200)) + 1).astype(np.float32)
    raw[3, 11] = 0
    found = run(Codebook(entries=entries, rows=rows, init=start), spec_of(raw), raw)
    assert found.restored[3, 11] == 0
    assert found.parts is not None
    books = found.parts[".codebook"].reshape(-1, entries)
    zeros = (books == 0).any(axis=1)
    assert zeros.tolist() == ([True] if rows is None else [False, True, False])
    assert np.all(np.diff(books, axis=1) >= 0)


def test_codes_beyond_the_codebook_are_refused() -> None:
    raw = np.float32([[1, 2, 3, 4, 5, 6, 7, 8]])
    outcome = run(Codebook(entries=5), spec_of(raw), raw)
    assert outcome.parts is not None
    outcome.parts[".codes"][...] = 255
    with pytest.raises(InputError, match="a code beyond its codebook of 5") as caught:
        decode(outcome, spec_of(raw))
    assert caught.value.tensor == "w"


def test_not_finite_centroids_are_refused_by_name(tmp_path: Path) -> None:
    raw = np.random.default_rng(0).standard_normal((8, 8)).astype(np.float32)
    source = archives.write(tmp_path / "in.safetensors", {"w": ("F32", raw)})
    api.quantize(source, tmp_path / "out.safetensors", scheme="codebook", entries=4)
    data = (tmp_path / "out.safetensors").read_bytes()
    ((_, _, book),) = [t for name, t in archives.read(tmp_path / "out.safetensors").items() if "codebook" in name]
    (tmp_path / "bad.safetensors").write_bytes(data.replace(book, np.full(4, np.nan, "<f4").tobytes()))
    with pytest.raises(InputError, match="NaN") as caught:
        api.restore(tmp_path / "bad.safetensors", tmp_path / "back.safetensors")
    assert caught.value.tensor == "w"


# ---- binary --------------------------------------------------------------------------------------------


def test_binary_is_the_sign_times_the_mean_magnitude() -> None:
    raw = np.float32([[1, -2], [3, 6], [-0.0, 0]])
    found = run(Binary(), spec_of(raw), raw)
    assert found.restored[:2].tolist() == [[1.5, -1.5], [4.5, 4.5]]
    assert found.parts is not None
    assert found.parts[".codes"].tolist() == [[0b01], [0b11], [0b11]]
    assert found.parts[".scale"][:2].tolist() == [[1.5], [4.5]]
    assert found.parts[".scale"][2, 0] > 0
    grouped = run(Binary(group_size=1), spec_of(raw), raw)
    assert grouped.restored[:2].tolist() == raw[:2].tolist()


def test_binary_error_is_what_theory_says(normal: Array) -> None:
    assert error(Binary(), normal) <= 0.6031
    assert error(Binary(), normal) == pytest.approx(np.sqrt(1 - 2 / np.pi), abs=5e-4)
    assert error(Binary(group_size=128), normal) < error(Binary(), normal)


@pytest.mark.parametrize("dtype", FLOATS)
def test_binary_means_do_not_overflow(dtype: str) -> None:
    raw = store(np.tile([largest(dtype), -largest(dtype)], (3, 500)), dtype)
    found = run(Binary(), spec_of(raw, dtype), raw)
    assert np.allclose(found.restored, numbers(raw, dtype), rtol=1e-6)


def test_binary_says_what_to_expect_and_is_refused_after_pruning(tmp_path: Path) -> None:
    raw = np.random.default_rng(0).standard_normal((8, 64)).astype(np.float32)
    source = archives.write(tmp_path / "in.safetensors", {"a": ("F32", raw), "b": ("F32", raw)})
    report = api.quantize(source, tmp_path / "out.safetensors", scheme="binary")
    assert report.warnings[0].startswith("a and 1 more: one bit a weight loses √(1 − 2/π) = 0.603")
    with pytest.raises((UsageError, Problems), match="would fill what stage 0 made zero"):
        api.pipeline(source, tmp_path / "no.safetensors", stages=["prune:sparsity=0.5", "quantize:scheme=binary"])


# ---- ternary -------------------------------------------------------------------------------------------


@given(
    weights=st.lists(st.integers(-40, 40).map(lambda n: n / 8), min_size=1, max_size=12),
    dtype=st.sampled_from(["F64", "F32", "BF16"]),
    layout=st.sampled_from(["base3", "2bit"]),
)
@settings(max_examples=150)
def test_no_threshold_loses_less(weights: list[float], dtype: str, layout: str) -> None:
    raw = store([weights], dtype)
    values = numbers(raw, dtype).astype(np.float64)
    losses = []
    for threshold in (0.0, *np.abs(values[0])):
        kept = np.abs(values) > threshold
        scale = np.abs(values[kept]).mean() if kept.any() else 0.0
        losses.append(lost(values, np.sign(values) * kept * scale))
    found = run(Ternary(layout=layout), spec_of(raw, dtype), raw)
    rounding = 1e-6 if dtype != "BF16" else 0.01  # of the scale
    assert lost(values, found.restored) <= min(losses) + rounding * float(np.sum(values**2)) + 1e-12


def test_ternary_in_bytes() -> None:
    raw = np.float32([[5, -4, 1, 0, 0, -4.5, 4.5]])
    found = run(Ternary(), spec_of(raw), raw)
    assert found.restored.tolist() == [[4.5, -4.5, 0, 0, 0, -4.5, 4.5]]
    assert found.parts is not None
    assert found.parts[".codes"].tolist() == [[1 + 2 * 3, 2 + 1 * 3]]
    assert found.parts[".scale"].tolist() == [[4.5]]
    two = run(Ternary(layout="2bit"), spec_of(raw), raw)
    assert two.parts is not None
    assert two.parts[".codes"].tolist() == [[0b00001001, 0b00011000]]
    assert same_bits(two.restored, found.restored)


def test_ternary_error(normal: Array) -> None:
    assert error(Ternary(), normal) == pytest.approx(0.436, abs=1e-3)
    assert error(Ternary(group_size=128), normal) < error(Ternary(), normal)


@given(rows=st.integers(0, 4), columns=st.integers(0, 23), slack=st.integers(0, 99))
def test_five_digits_to_a_byte_come_back(rows: int, columns: int, slack: int) -> None:
    digits = np.random.default_rng(slack).integers(0, 3, (rows, columns)).astype(np.uint8)
    packed = np.full((rows, -(-columns // 5)), 255, np.uint8)
    pack_base3(digits, packed, Workspace())
    assert packed.max(initial=0) <= 242
    padded = np.pad(digits, ((0, 0), (0, -columns % 5))).reshape(rows, packed.shape[1], 5).astype(int)
    assert packed.tolist() == (padded * [1, 3, 9, 27, 81]).sum(axis=2).tolist()
    back = np.full_like(digits, 9)
    unpack_base3(packed, back, Workspace())
    assert np.array_equal(back, digits)


@pytest.mark.parametrize("layout", ["base3", "2bit"])
def test_codes_that_are_none_are_refused(layout: str) -> None:
    raw = np.float32([[5, -4, 1, 0, 0]])
    outcome = run(Ternary(layout=layout), spec_of(raw), raw)
    assert outcome.parts is not None
    outcome.parts[".codes"][...] = 243 if layout == "base3" else 255
    with pytest.raises(InputError, match="none of the three values") as caught:
        decode(outcome, spec_of(raw))
    assert caught.value.tensor == "w"


# ---- options -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "reason"),
    [
        ("codebook", {"entries": 1}, "entries must be an integer from 2 to 256, not 1"),
        ("codebook", {"rows": 0}, "rows must be an integer from 1"),
        ("codebook", {"init": "random"}, "init must be one of optimal, linear, kmeans\\+\\+, density"),
        ("binary", {"granularity": "channel", "group_size": 8}, "group_size has no meaning"),
        ("ternary", {"granularity": "tensor"}, "granularity must be one of channel, group"),
        ("ternary", {"layout": "packed"}, "layout must be one of base3, 2bit"),
    ],
)
def test_options_out_of_range(name: str, options: dict[str, Any], reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        methods_of("quantize")[name](**options)


@pytest.mark.parametrize("method", [Binary(granularity="group"), Ternary(group_size=3)])
def test_a_group_size_that_does_not_divide_names_those_that_do(method: Any) -> None:
    with pytest.raises(UsageError, match="does not divide the row of 100") as caught:
        method.parts(TensorSpec("w", "F32", (4, 100)))
    assert "10, 5, 4" in caught.value.remedy or "100, 50" in caught.value.remedy


def test_bits_a_weight() -> None:
    spec = TensorSpec("w", "BF16", (64, 640))
    sizes = {
        method.label: sum(TensorSpec("", part.dtype, part.shape).nbytes for part in method.parts(spec))
        for method in (Codebook(), Codebook(entries=5), Codebook(entries=256, rows=8), Binary(), Ternary())
    }
    assert sizes == {
        "codebook16": 64 * 320 + 32,
        "codebook5": 64 * 240 + 10,
        "codebook256": 64 * 640 + 8 * 512,
        "binary": 64 * 80 + 128,
        "ternary": 64 * 128 + 128,
    }
