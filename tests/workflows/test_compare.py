"""Two files side by side: numbers that are none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from support import archives

from compressor import api
from compressor.cli.report import render


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
