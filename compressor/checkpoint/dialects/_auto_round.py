"""AutoRound's `extra_config`: layers with a width or groups of their own, in GPTQ's or AWQ's words.

Keys are names of layers, or patterns of them. The patterns of a stranger are not run here: which of the widths and
groups that are said a layer has that is not named, the shapes of its parts tell.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from compressor.core.errors import InputError
from compressor.core.text import printable
from compressor.files.source import Source


def of_layer(
    declared: Mapping[str, Any], module: str, columns_by_bits: Mapping[int, int], groups: int, source: Source
) -> Mapping[str, Any]:
    """What is said of one module, laid over what is said of all.

    `columns_by_bits`: the columns that the module's codes would have by every width that its parts allow; `groups`:
    those of its scales. InputError where layers are not described, or where what is said fits in several ways.
    """
    layers = declared.get("extra_config") or {}
    if not isinstance(layers, dict) or not all(isinstance(own, dict) for own in layers.values()):
        raise InputError("config.json: quantization_config extra_config does not describe layers", file=source.path)
    if module in layers:
        return {**declared, **_how(layers[module])}
    said = [dict(declared), *({**declared, **_how(own)} for own in layers.values())]
    fitting = [one for one in said if _fits(one, columns_by_bits, groups)]
    if any(_how(one) != _how(fitting[0]) for one in fitting):
        raise InputError(
            f"config.json: extra_config has several groups that {printable(module, 100)} may have",
            file=source.path,
        )
    return fitting[0] if fitting else declared


def _how(said: Mapping[str, Any]) -> dict[str, Any]:
    return {key: said[key] for key in ("bits", "group_size") if key in said}


def _fits(said: Mapping[str, Any], columns_by_bits: Mapping[int, int], groups: int) -> bool:
    bits, size = said.get("bits"), said.get("group_size")
    if (
        type(bits) is not int
        or type(size) is not int
        or bits not in columns_by_bits
        or not (size > 0 or size == -1)
    ):
        return False
    columns = columns_by_bits[bits]
    return groups == (1 if size == -1 else -(-columns // size))
