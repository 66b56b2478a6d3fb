"""stdout carries results, stderr carries messages. Neither may bring a finished run down."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO, cast

from compressor.core.text import printable


class _Lenient:
    """stderr for as long as there is one: a terminal that goes away must not end the run that it watched."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with self._losses():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self._losses():
            self._stream.flush()

    @contextmanager
    def _losses(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError):  # ValueError: closed
            silence(self._stream)


def prepare_streams() -> None:
    """Make both streams accept any text, and exist."""
    with suppress(OSError):
        while (null := os.open(os.devnull, os.O_RDWR)) <= 2:
            pass  # a file of ours must never get the number of a stream that the caller closed
        os.close(null)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by the caller
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 - lives as long as we do
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    if sys.stderr is sys.__stderr__:
        sys.stderr = cast("TextIO", _Lenient(sys.stderr))


def say(kind: str, text: str) -> None:
    """One line on stderr; a closed stderr is nobody's loss."""
    line = " ".join(printable(part, 2000) for part in text.splitlines())
    try:
        sys.stderr.write(f"{kind}: {line}\n")
        sys.stderr.flush()
    except (OSError, ValueError):  # ValueError: closed
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
