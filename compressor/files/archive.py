"""The archive: a safetensors file whose one tensor, U8, holds the coded chunks of all others, and says so.

    {"__metadata__": {"compressor.archive": "2"}, "archive": {"dtype": "U8", …}}
    chunks of every tensor, in the directory's order · zeros · directory · its length and CRC-32 (4 bytes each)

The directory is JSON, deflated: {"metadata": {…}, "tensors": {NAME: [DTYPE, SHAPE, FORM, [BYTES OF EACH CHUNK]]}},
the metadata and tensors of the file that was archived. A reader sees that file: its bytes are decoded, chunk by
chunk, where they are asked for. The archive of a file as it is says where each tensor's bytes lie in it, holds all
bytes between them, and its SHA-256: what a reader sees are then that file's own bytes, its header among them. No
archive stands for more than 64 MiB and 4096 times its own size (the zeros see to that), so a small file cannot
claim any memory.
"""

from __future__ import annotations

import re
import zlib
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Any

from compressor.core.errors import InputError
from compressor.core.tensor import DTYPES, TensorSpec
from compressor.core.text import printable
from compressor.core.workspace import Array
from compressor.files.entropy.account import Account
from compressor.files.entropy.chunk import LEAST, decode_chunk
from compressor.files.entropy.damage import Damaged, NeedsPackage
from compressor.files.entropy.elements import Form, form_named
from compressor.files.growth import most
from compressor.files.input_file import InputFile
from compressor.files.layout import Header, Placed
from compressor.files.ours import ARCHIVE
from compressor.files.strict_json import parse_object

VERSION = "2"
_READ = ("1", VERSION)
TENSOR = "archive"
TRAILER = 8
_DIRECTORY = 100_000_000  # bytes of a directory, inflated
_CHUNK = 1 << 20  # elements of a chunk, about
_KEPT = 4  # decoded chunks that are kept, because the next read may want their other half
_MAX_DIMS = 32
ORIGINALS = (".safetensors", ".npy", ".gguf")  # containers that come back byte for byte
_PLAIN = "bytes between tensors"  # what messages call them
_AGAIN = "Archive or download it again"


@dataclass(frozen=True)
class Entry:
    """A tensor in an archive. Its bytes begin at `begin` of the file that the archive stands for, its chunks' at
    `places` of the archive, the last of which is their end; they are coded as archives of `version` are."""

    spec: TensorSpec
    form: Form
    begin: int
    places: tuple[int, ...]
    version: int

    @classmethod
    def of(cls, spec: TensorSpec, form: str, begin: int, place: int, sizes: Any, version: int) -> Entry:
        """An entry as a directory has it, the first of whose chunks is at `place`. Raises ValueError."""
        if not all(type(nbytes) is int and nbytes >= LEAST for nbytes in sizes) or len(sizes) != chunks_of(spec):
            raise ValueError(spec.name)
        places = tuple(accumulate(sizes, initial=place))
        return cls(spec, form_named(form, spec.dtype), begin, places, version)

    @property
    def coded(self) -> int:
        """Bytes of the tensor's chunks as they are coded."""
        return self.places[-1] - self.places[0]


@dataclass(frozen=True)
class Original:
    """What an archive of a file as it is says of the file: its suffix, its bytes, their SHA-256 in hexadecimal
    digits, and its `plain` bytes, those of no tensor, one after the other."""

    suffix: str
    size: int
    sha256: str
    plain: Entry

    @property
    def said(self) -> dict[str, Any]:
        """What the directory says of it but for the chunks."""
        return {"suffix": self.suffix, "size": self.size, "sha256": self.sha256}


@dataclass(frozen=True)
class Directory:
    """What an archive says that it holds."""

    entries: list[Entry]
    metadata: Mapping[str, str]
    original: Original | None = None


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


