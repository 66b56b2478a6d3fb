"""Which folders `--force` may replace: what a run of this tool has written, by what its files say of themselves."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice

from compressor.core.errors import InputError
from compressor.files import safetensors
from compressor.files.input_file import InputFile

RECORD = "compressor"  # the key of a header's metadata under which a run says what it did
PART_RECORD = "part.json"  # what a part of an output says of itself
MOST_PARTS = 100_000  # of an output
_PART = b'{"format":"compressor-part"'
ARCHIVE = "compressor.archive"  # the key that says that a file is an archive, and of which version
_MODEL = ("model.safetensors", "model.safetensors.index.json", "adapter_model.safetensors")
_NEVER = (".bin", ".gguf", ".pt", ".pth", ".ckpt")  # weights that no run writes into a folder
_LOOKED_AT = 64  # files whose headers are read, to find a record


def may_be_replaced(folder: str, *, recorded: bool) -> bool:
    """Whether a folder is empty, or a run has written it and nobody put other weights or a .git there.

    What a run wrote has its record in a header. Where what is to be written has none (`recorded` is false: restored
    weights), an earlier output need not have one either; then a folder that holds a model is taken for that, and
    `foreign` says in the end what of it would be lost. What a link leads to is somebody else's.
    """
    if os.path.islink(folder):
        return False
    with os.scandir(folder) as listed:
        entries = list(listed)
    strange = any(
        (entry.name.startswith(".") and entry.is_dir(follow_symlinks=False)) or entry.name.endswith(_NEVER)
        for entry in entries
    )
    if strange:
        return False
    model = any(entry.name in _MODEL for entry in entries)
    return not entries or has_record(folder) or (model and not recorded)


def has_record(folder: str) -> bool:
    """Whether one of a folder's weight files, or the record of a part, says that a run of this tool wrote it."""
    with suppress(InputError):
        if is_part_record(InputFile.open(os.path.join(folder, PART_RECORD))):
            return True
    paths = (path for path in _files(folder) if path.endswith(".safetensors"))
    return any(_says_so(os.path.join(folder, path)) for path in islice(paths, _LOOKED_AT))


def is_part_record(file: InputFile) -> bool:
    """Whether a file is the record of a part."""
    return file.size >= len(_PART) and file.read(0, len(_PART)) == _PART


def foreign(folder: str, another: str) -> str | None:
    """A file of `folder` that `another` has not, and that would be lost if this replaced it; None where there is
    none."""
    kept = set(_files(another))
    return next((path for path in _files(folder) if path not in kept), None)


def _files(folder: str) -> Iterator[str]:
    """The paths of all files within, from the folder on, in order; links are not followed."""
    for place, folders, files in os.walk(folder):
        folders.sort()
        for name in sorted(files):
            yield os.path.relpath(os.path.join(place, name), folder)


def _says_so(path: str) -> bool:
    try:
        return says_so(InputFile.open(path))
    except InputError:
        return False


def says_so(file: InputFile) -> bool:
    """Whether a safetensors file has the record of a run."""
    try:
        metadata = safetensors.read_header(file).metadata
    except InputError:  # whatever it is, no run has written it
        return False
    return RECORD in metadata or ARCHIVE in metadata
