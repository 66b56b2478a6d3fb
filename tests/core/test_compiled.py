"""The compiled kernels give what NumPy gives, bit for bit; without them nothing changes but the time."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from ctypes import CDLL
from importlib.metadata import distributions
from pathlib import Path
from typing import Any
from unittest import mock
from zlib import crc32

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.laws import resolve

from compressor.core import bitpacking as bits
from compressor.core import cleanup, elementary, floats, kernels, sums
from compressor.core.ggml_types import BY_NAME
from compressor.core.metrics import count_stored_zeros, dot
from compressor.core.tensor import DTYPES, TensorSpec
from compressor.core.workspace import Workspace
from compressor.files.entropy import checksum
from compressor.methods.contract import Block, Encoder, select
from compressor.methods.numerics import nearest, scales
from compressor.methods.numerics.minifloat import E2M1, E4M3
from compressor.methods.numerics.nm_pattern import keep_pattern
from compressor.methods.prune.threshold import Threshold
from compressor.methods.quantize.fp8 import Fp8, OneScale, OwnScales, Scales
from compressor.methods.quantize.ggml.encoder import ENCODERS, encode_blocks
from compressor.methods.quantize.int import Int
from compressor.methods.quantize.int.group_units import Rule
from compressor.methods.quantize.int.ways.search import Search
from compressor.methods.quantize.mxfp4 import Mxfp4
from compressor.methods.quantize.mxfp8 import Mxfp8
from compressor.methods.quantize.nf4 import levels
from compressor.methods.quantize.nvfp4 import Nvfp4

Array = npt.NDArray[Any]

built = pytest.mark.skipif(kernels.library() is None, reason="the kernels were not built: no C compiler was found")
patterns = st.lists(
    st.one_of(st.integers(0, 0xFFFF), st.sampled_from([0, 0x8000, 1, 0x8001, 0x3F80, 0x7F7F, 0xFF7F])),
    max_size=200,
)


def both(run: Callable[[], Any]) -> tuple[Any, Any]:
    """What it gives with the kernels, and without."""
    with np.errstate(all="ignore"):
        fast = run()
        with mock.patch.object(kernels, "library", return_value=None):
            return fast, run()


def finite(found: list[int]) -> Array:
    raw = np.array(found, np.uint16)
    return raw[(raw & 0x7F80) != 0x7F80]


@pytest.mark.skipif(not list(distributions(name="compressor")), reason="runs from a checkout that is not installed")
@pytest.mark.skipif(os.environ.get("COMPRESSOR_KERNELS") == "0", reason="they are switched off")
@pytest.mark.skipif(shutil.which(os.environ.get("CC", "cc")) is None, reason="no C compiler")
def test_they_are_built_where_there_is_a_compiler() -> None:
    assert kernels.library() is not None


def test_the_version_is_that_of_the_files() -> None:
    """What was built of other files must not be taken for what is there."""
    files = sorted(kernels.LIBRARY.parent.glob("*.[ch]"))
    assert crc32(b"".join(path.read_bytes() for path in files)) >> 1 == kernels.VERSION  # so that it fits an int


@built
@pytest.mark.parametrize("vectors", [2, 1, 0])
def test_checksums_are_those_of_zlib(vectors: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of any length, from any address; where there is no carry-less product, zlib's own."""
    monkeypatch.setattr(kernels, "VECTORS", vectors)
    data = np.random.default_rng(0).integers(0, 256, 5000, np.uint8)
    for size in (0, 1, 15, 16, 63, 64, 65, 127, 128, 255, 256, 257, 511, 513, 1000, 4995):
        for start in (0, 1, 5):
            part = data[start : start + size]
            assert kernels.crc32(part) in ((None,) if not vectors else (crc32(part), None))
            assert checksum.crc32(part) == crc32(part)


