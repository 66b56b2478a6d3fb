"""`.npz`: `.npy` members in an uncompressed zip, every offset known before any data is.

`numpy.savez` stamps its members with the time and wants the arrays in memory. Here the dates are fixed, and
the checksums, which only the data can tell, are patched in by `seal` when the rest is written.

The first member, `compressor`, holds a JSON record as bytes. It lists the members, so that an archive is read
without trusting a zip directory: the whole layout is computed again from the record and must be what is there.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from math import prod
from typing import Any

from compressor.core.errors import InputError, OutputError
from compressor.core.tensor import TensorSpec
from compressor.core.text import printable
from compressor.files import npy, safetensors
from compressor.files.input_file import InputFile, Section
from compressor.files.layout import FileLayout, Header, Placed
from compressor.files.strict_json import parse_object
from compressor.files.zip_directory import read_members, stored

_LOCAL = struct.Struct("<4s5H3L2H")  # signature … checksum at 14, sizes, lengths of name and extra at 26
_CENTRAL = struct.Struct("<4s6H3L5H2L")  # signature … checksum at 16, sizes, lengths of name and extra at 28
_END = struct.Struct("<4s4H2LH")
_END64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR = struct.Struct("<4sLQL")

_DAY = 1 << 5 | 1  # 1 January 1980, where a zip's calendar begins
_UTF8 = 0x800
_UNIX = 3 << 8
_MODE = 0o100644 << 16
_FULL = 0xFFFFFFFF  # "see the 64-bit field"
_LIMIT = 0xFFFFFFFF  # sizes and offsets from here on need 64-bit fields
_CHUNK = 8 << 20
_MAX_RECORD = 1_000_000

RECORD = "compressor"  # the member that says what the others are


def layout(
    tensors: Sequence[tuple[str, TensorSpec]], record: bytes | None = None, texts: Mapping[str, str] | None = None
) -> FileLayout:
    """Plan an archive of members `NAME.npy`, in this order; data offsets are found under each spec's name.

    With a `record`, a member of these bytes comes first, then `texts` (ASCII, by member). OutputError when two
    members have one name or a dtype is not one of NumPy's.
    """
    pieces: list[tuple[int, bytes]] = []
    central: list[bytes] = []
    offsets: dict[str, int] = {}
    members: set[str] = set()
    at = 0
    if record is not None:
        array = npy.header_bytes(_record_spec(len(record)))
        local, entry = _headers(f"{RECORD}.npy".encode(), len(array) + len(record), at)
        pieces.append((at, local + array + record))
        central.append(entry)
        at = len(pieces[0][1])
        members.add(RECORD)
    for member, text in (texts or {}).items():
        if member in members:
            raise OutputError(f"would have two members {member}")
        members.add(member)
        array = npy.text_header(text.encode("ascii")) + text.encode("ascii")
        local, entry = _headers(f"{member}.npy".encode(), len(array), at)
        pieces.append((at, local + array))
        central.append(entry)
        at += len(local) + len(array)
    for member, spec in tensors:
        if member in members or spec.name in offsets:
            raise OutputError("would be in the archive twice", tensor=spec.name)
        members.add(member)
        name = f"{member}.npy".encode()
        array = npy.header_bytes(spec)
        local, entry = _headers(name, len(array) + spec.nbytes, at)
        pieces.append((at, local + array))
        central.append(entry)
        offsets[spec.name] = at + len(local) + len(array)
        at = offsets[spec.name] + spec.nbytes
    directory = b"".join(central)
    tail = directory + _end(len(central), len(directory), at)
    return FileLayout(at + len(tail), (*pieces, (at, tail)), offsets)


def seal(fd: int, planned: FileLayout) -> None:
    """Write the members' checksums into a file that is otherwise complete. `fd` must allow reading too."""
    for start, end, *places in _members(planned):
        checksum = struct.pack("<L", _checksum(fd, start, end))
        for place in places:
            _patch(fd, checksum, place)


def read_header(file: InputFile) -> Header:
    """Read an archive that this tool wrote, whose record is the metadata, or arrays as `numpy.savez` stores them.

    InputError where it is damaged, compressed, or a member is no plain array.
    """
    start = file.read(0, min(file.size, 512))
    name = f"{RECORD}.npy".encode()
    if start[:2] != b"PK":
        raise safetensors.recognise(start, file.path) or InputError(
            "is no .npz file: it does not begin as one", file=file.path, remedy="Save or download it again"
        )
    if len(start) < 512 or start[_LOCAL.size : _LOCAL.size + len(name)] != name:
        return _arrays(file)
    (size,) = struct.unpack_from("<L", start, 22)
    length = size - len(npy.header_bytes(_record_spec(1)))
    begin = _LOCAL.size + len(name) + size - length
    if not 0 < length <= min(file.size, _MAX_RECORD):
        raise InputError("has a record of an impossible size", file=file.path)
    raw = file.read(begin, min(length, file.size - begin))
    try:
        said = parse_object(raw, file.path)
        tensors = [_member(*found) for found in said["members"]]
        texts = said.get("texts", {})
        if not all(type(text) is str and len(member) < 256 for member, text in texts.items()):
            raise ValueError("texts")
        planned = layout(tensors, raw, texts)
    except (KeyError, TypeError, ValueError, AttributeError, OutputError) as error:
        raise InputError("has a record that lists no members", file=file.path) from error
    if planned.size != file.size or not _agrees(file, planned):
        raise InputError("is not what its record says, or is damaged", file=file.path)
    placed = tuple(Placed(spec, planned.offsets[spec.name]) for _, spec in tensors)
    return Header(placed, {RECORD: raw.decode()})


