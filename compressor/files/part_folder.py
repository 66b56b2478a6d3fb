"""The folder that one of several jobs writes of an output: `OUTPUT.part-2-of-3`.

    part.json    which part of how many it is, of which plan and inputs, what it wrote where, and what it measured
    NAME.part    a file of the output, at full length, with holes where other parts write; of an archive one of the
                 tensors that are this part's; in the first part also the small files

No name in it is one that a loader looks for. Like any output it is whole or absent.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, get_args

from compressor.core.errors import InputError
from compressor.core.lazy import np
from compressor.core.text import printable
from compressor.core.version import __version__
from compressor.core.workspace import Array
from compressor.files.addresses import is_address
from compressor.files.input_file import InputFile
from compressor.files.layout import Container, FileLayout
from compressor.files.ours import MOST_PARTS, PART_RECORD
from compressor.files.output import Output
from compressor.files.sealed_json import is_as_sealed, sealed
from compressor.files.staging import reporting
from compressor.files.strict_json import read_object
from compressor.files.tree import LocalTree, Tree

FORMAT, VERSION = "compressor-part", 1
_SUFFIX, _BUFFER = ".part", 1 << 22
_AGAIN = "Make that part again, with --force"


@dataclass(frozen=True, slots=True)
class Extent:
    """Bytes that a part has of a file: `size` of them from `offset`, and again after each `stride`, `count` times
    in all."""

    offset: int
    size: int
    stride: int = 0
    count: int = 1

    @property
    def nbytes(self) -> int:
        """How many bytes they are together."""
        return self.size * self.count


def joined(extents: Iterable[Extent]) -> list[Extent]:
    """The same bytes in the order of the file, neighbours as one; nothing of what is empty."""
    found: list[Extent] = []
    for one in sorted((one for one in extents if one.nbytes), key=lambda one: one.offset):
        last = found[-1] if found else None
        if last is not None and last.count == one.count == 1 and last.offset + last.size == one.offset:
            found[-1] = Extent(last.offset, last.size + one.size)
        else:
            found.append(one)
    return found


@dataclass(frozen=True)
class PartFile:
    """A file of the output as one part has it: of a container file its `size` and header (`pieces`, where the parts
    of tensors begin as `offsets`), and the `extents` that were written; whole, and without these, of an archive and
    of small files. `content` is the SHA-256 of what there is of it."""

    name: str
    size: int
    content: str
    pieces: tuple[tuple[int, int], ...] = ()
    offsets: tuple[int, ...] = ()
    extents: tuple[Extent, ...] = ()


@dataclass(frozen=True)
class PartRecord:
    """What a part says of itself: `number` of `count`; `plan` its fingerprint; `inputs` what they were known by,
    and `times` of their files; `names` of the output's container files, and which of these it has (`files`);
    `small` ones that go beside them; the version of the `tool`. `said`, JSON types, is for who
    makes and merges parts."""

    number: int
    count: int
    plan: str
    inputs: str
    times: str
    container: str
    names: tuple[str, ...]
    files: tuple[PartFile, ...]
    small: tuple[PartFile, ...]
    said: Mapping[str, Any]
    tool: str = __version__


class PartOutput(Output):
    """A part under construction. `layouts` are those of the whole output's container files, of which it writes the
    numbers `own`."""

    fills = False

    def __init__(
        self, target: str, layouts: Sequence[tuple[str, FileLayout]], own: Iterable[int], *, replace: bool
    ) -> None:
        has = set(own)
        partial = [
            (f"{name}{_SUFFIX}", layout if number in has else FileLayout(layout.size, (), layout.offsets))
            for number, (name, layout) in enumerate(layouts)
        ]
        super().__init__(target, "folder", partial, replace=replace)

    def finish_file(self, file: int) -> None:
        """Sync a container file of which all that is this part's is written."""
        name, layout = self.layouts[file]
        with reporting(self.target):
            self._close(name)
        with self._open(name) as fd:
            os.ftruncate(fd, layout.size)
            os.fsync(fd)

    def written(self, file: int, extents: Sequence[Extent]) -> PartFile:
        """What is to be said of a container file that is finished."""
        name, layout = self.layouts[file]
        pieces = tuple((offset, len(piece)) for offset, piece in layout.pieces)
        with self.reading(name) as found:
            content = sha256()
            for _, data in _runs(found, extents):
                content.update(data.data)
        offsets = tuple(sorted(layout.offsets.values()))
        plain = name.removesuffix(_SUFFIX)
        return PartFile(plain, layout.size, content.hexdigest(), pieces, offsets, tuple(extents))

    @staticmethod
    def stored_as(name: str) -> str:
        """What a file of the output is called in a part."""
        return f"{name}{_SUFFIX}"

    def whole(self, name: str) -> PartFile:
        """What is to be said of an archive, or of a small file, of which this part has all that there will be."""
        with self.reading(f"{name}{_SUFFIX}") as found:
            return PartFile(name, found.size, content_of(found))

    def add_text(self, name: str, content: bytes) -> None:
        """A small file that goes with the output."""
        super().add_text(f"{name}{_SUFFIX}", content)

    def copy(self, name: str, source: InputFile) -> None:
        """A small file of the input that goes with the output."""
        super().copy(f"{name}{_SUFFIX}", source)

    def finish(self, record: PartRecord) -> None:
        """Write down what the part is, and give it its name."""
        said = {
            "format": FORMAT,
            "version": VERSION,
            **{name: getattr(record, name) for name in _TEXTS},
            "part": [record.number, record.count],
            "names": record.names,
            "files": [_said(file) for file in record.files],
            "small": [_said(file) for file in record.small],
            "said": record.said,
        }
        Output.add_text(self, PART_RECORD, sealed(said))
        self.publish()


