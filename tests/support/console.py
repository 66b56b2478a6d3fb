"""Running the command line in tests: in this process, as a process of its own, and in a pseudo terminal."""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import pty
import struct
import subprocess
import sys
import termios
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compressor.cli.main import run
from support.clock import HANGS

SAMPLES = Path(__file__).parents[2] / "sample_weights"
LLAMA = SAMPLES / "tiny-llama"
TEACHER = SAMPLES / "lenet300_teacher.safetensors"
STUDENT = SAMPLES / "lenet300_student.safetensors"
MATRIX = SAMPLES / "matrix.npy"


@dataclass(frozen=True)
class Done:
    """How a command ended and what it said."""

    code: int
    out: str
    err: str = ""


def compressor(*args: object, encoding: str = "utf-8") -> Done:
    """Run the command in this process; its streams are no terminals."""
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding=encoding, write_through=True) for _ in range(2))
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run([str(arg) for arg in args])
    texts = [stream.buffer.getvalue().decode(encoding) for stream in (out, err)]  # type: ignore[attr-defined]
    return Done(code, *texts)


def environment(**changed: str | None) -> dict[str, str]:
    """The environment of a command: neither colour nor encoding is decided by ours."""
    ours = {"NO_COLOR", "FORCE_COLOR", "PYTHONUTF8", "PYTHONIOENCODING", "LC_ALL", "LANG", "COLUMNS", "TERM"}
    kept = {name: value for name, value in os.environ.items() if name not in ours}
    return kept | {"PYTHONUTF8": "1"} | {name: value for name, value in changed.items() if value is not None}


def spawn(*args: object, env: Mapping[str, str] | None = None, **more: Any) -> subprocess.CompletedProcess[str]:
    """Run the command as a process, its output captured unless told otherwise."""
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | more
    return subprocess.run(
        [sys.executable, "-m", "compressor", *map(str, args)],
        env=dict(env or environment()),
        encoding="utf-8",
        errors="replace",
        check=False,
        timeout=HANGS,
        **streams,
    )


def terminal(columns: int, *args: object, env: Mapping[str, str] | None = None, errors: bool = False) -> Done:
    """Run the command in a terminal of that many columns: what is shown there; its stderr too with `errors`."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("4H", 24, columns, 0, 0))
    shown = bytearray()
    with subprocess.Popen(
        [sys.executable, "-m", "compressor", *map(str, args)],
        stdin=slave,
        stdout=slave,
        stderr=slave if errors else subprocess.DEVNULL,
        env=dict(env or environment(TERM="xterm-256color")),
    ) as process:
        os.close(slave)
        with contextlib.suppress(OSError):  # EIO: the last end of the terminal was closed
            while data := os.read(master, 1 << 16):
                shown += data
        code = process.wait()
    os.close(master)
    return Done(code, shown.decode("utf-8", errors="replace").replace("\r\n", "\n"))
