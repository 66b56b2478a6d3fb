"""TOML from users: size and depth within limits, and errors that begin with what was read."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping
from typing import Any

from compressor.core.errors import UsageError
from compressor.core.text import printable
from compressor.files.input_file import InputFile

LIMIT = 250_000  # bytes of a file
_DOTS = 32  # in the keys of one line: the parser's memory grows with their square
_NO_KEYS = re.compile(  # strings and comments of TOML, where dots are harmless
    r""""{3}(?:[^"\\]|\\.|"(?!""))*+"{3}|'{3}(?:[^']|'(?!''))*+'{3}|"(?:[^"\\\n]|\\.)*+"|'[^'\n]*+'|\#[^\n]*+""",
    re.DOTALL,
)


def read_text(path: str, where: str) -> str:
    """The text of a user's file; InputError where it cannot be opened, UsageError where it is no such text."""
    file = InputFile.open(path)
    if file.size > LIMIT:
        raise UsageError(f"{where}: is larger than {LIMIT} bytes")
    return _decoded(file.read(0, file.size), where)


def read_stream(path: str, where: str) -> str:
    """The text of a user's file or pipe, read to its end; UsageError where it cannot be read or is no such text."""
    try:
        with open(path, "rb") as file:
            raw = file.read(LIMIT + 1)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise UsageError(f"{where}: cannot be read: {reason}") from error
    if len(raw) > LIMIT:
        raise UsageError(f"{where}: is larger than {LIMIT} bytes")
    return _decoded(raw, where)


def _decoded(raw: bytes, where: str) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"{where}: is not UTF-8 text") from error


def parse(text: str, where: str) -> dict[str, Any]:
    """The tables of a TOML text; every error starts with `where`."""
    if any(line.count(".") > _DOTS for line in _NO_KEYS.sub("", text).split("\n")):
        raise UsageError(f"{where}: a line has keys of more than {_DOTS} dots")
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # ValueError: also of integers with thousands of digits
        raise UsageError(f"{where}: {printable(str(error))}") from error


def text_of(tables: Mapping[str, Any], path: str = "") -> str:
    """The TOML of texts, numbers, truth values, and lists and tables of such; lists of tables as `[[key]]`."""
    plain, below = [], []
    for key, value in tables.items():
        name = f"{path}.{key}" if path else key
        if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
            below += [f"\n[[{name}]]\n{text_of(item, name)}" for item in value]
        elif isinstance(value, dict) and not path:
            below.append(f"\n[{name}]\n{text_of(value, name)}")
        else:
            plain.append(f"{key} = {_value(value)}\n")
    return "".join([*plain, *below]).removeprefix("\n")


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {_value(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_value, value)) + "]"
    # What JSON writes of texts, numbers and truth values is TOML too, but for DEL
    return json.dumps(value, ensure_ascii=False, allow_nan=False).replace("\x7f", "\\u007f")
