"""SentencePiece's tokenizer.model: a protobuf message, of which a few fields are read here.

    ModelProto: 1 pieces (repeated), 2 trainer_spec, 3 normalizer_spec
    SentencePiece: 1 piece, 2 score (float), 3 type        TrainerSpec: 3 model_type (1 unigram, 2 BPE)
    NormalizerSpec: 2 precompiled_charsmap, 3 add_dummy_prefix and 4 remove_extra_whitespaces (true where not said)

From sentencepiece_model.proto of google/sentencepiece.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

_UNIGRAM, _BPE, _NORMAL = 1, 2, 1
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


@dataclass(frozen=True, slots=True)
class Piece:
    """A token: its text, its score and its type (`TokenType`)."""

    text: str
    score: float
    kind: int


@dataclass(frozen=True, slots=True)
class SentencePiece:
    """A vocabulary in the order of its numbers; `bpe`: whether it merges pairs; `unigram`: whether it looks for the
    likeliest pieces; `space_before`: whether a space is put before texts; `merges_spaces`: whether of several one
    is left; `charsmap`: by what it replaces characters."""

    pieces: tuple[Piece, ...]
    bpe: bool
    space_before: bool
    unigram: bool = False
    merges_spaces: bool = False
    charsmap: bytes = b""


def parse(raw: bytes) -> SentencePiece:
    """Read a tokenizer.model. ValueError where it is none."""
    pieces, model, normalizer = [], _UNIGRAM, dict[int, int | bytes]()
    for number, value in _fields(raw):
        if number == 1 and isinstance(value, bytes):
            pieces.append(_piece(value))
        elif number == 2 and isinstance(value, bytes):
            model = int(dict(_fields(value)).get(3, _UNIGRAM))
        elif number == 3 and isinstance(value, bytes):
            normalizer = dict(_fields(value))
    if not pieces:
        raise ValueError("it has no pieces")
    charsmap = normalizer.get(2, b"")
    return SentencePiece(
        tuple(pieces),
        bpe=model == _BPE,
        space_before=normalizer.get(3) != 0,
        unigram=model == _UNIGRAM,
        merges_spaces=normalizer.get(4) != 0,
        charsmap=charsmap if isinstance(charsmap, bytes) else b"",
    )


def _piece(raw: bytes) -> Piece:
    text, score, kind = "", 0.0, _NORMAL
    for number, value in _fields(raw):
        if number == 1 and isinstance(value, bytes):
            text = value.decode("utf-8")
        elif number == 2 and isinstance(value, bytes) and len(value) == 4:
            (score,) = struct.unpack("<f", value)
        elif number == 3 and isinstance(value, int):
            kind = value
    if not 1 <= kind <= 6:
        raise ValueError(f"a piece is of the unknown type {kind}")
    return Piece(text, score, kind)


def _fields(raw: bytes) -> Iterator[tuple[int, int | bytes]]:
    """The fields of a message, with whole numbers or bytes. ValueError where it ends too early."""
    at = 0
    while at < len(raw):
        tag, at = _varint(raw, at)
        kind = tag & 7
        if kind == _VARINT:
            value, at = _varint(raw, at)
            yield tag >> 3, value
            continue
        if kind == _BYTES:
            length, at = _varint(raw, at)
        elif kind in (_FIXED32, _FIXED64):
            length = 4 if kind == _FIXED32 else 8
        else:
            raise ValueError(f"it has a field of the unknown kind {kind}")
        if at + length > len(raw):
            raise ValueError("it ends within a field")
        yield tag >> 3, raw[at : at + length]
        at += length


def _varint(raw: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(raw) and shift < 64:
        byte = raw[at]
        value |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return value, at
        shift += 7
    raise ValueError("it ends within a number")
