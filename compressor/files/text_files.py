"""Small texts beside outputs: tables, pictures, logs. Whole or absent, but for a log, which grows line by line."""

from __future__ import annotations

import os

from compressor.core.errors import OutputError
from compressor.files.addresses import is_address
from compressor.files.staging import Staging, reporting


def write_document(path: str, content: bytes, *, replace: bool, folders: bool = False) -> None:
    """A file with this content, published at once; with `folders` those that it lies in are made. OutputError when
    it cannot be. An address is that of a store."""
    if is_address(path):
        from compressor.files.remote.output import send_document

        send_document(path, content, replace=replace)
        return
    if folders:
        with reporting(path):
            os.makedirs(os.path.dirname(path), exist_ok=True)
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
    """One more line of a log, on disk when this returns. OutputError when it cannot be, also where a file is there
    that a line would spoil."""
    if os.path.isdir(path):
        raise OutputError("is a folder", file=path, remedy="Name a file")
    try:
        with open(path, "ab") as file:
            regular = os.path.isfile(path)
            if regular and file.tell() and not _is_text(path):
                raise OutputError("is there, and is no log", file=path, remedy="Name another file")
            file.write(line.encode() + b"\n")
            file.flush()
            if regular:  # a terminal cannot be synced
                os.fsync(file.fileno())
    except OSError as error:  # what was in the file before stays there
        raise OutputError(f"cannot be written: {error.strerror or error}", file=path) from error


def _is_text(path: str) -> bool:
    """Whether a file may take lines: it holds no zeros where it begins, as weights do."""
    with open(path, "rb") as file:
        return b"\0" not in file.read(4096)
