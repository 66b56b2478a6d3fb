"""What a tokenizer.json of SentencePiece's kind does with spaces before it divides a text, in llama.cpp's terms."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

Json = Mapping[str, Any]
SPACE = "▁"
_SEVERAL, _ENDS, _BEGINS = " {2,}", r"\A +| +\z", rf"\A{SPACE}"


class Unsupported(ValueError):
    """A tokenizer that llama.cpp would not do the same with, or that is of no kind it knows."""


@dataclass(frozen=True, slots=True)
class Spaces:
    """`before`: a space is put before texts, and `always`, also where they begin with one; `merged`: of several
    one is left, and none at the ends; `lines`: so are ends of lines and tabs; `charsmap`: SentencePiece's table by
    which characters are replaced."""

    before: bool = False
    always: bool = False
    merged: bool = False
    lines: bool = False
    charsmap: bytes = b""


def normalizers(one: Json | None) -> Iterator[Json]:
    """The normalizers of a tokenizer.json, one by one."""
    return _flat(one, "normalizers")


def spaces_of(tokenizer: Json) -> Spaces:
    """How spaces are treated. Unsupported where the text is changed in other ways."""
    found: dict[str, Any] = {}
    written = False
    for one in normalizers(tokenizer.get("normalizer")):
        written |= _is_replaced(one, " ", SPACE)
        found |= _normalized(one)
    for one in _flat(tokenizer.get("pre_tokenizer"), "pretokenizers"):
        written |= one.get("type") == "Metaspace"
        found |= _divided(one)
    if not written:
        raise Unsupported("it does not write spaces as ▁, as SentencePiece does")
    return Spaces(**found)


def _normalized(one: Json) -> dict[str, Any]:
    kind = one.get("type")
    if kind == "Prepend" and one.get("prepend") == SPACE:
        return {"before": True, "always": True}
    if kind == "Precompiled":
        try:
            return {"charsmap": base64.b64decode(one.get("precompiled_charsmap") or "", validate=True)}
        except (TypeError, ValueError, binascii.Error):
            raise Unsupported("its precompiled_charsmap is no base64") from None
    if kind == "Strip" or _is_replaced(one, _ENDS, "", regex=True) or _is_replaced(one, " ", SPACE):
        return {}
    if any(_is_replaced(one, _SEVERAL, text, regex=True) for text in (" ", SPACE)):
        return {"merged": True}
    if _is_replaced(one, _BEGINS, 2 * SPACE, regex=True):
        return {"always": True}
    raise Unsupported(f"its normalizer {kind!r} is none of SentencePiece's as llama.cpp has them")


def _divided(one: Json) -> dict[str, Any]:
    kind = one.get("type")
    if kind == "Metaspace" and one.get("replacement") == SPACE:
        scheme = one.get("prepend_scheme", "always" if one.get("add_prefix_space", True) else "never")
        return {"before": True} if scheme != "never" else {}
    if kind == "WhitespaceSplit":
        return {"merged": True, "lines": True}
    if kind == "Split":  # of Gemma, whose spaces are ▁ by then, and round pieces that never merge
        return {}
    raise Unsupported(f"its pre_tokenizer {kind!r} is none of SentencePiece's")


def _is_replaced(one: Json, pattern: str, content: str, *, regex: bool = False) -> bool:
    said = one.get("pattern")
    found = said.get("Regex" if regex else "String") if isinstance(said, dict) else None
    return one.get("type") == "Replace" and found == pattern and one.get("content") == content


def _flat(one: Json | None, inside: str) -> Iterator[Json]:
    if one is not None and one.get("type") == "Sequence":
        for inner in one.get(inside) or ():
            yield from _flat(inner, inside)
    elif one is not None:
        yield one