@built
@pytest.mark.parametrize("count", [0, 9, (1 << 18) - 1, (1 << 18) + 13])
def test_bytes_are_counted_by_themselves_or_by_pairs(count: int) -> None:
    values = np.random.default_rng(0).integers(0, 256, count, np.uint8) ** 2
    found = kernels.byte_counts(values)
    assert found is not None
    assert np.array_equal(found, np.bincount(values, minlength=256))


@built
def test_they_can_be_switched_off() -> None:
    code = "from compressor.core import kernels; print(kernels.library())"
    environment = {**os.environ, "COMPRESSOR_KERNELS": "0"}
    said = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "None"


@built
def test_another_version_is_left_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    look = kernels.library.__wrapped__
    with monkeypatch.context() as patched:
        patched.setattr(kernels, "VERSION", -1)
        assert look() is None
    assert ["built of other sources" in said for said in cleanup.doubts()] == [True]
    monkeypatch.setattr(kernels, "LIBRARY", tmp_path / "absent.so")
    assert look() is None
    (tmp_path / "no-library.so").write_text("this is no library")
    monkeypatch.setattr(kernels, "LIBRARY", tmp_path / "no-library.so")
    assert look() is None
    assert cleanup.doubts() == []


@built
@given(found=patterns)
def test_widening(found: list[int]) -> None:
    raw, work = np.array(found, np.uint16), Workspace()

    def run() -> tuple[bytes, Any]:
        numbers, counted = floats.widen_counted(raw, "BF16", work)
        return numbers.tobytes(), counted

    (fast, counted), (slow, none) = both(run)
    quiet = np.frombuffer(slow, np.uint32) & ~np.uint32(0x400000)  # NumPy's cast makes NaNs quiet
    assert np.array_equal(np.frombuffer(fast, np.uint32) & ~np.uint32(0x400000), quiet)
    assert none is None
    numbers, spec = np.frombuffer(slow, np.float32), TensorSpec("w", "BF16", raw.shape)
    assert counted[1] == count_stored_zeros(raw, spec, work)
    with np.errstate(all="ignore"):
        total = dot(numbers, numbers)
        assert not 1e-24 < counted[0] < 1e37 or counted[0] == total


@built
@given(found=patterns, threshold=st.sampled_from([0.0, 1e-40, 0.01, 1.0, 3e38, 1e300]))
def test_selecting(found: list[int], threshold: float) -> None:
    raw, work = finite(found), Workspace()
    values, spec = floats.widen(raw, "BF16", work), TensorSpec("w", "BF16", raw.shape)
    keep = np.empty(raw.shape, bool)

    def run() -> bytes:
        Threshold(threshold=threshold).keep(Block(values, 0, spec, work, {}), keep)
        return keep.tobytes()

    fast, slow = both(run)
    assert fast == slow
    out, expected = np.empty_like(raw), np.empty_like(raw)
    counted = kernels.select_bf16(raw, keep, out)
    select(raw, keep, expected)
    assert counted is not None
    assert out.tobytes() == expected.tobytes()
    assert counted[1] == count_stored_zeros(expected, spec, work)
    gone = floats.widen(raw ^ expected, "BF16", work, "gone")
    with np.errstate(all="ignore"):
        assert not 1e-24 < counted[0] < 1e37 or counted[0] == dot(gone, gone)


@built
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("grain", ["tensor", "channel", "group"])
@given(
    width=st.integers(2, 8),
    groups=st.integers(1, 4),
    size=st.sampled_from([1, 8, 31, 32, 33, 128, 5000]),
    seed=st.integers(0, 99),
    scale=st.sampled_from([1e-45, 1e-30, 0.02, 1.0, 1e30]),
)
def test_rounding(symmetric: bool, grain: str, width: int, groups: int, size: int, seed: int, scale: float) -> None:
    rng = np.random.default_rng(seed)
    values = (rng.standard_normal((3, groups * size)) * rng.choice([0, 1, 3], (3, 1)) * scale).astype(np.float32)
    values[rng.random(values.shape) < 0.1] = 0
    values[0, :1] = -0.0
    group = size if grain == "group" else None
    method = Int(
        bits=width, symmetric=symmetric, granularity=grain, group_size=group, method="absmax", layout="compressor"
    )
    spec = TensorSpec("w", "F32", values.shape)
    work = Workspace()

    def run() -> tuple[dict[str, bytes], float, int]:
        encoder = resolve(method, spec, values, {}, [(0, 3)], work)
        assert isinstance(encoder, Encoder)
        held = {p.suffix: np.zeros(p.held(spec, 0, 3), DTYPES[p.dtype].storage) for p in method.parts(spec)}
        lost, zeros = encoder.measured(Block(values, 0, spec, work, {}), held)
        return {name: part.tobytes() for name, part in held.items()}, lost, zeros

    (fast, fast_lost, fast_zeros), (slow, lost, zeros) = both(run)
    assert fast == slow
    assert fast_zeros == zeros
    assert fast_lost == lost


