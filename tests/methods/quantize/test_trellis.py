"""Trellis-coded quantization: bits are met in the file, errors are below any even step's, factors come back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import compressor
from compressor.calibration.statistics import write_statistics
from compressor.core import kernels
from compressor.core.errors import CompressorError, InputError
from compressor.core.layer_inputs import Gather
from compressor.core.tensor import TensorSpec
from compressor.methods.numerics.factors import Sizes
from compressor.methods.numerics.trellis import SEGMENT, codes_of, points_of

Array = np.ndarray[Any, Any]
COSTS = (np.abs(np.arange(-256, 256)) * 0.1).astype(np.float32)


def saved(path: Path, values: Array) -> Path:
    save_file({"a.weight": values}, path)
    return path


def restored(path: Path) -> Array:
    out = path.with_suffix(".back.safetensors")
    compressor.restore(path, out, force=True)
    return load_file(out)["a.weight"]


def uneven(rows: int = 256, columns: int = 384) -> Array:
    """Rows and columns of many sizes."""
    rng = np.random.default_rng(3)
    sizes = np.exp(rng.standard_normal((rows, 1)) * 0.5 + rng.standard_normal(columns) * 0.7)
    return (rng.standard_normal((rows, columns)) * sizes).astype(np.float32)


@pytest.mark.parametrize(("bits", "bar"), [(4.5, 0.0475), (3.0, 0.135), (2.0, 0.275)])
def test_bits_are_met_from_below_and_errors_are_below_even_steps(tmp_path: Path, bits: float, bar: float) -> None:
    values = np.random.default_rng(0).standard_normal((512, 1024)).astype(np.float32)
    source, out = saved(tmp_path / "in.safetensors", values), tmp_path / "out.safetensors"
    report = compressor.quantize(source, out, scheme="trellis", bits=bits, store="archive")
    assert 0.985 * bits < out.stat().st_size * 8 / values.size <= bits
    error = np.linalg.norm(values - restored(out)) / np.linalg.norm(values)
    assert error <= bar * 1.01  # a small file has more around it
    assert report.total.error == pytest.approx(error, rel=1e-4)


def test_what_comes_back_follows_the_states(tmp_path: Path) -> None:
    source, out = saved(tmp_path / "in.safetensors", uneven()), tmp_path / "out.safetensors"
    compressor.quantize(source, out, scheme="trellis", bits=4.0)
    parts = load_file(out)
    codes, step = parts["a.weight.codes"].astype(int), parts["a.weight.step"][0]
    assert parts["a.weight.factors"].any()
    sizes = np.exp2(parts["a.weight.factors"] / 4)
    expected = np.empty(codes.shape)
    for row, (line, size) in enumerate(zip(codes, sizes[:256], strict=True)):
        branches = [0, 0, 0]
        for column, code in enumerate(line):
            expected[row, column] = (2 * code + branches[-1]) * step * size * sizes[256 + column]
            branches.append(code & 1 ^ branches[-2] ^ branches[-3])
    assert np.allclose(restored(out), expected, rtol=1e-5)


@pytest.mark.parametrize("shape", [(5, 37), (2, SEGMENT + 9), (1, 1), (3, 0)])
def test_the_kernel_and_numpy_give_the_same(shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = (np.random.default_rng(1).standard_normal(shape) * 40).astype(np.float32)
    numbers[:, ::7] *= 30  # beyond codes that have costs of their own
    found = []
    for library in (kernels.library, lambda: None):
        monkeypatch.setattr(kernels, "library", library)
        codes = codes_of(numbers, COSTS)
        low = codes.astype(np.int8)
        found.append((codes, points_of(low, ((codes - low) >> 8).astype(np.int8))))
    (codes, points), (others, apart) = found
    assert np.array_equal(codes, others)
    assert np.array_equal(points, apart)
    assert np.abs(numbers - points).max(initial=0) < 4


def test_no_path_is_better() -> None:
    rng = np.random.default_rng(2)
    for _ in range(20):
        x = (rng.standard_normal((1, 5)) * 2).astype(np.float32)
        codes = codes_of(x, COSTS)
        best = min(
            cost(x[0], np.array(list(np.ndindex(7, 7, 7, 7, 7)))[places] - 3) for places in np.array_split(ALL, 8)
        )
        assert cost(x[0], codes) == pytest.approx(best, rel=1e-5)


ALL = np.arange(7**5)


def cost(x: Array, codes: Array) -> float:
    """The least cost among paths of these codes [paths, columns]."""
    low = codes.astype(np.int8)
    return float((np.square(x - points_of(low, None)) + COSTS[codes + 256]).sum(axis=1).min())


@pytest.mark.parametrize("scheme", ["uniform", "trellis"])
def test_factors_lose_less_of_outputs_and_with_statistics_still_less(scheme: str, tmp_path: Path) -> None:
    values = uneven()
    rng = np.random.default_rng(5)
    # inputs are the smaller the larger their weights, in part
    loud = np.linalg.norm(values, axis=0) ** -0.5 * np.exp(rng.standard_normal(384) * 0.7)
    inputs = (rng.standard_normal((2000, 384)) * loud).astype(np.float32)
    gather = Gather(384)
    gather.add(inputs)
    write_statistics(tmp_path / "stats.safetensors", [("a", gather.layer)])
    source, lost = saved(tmp_path / "in.safetensors", values), []
    for number, more in enumerate(({"factors": "none"}, {}, {"stats": tmp_path / "stats.safetensors"})):
        out = tmp_path / f"{number}.safetensors"
        compressor.quantize(source, out, scheme=scheme, bits=3.0, store="archive", **more)
        assert out.stat().st_size * 8 <= 3.0 * values.size
        moved, whole = (values - restored(out)) @ inputs.T, values @ inputs.T
        lost.append(float((np.square(moved).sum(1) / np.square(whole).sum(1)).mean()))
    assert lost[1] < 0.9 * lost[0]
    assert lost[2] < 0.9 * lost[1]


def test_workers_and_kernels_make_no_difference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, made = saved(tmp_path / "in.safetensors", uneven(1200, 384)), []
    for workers in (1, 3):
        out = tmp_path / f"{workers}.safetensors"
        compressor.quantize(source, out, scheme="trellis", bits=3.5, workers=workers)
        made.append(out.read_bytes())
    monkeypatch.setattr(kernels, "library", lambda: None)
    compressor.quantize(source, tmp_path / "n.safetensors", scheme="trellis", bits=3.5)
    assert made[0] == made[1] == (tmp_path / "n.safetensors").read_bytes()


@pytest.mark.parametrize("scheme", ["uniform", "trellis"])
@pytest.mark.parametrize(("part", "value"), [("factors", 25), ("step", np.inf), ("step", 0.0), ("step", 3e38)])
def test_hostile_parts_are_refused(scheme: str, part: str, value: float, tmp_path: Path) -> None:
    source, out = saved(tmp_path / "in.safetensors", uneven()), tmp_path / "out.safetensors"
    compressor.quantize(source, out, scheme=scheme, bits=3.0)
    raw, parts = out.read_bytes(), load_file(out)
    changed = parts[f"a.weight.{part}"].copy()
    changed[0] = value
    at = raw.index(parts[f"a.weight.{part}"].tobytes())
    out.write_bytes(raw[:at] + changed.tobytes() + raw[at + changed.nbytes :])
    with pytest.raises(CompressorError, match=r"factor|step"):
        compressor.restore(out, tmp_path / "back.safetensors")
    assert not (tmp_path / "back.safetensors").exists()


def test_codes_beyond_a_byte_need_two(tmp_path: Path) -> None:
    source = saved(tmp_path / "in.safetensors", uneven(40, 50))
    with pytest.raises(InputError, match=r"more than a byte holds.*fewer bits, or leave code_bytes out"):
        compressor.quantize(source, tmp_path / "out.safetensors", scheme="trellis", bits=10.0, code_bytes=1)


def test_factors_do_not_depend_on_how_rows_are_cut() -> None:
    """Also where some rows are too faint to have any, and columns of the others are zero."""
    values = uneven(200, 200)
    values[100:] *= np.float32(1e-22)
    values[:100, 5] = values[100:, 6] = 0
    spec = TensorSpec("a.weight", "F32", values.shape)
    whole, cut = Sizes(), Sizes()
    whole.add(values, 0, None)
    for start in (100, 0):
        part = Sizes()
        part.add(values[start : start + 100], start, None)
        cut.merge(part)
    assert whole.factors(spec) == cut.factors(spec)
    assert whole.factors(spec).stored[:100].any()
    assert not whole.factors(spec).stored[[*range(100, 200), 205]].any()
