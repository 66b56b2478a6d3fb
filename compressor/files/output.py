"""Writing one output: every byte at its planned offset, from any thread; then synced, re-read, published."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from threading import Lock
from typing import TYPE_CHECKING, Any, ClassVar

from compressor.core.errors import InputError, OutputError
from compressor.core.workspace import Array
from compressor.files import unbuffered
from compressor.files.containers import read_header
from compressor.files.input_file import InputFile
from compressor.files.layout import FileLayout
from compressor.files.staging import Staging, link_or_copy, reporting, sync_folder

if TYPE_CHECKING:
    from compressor.files.work_folder import WorkFolder

_CHUNK = 8 << 20
_LARGE = 64 << 20  # bytes of a file that is written past the page cache; a smaller one may be read again soon
_IDLE = 8  # descriptors kept open between writes; a model may have more files than a process may open


class Output:
    """An output under construction. `layouts` are the container files by name; a single-file output has one, and a
    split .gguf its parts, which are published beside each other in place of `target`. Where machines are `spread`,
    what each wrote has to be seen by all: files are closed after each write. One that `sends` its files elsewhere
    wants each to be finished before the next is begun, so that no more than one lies here."""

    sends: ClassVar[bool] = False
    fills: ClassVar[bool] = True  # whether every byte of a container file is written here

    def __init__(
        self,
        target: str,
        container: str,
        layouts: Sequence[tuple[str, FileLayout]],
        *,
        replace: bool,
        recorded: bool = True,
    ) -> None:
        """Claim the temporary place and write every header, which tell of the run if `recorded`. OutputError when
        that fails."""
        self.target, self.container, self.layouts = target, container, layouts
        self.parts = _parts(target, container, [name for name, _ in layouts])
        self.staging = Staging(
            target, folder=container == "folder", replace=replace, recorded=recorded, members=self.parts
        )
        self.root, self.folder, self.spread = self.staging.path, self.staging.folder, False
        self.folders: set[str] = set()
        self.idle: list[tuple[tuple[str, int], int]] = []
        self.reserved: set[int] = set()
        self.lock = Lock()
        self.direct = self._unbuffered()
        try:
            for name, layout in layouts:
                self._make_folders(name)
                for offset, piece in layout.pieces:
                    with reporting(target):
                        self._write(name, memoryview(piece), offset)
        except BaseException:
            self.discard()
            raise

    @property
    def first(self) -> str:
        """The path that names a split .gguf: its first part's. Empty for other outputs."""
        return next(iter(self.parts.values()), "")

    def _unbuffered(self) -> unbuffered.Direct | None:
        large = unbuffered.FLAG and any(layout.size >= _LARGE for _, layout in self.layouts)
        return unbuffered.Direct(self._write) if large else None

    def __getstate__(self) -> dict[str, Any]:
        """For a process elsewhere, which writes into the same files; it neither publishes nor discards."""
        own = ("staging", "idle", "lock", "direct")
        return {name: value for name, value in self.__dict__.items() if name not in own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, idle=[], lock=Lock(), spread=True)
        self.direct = self._unbuffered()

    def path(self, name: str) -> str:
        """Where a file of the output lies until it is published."""
        return os.path.join(self.root, name) if self.folder else self.root

    def write(self, file: int, offset: int, data: Array) -> None:
        """Write an array's bytes (C-ordered) at a planned offset of a container file."""
        name, layout = self.layouts[file]
        run = data.reshape(-1).view("|u1")
        with reporting(self.target):
            if self.direct is None or layout.size < _LARGE or len(run) < unbuffered.LEAST:
                self._write(name, run.data, offset)
            else:
                if self.fills and file not in self.reserved:
                    with self._descriptor(name, 0) as fd:
                        unbuffered.reserve(fd, layout.size)
                    self.reserved.add(file)
                self.direct.write(name, run, offset)

    def write_columns(self, file: int, offset: int, stride: int, data: Array) -> None:
        """Write each row of a matrix as a run of its own, `stride` bytes after the one before.

        Through one descriptor: the runs are short and many.
        """
        name, _ = self.layouts[file]
        runs = data.view("|u1")
        with reporting(self.target), self._descriptor(name, 0) as fd:
            for number, run in enumerate(runs):
                _write(fd, run.data, offset + number * stride)

    def finish_file(self, file: int) -> None:
        """Sync a container file whose tensors are all written, and read its header back."""
        name, layout = self.layouts[file]
        with reporting(self.target):
            self._close(name)
        with self._open(name) as fd:
            if self.container == "npz":
                from compressor.files.npz import seal

                seal(fd, layout)
            os.fsync(fd)
            size = os.fstat(fd).st_size
            if size != layout.size:
                raise OutputError(f"{size} bytes were written, {layout.size} planned", file=self.target)
        if self.container in ("npz", "file") or (self.container == "folder" and not name.endswith(".safetensors")):
            return  # what comes back as it was is known by its SHA-256
        with self.reading(name) as written:
            if self.container in ("safetensors", "folder"):
                from compressor.files.safetensors import check_written

                check_written(written, layout)
                return
            header = read_header(written, f".{self.container}")
        # an .npy names no tensor: compare where the data lies
        if sorted(placed.offset for placed in header.tensors) != sorted(layout.offsets.values()):
            raise OutputError("does not read back as planned", file=self.target)

    def send(self, name: str) -> None:
        """Nothing more is written to a file; here it stays where it is until all have their names."""

    def take(self, name: str, path: str) -> None:
        """Put a file that an earlier run finished in the place of one."""
        with reporting(self.target):
            self._close(name)
            os.unlink(self.path(name))
            link_or_copy(path, self.path(name))

    def kept(self, folder: WorkFolder, entry: str, name: str) -> str:
        """Have a finished file in a work folder too, as its `entry`: what its content is known by."""
        return folder.keep(entry, self.path(name))

    def taken(self, folder: WorkFolder, entry: str, key: str, name: str) -> bool:
        """Whether an earlier run finished this file, under the `key` of what makes it; then it is in its place."""
        path = folder.finished(entry, key)
        if path is not None:
            self.take(name, path)
        return path is not None

    @contextmanager
    def reading(self, name: str) -> Iterator[InputFile]:
        """A file of the output that is written, to be read: that it cannot be is an OutputError."""
        path = self.path(name)
        try:
            yield InputFile.open(path)
        except InputError as error:
            if error.file != path:
                raise
            raise OutputError(f"does not read back: {error.reason}", file=self.target) from error

    @contextmanager
    def rewriting(self, name: str) -> Iterator[int]:
        """A new file, open, that takes the place of a written one when all went well."""
        spare = None if self.folder else Staging(self.staging.target, folder=False, replace=self.staging.replace)
        path = f"{self.path(name)}.new.tmp" if spare is None else spare.path
        try:
            with reporting(self.target):
                fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
                try:
                    yield fd
                finally:
                    os.close(fd)
                os.rename(path, self.path(name))
        finally:
            if spare is not None:
                spare.discard()

    def add_text(self, name: str, content: bytes) -> None:
        """A small generated file of a folder."""
        self._make_folders(name)
        with self._open(name) as fd:
            _write(fd, memoryview(content), 0)
            os.fsync(fd)

    def copy(self, name: str, source: InputFile) -> None:
        """Carry a file of the input folder over, byte for byte."""
        self._make_folders(name)
        with self._open(name) as fd:
            for offset in range(0, source.size, _CHUNK):
                _write(fd, memoryview(source.read(offset, min(_CHUNK, source.size - offset))), offset)
            os.fsync(fd)

    def _make_folders(self, name: str) -> None:
        inside = os.path.dirname(name)
        if inside and inside not in self.folders:
            with reporting(self.target):
                os.makedirs(self.path(inside), exist_ok=True)
            while inside:
                self.folders.add(inside)
                inside = os.path.dirname(inside)

    def publish(self) -> None:
        """Give the finished output its name."""
        with reporting(self.target):
            self._close(None)
            for inside in sorted(self.folders, reverse=True):
                sync_folder(self.path(inside))
        self.staging.publish()

    def discard(self) -> None:
        """Remove everything that was written: nothing is left beside the output's place."""
        self.staging.discard()
        with suppress(OSError):
            self._close(None)

    def _write(self, name: str, data: memoryview, offset: int, flags: int = 0) -> None:
        with self._descriptor(name, flags) as fd:
            _write(fd, data, offset)

    @contextmanager
    def _descriptor(self, name: str, flags: int) -> Iterator[int]:
        """An idle descriptor of the file that was opened with `flags`, or a new one; kept if all went well."""
        key = name, flags
        with self.lock:
            at = next((at for at, (held, _) in enumerate(self.idle) if held == key), None)
            fd = None if at is None else self.idle.pop(at)[1]
        fd = self._new(name, flags) if fd is None else fd
        try:
            yield fd
        except BaseException:
            os.close(fd)
            raise
        if self.spread:
            os.close(fd)
            return
        with self.lock:
            self.idle.append((key, fd))
            surplus = self.idle.pop(0)[1] if len(self.idle) > _IDLE else None
        if surplus is not None:
            os.close(surplus)

    def _close(self, name: str | None) -> None:
        """Close the idle descriptors of a file, or of all files. OSError when one cannot be."""
        with self.lock:
            closing = [fd for held, fd in self.idle if name in (held[0], None)]
            self.idle = [(held, fd) for held, fd in self.idle if name not in (held[0], None)]
        problems = []
        for fd in closing:
            try:
                os.close(fd)
            except OSError as error:
                problems.append(error)
        if problems:
            raise problems[0]

    @contextmanager
    def _open(self, name: str) -> Iterator[int]:
        with reporting(self.target):
            fd = self._new(name)
            try:
                yield fd
            except BaseException:
                os.close(fd)
                raise
            os.close(fd)

    def _new(self, name: str, flags: int = 0) -> int:
        flags |= os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | (os.O_CREAT if self.folder else 0)
        return os.open(self.path(name), flags, 0o666)


def _parts(target: str, container: str, names: Sequence[str]) -> dict[str, str]:
    """Where the files of a split .gguf go, which is called `target`: nothing for what is one file, or a folder."""
    if container != "gguf" or len(names) == 1:
        return {}
    from compressor.files.gguf.split import part_names  # here because most outputs are none

    return dict(zip(names, part_names(target, len(names)), strict=True))


def _write(fd: int, data: memoryview, offset: int) -> None:
    while data:
        done = os.pwrite(fd, data, offset)
        if not done:
            raise OSError(errno.EIO, "nothing more is taken")
        data, offset = data[done:], offset + done
