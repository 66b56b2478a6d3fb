"""The work folder of a long run: what finished stages left, so that a run that was stopped goes on there.

    0.safetensors, 1/, …     what each finished leg of the recipe wrote
    shard-0.safetensors, …   the finished files of an output of several
    work.json                for each of them a key, which says what was done to what, the SHA-256 of its files, and
                             of a shard what was measured

Whatever does not fit (another key, another content, a folder that is none of ours) is an error: nothing is used
that the run would not have made itself, and nothing is removed that it did not make.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any

from compressor.core import cleanup
from compressor.core.errors import OutputError, UsageError
from compressor.core.text import printable
from compressor.files.input_file import InputFile
from compressor.files.staging import Staging, link_or_copy, remove, reporting
from compressor.files.strict_json import parse_object

_RECORD, _VERSION, _BUFFER, _LARGEST = "work.json", 1, 1 << 22, 1 << 27


# What `Staging` calls the temporaries of a record, a leg or a shard
_TEMPORARY = re.compile(r"\.(?:work\.json|(?:shard-)?[0-9]+(?:\.safetensors)?)\.[0-9]+(?:\.[0-9]+)?\.tmp")

_locks: set[int] = set()  # descriptors of folders that this process has to itself


class WorkFolder:
    """Finished legs by their names, each with the key under which it was made."""

    def __init__(self, path: str) -> None:
        """Open or make the folder, for this run alone. UsageError when it holds anything else or another run uses
        it, OutputError when a file is there."""
        self.path = path
        self.entries: dict[str, dict[str, Any]] = {}
        record = os.path.join(path, _RECORD)
        try:
            with reporting(path):
                os.makedirs(path, exist_ok=True)
                self.lock = _lock(path)
                names = _without_temporaries(path)
        except OutputError:
            _check_folders(path)
            raise
        try:
            if _RECORD in names:
                self.entries = _read(record)
            elif names:
                raise UsageError(
                    f"--work {printable(path)}: is not empty and no work folder",
                    remedy="Give a folder that is empty or does not exist",
                )
            else:
                self._write()  # before anything else is here, so that a run that is stopped knows its own folder
        except BaseException:
            self.release()
            raise
        self._entry = cleanup.add(leftover=self.kept)  # also after its release: it stays as it is

    def __getstate__(self) -> dict[str, Any]:
        """For a process elsewhere, which puts files here; the lock is that of the run."""
        return {"path": self.path, "entries": self.entries, "lock": None}

    def release(self) -> None:
        """Unlock the work folder, for other runs to use."""
        fd, self.lock = self.lock, None
        if fd is not None:
            _locks.discard(fd)
            os.close(fd)

    def finished(self, name: str, key: str) -> str | None:
        """The path of what `name` left, if it is finished; UsageError when it is of another run or was changed."""
        entry = self.entries.get(name)
        if entry is None:
            with reporting(self.path):
                remove(os.path.join(self.path, name))  # published by a run that was killed before it was noted
            return None
        path = os.path.join(self.path, name)
        other = entry["key"] != key
        # a link would be linked into the output; what is gone was changed too
        own = other or (os.path.lexists(path) and not os.path.islink(path))
        if other or not own or content_hash(_files(path)) != entry["content"]:
            said = "is of another plan" if other else f"was changed: {printable(name)} is not what was written"
            raise UsageError(f"--work {printable(self.path)}: {said}", remedy="Remove it, or give another folder")
        return path

    def known(self, name: str, key: str) -> str | None:
        """What is known of a finished file that lies elsewhere; UsageError when it is of another run."""
        entry = self.entries.get(name)
        if entry is None:
            return None
        if entry["key"] != key:
            said = f"--work {printable(self.path)}: is of another plan"
            raise UsageError(said, remedy="Remove it, or give another folder")
        return str(entry["content"])

    def said(self, name: str) -> dict[str, Any]:
        """What `note` put down beside the file `name`, as JSON types."""
        said = self.entries[name].get("said", {})
        if not isinstance(said, dict):
            raise self.damaged()
        return said

    def damaged(self) -> UsageError:
        """The record is none that a run has written."""
        return _damaged(os.path.join(self.path, _RECORD))

    def keep(self, name: str, path: str) -> str:
        """Have a finished file here too, under `name`: the hash of its content."""
        kept = os.path.join(self.path, name)
        with reporting(self.path):
            remove(kept)  # of a worker that was lost before it could say so
            link_or_copy(path, kept)
        return content_hash([InputFile.open(kept)])

    def note(self, name: str, key: str, *, content: str = "", said: Mapping[str, Any] | None = None) -> None:
        """`name` is finished; its `content` is hashed unless it is given."""
        content = content or content_hash(_files(os.path.join(self.path, name)))
        self.entries[name] = {"key": key, "content": content, **({} if said is None else {"said": said})}
        self._write()

    def _write(self) -> None:
        """Write the record anew."""
        text = json.dumps({"version": _VERSION, "finished": self.entries}, indent=1, sort_keys=True)
        staging = Staging(os.path.join(self.path, _RECORD), folder=False, replace=True, final=False)
        try:
            with reporting(self.path), open(staging.path, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            staging.publish()
        except BaseException:
            staging.discard()
            raise

    def clear(self) -> None:
        """Remove what is noted, and the folder if nothing else is in it."""
        self._entry.forget()
        for name in (*self.entries, _RECORD):
            remove(os.path.join(self.path, name))
        with suppress(OSError):
            os.rmdir(self.path)
        self.release()

    def kept(self) -> str:
        """For who is stopped: where finished passes or shards are kept, and how to go on; "" where there are
        none."""
        if not self.entries:
            return ""
        count, path = len(self.entries), printable(self.path)
        one, more = ("shard", "shards") if next(iter(self.entries)).startswith("shard-") else ("pass", "passes")
        kept = f"1 finished {one} is" if count == 1 else f"{count} finished {more} are"
        beside = cleanup.beside()
        command = "the same command with --force" if beside else "the same command"  # for what is written already
        return f"{beside or 'no output was written'}; {kept} kept in {path}: {command} goes on from there"


def _without_temporaries(path: str) -> set[str]:
    """What lies in the folder, after what a killed run was writing there is removed: the caller has its lock."""
    names = set(os.listdir(path))
    left = {name for name in names if _TEMPORARY.fullmatch(name)}
    for name in left:
        remove(os.path.join(path, name))
    return names - left


def _lock(path: str) -> int | None:
    """A descriptor that keeps other runs out of the folder as long as it is open; None where locks are not known.
    UsageError when another run has it."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(fd)
        if error.errno == errno.EWOULDBLOCK:
            raise UsageError(
                f"--work {printable(path)}: another run is using it", remedy="Wait for that, or give another folder"
            ) from None
        return None
    _locks.add(fd)
    return fd


