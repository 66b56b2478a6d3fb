"""Where a remote output is collected before it has its name: nothing that a loader would take for a model."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol, TypeVar

from compressor.core.errors import InputError, OutputError
from compressor.core.text import printable, without_secrets
from compressor.files.ours import PART_RECORD, is_part_record, says_so
from compressor.files.remote.objects import passes, refuses, tag_of
from compressor.files.remote.packages import filesystem
from compressor.files.remote.trying import Passing, tried
from compressor.files.tree import Tree

T = TypeVar("T")

_HIDDEN = ".compressor-upload-"
_UNFINISHED = ".compressor-unfinished"
_BLOCK = 16 << 20  # bytes of a part of a multipart upload
_PARTS = 9000  # stores allow 10,000
_PIECE = 1 << 20
_LOOKED_AT = 64


class Uploads(Protocol):
    """Files of one output that are on their way to a place."""

    def check(self, *, replace: bool, recorded: bool) -> None:
        """OutputError where something is there that may not be replaced."""

    def put(self, name: str, path: str) -> str:
        """Send a finished file: by what `has` knows it later. OutputError when it cannot be."""

    def has(self, name: str, known: str) -> bool:
        """Whether a file that was sent, by this run or an earlier one of the same plan, is there still."""

    def publish(self, names: Sequence[str]) -> None:
        """Give the files their names, in this order."""

    def discard(self) -> None:
        """Remove what was sent."""


def last_ones_last(names: Iterable[str]) -> list[str]:
    """Names in the order in which they may appear: what loaders look for first comes last."""

    def late(name: str) -> int:
        plain = os.path.basename(name)
        return 2 if plain in ("config.json", PART_RECORD) else 1 if plain.endswith(".index.json") else 0

    return sorted(names, key=late)


def check_replaceable(address: str, tree: Tree, *, replace: bool, recorded: bool) -> None:
    """OutputError unless the folder that is there may be replaced: one that a run of this tool wrote, or, where
    what will be written has no record either, one that holds a model."""
    shown = without_secrets(address)
    if not replace:
        raise OutputError("exists already", file=shown, remedy="Use --force to replace it")
    names = tree.names()
    if PART_RECORD in names and is_part_record(tree.open(PART_RECORD)):
        return
    weights = [name for name in names if name.endswith(".safetensors")]
    if any(says_so(tree.open(name)) for name in weights[:_LOOKED_AT]) or (weights and not recorded):
        return
    raise OutputError(
        "holds files that no run of this tool has written, by what they say, and will not be replaced",
        file=shown,
        remedy="Name another, or delete it yourself",
    )


def sent(call: Callable[[], T], path: str) -> T:
    """The result of a call that sends something, made again after what may pass. OutputError when it does not."""

    def attempt() -> T:
        try:
            return call()
        except (Passing, OutputError):
            raise
        except FileNotFoundError as error:
            remedy = "Create its bucket first"
            raise OutputError("cannot be written: its bucket is not there", file=path, remedy=remedy) from error
        except Exception as error:
            if refuses(error):
                remedy = "Log in as the store's own tools do, or ask for access"
                raise OutputError("may not be written", file=path, remedy=remedy) from error
            if passes(error):
                raise Passing(f"the store cannot be reached ({type(error).__name__})") from error
            said = printable(str(error).partition("\n")[0], 200)
            raise OutputError(f"cannot be written: {type(error).__name__}: {said}", file=path) from error

    try:
        return tried(attempt, path)
    except InputError as error:
        raise OutputError(error.reason, file=path, remedy=error.remedy) from error


class ObjectUploads:
    """Files on their way into a store of fsspec's: under a hidden name beside their places, by the `key` of what
    makes them, then copied there by the store itself."""

    def __init__(self, address: str, key: str, *, folder: bool) -> None:
        self.address, self.folder, self.shown = address, folder, without_secrets(address).rstrip("/")
        self.store, place = filesystem(address)
        self.place = place.rstrip("/")
        parent, _, name = self.place.rpartition("/")
        self.hidden = f"{self.place}/{_HIDDEN}{key}" if folder else f"{parent}/.{name}{_HIDDEN}{key}"

    def check(self, *, replace: bool, recorded: bool) -> None:
        """OutputError where something is there that may not be replaced. What a run left that was stopped while it
        gave its files their names may be."""
        there = self._files()
        if not there or f"{self.place}/{_UNFINISHED}" in there:
            return
        if not self.folder:
            if not replace:
                raise OutputError("exists already", file=self.shown, remedy="Use --force to replace it")
            return
        from compressor.files.remote.objects import found

        check_replaceable(self.address, found(f"{self.shown}/")[0], replace=replace, recorded=recorded)

    def _files(self) -> dict[str, Any]:
        """What is at the place, without what is on its way."""

        def look() -> dict[str, Any]:
            self.store.invalidate_cache()
            found: dict[str, Any] = self.store.find(self.place, detail=True)
            return found

        try:
            found = sent(look, self.shown)
        except OutputError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                return {}
            raise
        return {path: info for path, info in found.items() if _HIDDEN not in path}

    def put(self, name: str, path: str) -> str:
        """Send a finished file: by what `has` knows it later."""
        size = os.path.getsize(path)

        def send() -> str:
            block = max(_BLOCK, -(-size // _PARTS // _PIECE) * _PIECE)  # Google's takes multiples of 256 KiB
            target = self.store.open(f"{self.hidden}/{name}", "wb", block_size=block)
            with open(path, "rb") as source, target:
                while piece := source.read(_PIECE):
                    target.write(piece)
            known = self._known(name)
            if known is None or known[0] != size:
                raise Passing("it did not arrive whole")
            return known[1]

        return sent(send, f"{self.shown}/{name}" if self.folder else self.shown)

    def has(self, name: str, known: str) -> bool:
        """Whether a file that was sent is there still."""
        found = self._known(name)
        return found is not None and found[1] == known

    def _known(self, name: str) -> tuple[int, str] | None:
        self.store.invalidate_cache()
        try:
            info = self.store.info(f"{self.hidden}/{name}")
        except FileNotFoundError:
            return None
        return info["size"], f"{info['size']} {tag_of(info)}"

    def publish(self, names: Sequence[str]) -> None:
        """Give the files their names, in this order. Before the first of an older output is replaced, what loaders
        look for in it is removed."""
        if not self.folder:
            sent(lambda: self.store.copy(f"{self.hidden}/{names[0]}", self.place), self.shown)
            self.discard()
            return
        there = self._files()
        mark = f"{self.place}/{_UNFINISHED}"
        sent(lambda: self.store.pipe_file(mark, b""), self.shown)
        fresh = {f"{self.place}/{name}" for name in names}
        old = last_ones_last(path for path in there if path != mark)
        for path in reversed(old):  # config.json first
            if path not in fresh or path.endswith(".json"):
                self._remove(path)
        for name in names:
            sent(lambda name=name: self.store.copy(f"{self.hidden}/{name}", f"{self.place}/{name}"), self.shown)  # type: ignore[misc]
        self._remove(mark)
        self.discard()

    def send_document(self, content: bytes) -> None:
        """Send the one small file that this is of, under its name: a store has it whole or not at all."""
        sent(lambda: self.store.pipe_file(self.place, content), self.shown)

    def remove_all(self) -> None:
        """Remove everything that is at the place, that first by which it is known."""
        for path in reversed(last_ones_last(self._files())):
            self._remove(path)

    def _remove(self, path: str) -> None:
        def remove() -> None:
            try:
                self.store.rm_file(path)
            except FileNotFoundError:
                return

        sent(remove, self.shown)

    def discard(self) -> None:
        """Remove what was sent."""

        def remove() -> None:
            self.store.invalidate_cache()
            for path in self.store.find(self.hidden):
                self._remove(path)

        try:
            sent(remove, self.shown)
        except OutputError as error:
            if not isinstance(error.__cause__, FileNotFoundError):
                raise