def _arrays(file: InputFile) -> Header:
    """Plain arrays by the names of their members without `.npy`."""
    found = []
    for name, member in read_members(file).items():
        stored(file, member)
        if not name.endswith(".npy"):
            raise InputError(f"its member {printable(name, 60)} is no array", file=file.path)
        try:
            (placed,) = npy.read_header(Section.of(file, member.begin, member.size)).tensors
        except InputError as error:
            raise InputError(
                f"its member {printable(name, 60)} {error.reason}", file=file.path, remedy=error.remedy
            ) from error
        spec = TensorSpec(name.removesuffix(".npy"), placed.spec.dtype, placed.spec.shape)
        found.append(replace(placed, spec=spec, offset=member.begin + placed.offset))
    if not found:
        raise InputError("holds no arrays", file=file.path)
    return Header(tuple(sorted(found, key=lambda placed: placed.spec.name)))


def _agrees(file: InputFile, planned: FileLayout) -> bool:
    """Whether every planned piece stands in the file, checksums aside."""
    central, directory = planned.pieces[-1]
    listed = bytearray(file.read(central, len(directory)))
    for (offset, piece), (_, _, *places) in zip(planned.pieces[:-1], _members(planned), strict=True):
        found = bytearray(file.read(offset, len(piece)))
        for content, place in zip((found, listed), (places[0] - offset, places[1] - central), strict=True):
            content[place : place + 4] = bytes(4)
        if found != piece:
            return False
    return listed == directory


def _members(planned: FileLayout) -> Iterator[tuple[int, int, int, int]]:
    """Of each member: where its content begins and ends, and the two places of its checksum."""
    *members, (central, directory) = planned.pieces
    entry = 0
    for (start, piece), (end, _) in zip(members, planned.pieces[1:], strict=True):
        header = _LOCAL.size + sum(struct.unpack_from("<2H", piece, 26))
        yield start + header, end, start + 14, central + entry + 16
        entry += _CENTRAL.size + sum(struct.unpack_from("<2H", directory, entry + 28))


def _record_spec(length: int) -> TensorSpec:
    return TensorSpec(RECORD, "U8", (length,))


def _member(member: Any, name: Any, dtype: Any, shape: Any) -> tuple[str, TensorSpec]:
    """An entry of the record; ValueError or TypeError unless every part of it can be in a file."""
    if not all(type(text) is str for text in (member, name, dtype)) or len(member) > 255:
        raise ValueError("texts")
    if type(shape) is not list or len(shape) > 32 or not all(type(size) is int and size >= 0 for size in shape):
        raise ValueError("shape")
    if prod(filter(None, shape)) >= 2**40:  # so that offsets fit 64 bits; a zero must not hide the others
        raise ValueError("too large")
    return member, TensorSpec(name, dtype, tuple(shape))


def _headers(name: bytes, size: int, at: int) -> tuple[bytes, bytes]:
    """A member's local header and its entry in the central directory, without the checksum."""
    long, far = size >= _LIMIT, at >= _LIMIT
    version = 45 if long or far else 20
    flags = 0 if name.isascii() else _UTF8
    sizes = (_FULL, _FULL) if long else (size, size)
    extra = _extra([size, size] if long else [])
    local = _LOCAL.pack(b"PK\3\4", version, flags, 0, 0, _DAY, 0, *sizes, len(name), len(extra))
    wide = _extra([size, size] * long + [at] * far)
    entry = _CENTRAL.pack(
        b"PK\1\2", _UNIX | version, version, flags, 0, 0, _DAY, 0, *sizes,
        len(name), len(wide), 0, 0, 0, _MODE, _FULL if far else at,
    )  # fmt: skip
    return local + name + extra, entry + name + wide


def _extra(values: list[int]) -> bytes:
    return struct.pack(f"<2H{len(values)}Q", 1, 8 * len(values), *values) if values else b""


def _end(count: int, size: int, at: int) -> bytes:
    """What follows the central directory of `count` entries and `size` bytes that begins at `at`."""
    if count < 0xFFFF and at < _LIMIT:
        return _END.pack(b"PK\5\6", 0, 0, count, count, size, at, 0)
    end64 = _END64.pack(b"PK\6\6", _END64.size - 12, _UNIX | 45, 45, 0, 0, count, count, size, at)
    locator = _LOCATOR.pack(b"PK\6\7", 0, at + size, 1)
    return end64 + locator + _END.pack(b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, size, _FULL, 0)


def _checksum(fd: int, at: int, end: int) -> int:
    """CRC-32 of the bytes from `at` up to `end`."""
    checksum = 0
    while at < end:
        data = os.pread(fd, min(_CHUNK, end - at), at)
        if not data:
            raise OSError("the archive is shorter than what was written to it")
        checksum = zlib.crc32(data, checksum)
        at += len(data)
    return checksum


def _patch(fd: int, data: bytes, at: int) -> None:
    if os.pwrite(fd, data, at) != len(data):
        raise OSError("a checksum could not be written")
