"""A GGUF model: one file, or the parts that `llama-gguf-split` made of it, which are one checkpoint.

Parts are called `NAME-00001-of-00003.gguf`; each says `split.no` (from 0), `split.count` and `split.tensors.count`,
the tensors of all parts together. The model's metadata stands in the first part.
"""

from __future__ import annotations

import os
import re

from compressor.core.errors import InputError
from compressor.files.gguf import values
from compressor.files.gguf.agreement import check_agreement, integer
from compressor.files.gguf.reading import GgufHeader, read_header
from compressor.files.gguf.values import Kind, Value
from compressor.files.source import Source, SourceFile, assemble
from compressor.files.tree import Tree

NUMBER, COUNT, TENSORS = "split.no", "split.count", "split.tensors.count"
MOST_FILES = (1 << 16) - 1  # which `split.count` can say
_PART = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})(?P<suffix>\.gguf)", re.IGNORECASE)
_ALL = "Give the model with all of its parts, or join them with llama-gguf-split --merge"


def part_names(name: str, count: int) -> list[str]:
    """What the parts of a file are called that would be called `name`: as llama-gguf-split does."""
    stem, suffix = os.path.splitext(name)
    return [f"{stem}-{number:05d}-of-{count:05d}{suffix}" for number in range(1, count + 1)]


def split_fields(number: int, count: int, tensors: int) -> dict[str, Value]:
    """What part `number` (from 0) of `count` says of itself, where all parts together hold so many tensors."""
    return {
        NUMBER: values.scalar(Kind.UINT16, number),
        COUNT: values.scalar(Kind.UINT16, count),
        TENSORS: values.scalar(Kind.INT32, tensors),
    }


def open_model(tree: Tree, name: str) -> Source:
    """Open a file of a folder and, where it is one of several parts, the others beside it, whichever was named.

    InputError where a part is missing or is not what its name says.
    """
    file = tree.open(name)
    path = file.path
    header = read_header(file)
    count = integer(header.fields, COUNT)
    inside, plain = os.path.split(name)
    if count is None or count == 1:
        return _source(path, (SourceFile(plain, file, header),), header)
    called = _PART.fullmatch(plain)
    if called is None or int(called["count"]) != count:
        raise InputError(
            f"is one of {count} parts of a model, and its name does not say which",
            file=path,
            remedy=f"Call the parts NAME-00001-of-{count:05d}.gguf and so on",
        )
    names = part_names(f"{called['stem']}{called['suffix']}", count)
    missing = [one for one in names if not tree.has(os.path.join(inside, one))]
    if missing:
        more = f" and {len(missing) - 1} more are" if len(missing) > 1 else " is"
        raise InputError(f"is one of {count} parts; {missing[0]}{more} missing", file=path, remedy=_ALL)
    parts = []
    for number, one in enumerate(names):
        other = file if one == plain else tree.open(os.path.join(inside, one))
        parts.append(SourceFile(one, other, header if one == plain else read_header(other)))
        _check_part(parts[-1], number, count)
    first = parts[0].header
    assert isinstance(first, GgufHeader)  # noqa: S101 - as read above
    said = integer(first.fields, TENSORS)
    found = sum(len(part.header.tensors) for part in parts)
    if said is not None and said != found:
        raise InputError(f"its parts hold {found} tensors, and {TENSORS} says {said}", file=path, remedy=_ALL)
    return _source(path, tuple(parts), first)


def _check_part(part: SourceFile, number: int, count: int) -> None:
    assert isinstance(part.header, GgufHeader)  # noqa: S101 - who calls read it
    said = integer(part.header.fields, NUMBER), integer(part.header.fields, COUNT)
    if said != (number, count):
        raise InputError(
            f"says {NUMBER} {said[0]} and {COUNT} {said[1]}, where {number} and {count} belong",
            file=part.file.path,
            remedy=_ALL,
        )


def source_of(path: str, parts: tuple[SourceFile, ...]) -> Source:
    """A model of these parts, whose headers are read, in order. InputError where they contradict themselves."""
    header = parts[0].header
    assert isinstance(header, GgufHeader)  # noqa: S101 - who calls read it
    return _source(path, parts, header)


def _source(path: str, parts: tuple[SourceFile, ...], first: GgufHeader) -> Source:
    fields = {key: value for key, value in first.fields.items() if key not in (NUMBER, COUNT, TENSORS)}
    shapes: dict[str, tuple[int, ...]] = {}
    for part in parts:
        assert isinstance(part.header, GgufHeader)  # noqa: S101 - as read above
        shapes |= part.header.shapes
    check_agreement(fields, shapes, path)
    return assemble(path, "gguf", parts, fields=fields)
