"""Reading the header of a GGUF file, versions 2 and 3, little-endian.

    "GGUF" · version u32 · count of tensors u64 · count of values u64
    values: key, kind u32, value                    texts are their length u64 and that many bytes
    tensors: name, count of axes u32, axes u64 (the one that varies fastest first), type u32, offset u64
    zeros up to the alignment · data, each tensor's at a multiple of the alignment

Headers come from strangers. What ggml refuses is refused here too (gguf.cpp), and what ggml does not look at but
could mean two things: names and keys that are no text, bytes behind the last tensor. The header's length stands
nowhere, so it is read as far as it goes, and what it claims is compared with what is left of the file before
memory is taken for it.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod

from compressor.core.errors import InputError
from compressor.core.ggml_types import BY_NUMBER, MAX_DIMS, REMOVED, GgmlType
from compressor.core.tensor import TensorSpec
from compressor.core.text import printable
from compressor.files import safetensors
from compressor.files.gguf.values import ARRAY_HEAD, LENGTH, SIZES, Kind, Value
from compressor.files.input_file import InputFile
from compressor.files.layout import Header, Placed

MAGIC = b"GGUF"
ALIGNMENT = "general.alignment"
DEFAULT_ALIGNMENT = 32
MAX_ALIGNMENT = 1 << 16
MAX_HEADER = 256_000_000  # bytes; the longest vocabularies take 20 MB
MAX_KEY = 65535
MAX_NAME = 1024  # ggml's own limit is 63 bytes, that of programs for images 127
RECORD = "compressor.record"  # what we write of ourselves: the text that other containers have under "compressor"

_MAX_VALUES = 1 << 16
_DEEPEST = 4  # arrays in arrays; ggml reads none, the format allows them
_WINDOW = 1 << 20
_BOUND = 2**63
_START = struct.Struct("<4sIQQ")
_LEAST_TENSOR = 8 + 1 + 4 + 4 + 8  # bytes in the table
_LEAST_VALUE = 8 + 1 + 4 + 1
_AGAIN = "Download or convert it again"


@dataclass(frozen=True, slots=True)
class GgufHeader(Header):
    """A header as its file has it. `fields`: the metadata in its order. `types` and `shapes`: what each tensor is,
    in the order of the data; `tensors` has the bytes of blocks as U8, with rows of whole blocks."""

    fields: Mapping[str, Value] = field(default_factory=dict)
    types: Mapping[str, GgmlType] = field(default_factory=dict)
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


def read_header(file: InputFile) -> GgufHeader:
    """Check and read a header. InputError names what is wrong with it."""
    reader = _Reader(file)
    values, tensors = reader.start()
    fields = reader.fields(values)
    alignment = _alignment(fields, file.path)
    listed = reader.tensors(tensors)
    begin = _up(reader.at, alignment)
    placed = _placed(listed, begin, alignment, file)
    own = fields.get(RECORD)
    metadata = {"compressor": own.python()} if own is not None and own.kind is Kind.STRING else {}
    return GgufHeader(
        tuple(sorted(placed, key=lambda one: one.spec.name)),
        metadata,
        fields,
        {entry.name: entry.type for entry in listed},
        {entry.name: entry.shape for entry in listed},
    )


@dataclass(frozen=True, slots=True)
class _Entry:
    """A line of the table of tensors."""

    name: str
    type: GgmlType
    shape: tuple[int, ...]
    offset: int


class _Reader:
    """Reads a header once, from left to right."""

    def __init__(self, file: InputFile) -> None:
        self.file = file
        self.raw = bytearray()
        self.at = 0

    def start(self) -> tuple[int, int]:
        """The counts of values and of tensors."""
        if self.file.size < _START.size:
            raise self._bad(f"is no GGUF file: it has only {self.file.size} bytes")
        self._need(_START.size)
        magic, version, tensors, values = _START.unpack_from(self.raw)
        self.at = _START.size
        if magic != MAGIC:
            other = safetensors.recognise(self.file.read(0, min(self.file.size, 512)), self.file.path)
            raise other or self._bad("is no GGUF file: it does not begin as one")
        if version and not version & 0xFFFF:
            raise self._bad(
                "is a GGUF file of a big-endian machine, which is not read here",
                "Convert it with gguf-convert-endian of the package gguf",
            )
        if version not in (2, 3):
            raise self._bad(
                f"is GGUF of version {version}, and versions 2 and 3 are read here",
                "Convert the model again" if version < 2 else "Use a newer compressor",
            )
        left = self.file.size - self.at
        for count, least, what in ((values, _LEAST_VALUE, "values"), (tensors, _LEAST_TENSOR, "tensors")):
            if count * least > left:
                raise self._bad(f"is truncated, or damaged: it claims {count} {what}")
        if values > _MAX_VALUES:
            raise self._bad(f"has {values} values of metadata, more than any model")
        return values, tensors

    def fields(self, count: int) -> dict[str, Value]:
        """The metadata."""
        found: dict[str, Value] = {}
        for _ in range(count):
            key = self._name(MAX_KEY, "a key of its metadata")
            if key in found:
                raise self._bad(f"its metadata has the key '{printable(key, 60)}' twice")
            kind, begin = self._kind(key), self.at
            self._skip(kind, key, 0)
            found[key] = Value(kind, bytes(memoryview(self.raw)[begin : self.at]))
        return found

    def tensors(self, count: int) -> list[_Entry]:
        """The table of tensors, in the file's order."""
        found: dict[str, _Entry] = {}
        for _ in range(count):
            name = self._name(MAX_NAME, "the name of a tensor")
            if name in found:
                raise self._bad("is in the file twice", tensor=name)
            (axes,) = self._unpack("<I")
            if axes > MAX_DIMS:
                raise self._bad(f"has {axes} axes, and tensors of a .gguf have at most {MAX_DIMS}", tensor=name)
            *sizes, number, offset = self._unpack(f"<{axes}QIQ")
            found[name] = _Entry(name, self._type(number, name), tuple(reversed(sizes)), offset)
            self._check_shape(found[name])
        return list(found.values())

    def _type(self, number: int, name: str) -> GgmlType:
        if number in REMOVED:
            old, new = REMOVED[number]
            raise self._bad(
                f"its type is {old} ({number}), which ggml has given up", f"Quantize the model to {new}", name
            )
        if number not in BY_NUMBER:
            raise self._bad(
                f"its ggml type {number} is unknown", "Use a newer compressor, or convert it again", name
            )
        return BY_NUMBER[number]

    def _check_shape(self, entry: _Entry) -> None:
        shown = printable(str(list(entry.shape)), 80)
        # a zero must not hide that the others overflow
        if prod(filter(None, entry.shape)) * entry.type.nbytes >= _BOUND:
            raise self._bad(f"its shape {shown} is too large", tensor=entry.name)
        if not entry.type.divides(entry.shape):
            raise self._bad(
                f"its rows {shown} are no whole blocks of {entry.type.block} weights of {entry.type.name}",
                tensor=entry.name,
            )

    def _skip(self, kind: Kind, key: str, depth: int) -> None:
        """Go past a value, having looked at its lengths and kinds."""
        if kind is Kind.STRING:
            self._move(self._length(f"'{printable(key, 60)}'"))
        elif kind is not Kind.ARRAY:
            self._move(SIZES[kind])
            if kind is Kind.BOOL and self.raw[self.at - 1] > 1:
                raise self._bad(f"its metadata '{printable(key, 60)}' is no truth value")
        else:
            self._skip_array(key, depth + 1)

    def _skip_array(self, key: str, depth: int) -> None:
        if depth > _DEEPEST:
            raise self._bad(f"its metadata '{printable(key, 60)}' has arrays within {_DEEPEST} others")
        kind = self._kind(key)
        (count,) = self._unpack(LENGTH.format)
        least = SIZES.get(kind, ARRAY_HEAD.size if kind is Kind.ARRAY else LENGTH.size)
        if count * least > self.file.size - self.at:
            raise self._bad(f"is truncated, or damaged: '{printable(key, 60)}' claims {count} elements")
        if kind in SIZES:
            begin = self.at
            self._move(count * SIZES[kind])
            if kind is Kind.BOOL and count and max(memoryview(self.raw)[begin : self.at]) > 1:
                raise self._bad(f"its metadata '{printable(key, 60)}' holds what is no truth value")
            return
        if kind is Kind.STRING:
            self._skip_texts(count, key)
            return
        for _ in range(count):
            self._skip(kind, key, depth)

    def _skip_texts(self, count: int, key: str) -> None:
        """Go past the strings of an array: a tokenizer has half a million of them."""
        read, at, have = LENGTH.unpack_from, self.at, len(self.raw)
        for _ in range(count):
            if at + LENGTH.size > have:
                self._need(at + LENGTH.size)
                have = len(self.raw)
            (length,) = read(self.raw, at)
            at += LENGTH.size + length
            if at > have:
                if at > self.file.size:
                    raise self._bad(f"is truncated, or damaged: '{printable(key, 60)}' claims {length} bytes")
                self._need(at)
                have = len(self.raw)
        self.at = at

    def _kind(self, key: str) -> Kind:
        (number,) = self._unpack("<I")
        try:
            return Kind(number)
        except ValueError:
            raise self._bad(f"its metadata '{printable(key, 60)}' is of the unknown kind {number}") from None

    def _name(self, limit: int, what: str) -> str:
        length = self._length(what)
        if not 0 < length <= limit:
            raise self._bad(f"{what} has {length} bytes, where 1 to {limit} are allowed")
        begin = self.at
        self._move(length)
        try:
            return self.raw[begin : self.at].decode()
        except UnicodeDecodeError:
            raise self._bad(f"{what} is no valid UTF-8, near byte {begin}") from None

    def _length(self, what: str) -> int:
        (length,) = self._unpack(LENGTH.format)
        if length > self.file.size - self.at:
            raise self._bad(f"is truncated, or damaged: {what} claims {length} bytes")
        return int(length)

    def _unpack(self, form: str) -> tuple[int, ...]:
        begin = self.at
        self._move(struct.calcsize(form))
        return struct.unpack_from(form, self.raw, begin)

    def _move(self, count: int) -> None:
        self._need(self.at + count)
        self.at += count

    def _need(self, end: int) -> None:
        """Have the file's bytes up to `end`; InputError where it has not so many, or a header has no business."""
        have = len(self.raw)
        if end <= have:
            return
        if end > self.file.size:
            raise self._bad(f"is truncated in its header: at least {end - self.file.size} bytes are missing")
        if end > MAX_HEADER:
            raise self._bad(f"its header has more than {MAX_HEADER} bytes")
        more = min(max(end, have + _WINDOW), self.file.size) - have
        self.raw += self.file.read(have, more)

    def _bad(self, reason: str, remedy: str = _AGAIN, tensor: str | None = None) -> InputError:
        return InputError(reason, file=self.file.path, tensor=tensor, remedy=remedy)


