"""stdout carries results, stderr carries messages. Neither may bring a finished run down."""

from __future__ import annotations

import os
import sys
from typing import TextIO

from compressor.text import printable


def prepare_streams() -> None:
    """Make both streams accept any text, and exist."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by the caller
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 - lives as long as we do
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def say(kind: str, text: str) -> None:
    """One line on stderr; a closed stderr is nobody's loss."""
    line = " ".join(printable(part, 2000) for part in text.splitlines())
    try:
        sys.stderr.write(f"{kind}: {line}\n")
        sys.stderr.flush()
    except OSError:
        silence(sys.stderr)


def silence(stream: TextIO) -> None:
    """Send what is left of a broken stream nowhere, so that Python's own flush at exit finds no fault."""
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)
    except (OSError, ValueError):
        return


def emit(text: str, *, essential: bool) -> bool:
    """Write results to stdout; False if that failed. Where the results are `essential` the caller fails,
    where a finished output stands beside them it does not."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except OSError as error:
        silence(sys.stdout)
        if not isinstance(error, BrokenPipeError) or essential:
            say("error" if essential else "warning", f"the report could not be printed: {error.strerror}")
        return False
    return True
