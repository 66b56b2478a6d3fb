"""The archive: a safetensors file whose one tensor, U8, holds the coded chunks of all others, and says so.

    {"__metadata__": {"compressor.archive": "2"}, "archive": {"dtype": "U8", …}}
    chunks of every tensor, in the directory's order · zeros · directory · its length and CRC-32 (4 bytes each)

The directory is JSON, deflated: {"metadata": {…}, "tensors": {NAME: [DTYPE, SHAPE, FORM, [BYTES OF EACH CHUNK]]}},
the metadata and tensors of the file that was archived. A reader sees that file: its bytes are decoded, chunk by
chunk, where they are asked for. The archive of a file as it is says where each tensor's bytes lie in it, holds all
bytes between them, and its SHA-256: what a reader sees are then that file's own bytes, its header among them. No
archive stands for more than 64 MiB and 4096 times its own size (the zeros see to that), so a small file cannot
claim any memory.

Version 3 is that of an archive against a base: tensors that the base has too are coded by what they differ in from
it (`entropy/deltas.py`), in chunks of 8 MiB, and their entries end in a mark by which the base's tensor is known;
`"base"` in the directory is made of all marks. Such a tensor is as large as the base's: the limit is not for it.
"""

from __future__ import annotations

import json
import re
import zlib
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from compressor.core.errors import InputError
from compressor.core.lazy import np
from compressor.core.tensor import DTYPES, TensorSpec
from compressor.core.text import printable
from compressor.core.workspace import Array
from compressor.files.entropy.account import Account
from compressor.files.entropy.chunk import LEAST, decode_chunk
from compressor.files.entropy.damage import Damaged, NeedsPackage
from compressor.files.entropy.elements import Form, form_named, possible
from compressor.files.growth import most
from compressor.files.input_file import InputFile
from compressor.files.layout import Header, Placed
from compressor.files.ours import ARCHIVE
from compressor.files.strict_json import parse_object
from compressor.files.suffixes import READERS

if TYPE_CHECKING:
    from compressor.files.source import StoredTensor

VERSION = "2"
WITH_BASE = "3"  # the version of an archive against a base
_READ = ("1", VERSION, WITH_BASE)
TENSOR = "archive"
TRAILER = 8
_DIRECTORY = 100_000_000  # bytes of a directory, inflated
_CHUNK = 1 << 20  # elements of a chunk, about
_DELTA_CHUNK = 1 << 26  # bits of a chunk against a base, about
_KEPT = 4  # decoded chunks that are kept, because the next read may want their other half
_MAX_DIMS = 32
_PLAIN = "bytes between tensors"  # what messages call them
_AGAIN = "Archive or download it again"


@dataclass(frozen=True)
class Entry:
    """A tensor in an archive. Its bytes begin at `begin` of the file that the archive stands for, its chunks' at
    `places` of the archive, the last of which is their end; they are coded as archives of `version` are. `mark`: of
    one that is coded against a base's, by what that is known (`marked`)."""

    spec: TensorSpec
    form: Form
    begin: int
    places: tuple[int, ...]
    version: int
    mark: int | None = None

    @classmethod
    def of(
        cls, spec: TensorSpec, form: str, begin: int, place: int, sizes: Any, version: int, mark: Any = None
    ) -> Entry:
        """An entry as a directory has it, the first of whose chunks is at `place`. Raises ValueError."""
        kind = form_named(form, spec.dtype)
        if (kind.kind == "delta") != (mark is not None) or not (mark is None or is_mark(mark)):
            raise ValueError(spec.name)
        count = chunks_of(spec, kind)
        if not all(type(nbytes) is int and nbytes >= LEAST for nbytes in sizes) or len(sizes) != count:
            raise ValueError(spec.name)
        return cls(spec, kind, begin, tuple(accumulate(sizes, initial=place)), version, mark)

    @property
    def coded(self) -> int:
        """Bytes of the tensor's chunks as they are coded."""
        return self.places[-1] - self.places[0]


@dataclass(frozen=True)
class Original:
    """What an archive of a file as it is says of the file: its suffix, its bytes, their SHA-256 in hexadecimal
    digits, and its `plain` bytes, those of no tensor, one after the other. `name`: what a file of a folder was
    called, where the archive is called otherwise."""

    suffix: str
    size: int
    sha256: str
    plain: Entry
    name: str = ""

    @property
    def said(self) -> dict[str, Any]:
        """What the directory says of it but for the chunks."""
        named = {"name": self.name} if self.name else {}
        return {"suffix": self.suffix, "size": self.size, "sha256": self.sha256, **named}