def rows_of(spec: TensorSpec) -> tuple[int, int, int]:
    """How the bytes of a tensor are cut: rows, bytes of a row (the last may have fewer), rows of a chunk."""
    rows, columns = spec.matrix
    bits = DTYPES[spec.dtype].bits
    if not spec.size or columns > _CHUNK or columns * bits % 8:
        width = _CHUNK * bits // 8
        return (
            (-(-spec.nbytes // width), width, 1) if spec.nbytes > width else (min(spec.nbytes, 1), spec.nbytes, 1)
        )
    return rows, columns * bits // 8, max(1, _CHUNK // columns)


def chunk_shape(spec: TensorSpec, number: int) -> tuple[int, int]:
    """Rows and bytes of a row of one chunk."""
    rows, width, each = rows_of(spec)
    first = number * each
    if each == 1 and rows * width != spec.nbytes:
        return 1, min(width, spec.nbytes - first * width)
    return min(each, rows - first), width


def chunks_of(spec: TensorSpec) -> int:
    """How many chunks a tensor of this spec is divided into."""
    rows, _, each = rows_of(spec)
    return -(-rows // each)


# ---- reading -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ArchivedFile(InputFile):
    """What an archive stands for, read like a file; its `size` is the archive's own. From each of `begins` on it
    has the bytes of an entry from a place `within` it on. `original`: of a file as it is, what is said of it."""

    entries: tuple[Entry, ...] = ()
    begins: tuple[int, ...] = ()
    within: tuple[tuple[int, int], ...] = ()
    original: Original | None = None
    kept: dict[tuple[int, int], Array] = field(default_factory=dict, compare=False)

    @property
    def stands_for(self) -> str:
        """The suffix of the file that it is of, where that comes back as it was."""
        return "" if self.original is None else self.original.suffix

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
        spec = self.entries[at].spec
        _, width, each = rows_of(spec)
        number, inside = divmod(start, width * each)
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

    def _decode(self, at: int, number: int, account: Account | None = None) -> Array:
        entry = self.entries[at]
        begin, end = entry.places[number : number + 2]
        raw = bytearray(end - begin)
        InputFile.read_runs(self, [(memoryview(raw), begin)])
        try:
            return decode_chunk(
                memoryview(raw), chunk_shape(entry.spec, number), entry.form, account, entry.version
            )
        except Damaged as error:
            raise InputError(
                f"is damaged in the archive: {error}", file=self.path, tensor=entry.spec.name, remedy=_AGAIN
            ) from error
        except NeedsPackage as error:
            raise needs(error, self.path, entry.spec.name) from error


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
            f"is an archive of version {printable(version, 20)!r}, and this compressor reads {' and '.join(_READ)}",
            file=file.path,
            remedy="Use a newer compressor",
        )
    found = _directory(file, header, int(version))
    if found.original is not None:
        try:
            return _as_it_was(file, found.entries, found.original, read_header)
        except ValueError as error:
            raise _damaged(file, "its directory does not say what it should") from error
    tensors = sorted((Placed(entry.spec, entry.begin) for entry in found.entries), key=lambda one: one.spec.name)
    there = [entry for entry in found.entries if entry.spec.nbytes]  # where a byte is looked for
    pieces = [(entry.begin, number, 0) for number, entry in enumerate(there)]
    return _archived(file, there, pieces, None), Header(tuple(tensors), found.metadata)


def _as_it_was(
    file: InputFile, entries: Sequence[Entry], original: Original, read_header: ReadHeader
) -> tuple[InputFile, Header]:
    """The file that an archive of it as it is stands for. Raises ValueError."""
    there = sorted((entry for entry in entries if entry.spec.nbytes), key=lambda entry: entry.begin)
    pieces = [(entry.begin, number, 0) for number, entry in enumerate(there)]
    done = 0
    for begin, end in between(((one.begin, one.begin + one.spec.nbytes) for one in there), original.size):
        pieces.append((begin, len(there), done))
        done += end - begin
    if done != original.plain.spec.nbytes:
        raise ValueError(_PLAIN)
    found = _archived(file, [*there, original.plain], sorted(pieces), original)
    try:
        return found, read_header(replace(found, size=original.size), original.suffix)
    except InputError as error:
        raise _damaged(file, f"the header in it {error.reason}") from error


def _archived(
    file: InputFile, entries: Sequence[Entry], pieces: Sequence[tuple[int, int, int]], original: Original | None
) -> ArchivedFile:
    """The file of which each piece begins somewhere, with bytes of the entry of this number from this place on."""
    return ArchivedFile(
        file.path,
        file.size,
        file.identity,
        tuple(entries),
        tuple(begin for begin, _, _ in pieces),
        tuple((number, first) for _, number, first in pieces),
        original,
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
    if found.keys() != {"metadata", "tensors"}:
        raise ValueError
    if not all(isinstance(value, str) for value in found["metadata"].values()):
        raise ValueError
    entries, begin, place = [], 0, placed.offset
    for name, (dtype, shape, form, sizes, *where) in found["tensors"].items():
        if len(where) != (said is not None) or not all(type(one) is int for one in where):
            raise ValueError(name)
        entries.append(
            Entry.of(_spec(name, dtype, shape), form, where[0] if where else begin, place, sizes, version)
        )
        place = entries[-1].places[-1]
        begin += entries[-1].spec.nbytes
    original = None if said is None else _original(said, begin, place, version)
    if original is not None:
        begin, place = original.size, original.plain.places[-1]
    if place > end - length or begin > most(size):
        raise _damaged(file, "its tensors are larger than it can hold")
    return Directory(entries, found["metadata"], original)


def _original(said: Mapping[str, Any], tensors: int, place: int, version: int) -> Original:
    """What a directory says of the file that was archived as it was, of which so many bytes are those of tensors;
    the chunks of the others begin at `place`. Raises ValueError, KeyError."""
    suffix, size, sha256, (form, sizes) = (said[key] for key in ("suffix", "size", "sha256", "plain"))
    if suffix not in ORIGINALS or type(size) is not int or not tensors <= size < 2**63 or len(said) != 4:
        raise ValueError("original")
    if not isinstance(sha256, str) or not re.fullmatch("[0-9a-f]{64}", sha256):
        raise ValueError("sha256")
    return Original(suffix, size, sha256, Entry.of(plain_spec(size - tensors), form, 0, place, sizes, version))


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
