"""The laws that every method obeys hold for these two."""

from __future__ import annotations

import pytest
from compressor_grid import Grid, Small

from compressor.testing import FLOATS, check_method


@pytest.mark.parametrize("dtype", FLOATS)
def test_small(dtype: str) -> None:
    assert check_method(Small(below=0.01), dtype) > 20


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("pitch", [0.001, 0.25])
def test_grid(dtype: str, pitch: float) -> None:
    assert check_method(Grid(pitch=pitch), dtype, may_refuse=True) > 10