@dataclass(frozen=True)
class Directory:
    """What an archive says that it holds."""

    entries: list[Entry]
    metadata: Mapping[str, str]
    original: Original | None = None
    base: str = ""  # by what the base is known (`identity_of_base`), "" without one


def is_mark(found: Any) -> bool:
    """Whether this could be a mark."""
    return type(found) is int and 0 <= found < 1 << 32


def marked(mark: int, check: int) -> int:
    """The mark of a base's tensor with one chunk more, whose CRC-32 is `check`: the CRC-32 of all of these, 4 bytes
    each; 0 before the first."""
    return zlib.crc32(check.to_bytes(4, "little"), mark)


def identity_of_base(marks: Mapping[str, tuple[TensorSpec, int]]) -> str:
    """By what a base is known: the SHA-256 of a line for each tensor that is coded against it, ordered by name: the
    name as JSON has it, dtype, sizes, mark."""
    lines = (
        f"{json.dumps(name)} {spec.dtype} {list(spec.shape)} {mark}\n"
        for name, (spec, mark) in sorted(marks.items())
    )
    return sha256("".join(lines).encode()).hexdigest()


def plain_spec(nbytes: int) -> TensorSpec:
    """The bytes between tensors, as chunks have them."""
    return TensorSpec(_PLAIN, "U8", (nbytes,))


def between(ranges: Iterable[tuple[int, int]], size: int) -> list[tuple[int, int]]:
    """Beginnings and ends of what these ranges of a file, in order, leave of it. ValueError where they overlap or
    leave the file."""
    found, reached = [], 0
    for begin, end in ranges:
        if not reached <= begin <= end <= size:
            raise ValueError("ranges")
        if begin > reached:
            found.append((reached, begin))
        reached = end
    return [*found, (reached, size)] if reached < size else found


