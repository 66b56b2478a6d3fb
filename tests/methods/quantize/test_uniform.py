"""Even steps with entropy-coded codes: bits are met in the file, errors are near the bound, codes come back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import compressor
from compressor.core.errors import InputError, UsageError
from compressor.core.tensor import TensorSpec
from compressor.core.workspace import Workspace
from compressor.methods.numerics.even_steps import Classes
from compressor.methods.options import convert, options_of
from compressor.methods.quantize.uniform import Uniform
from compressor.methods.registry import make_method

Arrays = dict[str, np.ndarray[Any, Any]]


def normal(rows: int = 512, columns: int = 1024, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32) * np.float32(0.02)


def saved(path: Path, **tensors: np.ndarray[Any, Any]) -> Path:
    save_file({name.replace("_", "."): values for name, values in tensors.items()}, path)
    return path


def restored(path: Path) -> Arrays:
    out = path.with_suffix(".back.safetensors")
    compressor.restore(path, out, force=True)
    return load_file(out)


def error(before: np.ndarray[Any, Any], after: np.ndarray[Any, Any]) -> float:
    return float(np.linalg.norm(before - after) / np.linalg.norm(before))


@pytest.mark.parametrize(("bits", "bar"), [(4.5, 0.054), (4.13, 0.070), (2.0, 0.30)])
def test_bits_are_met_in_the_file_from_below_with_little_error(tmp_path: Path, bits: float, bar: float) -> None:
    values = normal(1024, 1024)
    source = saved(tmp_path / "in.safetensors", a_weight=values)
    out = tmp_path / "out.safetensors"
    report = compressor.quantize(source, out, scheme="uniform", bits=bits, store="archive")
    found = out.stat().st_size * 8 / values.size
    assert 0.99 * bits < found <= bits
    assert error(values, restored(out)["a.weight"]) <= bar
    assert report.plan.size_after == out.stat().st_size


def test_what_comes_back_are_the_codes_times_the_step(tmp_path: Path) -> None:
    values = normal(64, 96)
    values[3, 5] = 4.0  # beyond a byte's codes
    source = saved(tmp_path / "in.safetensors", a_weight=values)
    plain, archive = tmp_path / "plain.safetensors", tmp_path / "archive.safetensors"
    compressor.quantize(source, plain, scheme="uniform", bits=5.0)
    compressor.quantize(source, archive, scheme="uniform", bits=5.0, store="archive")
    parts = load_file(plain)
    codes = parts["a.weight.codes"].astype(np.float32) + 256 * parts["a.weight.high"].astype(np.float32)
    assert codes.max() > 127
    assert parts["a.weight.step"].shape == (1,)
    expected = codes * parts["a.weight.step"][0]
    for path in (plain, archive):
        assert np.array_equal(restored(path)["a.weight"], expected)
    assert compressor.compare(source, archive).total.error == pytest.approx(error(values, expected), rel=1e-4)
    assert archive.stat().st_size < plain.stat().st_size / 2


def test_rounding_by_rate_loses_less_at_the_same_bits(tmp_path: Path) -> None:
    source = saved(tmp_path / "in.safetensors", a_weight=normal())
    lost = {}
    for rounding in ("rate", "nearest"):
        out = tmp_path / f"{rounding}.safetensors"
        report = compressor.quantize(source, out, scheme="uniform", bits=2.0, rounding=rounding, store="archive")
        lost[rounding] = report.total.error
        assert out.stat().st_size * 8 <= 2.0 * 512 * 1024
    assert lost["rate"] < 0.97 * lost["nearest"]  # 0.2984 and 0.3125 for ever so many weights


def test_a_model_shares_its_bits_by_what_they_gain(tmp_path: Path) -> None:
    heavy = np.random.default_rng(1).standard_t(3, (512, 1024)).astype(np.float32)
    source = saved(tmp_path / "in.safetensors", a_weight=normal(), b_weight=heavy, c_weight=normal(seed=2) * 100)
    out = tmp_path / "out.safetensors"
    report = compressor.quantize(source, out, scheme="uniform", scope="model", bits=3.0, store="archive")
    found = out.stat().st_size * 8 / (3 * 512 * 1024)
    assert 0.985 * 3.0 < found <= 3.0
    errors = [change.error for change in report.changes]
    assert max(errors) < 1.1 * min(errors)
    apart = tmp_path / "apart.safetensors"
    other = compressor.quantize(source, apart, scheme="uniform", bits=3.0, store="archive")
    assert sum(one**2 for one in errors) < sum(change.error**2 for change in other.changes)


def test_rows_with_their_own_steps_lose_the_same_share(tmp_path: Path) -> None:
    values = normal(96, 512) * np.geomspace(0.01, 100, 96, dtype=np.float32)[:, None]
    source = saved(tmp_path / "in.safetensors", a_weight=values)
    out = tmp_path / "out.safetensors"
    compressor.quantize(source, out, scheme="uniform", step_rows=1, bits=4.0)
    back = restored(out)["a.weight"]
    errors = [error(before, after) for before, after in zip(values, back, strict=True)]
    assert max(errors) < 1.3 * min(errors)
    assert load_file(out)["a.weight.step"].shape == (96,)


def test_a_step_that_is_given_is_taken(tmp_path: Path) -> None:
    values = normal(32, 32)
    source, out = saved(tmp_path / "in.safetensors", a_weight=values), tmp_path / "out.safetensors"
    compressor.quantize(source, out, scheme="uniform", step=0.015625, rounding="nearest")
    assert np.array_equal(load_file(out)["a.weight.codes"], np.floor(values / 0.015625 + 0.5).astype(np.int8))
    assert "a.weight.high" not in load_file(out)


def test_workers_make_no_difference(tmp_path: Path) -> None:
    source = saved(tmp_path / "in.safetensors", a_weight=normal(2048, 2304), b_weight=normal(300, 40))
    made = []
    for workers in (1, 3):
        out = tmp_path / f"{workers}.safetensors"
        compressor.quantize(source, out, scheme="uniform", bits=3.5, store="archive", workers=workers)
        made.append(out.read_bytes())
    assert made[0] == made[1]


def test_pruned_zeros_stay_and_cost_little(tmp_path: Path) -> None:
    values = normal()
    values[np.random.default_rng(3).random(values.shape) < 0.9] = 0
    source, out = saved(tmp_path / "in.safetensors", a_weight=values), tmp_path / "out.safetensors"
    compressor.quantize(source, out, scheme="uniform", bits=0.8, store="archive")
    back = restored(out)["a.weight"]
    assert not back[values == 0].any()
    assert out.stat().st_size * 8 / values.size <= 0.8
    assert error(values, back) < 0.3


@pytest.mark.parametrize("kind", [np.float32, np.float16])
def test_at_least_the_share_that_is_asked_becomes_zero(tmp_path: Path, kind: type) -> None:
    values = normal().astype(kind)
    source, out = saved(tmp_path / "in.safetensors", a_weight=values), tmp_path / "out.safetensors"
    report = compressor.quantize(source, out, scheme="uniform", bits=2.5, sparsity=0.7, store="archive")
    back = restored(out)["a.weight"]
    share = float((back == 0).mean())
    assert 0.7 <= share < 0.705
    assert np.abs(values[back == 0]).max() <= np.abs(values[back != 0]).min()
    assert report.changes[0].error == pytest.approx(error(values.astype(np.float32), back), rel=1e-3)
    assert 0.985 * 2.5 < out.stat().st_size * 8 / values.size <= 2.5


def test_refusals_say_what_to_do(tmp_path: Path) -> None:
    source = saved(tmp_path / "in.safetensors", a_weight=normal(8, 8))
    with pytest.raises(InputError, match=r"more than two bytes hold.*step of at least"):
        compressor.quantize(source, tmp_path / "out.safetensors", scheme="uniform", step=1e-9)
    with pytest.raises(InputError, match=r"more than a byte holds.*code_bytes"):
        compressor.quantize(source, tmp_path / "out.safetensors", scheme="uniform", step=1e-4, code_bytes=1)
    assert not (tmp_path / "out.safetensors").exists()
    for options, said in (
        ({"step": 0.1, "bits": 4.0}, "bits is for a step that is found"),
        ({"step": 0.1, "step_rows": 4}, "step_rows is for a step that is found"),
        ({"step": 0.1, "scope": "model"}, "scope model is for a step that is found"),
        ({"scope": "model", "step_rows": 4}, "give one of them"),
        ({"bits": 0.0}, "bits must be a number from 0.01 to 14"),
    ):
        with pytest.raises(UsageError, match=said):
            Uniform(**options)  # type: ignore[arg-type]


def test_auto_is_said_by_its_word() -> None:
    assert make_method("quantize", {"scheme": "uniform", "step": "auto", "bits": "4.13"}, text=True) == Uniform(
        bits=4.13
    )
    with pytest.raises(UsageError, match="a number above 0, or auto"):
        convert(*options_of(Uniform)["step"], "fine", text=True)


def test_counts_are_the_same_in_any_grouping() -> None:
    spec = TensorSpec("a", "F32", (64, 64))
    values = normal(64, 64)
    whole, parts = Classes.of(spec), Classes.of(spec)
    whole.add(values, Workspace())
    for start in range(0, 64, 3):
        more = Classes.of(spec)
        more.add(values[start : start + 3], Workspace())
        parts.merge(more)
    one, other = whole.points("<f4"), parts.points("<f4")
    assert np.array_equal(one.values, other.values)
    assert np.array_equal(one.counts, other.counts)
    assert one.top == other.top == np.abs(values).max()