def _alignment(fields: Mapping[str, Value], path: str) -> int:
    value = fields.get(ALIGNMENT)
    if value is None:
        return DEFAULT_ALIGNMENT
    found = value.python() if value.kind is Kind.UINT32 else 0
    if not 0 < found <= MAX_ALIGNMENT or found & (found - 1):
        shown = printable(repr(value.python()), 40)
        raise InputError(
            f"its {ALIGNMENT} is {shown}, no power of two (UINT32) up to {MAX_ALIGNMENT}", file=path, remedy=_AGAIN
        )
    return int(found)


def _up(place: int, alignment: int) -> int:
    return -(-place // alignment) * alignment


def _placed(listed: list[_Entry], begin: int, alignment: int, file: InputFile) -> list[Placed]:
    """Where the tensors lie: one after the other in the order of the table, each at a multiple of the alignment."""
    found: list[Placed] = []
    place = end = 0
    for entry in listed:
        if entry.offset != place:
            remedy = f"Tensors {'overlap' if entry.offset < place else 'leave a hole'}: convert the model again"
            raise InputError(
                f"its bytes begin at {entry.offset} of the data, where {place} was expected",
                file=file.path,
                tensor=entry.name,
                remedy=remedy,
            )
        spec = TensorSpec(entry.name, entry.type.dtype or "U8", entry.type.stored_shape(entry.shape))
        found.append(Placed(spec, begin + place))
        end = place + entry.type.size(entry.shape)
        place = _up(end, alignment)
    if listed and begin + end > file.size:
        raise InputError(
            f"is truncated: {begin + end - file.size} bytes are missing", file=file.path, remedy="Download it again"
        )
    if listed and begin + place < file.size:
        raise InputError(
            f"has {file.size - begin - place} bytes after its last tensor", file=file.path, remedy=_AGAIN
        )
    return found