def rows_of(spec: TensorSpec, form: Form | None = None) -> tuple[int, int, int]:
    """How the bytes of a tensor are cut: rows, bytes of a row (the last may have fewer), rows of a chunk."""
    rows, columns = spec.matrix
    bits = DTYPES[spec.dtype].bits
    most = _CHUNK if form is None or form.kind != "delta" else _DELTA_CHUNK // bits // 8 * 8  # whole bytes
    if not spec.size or columns > most or columns * bits % 8:
        width = most * bits // 8
        return (
            (-(-spec.nbytes // width), width, 1) if spec.nbytes > width else (min(spec.nbytes, 1), spec.nbytes, 1)
        )
    return rows, columns * bits // 8, max(1, most // columns)


def chunk_shape(spec: TensorSpec, number: int, form: Form | None = None) -> tuple[int, int]:
    """Rows and bytes of a row of one chunk."""
    rows, width, each = rows_of(spec, form)
    first = number * each
    if each == 1 and rows * width != spec.nbytes:
        return 1, min(width, spec.nbytes - first * width)
    return min(each, rows - first), width


def chunks_of(spec: TensorSpec, form: Form | None = None) -> int:
    """How many chunks a tensor of this spec is divided into."""
    rows, _, each = rows_of(spec, form)
    return -(-rows // each)


# ---- reading -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ArchivedFile(InputFile):
    """What an archive stands for, read like a file; its `size` is the archive's own. From each of `begins` on it
    has the bytes of an entry from a place `within` it on. `original`: of a file as it is, what is said of it.
    `base`: by what the base is known that tensors are coded against, and `bases` those of it by name, once there.
    Of a `blank` one such tensors are zeros: whoever reads a header may read further than it goes."""

    entries: tuple[Entry, ...] = ()
    begins: tuple[int, ...] = ()
    within: tuple[tuple[int, int], ...] = ()
    original: Original | None = None
    base: str = ""
    bases: Mapping[str, StoredTensor] | None = None
    blank: bool = False
    kept: dict[tuple[int, int], Array] = field(default_factory=dict, compare=False)

    @property
    def stands_for(self) -> str:
        """The suffix of the file that it is of, where that comes back as it was."""
        return "" if self.original is None else self.original.suffix

    def check_unchanged(self) -> None:
        """InputError if the file, or its base, was changed since it was first seen."""
        InputFile.check_unchanged(self)
        for file in {id(one.file): one.file for one in (self.bases or {}).values()}.values():
            file.check_unchanged()

    def plain(self) -> list[tuple[int, bytes]]:
        """The bytes between tensors of the file that it is of, with their places there."""
        found = []
        for at, (begin, (number, _)) in enumerate(zip(self.begins, self.within, strict=True)):
            if self.original is not None and self.entries[number] is self.original.plain:
                end = self.begins[at + 1] if at + 1 < len(self.begins) else self.original.size
                found.append((begin, self.read(begin, end - begin)))
        return found

    def read_runs(self, runs: Iterable[tuple[memoryview, int]]) -> None:
        """Fill several buffers, each from its offset. InputError names the tensor whose chunk is damaged."""
        for buffer, offset in runs:
            while len(buffer):
                at = bisect_right(self.begins, offset) - 1
                entry, first = self.within[at]
                stop = self.begins[at + 1] - offset if at + 1 < len(self.begins) else len(buffer)
                done = self._read(entry, buffer[:stop], first + offset - self.begins[at])
                buffer, offset = buffer[done:], offset + done

    def _read(self, at: int, buffer: memoryview, start: int) -> int:
        """Fill the beginning of a buffer from a place in a tensor, as far as the chunk there goes."""
        entry = self.entries[at]
        _, width, each = rows_of(entry.spec, entry.form)
        number, inside = divmod(start, width * each)
        shape = chunk_shape(entry.spec, number, entry.form)
        size = shape[0] * shape[1]
        if not inside and size <= len(buffer) and (at, number) not in self.kept:
            self._decode(at, number, out=np.frombuffer(buffer[:size], np.uint8).reshape(shape))
            return size
        data = self._chunk(at, number).reshape(-1)[inside : inside + len(buffer)]
        buffer[: len(data)] = data.data
        return len(data)

    def account(self, name: str) -> tuple[Account, int]:
        """What the streams of a tensor take, all of its chunks decoded for that, and the bytes of its chunks."""
        for at, entry in enumerate(self.entries):
            if entry.spec.name == name:
                found = Account()
                for number in range(len(entry.places) - 1):
                    self._decode(at, number, found)
                return found, entry.coded
        return Account(), 0  # an empty tensor

    def _chunk(self, at: int, number: int) -> Array:
        found = self.kept.get((at, number))
        if found is not None:
            return found
        found = self._decode(at, number)
        if len(self.kept) >= _KEPT:
            for key in list(self.kept)[: 1 - _KEPT]:
                self.kept.pop(key, None)  # another thread may have been faster
        self.kept[at, number] = found
        return found

    def _decode(self, at: int, number: int, account: Account | None = None, out: Array | None = None) -> Array:
        entry = self.entries[at]
        begin, end = entry.places[number : number + 2]
        raw = bytearray(end - begin)
        InputFile.read_runs(self, [(memoryview(raw), begin)])
        shape = chunk_shape(entry.spec, number, entry.form)
        try:
            if entry.mark is None:
                return decode_chunk(memoryview(raw), shape, entry.form, account, entry.version, out)
            found = self._against_base(memoryview(raw), entry, number, shape, account)
        except Damaged as error:
            raise InputError(
                f"is damaged in the archive: {error}", file=self.path, tensor=entry.spec.name, remedy=_AGAIN
            ) from error
        except NeedsPackage as error:
            raise needs(error, self.path, entry.spec.name) from error
        if out is not None:
            np.copyto(out, found)
        return found

    def _against_base(
        self, chunk: memoryview, entry: Entry, number: int, shape: tuple[int, int], account: Account | None
    ) -> Array:
        from compressor.files.entropy.deltas import decode_delta  # here because few archives have a base

        if self.blank:
            return np.zeros(shape, np.uint8)
        if self.bases is None:
            raise InputError(
                "is coded against a base, which is not given",
                file=self.path,
                tensor=entry.spec.name,
                remedy="Give it: compressor restore UPDATE --base BASE -o OUTPUT",
            )
        _, width, each = rows_of(entry.spec, entry.form)
        rows: Array = np.empty(shape, np.uint8)
        base = self.bases[entry.spec.name]
        base.file.read_into(rows.reshape(-1).data, base.placed.offset + number * each * width)
        return decode_delta(chunk, rows, entry.form, possible(entry.spec.dtype)[0], account)


def needs(error: NeedsPackage, path: str, tensor: str) -> InputError:
    """The refusal where a package is missing."""
    return InputError(
        f"is entropy-coded, which takes the package {error}",
        file=path,
        tensor=tensor,
        remedy="Install it with pip install 'compressor[entropy]'",
    )


ReadHeader = Callable[[InputFile, str], Header]  # of a container of this suffix


def opened(file: InputFile, header: Header, read_header: ReadHeader) -> tuple[InputFile, Header]:
    """The file that a safetensors file stands for: itself, unless it is an archive. `read_header` reads that of a
    file that was archived as it was. InputError where damaged."""
    version = header.metadata.get(ARCHIVE)
    if version is None:
        return file, header
    if version not in _READ:
        raise InputError(
            f"is an archive of version {printable(version, 20)!r}, and this compressor reads {', '.join(_READ)}",
            file=file.path,
            remedy="Use a newer compressor",
        )
    found = _directory(file, header, int(version))
    if found.original is not None:
        try:
            return _as_it_was(file, found, found.original, read_header)
        except ValueError as error:
            raise _damaged(file, "its directory does not say what it should") from error
    tensors = sorted((Placed(entry.spec, entry.begin) for entry in found.entries), key=lambda one: one.spec.name)
    there = [entry for entry in found.entries if entry.spec.nbytes]  # where a byte is looked for
    pieces = [(entry.begin, number, 0) for number, entry in enumerate(there)]
    return _archived(file, there, pieces, found), Header(tuple(tensors), found.metadata)


def _as_it_was(
    file: InputFile, directory: Directory, original: Original, read_header: ReadHeader
) -> tuple[InputFile, Header]:
    """The file that an archive of it as it is stands for. Raises ValueError."""
    there = sorted((entry for entry in directory.entries if entry.spec.nbytes), key=lambda entry: entry.begin)
    pieces = [(entry.begin, number, 0) for number, entry in enumerate(there)]
    done = 0
    for begin, end in between(((one.begin, one.begin + one.spec.nbytes) for one in there), original.size):
        pieces.append((begin, len(there), done))
        done += end - begin
    if done != original.plain.spec.nbytes:
        raise ValueError(_PLAIN)
    found = _archived(file, [*there, original.plain], sorted(pieces), directory)
    try:
        return found, read_header(replace(found, size=original.size, blank=True, kept={}), original.suffix)
    except InputError as error:
        raise _damaged(file, f"the header in it {error.reason}") from error


def _archived(
    file: InputFile, entries: Sequence[Entry], pieces: Sequence[tuple[int, int, int]], directory: Directory
) -> ArchivedFile:
    """The file of which each piece begins somewhere, with bytes of the entry of this number from this place on."""
    return ArchivedFile(
        file.path,
        file.size,
        file.identity,
        tuple(entries),
        tuple(begin for begin, _, _ in pieces),
        tuple((number, first) for _, number, first in pieces),
        directory.original,
        directory.base,
        origin=file.origin,
    )


def directory_of(file: InputFile, header: Header) -> Directory:
    """Every tensor of an archive, as its chunks lie there, and the metadata of the file that it stands for;
    `header` is the archive's own. InputError where it is none, or damaged."""
    if header.metadata.get(ARCHIVE) != VERSION:
        raise _damaged(file, "it is none, or of another version")
    return _directory(file, header, int(VERSION))


def _directory(file: InputFile, header: Header, version: int) -> Directory:
    placed = header.tensors[0] if len(header.tensors) == 1 else None
    if placed is None or placed.spec.name != TENSOR or placed.spec.dtype != "U8" or len(placed.spec.shape) != 1:
        raise _damaged(file, "it has other tensors than an archive has")
    try:
        return _read_directory(file, placed, version)
    except (KeyError, ValueError, TypeError, AttributeError, zlib.error) as error:
        raise _damaged(file, "its directory does not say what it should") from error


def _read_directory(file: InputFile, placed: Placed, version: int) -> Directory:
    size = placed.spec.nbytes
    if size < TRAILER:
        raise _damaged(file, "it is too short")
    end = placed.offset + size - TRAILER
    trailer = file.read(end, TRAILER)
    length, check = int.from_bytes(trailer[:4], "little"), int.from_bytes(trailer[4:], "little")
    if length > size - TRAILER or length > _DIRECTORY:
        raise _damaged(file, "its directory is longer than itself")
    raw = file.read(end - length, length)
    if zlib.crc32(raw) != check:
        raise _damaged(file, "the checksum of its directory does not match")
    inflater = zlib.decompressobj(-15)
    text = inflater.decompress(raw, _DIRECTORY)
    if not inflater.eof or inflater.unused_data:
        raise _damaged(file, "its directory is too large, or not whole")
    found = parse_object(text, file.path)
    said = found.pop("original", None) if version > 1 else None
    base = found.pop("base") if str(version) == WITH_BASE else ""
    if found.keys() != {"metadata", "tensors"}:
        raise ValueError
    if not all(isinstance(value, str) for value in found["metadata"].values()):
        raise ValueError
    entries, begin, place = [], 0, placed.offset
    for name, (dtype, shape, form, sizes, *more) in found["tensors"].items():
        where, mark = _more(more, placed=said is not None, based=bool(base))
        entries.append(
            Entry.of(
                _spec(name, dtype, shape), form, begin if where is None else where, place, sizes, version, mark
            )
        )
        place = entries[-1].places[-1]
        begin += entries[-1].spec.nbytes
    original = None if said is None else _original(said, begin, place, version)
    if original is not None:
        begin, place = original.size, original.plain.places[-1]
    marks = {entry.spec.name: (entry.spec, entry.mark) for entry in entries if entry.mark is not None}
    if base and base != identity_of_base(marks):
        raise ValueError("base")
    of_base = sum(spec.nbytes for spec, _ in marks.values())
    if place > end - length or begin - of_base > most(size):
        raise _damaged(file, "its tensors are larger than it can hold")
    return Directory(entries, found["metadata"], original, base)


def _more(more: Sequence[Any], *, placed: bool, based: bool) -> tuple[int | None, int | None]:
    """What else an entry says: where the tensor's bytes begin, in the archive of a file as it is, and the mark of
    the base's, in an archive against one. Raises ValueError."""
    if not placed <= len(more) <= placed + based or not all(type(one) is int for one in more):
        raise ValueError("entry")
    return more[0] if placed else None, more[placed] if len(more) > placed else None


def _original(said: Mapping[str, Any], tensors: int, place: int, version: int) -> Original:
    """What a directory says of the file that was archived as it was, of which so many bytes are those of tensors;
    the chunks of the others begin at `place`. Raises ValueError, KeyError."""
    suffix, size, sha256, (form, sizes) = (said[key] for key in ("suffix", "size", "sha256", "plain"))
    name = said.get("name", "")
    if suffix not in READERS or type(size) is not int or not tensors <= size < 2**63:
        raise ValueError("original")
    if len(said) != 4 + bool(name) or not (name == "" or _is_name(name, suffix)):
        raise ValueError("name")
    if not isinstance(sha256, str) or not re.fullmatch("[0-9a-f]{64}", sha256):
        raise ValueError("sha256")
    plain = Entry.of(plain_spec(size - tensors), form, 0, place, sizes, version)
    return Original(suffix, size, sha256, plain, name)


def _is_name(name: Any, suffix: str) -> bool:
    """Whether a file of a folder may be called so: it becomes one's name."""
    return (
        isinstance(name, str)
        and name.lower().endswith(suffix)
        and len(name.encode(errors="replace")) <= 255
        and name.isprintable()
        and not name.startswith(".")
        and not any(c in name for c in "/\\")
    )


def _spec(name: str, dtype: str, shape: Sequence[Any]) -> TensorSpec:
    """A tensor as the header of a safetensors file could name it. Raises ValueError, KeyError."""
    bound = DTYPES[dtype].bits
    if len(shape) > _MAX_DIMS:
        raise ValueError(name)
    for size in shape:
        if type(size) is not int or not 0 <= size < 2**63:
            raise ValueError(name)
        bound *= size or 1
    spec = TensorSpec(name, dtype, tuple(shape))
    if bound >= 2**66 or spec.size * DTYPES[dtype].bits % 8:
        raise ValueError(name)
    return spec


def _damaged(file: InputFile, reason: str) -> InputError:
    return InputError(f"is a damaged archive: {reason}", file=file.path, remedy=_AGAIN)
