"""Opening what an address names, by its scheme. The packages that a scheme needs are imported for it alone."""

from __future__ import annotations

import os

from compressor.core.errors import InputError
from compressor.files.input_file import InputFile
from compressor.files.tree import Tree


def found(path: str) -> tuple[Tree, str]:
    """The folder that an address names with "", or the folder that a file is in with its name there. InputError
    where nothing is there; UsageError where a package is missing for it."""
    scheme = path.partition("://")[0].lower()
    if scheme in ("http", "https"):
        from compressor.files.remote.web import found as on_web

        return on_web(path)
    if scheme == "hf":
        from compressor.files.remote.hub import found as on_hub

        return on_hub(path)
    if scheme == "file" or "::" in path:
        raise InputError("is no address that is read here", file=path, remedy="Give the path of a file or folder")
    from compressor.files.remote.objects import found as in_store

    return in_store(path)


def opened(path: str) -> InputFile:
    """The one file that an address names, whatever its suffix. InputError where it is not there."""
    scheme = path.partition("://")[0].lower()
    if scheme in ("http", "https", "hf", "file") or "::" in path:
        tree, name = found(path)
        return tree.open(name or os.path.basename(path))
    from compressor.files.remote.objects import opened as in_store

    return in_store(path)
