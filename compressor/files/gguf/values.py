"""The typed metadata of a GGUF file, kept as the bytes that stand in it.

A value is read into Python's types only when it is asked for: a tokenizer's half million strings would take ten
times their bytes otherwise, and whoever copies metadata from file to file never needs them.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any


class Kind(IntEnum):
    """The types of values, by their numbers in files."""

    UINT8 = 0
    INT8 = 1
    UINT16 = 2
    INT16 = 3
    UINT32 = 4
    INT32 = 5
    FLOAT32 = 6
    BOOL = 7
    STRING = 8
    ARRAY = 9
    UINT64 = 10
    INT64 = 11
    FLOAT64 = 12


# What `struct` calls the kinds of fixed size
FORMATS: dict[Kind, str] = {
    Kind.UINT8: "B",
    Kind.INT8: "b",
    Kind.UINT16: "H",
    Kind.INT16: "h",
    Kind.UINT32: "I",
    Kind.INT32: "i",
    Kind.FLOAT32: "f",
    Kind.BOOL: "?",
    Kind.UINT64: "Q",
    Kind.INT64: "q",
    Kind.FLOAT64: "d",
}
SIZES: dict[Kind, int] = {kind: struct.calcsize(f"<{code}") for kind, code in FORMATS.items()}
ARRAY_HEAD = struct.Struct("<IQ")  # the kind of the elements, and how many there are
LENGTH = struct.Struct("<Q")
_SHOWN = 16  # elements of an array that are shown one by one


@dataclass(frozen=True, slots=True)
class Value:
    """A value of metadata: its kind and its bytes as they stand in the file after that."""

    kind: Kind
    raw: bytes

    @property
    def items(self) -> Kind | None:
        """Of an array the kind of its elements."""
        return Kind(ARRAY_HEAD.unpack_from(self.raw)[0]) if self.kind is Kind.ARRAY else None

    def __len__(self) -> int:
        """Elements of an array; of other values 1."""
        return int(ARRAY_HEAD.unpack_from(self.raw)[1]) if self.kind is Kind.ARRAY else 1

    def python(self) -> Any:
        """The value as an int, float, bool, str, or a list of such or of lists. Bytes of a text that are no UTF-8
        are lone surrogates, which writing turns back."""
        return _read(self.kind, self.raw, 0)[0]

    @property
    def shown(self) -> str:
        """The value as a text; of a long array how many elements of which kind it has."""
        if self.items is not None and len(self) > _SHOWN:
            return f"{len(self)} × {self.items.name}"
        return str(self.python())


def _read(kind: Kind, raw: bytes, at: int) -> tuple[Any, int]:
    """The value at a place, with the place behind it."""
    if kind is Kind.STRING:
        begin = at + LENGTH.size
        end = begin + LENGTH.unpack_from(raw, at)[0]
        return raw[begin:end].decode("utf-8", "surrogateescape"), end
    if kind is not Kind.ARRAY:
        return struct.unpack_from(f"<{FORMATS[kind]}", raw, at)[0], at + SIZES[kind]
    number, count = ARRAY_HEAD.unpack_from(raw, at)
    items, at = Kind(number), at + ARRAY_HEAD.size
    if items in FORMATS:
        return list(struct.unpack_from(f"<{count}{FORMATS[items]}", raw, at)), at + count * SIZES[items]
    found = []
    for _ in range(count):
        item, at = _read(items, raw, at)
        found.append(item)
    return found, at


def scalar(kind: Kind, number: float) -> Value:
    """A number or a bool of this kind. struct.error where it does not fit."""
    return Value(kind, struct.pack(f"<{FORMATS[kind]}", number))


def text(content: str) -> Value:
    """A string."""
    return Value(Kind.STRING, _text(content))


def array(items: Kind, content: Iterable[Any]) -> Value:
    """An array of elements of one kind; the elements of an array of arrays are `Value`s themselves. struct.error
    where a number does not fit."""
    listed: Sequence[Any] = list(content)
    head = ARRAY_HEAD.pack(items, len(listed))
    if items is Kind.STRING:
        body = b"".join(map(_text, listed))
    elif items is Kind.ARRAY:
        body = b"".join(item.raw for item in listed)
    else:
        body = struct.pack(f"<{len(listed)}{FORMATS[items]}", *listed)
    return Value(Kind.ARRAY, head + body)


def _text(content: str) -> bytes:
    raw = content.encode("utf-8", "surrogateescape")
    return LENGTH.pack(len(raw)) + raw
