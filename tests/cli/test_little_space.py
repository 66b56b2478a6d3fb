"""Libraries that end the process when they get no memory do not take the clean-up with it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ENDED = """
import os, resource, sys
resource.setrlimit(resource.RLIMIT_AS, (1 << 32, 1 << 32))
from compressor.cli import little_space
from compressor.core import cleanup
little_space.prepare()
cleanup.add(lambda: os.unlink(sys.argv[1]))
{how}
"""


@pytest.mark.parametrize("how", ["os.abort()", "import ctypes; ctypes.CDLL(None).exit(1)"])
def test_an_end_by_a_library_is_told_and_nothing_stays(tmp_path: Path, how: str) -> None:
    half = tmp_path / "half"
    half.touch()
    done = subprocess.run(
        [sys.executable, "-c", ENDED.format(how=how), half], capture_output=True, text=True, check=False
    )
    assert done.returncode == 4, done.stderr
    assert done.stderr == "error: out of memory; --workers 1 needs less; nothing was written\n"
    assert not half.exists()
