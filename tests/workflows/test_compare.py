"""Two files side by side: numbers that are none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from support import archives
from support.console import LLAMA, TEACHER, compressor

from compressor import api
from compressor.cli.report import render
from compressor.core.errors import InputError


def test_numbers_that_are_none_are_compared(tmp_path: Path) -> None:
    a = np.array([[np.nan, np.inf, -np.inf, 1, 2]], np.float32)
    b = a.copy()
    for name, values in (("a", a), ("b", b)):
        np.save(tmp_path / f"{name}.npy", values)
    assert api.compare(tmp_path / "a.npy", tmp_path / "b.npy").rows[0].measured.error == 0
    for place, value in ((0, 1), (1, -np.inf), (3, np.nan)):
        b = a.copy()
        b[0, place] = value
        np.save(tmp_path / "b.npy", b)
        report = api.compare(tmp_path / "a.npy", tmp_path / "b.npy", max_error=1e9)
        assert report.rows[0].measured.error == np.inf
        assert report.failures
        assert "inf" in render(report, "table")


def test_complex_numbers_have_no_distance_from_real_ones(tmp_path: Path) -> None:
    ones = np.ones((4, 4))
    archives.write(tmp_path / "a.safetensors", {"w": ("C64", ones.astype(np.complex64))})
    archives.write(tmp_path / "b.safetensors", {"w": ("F32", ones.astype(np.float32))})
    for pair in (("a", "b"), ("b", "a")):
        (row,) = api.compare(*(tmp_path / f"{name}.safetensors" for name in pair)).rows
        assert row.problem in ("C64 and F32", "F32 and C64")
    assert not api.compare(*[tmp_path / "a.safetensors"] * 2).rows[0].problem


def test_models_that_have_nothing_in_common_are_no_comparison(tmp_path: Path) -> None:
    done = compressor("compare", TEACHER, LLAMA)
    assert done.code == 3
    assert "has no tensor in common" in done.err
    assert "'fc1.bias' [300]: only in A" in done.err
    assert "'lm_head.weight' [256, 128]: only in B" in done.err
    for name, shape in (("a", (3, 4)), ("b", (4, 3))):
        np.save(tmp_path / f"{name}.npy", np.ones(shape, np.float32))
    with pytest.raises(InputError, match=r"shape \[3, 4\] in A, \[4, 3\] in B"):
        api.compare(tmp_path / "a.npy", tmp_path / "b.npy")


def test_gates_of_a_comparison_are_told_one_by_one(tmp_path: Path) -> None:
    for name, values in (("a", [1.0, 2.0]), ("b", [1.0, 2.5])):
        archives.write(tmp_path / f"{name}.safetensors", {"x": ("F32", np.array(values, np.float32)[None])})
    pair = (tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    report = api.compare(*pair, max_error=0.5, min_sqnr=40)
    assert [(one.gate, bool(one.failure)) for one in report.gates] == [
        ("--max-error 0.5", False),
        ("--min-sqnr 40", True),
    ]
    assert report.failures == ("--min-sqnr 40: the SQNR of 'x' is 13.01 dB",)
    done = compressor("compare", *pair, "--max-error", "0.1", "--junit", tmp_path / "gates.xml", "-q")
    assert (done.code, len(done.out.splitlines())) == (1, 1)
    assert 'failures="1"' in (tmp_path / "gates.xml").read_text()
    again = compressor("compare", *pair, "--junit", tmp_path / "gates.xml")
    assert (again.code, "--force" in again.err) == (4, True)


def test_progress_is_told_in_bytes() -> None:
    told: list[tuple[int, int]] = []
    api.compare(TEACHER, TEACHER, progress=lambda done, total: told.append((done, total)))
    assert told[-1][0] == told[-1][1] > 1_000_000
    assert [done for done, _ in told] == sorted(done for done, _ in told)
