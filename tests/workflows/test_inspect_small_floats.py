"""`inspect --stats` of floats of 8 bits that few tools read: numbers, and not codes."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

import compressor

KINDS = {
    "F8_E8M0": ml_dtypes.float8_e8m0fnu,
    "F8_E4M3FNUZ": ml_dtypes.float8_e4m3fnuz,
    "F8_E5M2FNUZ": ml_dtypes.float8_e5m2fnuz,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2,
}


@pytest.mark.parametrize("dtype", KINDS)
def test_they_are_shown_as_numbers(dtype: str, tmp_path: Path) -> None:
    codes = np.arange(256, dtype=np.uint8)
    numbers = codes.view(KINDS[dtype]).astype(np.float64)
    finite = np.isfinite(numbers)
    codes, numbers = codes[finite], numbers[finite]
    header = json.dumps(
        {"a.scale": {"dtype": dtype, "shape": [len(codes), 1], "data_offsets": [0, len(codes)]}}
    ).encode()
    source = tmp_path / "in.safetensors"
    source.write_bytes(struct.pack("<Q", len(header)) + header + codes.tobytes())
    ((_, found),) = compressor.inspect(source, stats=True).rows
    assert (found.low, found.high) == (numbers.min(), numbers.max())
    assert found.total == pytest.approx(numbers.sum(), rel=1e-6)
    assert found.zeros == np.count_nonzero(numbers == 0)
