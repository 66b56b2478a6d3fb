"""An output that is on no disk of this machine: each file is written here, sent when it is finished, and removed.

What is sent has no name that a loader looks for until all is there (`uploads.py`).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from tempfile import mkdtemp

from compressor.core import cleanup
from compressor.core.errors import InputError, OutputError, UsageError
from compressor.core.text import printable, without_secrets
from compressor.files.input_file import InputFile
from compressor.files.layout import FileLayout
from compressor.files.output import Output
from compressor.files.remote.uploads import ObjectUploads, Uploads, last_ones_last
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


class RemoteOutput(Output):
    """An output under construction. Its container files are sent when they are finished, unless they are `archived`
    afterwards; `key` is that of the plan, so that a run that goes on finds what was sent, which an error
    `keeps` for it."""

    def __init__(
        self,
        address: str,
        container: str,
        layouts: Sequence[tuple[str, FileLayout]],
        key: str,
        *,
        archived: bool,
        keeps: bool,
    ) -> None:
        """Claim a folder of temporary files, and write every header there. OutputError when that fails."""
        self.uploads: Uploads = uploads_of(address, key, folder=container == "folder")
        self.archived = archived
        self.sent: dict[str, str] = {}
        self.small: list[str] = []
        self.keeps = keeps
        self.scratch = mkdtemp(prefix="compressor-")
        self._entry = cleanup.add(self._sweep, leftover=self._left)
        try:
            name = os.path.basename(address.rstrip("/"))
            super().__init__(os.path.join(self.scratch, name), container, layouts, replace=False)
        except BaseException:
            self._sweep()
            raise
        self.target = without_secrets(address)

    def finish_file(self, file: int) -> None:
        """Sync a container file, read its header back, and send it."""
        super().finish_file(file)
        if not self.archived:
            self._send(self.layouts[file][0])

    def kept(self, folder: WorkFolder, entry: str, name: str) -> str:
        """What a file that was sent is known by."""
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
        self._send(name)
        self.small.append(name)

    def publish(self) -> None:
        """Send what is still here, then give all files their names, those last that loaders look for."""
        names = [name for name, _ in self.layouts] + self.small
        for name in names:
            if name not in self.sent:
                self._send(name)
        self.uploads.publish(last_ones_last(dict.fromkeys(names)))
        cleanup.published(final=True)
        self.keeps = True
        self.discard()

    def discard(self) -> None:
        """Remove everything that was written, here and on its way."""
        super().discard()
        self._sweep()
        if not self.keeps:
            with suppress(OutputError):  # it is no reason to hide why
                self.uploads.discard()

    def _send(self, name: str) -> None:
        self._close(name)
        self.sent[name] = self.uploads.put(name, self.path(name))
        self._remove(name)

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
