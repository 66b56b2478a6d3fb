"""Which models a config.json describes: its own `model_type`, and those of the models inside it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

_DEEPEST = 3  # configs inside configs: thinker_config.text_config


def model_types(config: Mapping[str, Any] | None) -> tuple[str, ...]:
    """Every `model_type` of a config and of the configs inside it (`text_config`, `decoder`), the outermost first;
    nothing without a config."""
    return tuple(each_model_type(config))


def each_model_type(config: Mapping[str, Any] | None) -> Iterator[str]:
    """The same, one by one: the first is found at once."""
    return _walk(config or {}, _DEEPEST)


def _walk(config: Mapping[str, Any], depth: int) -> Iterator[str]:
    if isinstance(config.get("model_type"), str):
        yield config["model_type"]
    for inner in config.values():
        if depth and isinstance(inner, dict):
            yield from _walk(inner, depth - 1)
