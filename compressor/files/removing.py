"""Removing what was written on the way to an output, on a disk or in a store."""

from __future__ import annotations

from compressor.files.addresses import is_address
from compressor.files.staging import remove


def remove_output(path: str, *, folder: bool) -> None:
    """Remove a file or folder, as far as it can be removed; in a store OutputError where it cannot be."""
    if not is_address(path):
        remove(path)
        return
    from compressor.files.remote.uploads import ObjectUploads

    ObjectUploads(path, "", folder=folder).remove_all()