@built
@given(rows=st.integers(1, 4), groups=st.integers(1, 3), size=st.integers(1, 140), seed=st.integers(0, 99))
def test_extents(rows: int, groups: int, size: int, seed: int) -> None:
    grouped = np.random.default_rng(seed).standard_normal((rows, groups, size)).astype(np.float32)
    fast, slow = both(lambda: scales.extent(grouped, True, np.empty_like(grouped))[1].tobytes())
    assert fast == slow


@built
@pytest.mark.processors
@pytest.mark.skipif(shutil.which(os.environ.get("CC", "cc")) is None, reason="no C compiler")
@pytest.mark.parametrize("optimised", [("-O0",), ("-O2", "-fno-tree-vectorize"), ("-O3", "-march=native")])
def test_what_a_compiler_makes_of_them_does_not_matter(
    optimised: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    random = np.random.default_rng(5)
    a, b = (random.standard_normal((3, 5003)).astype(np.float32) for _ in range(2))
    raw = random.integers(0, 0x7F00, 9001, dtype=np.uint16)
    keep = random.random(raw.shape) < 0.5
    grouped = np.ascontiguousarray(a[:, :5000]).reshape(3, 50, 100)
    scale, zero = np.full((3, 50), 0.3, np.float32), np.full((3, 50), 8, np.float32)
    matrix, importance = np.ascontiguousarray(a[:, :2048]).reshape(4, 1536), np.abs(b[0, :1536])
    width = {name: 1536 // BY_NAME[name].block * BY_NAME[name].nbytes for name in ENCODERS}

    def run() -> list[Any]:
        random = np.random.default_rng(6)
        out, wide, codes = np.empty_like(raw), np.empty(raw.shape, np.float32), np.empty(grouped.shape, np.uint8)
        told = [kernels.widen_bf16(raw, wide), kernels.select_bf16(raw, keep, out)]
        counted = kernels.round_codes(grouped, scale, zero, 16, codes)
        assert counted is not None
        sizes = elementary.power_into(np.abs(a) + np.float32(1e-6), -0.3, np.empty_like(a))
        normal = random.standard_normal((9, 32)).astype(np.float32)
        products = kernels.code_products(normal, None, np.full(9, 0.4), np.full(9, -8.0), 15, np.abs(normal))
        rungs, eighth, written = np.full(9, 7), np.empty(normal.shape, np.uint8), np.empty_like(normal)
        ladder = (2.0 ** np.arange(-9, 9)).astype(np.float32)
        kernels.best_rungs(normal, ladder, 17, (-1, 0, 1, 2), E2M1.limits, rungs)
        scales = ladder[:9].reshape(9, 1)
        kernels.minifloat_codes(normal, scales, 32, E2M1.limits, E2M1.first_anchor("<f4"), eighth, written)
        errors = kernels.minifloat_errors(normal, scales[None], 32, E4M3.limits)
        sizes_of = levels.fitted(normal, np.abs(normal).max(axis=1), 1e30, Workspace())
        levels.nearest(normal, eighth, Workspace())
        rule = Rule(4, False, False, "BF16", "BF16")
        searched = Search(a[:, :128].copy(), a.min(axis=1) * 1.0, a.max(axis=1) * 1.0, rule, Workspace()).run()
        settled = np.empty_like(raw)
        told += [kernels.settle_bf16(wide, settled, np.empty_like(wide)), kernels.squared_difference(a, b)]
        told.append(kernels.compare(a, b))
        assert products is not None
        assert errors is not None
        found = [
            *(*products, rungs, eighth, written, errors, sizes_of, settled),
            *(array for array in searched if array is not None),
            elementary.log2(np.abs(a)),
            sums.dots(a, b),
            sums.dots(a.astype(np.float64), b.astype(np.float64)),
            counted[0],
            sizes,
        ]
        for name in ENCODERS:
            blocks, restored = np.empty((4, width[name]), np.uint8), np.empty_like(matrix)
            encode_blocks(name, matrix, importance, blocks, restored)
            found += [blocks, restored]
        return [*told, counted[1], *(array.tobytes() for array in (*found, out, wide, codes))]

    expected = run()
    other = compiled(optimised, tmp_path)
    monkeypatch.setattr(kernels, "library", lambda: other)
    assert run() == expected


def compiled(flags: tuple[str, ...], folder: Path) -> CDLL:
    """The kernels, built with these flags."""
    library = folder / "other.so"
    command = [*shlex.split(os.environ.get("CC", "cc")), "-std=c11", "-fPIC", "-shared", "-ffp-contract=off"]
    command += [*flags, f"-DKERNELS_VERSION={kernels.VERSION}", "-o", str(library)]
    subprocess.run([*command, *map(str, sorted(kernels.LIBRARY.parent.glob("*.c")))], check=True)
    with mock.patch.object(kernels, "LIBRARY", library):
        found: CDLL | None = kernels.library.__wrapped__()
    assert found is not None
    return found


@pytest.fixture(scope="module")
def portable(tmp_path_factory: pytest.TempPathFactory) -> CDLL:
    """The kernels as on a processor that has nothing but what all have."""
    return compiled(("-O3", "-DPORTABLE"), tmp_path_factory.mktemp("portable"))


def searched(kind: str, values: Array) -> list[Any]:
    """What a search finds for blocks [blocks, size]: scales, and what goes by them."""
    if kind == "nf4":
        work, codes = Workspace(), np.empty(values.shape, np.uint8)
        scale = levels.fitted(values, levels.magnitudes(values, work), 1e30, work)
        levels.nearest(values, codes, work)
        return [scale, codes]
    if kind == "nvfp4":
        spec = TensorSpec("w", "F32", values.shape)
        encoder = Nvfp4().for_block(spec, float(np.abs(values).max()))
        parts = {part.suffix: np.zeros(part.shape, DTYPES[part.dtype].storage) for part in Nvfp4().parts(spec)}
        parts = {suffix: part.view("|u1") if part.itemsize == 1 else part for suffix, part in parts.items()}
        restored = np.empty_like(values)
        encoder.encode(Block(values, 0, spec, Workspace(), {}), parts, restored)
        return [restored, *parts.values()]
    bits, symmetric = int(kind[3]), "asymmetric" not in kind
    low, high = values.min(axis=1).astype(np.float64), values.max(axis=1).astype(np.float64)
    if symmetric:
        high = np.maximum(high, -low)
        low = -high
    rule = Rule(bits, symmetric, "signed" in kind, "BF16", "F32")
    return list(Search(values, low, high, rule, Workspace()).run())


@built
@pytest.mark.processors
@pytest.mark.skipif(shutil.which(os.environ.get("CC", "cc")) is None, reason="no C compiler")
@pytest.mark.parametrize("size", [32, 64, 96, 128, 256, 1024, 2048, 4096])
@pytest.mark.parametrize("kind", ["nf4", "nvfp4", "int2", "int3 asymmetric", "int4", "int4 signed", "int8"])
def test_searches_of_processors_without_wide_registers(portable: CDLL, kind: str, size: int) -> None:
    """`levels.c` has two ways, of which this processor may take the other in every other test."""
    random = np.random.default_rng(size)
    values = (random.standard_normal((40, size)) * 2.0 ** random.integers(-9, 9, (40, 1))).astype("<f4")
    values[random.random(values.shape) < 0.1] = 0
    values[3], values[5] = 0, -1
    fast, slow = both(lambda: searched(kind, values))
    with mock.patch.object(kernels, "library", return_value=portable), np.errstate(all="ignore"):
        plain = searched(kind, values)
    for one, twin, other in zip(plain, slow, fast, strict=True):
        assert (one is None and twin is None) or one.tobytes() == twin.tobytes() == other.tobytes()


@built
@pytest.mark.parametrize("dtype", ["<f4", "<f8"])
@given(
    rows=st.integers(0, 3),
    size=st.one_of(st.integers(0, 140), st.sampled_from([4095, 4096, 4097, 4128, 8192, 13001])),
    seed=st.integers(0, 99),
)
def test_sums(dtype: str, rows: int, size: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    a, b = (random.standard_normal((rows, size)).astype(dtype) for _ in range(2))
    fast, slow = both(lambda: sums.dots(a, b).tobytes())
    assert fast == slow


@built
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("heeded", [True, False])
@given(
    groups=st.integers(1, 5),
    size=st.integers(1, 140),
    width=st.integers(2, 8),
    dtype=st.sampled_from(["F32", "BF16", "F16"]),
    power=st.sampled_from([-140, -20, 0, 13, 110]),
    seed=st.integers(0, 99),
)
def test_searches(
    symmetric: bool, heeded: bool, groups: int, size: int, width: int, dtype: str, power: int, seed: int
) -> None:
    random = np.random.default_rng(seed)
    values = (random.standard_normal((groups, size)) * 2.0 ** random.integers(-9, 9, (groups, 1))).astype("<f4")
    values[random.random(groups) < 0.2] = 0
    values *= np.float32(2.0**power)
    heed = random.random(values.shape).astype(np.float32) if heeded else None
    low, high = values.min(axis=1).astype(np.float64), values.max(axis=1).astype(np.float64)
    if symmetric:
        high = np.maximum(high, -low)
        low = -high
    rule = Rule(width, symmetric, symmetric and bool(seed % 2), dtype, "F16" if dtype == "F16" else "F32")

    def run() -> list[Array | None]:
        return list(Search(values, low, high, rule, Workspace(), heed=heed).run())

    fast, slow = both(run)
    for one, other in zip(fast, slow, strict=True):
        assert (one is None and other is None) or one.tobytes() == other.tobytes()


@built
@pytest.mark.parametrize(
    "scheme",
    [
        *(Mxfp4(), Mxfp8(), Nvfp4(), Nvfp4(method="absmax"), Fp8(), Fp8(element="e5m2"), Fp8(granularity="block")),
        *(Fp8(granularity="tensor"), Fp8(granularity="block", scales=Scales(block=(2, 24)))),
    ],
)
@given(rows=st.integers(1, 5), blocks=st.integers(1, 9), seed=st.integers(0, 99))
def test_small_floats(scheme: Mxfp4 | Mxfp8 | Nvfp4 | Fp8, rows: int, blocks: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    values = random.standard_normal((rows, 32 * blocks)) * 2.0 ** random.integers(-40, 40, (rows, 1))
    values = np.where(random.random(values.shape) < 0.1, -0.0, values).astype(np.float32)
    spec = TensorSpec("w", "F32", values.shape)
    largest = float(np.abs(values).max())
    encoder: Any = scheme
    if isinstance(scheme, Nvfp4):
        encoder = scheme.for_block(spec, largest)
    if isinstance(scheme, Fp8):
        encoder = OneScale(scheme, {"w": largest}) if scheme.granularity == "tensor" else OwnScales(scheme)

    def run() -> list[bytes]:
        parts = {part.suffix: np.zeros(part.shape, DTYPES[part.dtype].storage) for part in scheme.parts(spec)}
        parts = {suffix: part.view("|u1") if part.itemsize == 1 else part for suffix, part in parts.items()}
        restored = np.empty_like(values)
        encoder.encode(Block(values, 0, spec, Workspace(), {}), parts, restored)
        return [restored.tobytes(), *(part.tobytes() for part in parts.values())]

    fast, slow = both(run)
    assert fast == slow


@built
@given(blocks=st.integers(1, 9), size=st.sampled_from([2, 32, 64, 70]), seed=st.integers(0, 99))
def test_levels(blocks: int, size: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    values = (random.standard_normal((blocks, size)) * 2.0 ** random.integers(-9, 9, (blocks, 1))).astype("<f4")
    values[random.random(blocks) < 0.2] = 0

    def run() -> list[bytes]:
        work = Workspace()
        absmax = levels.magnitudes(values, work)
        scale = levels.fitted(values, absmax, 1e30, work)
        codes = np.empty(values.shape, np.uint8)
        levels.nearest(values, codes, work)
        return [absmax.tobytes(), scale.tobytes(), codes.tobytes()]

    fast, slow = both(run)
    assert fast == slow


@built
@given(rows=st.integers(1, 3), columns=st.integers(1, 80), entries=st.integers(2, 32), seed=st.integers(0, 99))
def test_nearest(rows: int, columns: int, entries: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    values = random.standard_normal((rows, columns)).astype(np.float32)
    books = np.sort(random.standard_normal((rows, entries)), axis=1).astype(np.float32)

    def run() -> bytes:
        codes = np.empty(values.shape, np.uint8)
        nearest.nearest(values, books, codes, Workspace())
        return codes.tobytes()

    fast, slow = both(run)
    assert fast == slow


@built
@given(st.lists(st.floats(5e-324, 1.7e308), max_size=20))
def test_logarithms(found: list[float]) -> None:
    numbers = np.array([1.0, 5e-324, 2.0**-1022, 2.0**-1074 * 3, *found])
    fast, slow = both(lambda: elementary.log2(numbers).tobytes())
    assert fast == slow


@built
@given(exponent=st.sampled_from([-0.3, 0.5, 2.7, -4.0]), seed=st.integers(0, 99))
def test_powers(exponent: float, seed: int) -> None:
    random = np.random.default_rng(seed)
    values = np.abs(random.standard_normal(500) * 2.0 ** random.integers(-9, 9, 500)).astype(np.float32) + 1e-6
    fast, slow = both(lambda: elementary.power_into(values, exponent, np.empty_like(values)).tobytes())
    assert fast == slow


@built
@given(
    rows=st.integers(1, 4),
    columns=st.integers(0, 80),
    slack=st.integers(0, 3),
    width=st.integers(1, 8),
    seed=st.integers(0, 99),
)
def test_packing(rows: int, columns: int, slack: int, width: int, seed: int) -> None:
    codes = np.random.default_rng(seed).integers(0, 1 << width, (rows, columns), np.uint8)

    def run() -> tuple[bytes, bytes]:
        out, back = np.full((rows, bits.row_bytes(columns, width) + slack), 255, np.uint8), np.empty_like(codes)
        bits.pack(codes, width, out, Workspace())
        bits.unpack(out, width, back, Workspace())
        return out.tobytes(), back.tobytes()

    fast, slow = both(run)
    assert fast == slow
    assert fast[1] == codes.tobytes()


@built
@given(
    kind=st.sampled_from(["<f4", "<u4"]),
    pattern=st.sampled_from([(2, 4), (1, 2), (3, 5), (4, 8), (9, 16), (3, 17)]),
    rows=st.integers(1, 3),
    columns=st.integers(1, 600),
    seed=st.integers(0, 99),
)
def test_patterns_of_pruning(kind: str, pattern: tuple[int, int], rows: int, columns: int, seed: int) -> None:
    keys = np.random.default_rng(seed).integers(0, 9, (rows, columns)).astype(kind)

    def run() -> bytes:
        out = np.empty(keys.shape, bool)
        keep_pattern(keys, *pattern, out, Workspace())
        return out.tobytes()

    fast, slow = both(run)
    assert fast == slow


@built
@given(found=st.lists(st.integers(0, 0xFFFFFFFF), max_size=99), seed=st.integers(0, 99))
def test_settling_and_measuring(found: list[int], seed: int) -> None:
    random = np.random.default_rng(seed)
    values = np.concatenate(
        [np.array(found, np.uint32).view(np.float32), random.standard_normal(5000).astype("<f4")]
    )
    raw = np.empty(values.shape, np.uint16)

    def run() -> tuple[bytes, bytes]:
        numbers = floats.settle_counted(values, "BF16", raw, Workspace())[0]
        return raw.tobytes(), numbers.tobytes()

    fast, slow = both(run)
    assert fast == slow
    a, b = random.standard_normal((2, 9001)).astype(np.float32)
    b[random.random(9001) < 0.1] = 0
    lost = dot(a - b, a - b)
    assert kernels.squared_difference(a, b) == (lost, int(np.count_nonzero(b == 0)))
    most = float(np.abs(a - b).max())
    assert kernels.compare(a, b) == (lost, dot(a, a), dot(b, b), dot(a, b), 0, int(np.count_nonzero(b == 0)), most)


@built
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("layout", ["compressor", "plain"])
@given(width=st.integers(2, 8), size=st.sampled_from([1, 8, 33, 128]), seed=st.integers(0, 99))
def test_decoding(symmetric: bool, layout: str, width: int, size: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    scheme = Int(
        bits=width, symmetric=symmetric, granularity="group", group_size=size, method="absmax", layout=layout
    )
    spec = TensorSpec("w", "BF16", (3, 2 * size))
    parts = {part.suffix: np.zeros(part.shape, DTYPES[part.dtype].storage) for part in scheme.parts(spec)}
    for part in parts.values():
        part[...] = random.integers(0, 1 << (14 if part.itemsize == 2 else width - 1), part.shape)

    def run() -> bytes:
        out = np.empty(spec.shape, np.float32)
        scheme.decode(parts, spec, out, 0, Workspace())
        return out.tobytes()

    fast, slow = both(run)
    assert fast == slow


@built
def test_other_memory_is_left_to_numpy() -> None:
    values = np.ones((4, 6), np.float32)[:, ::2]
    assert kernels.at_least(values, 0.5, np.empty(values.shape, bool)) is None
    assert kernels.at_least(np.ones(3), 0.5, np.empty(3, bool)) is None
    assert kernels.largest_magnitudes(np.ones((1, 1, 3))) is None
    assert kernels.pack_nibbles(np.zeros((2, 4), np.uint8)[:, ::2], np.zeros(2, np.uint8)) is None
    assert kernels.widen_bf16(np.zeros(8, np.uint16)[::2], np.zeros(4, np.float32)) is None
    assert kernels.dots(values, values) is None
    assert kernels.dots(np.ones((1, 2), np.float32), np.ones((1, 2))) is None
    half = np.ones((1, 16), np.float32)
    assert kernels.code_products(np.ones((1, 2)), None, np.ones(1), np.ones(1), 15, None) is None
    assert kernels.best_rungs(half, half[0], 3, (0,), E2M1.limits, np.zeros(1, np.int32)) is None
    assert kernels.best_rungs(np.ones((1, 8), np.float32), half[0], 3, (0,), E2M1.limits, np.zeros(1, int)) is None
    assert kernels.minifloat_codes(np.ones((1, 2)), half, 2, E2M1.limits, 0, None, np.ones((1, 2))) is None
    assert kernels.minifloat_errors(np.ones((1, 2)), half[None], 2, E2M1.limits) is None
    assert kernels.count_below(np.ones((1, 2)), half, np.zeros((1, 2), np.uint8)) is None
    one = np.ones((1, 1, 1), np.float64)
    assert kernels.round_codes(one, one, one, 4, np.zeros((1, 1, 1), np.uint8)) is None