def _unlocked() -> None:
    """A forked worker must not hold the folder of a run that was killed."""
    for fd in _locks:
        os.close(fd)
    _locks.clear()


os.register_at_fork(after_in_child=_unlocked)


def _check_folders(path: str) -> None:
    """OutputError where a file is in the way."""
    place = path.rstrip("/")
    while place and not os.path.lexists(place):
        place = os.path.dirname(place)
    if place and not os.path.isdir(place):
        within = (
            "is not a folder" if place == path.rstrip("/") else f"is within {printable(place)}, which is a file"
        )
        raise OutputError(f"--work {within}", file=path, remedy="Give a folder that is empty or does not exist")


def content_hash(files: Iterable[InputFile]) -> str:
    """SHA-256 over the names and bytes of files, in this order; InputError when one cannot be read."""
    total, buffer = hashlib.sha256(), memoryview(bytearray(_BUFFER))
    for file in files:
        total.update(f"{os.path.basename(file.path)}\0{file.size}\0".encode(errors="surrogateescape"))
        for start in range(0, file.size, _BUFFER):
            piece = buffer[: min(_BUFFER, file.size - start)]
            file.read_into(piece, start)
            total.update(piece)
    return total.hexdigest()


def _files(path: str) -> list[InputFile]:
    if not os.path.isdir(path):
        return [InputFile.open(path)]
    with reporting(path):
        return [InputFile.open(os.path.join(path, name)) for name in sorted(os.listdir(path))]


def _read(path: str) -> dict[str, dict[str, Any]]:
    file = InputFile.open(path)
    if file.size > _LARGEST:
        raise OutputError("is too large for the record of a work folder", file=path)
    found: Any = parse_object(file.read(0, file.size), path)
    entries = found.get("finished")
    known = found.get("version") == _VERSION and isinstance(entries, dict)
    if not known or not all(map(_is_entry, entries.items())):
        raise _damaged(path)
    return dict(entries)


def _damaged(path: str) -> UsageError:
    said = f"--work: {printable(path)} is damaged or of another version"
    return UsageError(said, remedy="Remove the folder, or give another")


def _is_entry(item: tuple[str, Any]) -> bool:
    name, entry = item
    number = name.removesuffix(".safetensors").removeprefix("shard-")
    named = number.isascii() and number.isdecimal()
    return named and isinstance(entry, dict) and entry.keys() - {"said"} == {"key", "content"}
