"""A folder of files as inputs are found in it, on a disk or fetched from elsewhere. Names are paths within it."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from typing import Literal, Protocol

from compressor.core.errors import InputError
from compressor.files.input_file import InputFile


@dataclass(frozen=True, slots=True)
class Entry:
    """What lies in a folder: its `name` there; `strays` is where a link leads that leaves the folder."""

    name: str
    kind: Literal["folder", "file", "other"]
    strays: str = ""


class Tree(Protocol):
    """A folder."""

    @property
    def path(self) -> str:
        """What is shown of it."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know of where it was found."""

    def names(self, inside: str = "") -> list[str]:
        """What lies in it, or in a folder within, in order; InputError where it cannot be listed."""

    def has(self, name: str) -> bool:
        """Whether something of this name is there."""

    def open(self, name: str) -> InputFile:
        """A file of it. InputError where it is missing or cannot be read."""

    def entries(self, inside: str) -> list[Entry]:
        """What lies in a folder within ("" or a name with a slash), in order; InputError where it cannot be
        listed."""


@dataclass(frozen=True, slots=True)
class LocalTree:
    """A folder of this machine. Links are followed for reading."""

    path: str
    notes: tuple[str, ...] = ()

    def names(self, inside: str = "") -> list[str]:
        """What lies in it, or in a folder within, in order; InputError where it cannot be listed."""
        try:
            return sorted(os.listdir(self._place(inside)))
        except OSError as error:
            raise InputError(f"cannot be listed: {error.strerror}", file=self.path) from error

    def has(self, name: str) -> bool:
        """Whether something of this name is there."""
        return os.path.lexists(os.path.join(self.path, name))

    def open(self, name: str) -> InputFile:
        """A file of it. InputError where it is missing or cannot be read."""
        return InputFile.open(os.path.join(self.path, name))

    def entries(self, inside: str) -> list[Entry]:
        """What lies in a folder within, in order; links that leave the folder and the blobs of its cache stray."""
        homes = self._homes()
        try:
            with os.scandir(os.path.join(self.path, inside)) as listed:
                return [_entry(one, homes) for one in sorted(listed, key=lambda one: one.name)]
        except OSError as error:
            place = os.path.join(self.path, inside)
            raise InputError(f"cannot be listed: {error.strerror}", file=place) from error

    def _place(self, inside: str) -> str:
        return os.path.join(self.path, inside) if inside else self.path

    def _homes(self) -> tuple[str, ...]:
        """Where links of the folder may lead: into itself, and into the blobs of its hub cache."""
        found = os.path.realpath(self.path)
        snapshots = os.path.dirname(found)
        cache = os.path.join(os.path.dirname(snapshots), "blobs")
        return (f"{found}/", f"{cache}/") if os.path.basename(snapshots) == "snapshots" else (f"{found}/",)


def _entry(found: os.DirEntry[str], homes: tuple[str, ...]) -> Entry:
    if stat.S_ISDIR(_mode(found, follow=False)):
        return Entry(found.name, "folder")
    strays = ""
    if found.is_symlink():
        leads = os.path.realpath(found.path)
        strays = "" if leads.startswith(homes) else leads
    return Entry(found.name, "file" if stat.S_ISREG(_mode(found, follow=True)) else "other", strays)


def _mode(entry: os.DirEntry[str], *, follow: bool) -> int:
    try:
        return entry.stat(follow_symlinks=follow).st_mode
    except OSError:  # a link that leads nowhere, or in circles
        return 0
