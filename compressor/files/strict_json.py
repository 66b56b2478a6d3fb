"""JSON from strangers: UTF-8 without guessing, bounded depth and memory.

What this tool writes itself is read strictly: no key twice, no NaN. What belongs to a model is read as loaders read
it, by Python's `json` (`lenient`): of a key that occurs twice the last one counts, NaN and infinities are numbers.
"""

from __future__ import annotations

import json
import re
from typing import Any

from compressor.core.errors import InputError
from compressor.files.input_file import InputFile

_LIMIT = 24_000_000  # bytes of a file; the index of a model of 10^12 weights has 13 million
_BUDGET = 230_000_000  # bytes of memory for the parsed object
_LARGER = 4  # times as much may have what is `large`: a tokenizer of 262,144 tokens takes 33 million bytes
# what json makes of each: an empty container, an item's place, a string's object
_COSTS = {b"[": 80, b"{": 80, b",": 80, b'"': 60}

_MEND = "Mend it, so that Python's json reads it, or fetch it again"
_HALF_PAIR = re.compile(rb"\\u[dD][89a-fA-F]")


def read_object(file: InputFile, *, lenient: bool = False, large: bool = False) -> dict[str, Any]:
    """The JSON object that a file holds; InputError when it is anything else."""
    limit = _LIMIT * (_LARGER if large else 1)
    if file.size > limit:
        raise InputError(f"has {file.size} bytes; the limit is {limit}", file=file.path)
    return parse_object(file.read(0, file.size), file.path, lenient=lenient, large=large)


def parse_object(raw: bytes, path: str, *, lenient: bool = False, large: bool = False) -> dict[str, Any]:
    """Parse bytes as one JSON object; `path` is for the message. InputError where it is none."""
    try:
        text = raw.decode("utf-8")
        if sum(raw.count(sign) * cost for sign, cost in _COSTS.items()) > _BUDGET * (_LARGER if large else 1):
            raise ValueError("it has too many items")
        found = json.loads(text) if lenient else json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse)
        if not isinstance(found, dict):
            raise ValueError("not an object")
        if _HALF_PAIR.search(raw):
            json.dumps(found, ensure_ascii=False).encode("utf-8")  # lone surrogates
    except UnicodeError as error:
        raise InputError("is not valid UTF-8 JSON", file=path, remedy=_MEND) from error
    except (ValueError, RecursionError, MemoryError) as error:
        reason = "too deeply nested" if isinstance(error, RecursionError) else _first_line(error)
        raise InputError(f"is not a valid JSON object: {reason}", file=path, remedy=_MEND) from error
    return found


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0][:200].encode("unicode_escape").decode("ascii") or "out of memory"


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key occurs twice")
    return found


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")