_TEXTS = ("tool", "plan", "inputs", "times", "container")


def _said(file: PartFile) -> list[Any]:
    extents = [[one.offset, one.size, one.stride, one.count] for one in file.extents]
    return [file.name, file.size, file.content, file.pieces, file.offsets, extents]


# ---- reading -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Part:
    """A part that is there."""

    path: str
    record: PartRecord
    tree: Tree

    @property
    def here(self) -> bool:
        """Whether it lies on a disk."""
        return not is_address(self.path)

    def file(self, file: PartFile) -> InputFile:
        """A file of it; InputError where it is not what was written."""
        found = self.tree.open(f"{file.name}{_SUFFIX}")
        if found.size != file.size:
            raise self.changed(file)
        return found

    def runs(self, file: PartFile) -> Iterator[tuple[int, Array]]:
        """The bytes that the part has of a container file, piece by piece with their offsets. InputError, when all
        are read, where they are not those that were written."""
        content = sha256()
        for offset, data in _runs(self.file(file), file.extents):
            content.update(data.data)
            yield offset, data
        if content.hexdigest() != file.content:
            raise self.changed(file)

    def check(self, file: PartFile) -> InputFile:
        """A file of which the part has all; InputError where it is not what was written."""
        found = self.file(file)
        if content_of(found) != file.content:
            raise self.changed(file)
        return found

    def changed(self, file: PartFile) -> InputError:
        """A file is not what was written."""
        return InputError(
            f"{printable(file.name, 100)} was changed since it was written", file=self.path, remedy=_AGAIN
        )


def read_part(path: str) -> Part:
    """The part in a folder. InputError where there is none, or one of another version."""
    place = path.rstrip("/")
    tree: Tree = LocalTree(place)
    if is_address(place):
        from compressor.files.remote.opening import found as found_at

        tree = found_at(place)[0]
    if PART_RECORD not in (tree.names() if is_address(place) or os.path.isdir(place) else ()):
        raise InputError("is no part that a run with --part has written", file=path)
    found = read_object(tree.open(PART_RECORD), large=True)
    if found.get("format") != FORMAT:
        raise InputError("is no part that a run with --part has written", file=path)
    if found.get("version") != VERSION:
        raise InputError(
            "is a part of another version of parts", file=path, remedy="Merge with the compressor that wrote it"
        )
    try:
        number, count = found["part"]
        texts = [_is(str, found[name]) for name in _TEXTS]
        files, small = (tuple(map(_file, _is(list, found[key]))) for key in ("files", "small"))
        names = tuple(_is(str, name) for name in _is(list, found["names"]))
        if not 1 <= _size(number) <= _size(count) <= MOST_PARTS or {file.name for file in files} - set(names):
            raise ValueError
        tool, plan, inputs, times, container = texts
        if not is_as_sealed(found) or container not in get_args(Container):
            raise ValueError
        said = _is(dict, found["said"])
    except (KeyError, TypeError, ValueError) as error:
        raise damaged(path) from error
    record = PartRecord(number, count, plan, inputs, times, container, names, files, small, said, tool)
    return Part(place, record, tree)


def damaged(path: str) -> InputError:
    """The record of a part is none that a run has written."""
    return InputError(f"its {PART_RECORD} is damaged", file=path, remedy=_AGAIN)


def _file(said: Any) -> PartFile:
    name, size, content, pieces, offsets, extents = said
    inside = [part for part in _is(str, name).split("/") if part in ("", ".", "..")]
    if inside or "\0" in name:
        raise ValueError
    found = PartFile(
        name,
        _size(size),
        _is(str, content),
        tuple((_size(offset), _size(length)) for offset, length in pieces),
        tuple(map(_size, offsets)),
        tuple(Extent(*map(_size, one)) for one in extents),
    )
    if any(not one.size or not one.count or (one.count > 1 and one.stride < one.size) for one in found.extents):
        raise ValueError  # nothing, or the same bytes again and again
    ends = [offset + length for offset, length in found.pieces]
    ends += [one.offset + one.stride * max(one.count - 1, 0) + one.size for one in found.extents]
    if max(ends, default=0) > found.size:
        raise ValueError
    return found


def _is(kind: type, value: Any) -> Any:
    if not isinstance(value, kind):
        raise TypeError
    return value


def _size(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 2**63:
        raise ValueError
    return value


def content_of(file: InputFile) -> str:
    """SHA-256 of all of a file."""
    content = sha256()
    for _, data in _runs(file, [Extent(0, file.size)]):
        content.update(data.data)
    return content.hexdigest()


def _runs(file: InputFile, extents: Sequence[Extent]) -> Iterator[tuple[int, Array]]:
    """What lies at these places, in pieces of some megabytes that are good until the next."""
    buffer: Array = np.empty(_BUFFER, np.uint8)
    for extent in extents:
        for number in range(extent.count):
            begin = extent.offset + number * extent.stride
            for start in range(0, extent.size, _BUFFER):
                piece = buffer[: min(_BUFFER, extent.size - start)]
                file.read_into(piece.data, begin + start)
                yield begin + start, piece
