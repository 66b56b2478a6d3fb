"""What decoders raise: the reader of the file adds which tensor of which file it is."""

from __future__ import annotations

import importlib
from typing import Any


class Damaged(Exception):
    """A chunk contradicts itself or its checksum; the text says how."""


class NeedsPackage(Exception):
    """A chunk can only be read or written with a package that is not installed; the text is its name."""


def constriction() -> Any:
    """The library. NeedsPackage where it is not installed."""
    try:
        return importlib.import_module("constriction")
    except ImportError as error:
        raise NeedsPackage("constriction") from error
