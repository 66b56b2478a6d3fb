"""Opening what an address names, by its scheme. The packages that a scheme needs are imported for it alone."""

from __future__ import annotations

from compressor.core.errors import InputError
from compressor.files.tree import Tree


def found(path: str) -> tuple[Tree, str]:
    """The folder that an address names with "", or the folder that a file is in with its name there. InputError
    where nothing is there; UsageError where a package is missing for it."""
    scheme = path.partition("://")[0].lower()
    if scheme in ("http", "https"):
        from compressor.files.remote.web import found as on_web

        return on_web(path)
    raise InputError(f"{scheme}:// is no address that is read here", file=path)
