"""JSON from strangers: UTF-8 without guessing, no duplicate keys, no NaN, bounded size and depth."""

from __future__ import annotations

import json
from typing import Any

from compressor.errors import InputError
from compressor.files.handle import InputFile

_LIMIT = 100_000_000


def read_object(file: InputFile) -> dict[str, Any]:
    """The JSON object that a file holds; InputError when it is anything else."""
    if file.size > _LIMIT:
        raise InputError(f"is larger than {_LIMIT} bytes", file=file.path)
    return parse_object(file.read(0, file.size), file.path)


def parse_object(raw: bytes, path: str) -> dict[str, Any]:
    """Parse bytes as one strict JSON object; `path` is for the message."""
    try:
        found = json.loads(raw.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_refuse)
        if not isinstance(found, dict):
            raise ValueError("not an object")
        json.dumps(found, ensure_ascii=False).encode("utf-8")  # lone surrogates
    except UnicodeError as error:
        raise InputError("is not valid UTF-8 JSON", file=path) from error
    except (ValueError, RecursionError, MemoryError) as error:
        reason = "too deeply nested" if isinstance(error, RecursionError) else _first_line(error)
        raise InputError(f"is not a valid JSON object: {reason}", file=path) from error
    return found


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0][:200].encode("unicode_escape").decode("ascii")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key occurs twice")
    return found


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")
