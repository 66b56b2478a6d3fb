"""Small texts beside outputs: tables, pictures, logs. Whole or absent, but for a log, which grows line by line."""

from __future__ import annotations

import os

from compressor.core.errors import OutputError
from compressor.files.staging import Staging, reporting


def write_document(path: str, content: bytes, *, replace: bool) -> None:
    """A file with this content, published at once. OutputError when it cannot be."""
    staging = Staging(path, folder=False, replace=replace)
    try:
        with reporting(path), open(staging.path, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        staging.publish()
    finally:
        staging.discard()


def append_line(path: str, line: str) -> None:
    """One more line of a log, on disk when this returns. OutputError when it cannot be."""
    try:
        with open(path, "ab") as file:
            file.write(line.encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:  # what was in the file before stays there
        raise OutputError(f"cannot be written: {error.strerror or error}", file=path) from error
