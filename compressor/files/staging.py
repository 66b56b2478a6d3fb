"""Output that is whole or absent: written beside its place under a hidden name, synced, renamed.

A file is published with `link` + `unlink`, which never replaces anything, or with `rename` where the user
allowed a replacement. A folder is published by one rename; an existing one is exchanged with the new one in
one step where the kernel can (`renameat2`), so that a kill at any moment leaves the old or the new. Of files that
are one model only together, such as a split .gguf, the first is published last, and what it replaces goes before.
Links are never written through: a file that replaces a link leaves alone what the link leads to.
Temporary names are `.NAME.PID.tmp`.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import shutil
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from typing import Any

from compressor.core import cleanup
from compressor.core.errors import NothingLeft, OutputError
from compressor.core.text import printable
from compressor.files.addresses import is_address
from compressor.files.ours import foreign, has_record, may_be_replaced

_NOREPLACE, _EXCHANGE = 1, 2  # flags of Linux's renameat2


class Staging:
    """The place where one output is built before it is published. Not `final`: it only helps to make another."""

    def __init__(
        self,
        target: str,
        *,
        folder: bool,
        replace: bool,
        final: bool = True,
        recorded: bool = True,
        members: Mapping[str, str] = {},
    ) -> None:
        """Claim a hidden temporary beside `target`. OutputError when the place cannot be written. `recorded`: files
        that are written will say so themselves. `members`: files of a temporary folder that are published each by
        itself, by the paths that they get, the one last by which readers know that all are there first."""
        cleanup.begin_output()
        self.target = target
        self.folder = folder or bool(members)
        self.replace = replace
        self.final = final
        self.recorded = recorded
        self.members = {
            name: check_place(path, folder=False, replace=replace, recorded=recorded)
            for name, path in members.items()
        }
        self.place = next(iter(self.members.values()), "") or check_place(
            target, folder=folder, replace=replace, recorded=recorded
        )
        self.parent, name = os.path.split(self.place)
        stem = os.fsdecode(os.fsencode(name)[:100])
        if final:
            _name_leftovers(self.parent, stem)
        # what replaces something private is private while it is built; its mode is the old one's in the end
        private = any(map(os.path.lexists, (self.place, *self.members.values())))
        for attempt in range(100):
            suffix = f".{attempt}" if attempt else ""
            self.path = os.path.join(self.parent, f".{stem}.{os.getpid()}{suffix}.tmp")
            if os.path.lexists(self.path):  # left behind by a killed run that had our process id
                continue
            self._entry = cleanup.add(self.discard)  # before it exists: a signal at any moment finds it
            try:
                if self.folder:
                    os.mkdir(self.path, 0o700 if private else 0o777)
                else:
                    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC
                    os.close(os.open(self.path, flags, 0o600 if private else 0o666))
            except OSError as error:
                self._entry.forget()
                if not isinstance(error, FileExistsError):
                    remove(self.path)  # it may be the closing that failed
                    raise OutputError(f"cannot be written: {error.strerror}", file=target) from error
            else:
                return
        raise OutputError("too many stale temporary names beside it", file=target)

    def publish(self) -> None:
        """Put the finished temporary in its place, durably. From here on a signal no longer discards it."""
        with reporting(self.target):
            if self.replace and not self.members:
                self._check_again()
                with suppress(FileNotFoundError):
                    os.chmod(self.path, stat.S_IMODE(os.stat(self.place).st_mode) & 0o777)
            if self.folder:
                sync_folder(self.path)
        self._entry.publishing = True
        try:
            with reporting(self.target):
                self._move()
        except BaseException:
            self._entry.publishing = False
            raise
        try:
            sync_folder(self.parent)
        except OSError as error:  # the result stands; only its durability across a power cut is in doubt
            if self.final:
                cleanup.doubt(
                    f"{printable(self.target)} is complete, but the folder that it is in could not be synced "
                    f"({error.strerror or error}): a power cut may take its name away"
                )
        if self.folder and (self.replace or self.members):
            remove(self.path)  # the old one, now that the exchange is durable, or what was emptied
        cleanup.published(final=self.final)
        self._entry.forget()

    def _check_again(self) -> None:
        """OutputError where what is to be replaced became, since the run began, what must not be."""
        check_place(self.target, folder=self.folder, replace=True, recorded=self.recorded)
        if not self.folder or self.recorded or not os.path.isdir(self.place) or has_record(self.place):
            return
        lost = foreign(self.place, self.path)
        if lost is not None:
            raise OutputError(
                f"is a folder that no run of this tool has written, by what its files say, and "
                f"{printable(lost, 100)} in it would be lost",
                file=self.target,
                remedy="Name another, or delete it yourself",
            )

    def _move(self) -> None:
        if self.members:
            self._move_members()
        elif self.replace and os.path.lexists(self.place):
            if self.folder:
                _exchange(self.path, self.place)
            else:
                os.rename(self.path, self.place)
        elif self.folder:
            _rename_new(self.path, self.place)
        else:
            _link(self.path, self.place)

    def _move_members(self) -> None:
        """The first one last, and what had its name goes first: nobody ever takes some of the new ones and some of
        those that they replace for a whole. Where one cannot be published those that were are removed again."""
        if self.replace:
            for path in self.members.values():
                check_place(path, folder=False, replace=True, recorded=self.recorded)
            with suppress(FileNotFoundError):
                os.unlink(self.place)
        done = []
        try:
            for name, path in reversed(self.members.items()):
                if self.replace:
                    with suppress(FileNotFoundError):
                        os.unlink(path)
                _link(os.path.join(self.path, name), path)
                done.append(path)
        except BaseException:
            for path in done:
                remove(path)
            raise

    def discard(self) -> None:
        """Remove the temporary, unless it is being published."""
        if not self._entry.publishing:
            self._entry.forget()
            remove(self.path)


def _name_leftovers(parent: str, stem: str) -> None:
    """Have the user told of temporaries of this output that killed runs left. They are not removed: a process that
    does not run here may run in another container or on another machine, and write there still."""
    named = re.compile(
        rf"\.{re.escape(stem)}(\.trial|\.candidate|\.legs)?\.([0-9]+)(\.[0-9]+)?(\.gone)?\.tmp(\.old)?"
    )
    with suppress(OSError):
        for name in sorted(os.listdir(parent)):
            found = named.fullmatch(name)
            if found is not None and not _runs(int(found[2])):
                left = printable(os.path.join(parent, name))
                cleanup.doubt(
                    f"{left} was left by a run that was killed: it can be deleted unless one runs elsewhere"
                )


def _runs(process: int) -> bool:
    """Whether a process of this number runs on this machine."""
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # it is another user's
        return True
    return True


def remove(path: str) -> None:
    """Remove a temporary file or folder, as far as it can be removed."""
    if os.path.isdir(path) and not os.path.islink(path):
        gone = f"{path.removesuffix('.tmp')}.gone.tmp"
        with suppress(OSError):  # under another name no worker creates files in it any more
            os.rename(path, gone)
            path = gone
        for _ in range(3):
            shutil.rmtree(path, ignore_errors=True)
            if not os.path.lexists(path):
                return
        return
    for _ in range(3):
        try:
            os.unlink(path)
        except FileNotFoundError:
            return
        except OSError:
            continue
        return


def check_place(target: str, *, folder: bool, replace: bool, recorded: bool = True) -> str:
    """OutputError unless `target` is free, or may be replaced and is of the kind that will replace it.

    `recorded`: what will be written carries a record of the run. Returns its path from the root on, without a
    trailing slash; folders on the way may be links.
    """
    if is_address(target):
        raise OutputError(
            "is an address, and this is written to a disk", file=target, remedy="Name a place on a disk"
        )
    place = target.rstrip("/")
    if os.path.basename(place) in ("", ".", ".."):
        raise OutputError("is not the name of something new", file=target, remedy="Name a file or a folder")
    try:
        if not os.path.isabs(place):
            place = os.path.join(os.getcwd(), place)
        if not stat.S_ISDIR(os.stat(os.path.dirname(place)).st_mode):
            raise OutputError("its parent is not a folder", file=target)
    except FileNotFoundError:
        raise OutputError("its folder does not exist", file=target, remedy="Create it first") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise _unwritable(target, error) from error
    try:
        kind = stat.S_IFMT(os.lstat(place).st_mode)
        if kind == stat.S_IFLNK:
            with suppress(FileNotFoundError):
                kind = stat.S_IFMT(os.stat(place).st_mode)
        ours = kind == stat.S_IFDIR and may_be_replaced(place, recorded=recorded)
    except FileNotFoundError:
        return place
    except (OSError, ValueError) as error:
        raise _unwritable(target, error) from error
    if kind != (stat.S_IFDIR if folder else stat.S_IFREG):
        wanted, there = ("a folder", "something else") if folder else ("a file", "not a regular file")
        raise OutputError(f"would be {wanted}, but what is there is {there}", file=target)
    if not replace:
        raise OutputError("exists already", file=target, remedy="Use --force to replace it")
    if folder and not ours:
        raise OutputError(
            "is a folder that no run of this tool has written, by what its files say, and will not be replaced",
            file=target,
            remedy="Name another, or delete it yourself",
        )
    return place


def _unwritable(target: str, error: Exception) -> OutputError:
    return OutputError(f"cannot be written: {getattr(error, 'strerror', None) or error}", file=target)


@contextmanager
def reporting(target: str) -> Iterator[None]:
    """Turn an OSError of writing into the OutputError that the user sees."""
    try:
        yield
    except OSError as error:
        raise failure(target, error) from error


def failure(target: str, error: OSError) -> OutputError:
    """What the user sees of an OSError of writing."""
    if error.errno in (errno.EEXIST, errno.ENOTEMPTY, errno.EISDIR, errno.ENOTDIR):
        return OutputError("was created by somebody else meanwhile", file=target)
    return NothingLeft(f"cannot be written: {error.strerror or error}", file=target)


def link_or_copy(path: str, place: str) -> None:
    """Let a finished file have another name too; where that cannot be, as on another disk, a synced copy of it."""
    try:
        os.link(path, place)
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK):
            raise
        shutil.copyfile(path, place)
        with open(place, "rb+") as copied:
            os.fsync(copied.fileno())


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


def _link(path: str, place: str) -> None:
    """Give a file the name `place` without ever replacing what has it."""
    try:
        os.link(path, place)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK):
            raise
        _rename_new(path, place)  # no hard links on this file system
        return
    remove(path)


def _rename_new(path: str, place: str) -> None:
    """Rename without replacing anything; where the kernel or file system cannot promise that, after a look."""
    if _renameat2(path, place, _NOREPLACE):
        return
    if os.path.lexists(place):
        raise FileExistsError(errno.EEXIST, "exists", place)
    os.rename(path, place)


def _exchange(path: str, place: str) -> None:
    """Swap two folders in one step; where the kernel or file system cannot, in two."""
    if _renameat2(path, place, _EXCHANGE):
        return
    aside = f"{path}.old"
    os.rename(place, aside)
    try:
        os.rename(path, place)
    except OSError as error:
        try:
            os.rename(aside, place)
        except OSError:
            raise OutputError(
                f"cannot be written: {error.strerror}; what it was is now {aside}", file=place
            ) from error
        raise
    with suppress(OSError):
        os.rename(aside, path)


def _renameat2(path: str, place: str, flags: int) -> bool:
    """Linux's rename with flags; False where it is not known. OSError when it fails for another reason."""
    call = _libc_renameat2()
    if call is None:
        return False
    if call(-100, os.fsencode(path), -100, os.fsencode(place), flags) == 0:  # -100: from the working folder
        return True
    number = ctypes.get_errno()
    if number in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP):
        return False
    raise OSError(number, os.strerror(number), place)


@cache
def _libc_renameat2() -> Any:
    try:
        return ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return None
