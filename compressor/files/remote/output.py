"""An output that is on no disk of this machine: each file is written here, sent when it is finished, and removed.

What is sent has no name that a loader looks for until all is there (`uploads.py`).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Sequence
from contextlib import suppress
from tempfile import mkdtemp
from typing import Any

from compressor.core import cleanup
from compressor.core.errors import InputError, OutputError, UsageError
from compressor.core.text import printable, without_secrets
from compressor.files.input_file import InputFile
from compressor.files.layout import FileLayout
from compressor.files.ours import PART_RECORD
from compressor.files.output import Output
from compressor.files.part_folder import Extent, PartFile, PartOutput
from compressor.files.remote.uploads import ObjectUploads, Uploads, last_ones_last
from compressor.files.sending import Sending
from compressor.files.work_folder import WorkFolder


def check_destination(address: str, *, folder: bool, replace: bool, recorded: bool) -> None:
    """OutputError unless what is at the address may be written, or replaced; UsageError for an address to which
    nothing is written."""
    uploads_of(address, "", folder=folder).check(replace=replace, recorded=recorded)


def uploads_of(address: str, key: str, *, folder: bool) -> Uploads:
    """Where files on their way to an address are collected."""
    scheme = address.partition("://")[0].lower()
    if scheme in ("http", "https", "file") or "::" in address:
        remedy = "Name a place on a disk, hf://org/name, or one that fsspec writes to, such as s3://bucket/folder"
        raise UsageError(f"-o {printable(address)}: nothing is written to such an address", remedy=remedy)
    if scheme == "hf" and not folder:
        raise UsageError(f"-o {printable(address)}: is a file", remedy="Name a repository, or a folder of one")
    try:
        if scheme == "hf":
            from compressor.files.remote.hub_uploads import HubUploads

            return HubUploads(address, key)
        return ObjectUploads(address, key, folder=folder)
    except InputError as error:
        raise OutputError(error.reason, file=error.file, remedy=error.remedy) from error


def send_document(address: str, content: bytes, *, replace: bool) -> None:
    """Write a small file to a store, whole or not at all. OutputError where it cannot be written or is there."""
    uploads = uploads_of(address, "", folder=False)
    uploads.check(replace=replace, recorded=True)
    assert isinstance(uploads, ObjectUploads)  # noqa: S101 - the hub takes folders
    uploads.send_document(content)


class Sent(Output):
    """What outputs elsewhere have in common: a folder of temporary files, out of which files are sent one by one. A
    mixture: `_begin` comes before the output's own beginning."""

    sends = True

    def _begin(self, address: str, sending: Sending, *, folder: bool) -> str:
        """Claim a folder of temporary files: where in it the output is written."""
        self.uploads: Uploads = uploads_of(address, sending.key, folder=folder)
        self.keeps, self.sent = sending.keeps, dict[str, str]()
        self.scratch = mkdtemp(prefix="compressor-")
        self._entry = cleanup.add(self._sweep, leftover=self._left)
        return os.path.join(self.scratch, os.path.basename(address.rstrip("/")))

    def __getstate__(self) -> dict[str, Any]:
        """For a process elsewhere, which sends nothing."""
        own = ("uploads", "sent", "_entry")
        return {name: value for name, value in super().__getstate__().items() if name not in own}

    def send(self, name: str) -> None:
        """Send a file to which nothing more is written, unless it is sent, and remove it here."""
        if name in self.sent:
            return
        self._close(name)
        self.sent[name] = self.uploads.put(name, self.path(name))
        self._remove(name)

    def discard(self) -> None:
        """Remove everything that was written, here and on its way."""
        super().discard()
        self._sweep()
        if not self.keeps:
            with suppress(OutputError):  # it is no reason to hide why
                self.uploads.discard()

    def _name_all(self, names: Sequence[str]) -> None:
        """Send what is still here, then give all files their names, those last that loaders look for."""
        for name in names:
            self.send(name)
        self.uploads.publish(last_ones_last(dict.fromkeys(names)))
        cleanup.published(final=True)
        self.keeps = True
        self.discard()

    def _remove(self, name: str) -> None:
        self._close(name)
        if self.folder:
            with suppress(FileNotFoundError):
                os.unlink(self.path(name))
        else:
            os.truncate(self.path(name), 0)

    def _sweep(self) -> None:
        self._entry.forget()
        shutil.rmtree(self.scratch, ignore_errors=True)

    def _left(self) -> str:
        """For who is stopped."""
        return f"what was sent to {printable(self.target)} stays there under a hidden name" if self.sent else ""


class RemoteOutput(Sent):
    """An output under construction, whose files are sent when they are finished."""

    def __init__(
        self, address: str, container: str, layouts: Sequence[tuple[str, FileLayout]], sending: Sending
    ) -> None:
        """Claim a folder of temporary files, and write every header there. OutputError when that fails."""
        place = self._begin(address, sending, folder=container == "folder")
        self.small: list[str] = []
        try:
            super().__init__(place, container, layouts, replace=False)
        except BaseException:
            self._sweep()
            raise
        self.target = without_secrets(address)

    def kept(self, folder: WorkFolder, entry: str, name: str) -> str:
        """Send a finished file: what it is known by."""
        self.send(name)
        return self.sent[name]

    def taken(self, folder: WorkFolder, entry: str, key: str, name: str) -> bool:
        """Whether an earlier run has sent this file, and it is there still; then it is not written again."""
        known = folder.known(entry, key)
        if known is None or not self.uploads.has(name, known):
            return False
        self._remove(name)
        self.sent[name] = known
        return True

    def add_text(self, name: str, content: bytes) -> None:
        """A small generated file of a folder."""
        super().add_text(name, content)
        self.small.append(name)

    def copy(self, name: str, source: InputFile) -> None:
        """Carry a file of the input folder over, byte for byte, and send it."""
        super().copy(name, source)
        self.send(name)
        self.small.append(name)

    def publish(self) -> None:
        """Send what is still here, then give all files their names, those last that loaders look for."""
        self._name_all([name for name, _ in self.layouts] + self.small)


class RemotePart(Sent, PartOutput):
    """A part under construction, whose files are sent when somebody says so: what is to be said of one is known
    before."""

    def __init__(
        self, address: str, layouts: Sequence[tuple[str, FileLayout]], own: Iterable[int], sending: Sending
    ) -> None:
        """Claim a folder of temporary files, and write every header there. OutputError when that fails."""
        place = self._begin(address, sending, folder=True)
        self.names: list[str] = []
        try:
            super().__init__(place, layouts, own, replace=False)
        except BaseException:
            self._sweep()
            raise
        self.target = without_secrets(address)

    def whole(self, name: str) -> PartFile:
        """What is to be said of an archive, or of a small file, which is sent."""
        return self._said(super().whole(name))

    def written(self, file: int, extents: Sequence[Extent]) -> PartFile:
        """What is to be said of a container file that is finished, which is sent."""
        return self._said(super().written(file, extents))

    def _said(self, found: PartFile) -> PartFile:
        self.names.append(self.stored_as(found.name))
        self.send(self.names[-1])
        return found

    def publish(self) -> None:
        """Give all files their names, the one last by which a part is known."""
        self._name_all([*self.names, PART_RECORD])
