"""Ends of float types, and the roundings that need no slow package."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from compressor.core import floats, kernels
from compressor.core.tensor import DTYPES

SAMPLES = Path(__file__).parents[2] / "sample_weights"


def test_the_table_of_ends_is_that_of_the_libraries() -> None:
    for dtype, (top, bottom, step) in floats._LIMITS.items():
        if dtype in ("F32", "F64"):
            info: Any = np.finfo(DTYPES[dtype].storage)
        else:
            info = ml_dtypes.finfo(floats._type(dtype))
        assert (top, bottom, step) == (float(info.max), float(info.smallest_subnormal), float(info.eps)), dtype


def test_narrowing_to_bfloat16_by_a_kernel_gives_the_bytes_of_a_cast() -> None:
    patterns = np.random.default_rng(0).integers(0, 1 << 32, 100_000, np.uint32)
    patterns[:6] = 0, 1 << 31, 0x7F800000, 0xFF800000, 0x7F7FFFFF, 0x3F808000  # ends, and a half
    values, out = patterns.view(np.float32), np.empty(len(patterns), np.uint16)
    floats.narrow(values, "BF16", out)
    with np.errstate(over="ignore", invalid="ignore"):
        np.testing.assert_array_equal(out, values.astype(ml_dtypes.bfloat16).view(np.uint16))


@pytest.mark.skipif(kernels.library() is None, reason="the kernels are not built")
@pytest.mark.parametrize("options", [["--method", "absmax"], [], ["--scheme", "fp8"], ["--scheme", "nvfp4"]])
def test_common_schemes_do_without_a_package_that_is_slow_to_import(options: list[str], tmp_path: Path) -> None:
    """ml_dtypes takes several times what NumPy does; each worker would import it."""
    script = (
        "import sys\nfrom compressor.cli.main import run\n"
        "code = run(sys.argv[1:])\nassert not code\nprint('ml_dtypes' in sys.modules)"
    )
    command = ["quantize", str(SAMPLES / "tiny-llama"), "-o", str(tmp_path / "out"), "-q", "--workers", "1"]
    done = subprocess.run([sys.executable, "-c", script, *command, *options], capture_output=True, text=True)
    assert done.stdout.endswith("False\n"), done.stderr
