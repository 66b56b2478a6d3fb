"""What decoders raise: the reader of the file adds which tensor of which file it is."""

from __future__ import annotations


class Damaged(Exception):
    """A chunk contradicts itself or its checksum; the text says how."""


class NeedsPackage(Exception):
    """A chunk can only be read with a package that is not installed; the text is its name."""
