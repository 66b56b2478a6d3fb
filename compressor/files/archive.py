"""The archive: a safetensors file whose one tensor, U8, holds the coded chunks of all others, and says so.

    {"__metadata__": {"compressor.archive": "1"}, "archive": {"dtype": "U8", …}}
    chunks of every tensor, in the directory's order · zeros · directory · its length and CRC-32 (4 bytes each)

The directory is JSON, deflated: {"metadata": {…}, "tensors": {NAME: [DTYPE, SHAPE, FORM, [BYTES OF EACH CHUNK]]}},
the metadata and tensors of the file that was archived. A reader sees that file: its bytes are decoded, chunk by
chunk, where they are asked for. No archive stands for more than 64 MiB and 4096 times its own size (the zeros see
to that), so a small file cannot claim any memory.
"""

from __future__ import annotations

import zlib
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
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

VERSION = "1"
TENSOR = "archive"
TRAILER = 8
_DIRECTORY = 100_000_000  # bytes of a directory, inflated
_CHUNK = 1 << 20  # elements of a chunk, about
_KEPT = 4  # decoded chunks that are kept, because the next read may want their other half
_MAX_DIMS = 32
_AGAIN = "Archive or download it again"


@dataclass(frozen=True)
class Entry:
    """A tensor in an archive. Its bytes begin at `begin` of the file that the archive stands for, its chunks' at
    `places` of the archive, the last of which is their end."""

    spec: TensorSpec
    form: Form
    begin: int
    places: tuple[int, ...]

    @property
    def coded(self) -> int:
        """Bytes of the tensor's chunks as they are coded."""
        return self.places[-1] - self.places[0]


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
    """What an archive stands for, read like a file; its `size` is the archive's own."""

    entries: tuple[Entry, ...] = ()
    begins: tuple[int, ...] = ()
    kept: dict[tuple[int, int], Array] = field(default_factory=dict, compare=False)

    def read_runs(self, runs: Iterable[tuple[memoryview, int]]) -> None:
        """Fill several buffers, each from its offset. InputError names the tensor whose chunk is damaged."""
        for buffer, offset in runs:
            while len(buffer):
                at = bisect_right(self.begins, offset) - 1
                done = self._read(at, buffer, offset - self.begins[at])
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
            return decode_chunk(memoryview(raw), chunk_shape(entry.spec, number), entry.form, account)
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


def opened(file: InputFile, header: Header) -> tuple[InputFile, Header]:
    """The file that a safetensors file stands for: itself, unless it is an archive. InputError where damaged."""
    version = header.metadata.get(ARCHIVE)
    if version is None:
        return file, header
    if version != VERSION:
        raise InputError(
            f"is an archive of version {printable(version, 20)!r}, and this compressor reads {VERSION}",
            file=file.path,
            remedy="Use a newer compressor",
        )
    placed = header.tensors[0] if len(header.tensors) == 1 else None
    if placed is None or placed.spec.name != TENSOR or placed.spec.dtype != "U8" or len(placed.spec.shape) != 1:
        raise _damaged(file, "it has other tensors than an archive has")
    try:
        entries, metadata = _directory(file, placed)
    except (KeyError, ValueError, TypeError, AttributeError, zlib.error) as error:
        raise _damaged(file, "its directory does not say what it should") from error
    tensors = sorted((Placed(entry.spec, entry.begin) for entry in entries), key=lambda one: one.spec.name)
    there = [entry for entry in entries if entry.spec.nbytes]  # where a byte is looked for
    begins = tuple(entry.begin for entry in there)
    archived = ArchivedFile(file.path, file.size, file.identity, tuple(there), begins, origin=file.origin)
    return archived, Header(tuple(tensors), metadata)


def directory_of(file: InputFile, header: Header) -> tuple[list[Entry], Mapping[str, str]]:
    """Every tensor of an archive, as its chunks lie there, and the metadata of the file that it stands for;
    `header` is the archive's own. InputError where it is none, or damaged."""
    archived, stands_for = opened(file, header)
    if archived is file:
        raise _damaged(file, "it is none")
    entries, _ = _directory(file, header.tensors[0])
    return entries, stands_for.metadata


def _directory(file: InputFile, placed: Placed) -> tuple[list[Entry], Mapping[str, str]]:
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
    if found.keys() != {"metadata", "tensors"}:
        raise ValueError
    if not all(isinstance(value, str) for value in found["metadata"].values()):
        raise ValueError
    entries, begin, place = [], 0, placed.offset
    for name, (dtype, shape, form, sizes) in found["tensors"].items():
        spec = _spec(name, dtype, shape)
        if not all(type(nbytes) is int and nbytes >= LEAST for nbytes in sizes) or len(sizes) != chunks_of(spec):
            raise ValueError(name)
        places = list(accumulate(sizes, initial=place))
        place = places[-1]
        entries.append(Entry(spec, form_named(form, dtype), begin, tuple(places)))
        begin += spec.nbytes
    if place > end - length or begin > most(size):
        raise _damaged(file, "its tensors are larger than it can hold")
    return entries, found["metadata"]


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
