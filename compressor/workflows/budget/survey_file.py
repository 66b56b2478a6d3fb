"""A survey's table as a file: measured once, reused for any budget of the same weights. JSON:

    {"format": "compressor-survey", "version": 1,
     "source": {"model": SHA256, "weights": SHA256, "bytes": N},     whose weights were measured
     "way": {"stages": […], "stats": …, "sample": N},                how: what came before, and by which statistics
     "tensors": {NAME: {CANDIDATE: [error, loss, spread, bits], …}, …}}

The source is known by its tensors' names and shapes, its size, and a sample of its numbers
(`statistics.fingerprint`), so that reusing a table reads next to nothing. A table of anything else is refused.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Any

from compressor.calibration.fingerprint import fingerprint
from compressor.checkpoint.checkpoint import Checkpoint
from compressor.core.errors import InputError
from compressor.core.plain_number import is_number
from compressor.files.input_file import InputFile
from compressor.files.strict_json import read_object
from compressor.files.text_files import write_document
from compressor.workflows.budget.survey import Measured, Table

FORMAT, VERSION = "compressor-survey", 1


@dataclass(frozen=True)
class Key:
    """What a table holds for: `source` says whose weights, `way` how they were measured. JSON types only."""

    source: Mapping[str, Any]
    way: Mapping[str, Any]


def key_of(checkpoint: Checkpoint, way: Mapping[str, Any]) -> Key:
    """The key for what is measured of a checkpoint in this way."""
    model, weights = fingerprint(checkpoint)
    source = {"model": model, "weights": weights, "bytes": checkpoint.source.nbytes}
    return Key(source, json.loads(json.dumps(way)))


def read_table(path: str, key: Key) -> dict[str, dict[str, Measured]]:
    """What a file knows; nothing where there is none. InputError where it is another kind of file, or of others."""
    if not os.path.lexists(path):
        return {}
    file = InputFile.open(path)
    found = read_object(file)
    if found.get("format") != FORMAT:
        raise InputError("is no survey", file=path, remedy="Name another file for --survey")
    if found.get("version") != VERSION:
        raise InputError(f"is not of version {VERSION}: written by a newer compressor?", file=path)
    if found.get("source") != dict(key.source):
        raise InputError("is the survey of another model", file=path, remedy="Name another file, or delete it")
    if found.get("way") != dict(key.way):
        raise InputError(
            "was surveyed otherwise (stages before, statistics, sample)",
            file=path,
            remedy="Give the same ones, or name another file",
        )
    tensors = found.get("tensors")
    if not isinstance(tensors, dict):
        raise _damaged(path, "")
    return {name: _row(path, name, row) for name, row in tensors.items()}


def _row(path: str, name: str, row: Any) -> dict[str, Measured]:
    if not isinstance(row, dict):
        raise _damaged(path, name)
    made = {}
    for candidate, numbers in row.items():
        if not isinstance(numbers, list) or len(numbers) not in (3, 4):
            raise _damaged(path, name)
        if not all(is_number(n) and n >= 0 for n in numbers):
            raise _damaged(path, name)
        made[candidate] = Measured(*map(float, numbers))
    return made


def _damaged(path: str, name: str) -> InputError:
    return InputError("is damaged", file=path, tensor=name or None, remedy="Delete it: it can be made again")


def write_table(path: str, key: Key, table: Table) -> None:
    """Write what is known, whole; what is there is replaced (`read_table` saw that it is the same survey's)."""
    tensors = {
        name: {
            candidate: [one.error, one.loss, one.spread, *([one.bits] if one.bits else [])]
            for candidate, one in sorted(row.items())
            if isfinite(one.error) and isfinite(one.loss)
        }
        for name, row in sorted(table.items())
    }
    content = {
        "format": FORMAT,
        "version": VERSION,
        "source": dict(key.source),
        "way": dict(key.way),
        "tensors": tensors,
    }
    text = json.dumps(content, indent=1, ensure_ascii=True, allow_nan=False) + "\n"
    write_document(path, text.encode(), replace=True)
