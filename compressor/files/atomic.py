"""Output that is whole or absent: written beside its place under a hidden name, synced, renamed.

A file is published with `link` + `unlink`, which never replaces anything, or with `rename` where the user
allowed a replacement. A folder is published by one rename; an existing one is exchanged with the new one in
one step where the kernel can (`renameat2`), so that a kill at any moment leaves the old or the new.
Temporary names are `.NAME.PID.tmp`.
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from compressor.errors import OutputError

_pending: set[Staging] = set()


class Staging:
    """The place where one output is built before it is published."""

    def __init__(self, target: str, *, folder: bool, replace: bool) -> None:
        """Claim a hidden temporary beside `target`. OutputError when the place cannot be written."""
        self.target = target
        self.folder = folder
        self.replace = replace
        self.settled = False
        parent, name = os.path.split(os.path.abspath(target))
        self.parent = parent
        check_place(target, folder=folder, replace=replace)
        stem = os.fsencode(name)[:100].decode(errors="ignore") or "output"
        for attempt in range(100):
            suffix = f".{attempt}" if attempt else ""
            self.path = os.path.join(parent, f".{stem}.{os.getpid()}{suffix}.tmp")
            try:
                if folder:
                    os.mkdir(self.path)
                else:
                    os.close(os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o666))
            except FileExistsError:  # left behind by a killed run that had our process id
                continue
            except OSError as error:
                raise OutputError(f"cannot be written: {error.strerror}", file=target) from error
            break
        else:
            raise OutputError("too many stale temporary names beside it", file=target)
        _pending.add(self)

    def publish(self) -> None:
        """Put the finished temporary in its place, durably. From here on a signal no longer discards it."""
        if not self.folder:
            with suppress(FileNotFoundError):
                os.chmod(self.path, stat.S_IMODE(os.stat(self.target).st_mode))
        else:
            with reporting(self.target):
                sync_folder(self.path)
        self.settled = True
        try:
            with reporting(self.target):
                self._move()
        except BaseException:
            self.settled = False
            raise
        _pending.discard(self)
        with suppress(OSError):  # the result stands; only its durability across a power cut is in doubt
            sync_folder(self.parent)

    def _move(self) -> None:
        if self.folder:
            if os.path.lexists(self.target) and self.replace:
                _exchange(self.path, self.target)
                remove(self.path)
            else:
                os.rename(self.path, self.target)  # fails on a folder that is not empty
        elif self.replace:
            os.rename(self.path, self.target)
        else:
            _link(self.path, self.target)

    def discard(self) -> None:
        """Remove the temporary, unless it is being published."""
        if not self.settled:
            _pending.discard(self)
            remove(self.path)


def discard_all() -> bool:
    """For a signal: remove every temporary of this process. False if one is being published right now."""
    if any(staging.settled for staging in _pending):
        return False
    for staging in list(_pending):
        staging.discard()
    return True


def remove(path: str) -> None:
    """Remove a temporary file or folder, as far as it can be removed."""
    with suppress(OSError):
        os.unlink(path)
        return
    for _ in range(3):  # a worker may still be creating a file in it
        shutil.rmtree(path, ignore_errors=True)
        if not os.path.lexists(path):
            return


def check_place(target: str, *, folder: bool, replace: bool) -> None:
    """OutputError unless `target` is free, or may be replaced and is of the kind that will replace it."""
    parent, name = os.path.split(os.path.abspath(target))
    if not name:
        raise OutputError("is not a file name", file=target)
    try:
        if not stat.S_ISDIR(os.stat(parent).st_mode):
            raise OutputError("its parent is not a folder", file=target)
        found = os.lstat(target)
    except FileNotFoundError:
        if os.path.isdir(parent):
            return
        raise OutputError("its folder does not exist", file=target, remedy="Create it first") from None
    except OSError as error:
        raise OutputError(f"cannot be written: {error.strerror}", file=target) from error
    kind = stat.S_IFMT(os.stat(target).st_mode if os.path.exists(target) else found.st_mode)
    if kind != (stat.S_IFDIR if folder else stat.S_IFREG):
        wanted, there = ("a folder", "something else") if folder else ("a file", "not a regular file")
        raise OutputError(f"would be {wanted}, but what is there is {there}", file=target)
    if not replace:
        raise OutputError("exists already", file=target, remedy="Use --force to replace it")
    if folder and not _is_ours_to_replace(target):
        raise OutputError(
            "is a folder that holds no model, and will not be replaced", file=target, remedy="Name another"
        )


def _is_ours_to_replace(folder: str) -> bool:
    names = os.listdir(folder)
    return not os.path.islink(folder) and (
        not names or "config.json" in names or any(name.endswith(".safetensors") for name in names)
    )


@contextmanager
def reporting(target: str) -> Iterator[None]:
    """Turn an OSError of writing into the OutputError that the user sees."""
    try:
        yield
    except FileExistsError as error:
        raise OutputError("was created by somebody else meanwhile", file=target) from error
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EISDIR):
            raise OutputError("was created by somebody else meanwhile", file=target) from error
        raise OutputError(
            f"cannot be written: {error.strerror or error}", file=target, remedy="Nothing was left behind"
        ) from error


def sync_folder(path: str) -> None:
    """Make the names in a folder durable."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some file systems cannot sync a folder
            raise
    finally:
        os.close(fd)


def _link(path: str, target: str) -> None:
    """Give `path` the name `target` without ever replacing what has it."""
    try:
        os.link(path, target)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK):
            raise
        # no hard links on this file system
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, "exists", target) from error
        os.rename(path, target)
        return
    with suppress(OSError):  # published; a stale temporary is the smaller evil
        os.unlink(path)


def _exchange(path: str, target: str) -> None:
    """Swap two names in one step; where the kernel or file system cannot, in two."""
    swap = _renameat2()
    if swap is not None and swap(-100, os.fsencode(path), -100, os.fsencode(target), 2) == 0:
        return
    aside = f"{path}.old"
    os.rename(target, aside)
    try:
        os.rename(path, target)
    except BaseException:
        os.rename(aside, target)
        raise
    remove(aside)


def _renameat2() -> Callable[..., int] | None:
    """Linux's rename with flags (RENAME_EXCHANGE is 2; -100 means relative to the working folder)."""
    try:
        call: Callable[..., int] = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return None
    return call
