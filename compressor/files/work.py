"""The work folder of a long run: what finished stages left, so that a run that was stopped goes on there.

    0.safetensors, 1/, …     what each finished leg of the recipe wrote
    shard-0.safetensors, …   the finished files of an output of several
    work.json                for each of them a key, which says what was done to what, the SHA-256 of its files, and
                             of a shard what was measured

Whatever does not fit (another key, another content, a folder that is none of ours) is an error: nothing is used
that the run would not have made itself, and nothing is removed that it did not make.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any

from compressor.errors import OutputError, UsageError
from compressor.files.atomic import Staging, link_or_copy, remove, reporting
from compressor.files.handle import InputFile
from compressor.files.strict_json import parse_object
from compressor.text import printable

_RECORD, _VERSION, _BUFFER, _LARGEST = "work.json", 1, 1 << 22, 1 << 27


_current: WorkFolder | None = None  # of the run that is under way


class WorkFolder:
    """Finished legs by their names, each with the key under which it was made."""

    def __init__(self, path: str) -> None:
        """Open or make the folder. UsageError when it holds anything else, OutputError when a file is there."""
        global _current
        self.path = path
        self.entries: dict[str, dict[str, Any]] = {}
        record = os.path.join(path, _RECORD)
        try:
            with reporting(path):
                os.makedirs(path, exist_ok=True)
                names = set(os.listdir(path))
        except OutputError:
            _check_folders(path)
            raise
        if _RECORD in names:
            self.entries = _read(record)
        elif names:
            raise UsageError(
                f"--work {printable(path)}: is not empty and no work folder",
                remedy="Give a folder that is empty or does not exist",
            )
        _current = self

    def finished(self, name: str, key: str) -> str | None:
        """The path of what `name` left, if it is finished; UsageError when it is of another run or was changed."""
        entry = self.entries.get(name)
        if entry is None:
            with reporting(self.path):
                remove(os.path.join(self.path, name))  # published by a run that was killed before it was noted
            return None
        path = os.path.join(self.path, name)
        other = entry["key"] != key
        if other or content_hash(_files(path)) != entry["content"]:
            said = "is of another plan" if other else f"was changed: {printable(name)} is not what was written"
            raise UsageError(f"--work {printable(self.path)}: {said}", remedy="Remove it, or give another folder")
        return path

    def said(self, name: str) -> dict[str, Any]:
        """What was noted beside `name`."""
        return dict(self.entries[name].get("said", {}))

    def keep(self, name: str, path: str) -> str:
        """Have a finished file here too, under `name`: the hash of its content."""
        kept = os.path.join(self.path, name)
        with reporting(self.path):
            link_or_copy(path, kept)
        return content_hash([kept])

    def note(self, name: str, key: str, *, content: str = "", said: Mapping[str, Any] | None = None) -> None:
        """`name` is finished; its `content` is hashed unless it is given."""
        content = content or content_hash(_files(os.path.join(self.path, name)))
        self.entries[name] = {"key": key, "content": content, **({} if said is None else {"said": said})}
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
        global _current
        _current = None
        for name in (*self.entries, _RECORD):
            remove(os.path.join(self.path, name))
        with suppress(OSError):
            os.rmdir(self.path)


def kept() -> str:
    """For who is stopped: where finished legs or shards are kept, and how to go on; "" where there are none."""
    if _current is None or not _current.entries:
        return ""
    count, path = len(_current.entries), printable(_current.path)
    one, more = ("shard", "shards") if next(iter(_current.entries)).startswith("shard-") else ("pass", "passes")
    said = f"1 finished {one} is" if count == 1 else f"{count} finished {more} are"
    return f"no output was written; {said} kept in {path}: the same command goes on from there"


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


def content_hash(paths: Iterable[str]) -> str:
    """SHA-256 over the names and bytes of files, in this order; InputError when one cannot be read."""
    total, buffer = hashlib.sha256(), memoryview(bytearray(_BUFFER))
    for path in paths:
        file = InputFile.open(path)
        total.update(f"{os.path.basename(path)}\0{file.size}\0".encode(errors="surrogateescape"))
        for start in range(0, file.size, _BUFFER):
            piece = buffer[: min(_BUFFER, file.size - start)]
            file.read_into(piece, start)
            total.update(piece)
    return total.hexdigest()


def _files(path: str) -> list[str]:
    if not os.path.isdir(path):
        return [path]
    with reporting(path):
        return [os.path.join(path, name) for name in sorted(os.listdir(path))]


def _read(path: str) -> dict[str, dict[str, Any]]:
    file = InputFile.open(path)
    if file.size > _LARGEST:
        raise OutputError("is too large for the record of a work folder", file=path)
    found: Any = parse_object(file.read(0, file.size), path)
    entries = found.get("finished")
    known = found.get("version") == _VERSION and isinstance(entries, dict)
    if not known or not all(map(_is_entry, entries.items())):
        raise UsageError(
            f"--work: {printable(path)} is damaged or of another version",
            remedy="Remove it, or give another folder",
        )
    return dict(entries)


def _is_entry(item: tuple[str, Any]) -> bool:
    name, entry = item
    named = name.removesuffix(".safetensors").removeprefix("shard-").isdecimal()
    return named and isinstance(entry, dict) and entry.keys() - {"said"} == {"key", "content"}
