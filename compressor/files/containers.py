"""Reading the header of one container file by the module of its kind; the others are not imported."""

from __future__ import annotations

from importlib import import_module

from compressor.files.input_file import InputFile
from compressor.files.layout import Header
from compressor.files.ours import ARCHIVE
from compressor.files.suffixes import READERS


def read_header(file: InputFile, suffix: str) -> Header:
    """The header of a container file of this kind. InputError where it is damaged."""
    found: Header = import_module(f"compressor.files.{READERS[suffix]}").read_header(file)
    return found


def read_file(file: InputFile, suffix: str) -> tuple[InputFile, Header]:
    """A container file of this kind with its header; of an archive the file that it stands for. InputError where it
    cannot be read or is damaged."""
    header = read_header(file, suffix)
    if ARCHIVE in header.metadata:
        from compressor.files.archive import opened

        return opened(file, header, read_header)
    return file, header
