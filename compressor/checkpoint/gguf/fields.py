"""Plain values of metadata as those of a GGUF file, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from compressor.files.gguf.values import Kind, Value, array, scalar, text


def fields_of(found: Mapping[str, Any]) -> dict[str, Value]:
    """Values of the kinds that llama.cpp looks for: whole numbers as UINT32, in arrays as INT32; others FLOAT32;
    bytes as an array of UINT8."""
    return {key: _value(one) for key, one in found.items()}


def _value(one: Any) -> Value:
    if isinstance(one, bool):
        return scalar(Kind.BOOL, one)
    if isinstance(one, int):
        return scalar(Kind.UINT32, one)
    if isinstance(one, float):
        return scalar(Kind.FLOAT32, one)
    if isinstance(one, str):
        return text(one)
    if isinstance(one, bytes):
        return array(Kind.UINT8, list(one))
    first = one[0] if one else ""
    kinds = ((str, Kind.STRING), (bool, Kind.BOOL), (int, Kind.INT32), (float, Kind.FLOAT32))
    return array(next(kind for of, kind in kinds if isinstance(first, of)), one)


def plain(fields: Mapping[str, Value], prefix: str) -> dict[str, Any]:
    """The numbers and texts among the values whose keys begin so, without arrays."""
    return {
        key: _shortest(value.python()) if value.kind is Kind.FLOAT32 else value.python()
        for key, value in fields.items()
        if key.startswith(prefix) and value.kind is not Kind.ARRAY
    }


def _shortest(number: float) -> float:
    """The shortest decimal that is the same float32: 1e-05, and not 9.999999747378752e-06."""
    exact = scalar(Kind.FLOAT32, number).raw
    texts = (f"{number:.{digits}g}" for digits in range(1, 10))
    return next((float(text) for text in texts if scalar(Kind.FLOAT32, float(text)).raw == exact), number)


def said(fields: Mapping[str, Value], key: str) -> Any:
    """A value, read; None where there is none."""
    return fields[key].python() if key in fields else None
