"""Recorded arrays: one file, or a folder of `.npy` (one array, called like the file) and `.safetensors` files."""

from __future__ import annotations

import os

from compressor.core.errors import InputError
from compressor.core.text import printable
from compressor.files.npy import TENSOR_NAME
from compressor.files.opening import names_in, open_source
from compressor.files.source import StoredTensor

_KINDS = (".npy", ".safetensors")


def open_recorded(path: str | os.PathLike[str]) -> list[tuple[str, StoredTensor]]:
    """The recorded arrays of a file or folder with their names, in the order of files and then of names; a name may
    be in several files. Hidden files are passed over. InputError when nothing is there, or when a file cannot be
    read."""
    path = os.fspath(path)
    if not os.path.isdir(path):
        return _arrays(path)
    found = []
    for name in names_in(path):
        if os.path.splitext(name)[1].lower() not in _KINDS:
            raise InputError(
                f"holds '{printable(name, 100)}', which is no .npy and no .safetensors",
                file=path,
                remedy="Keep recorded arrays in a folder of their own",
            )
        found += _arrays(os.path.join(path, name))
    if not found:
        raise InputError("holds no .npy and no .safetensors", file=path)
    return found


def _arrays(path: str) -> list[tuple[str, StoredTensor]]:
    source = open_source(path)
    if source.kind not in ("npy", "safetensors"):
        raise InputError("is no .npy and no .safetensors", file=path)
    called = os.path.splitext(os.path.basename(path))[0]
    return [
        (called if source.kind == "npy" and name == TENSOR_NAME else name, tensor)
        for name, tensor in source.tensors.items()
    ]
