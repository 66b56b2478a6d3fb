"""How an embedding model pools its tokens, as sentence-transformers says it in a folder."""

from __future__ import annotations

import json
from typing import Any

from compressor.architectures.gguf.families import Family
from compressor.core.errors import InputError
from compressor.files.source import Source
from compressor.files.strict_json import read_object

_EMBEDDERS = ("bert", "nomic-bert", "qwen2", "qwen3", "gemma3")
_TYPES = {"pooling_mode_mean_tokens": 1, "pooling_mode_cls_token": 2, "pooling_mode_lasttoken": 3}
_NAMED = {"mean": 1, "cls": 2, "lasttoken": 3}
_MOST = 1 << 20  # bytes of modules.json


def pooling_type(source: Source, family: Family) -> dict[str, Any]:
    """The key that says it; nothing where the folder has no `modules.json` with such a module. InputError for ways
    that llama.cpp does not have."""
    modules = source.carried.get(f"{source.inside}modules.json")
    if modules is None or family.gguf not in _EMBEDDERS or modules.size > _MOST:
        return {}
    try:
        listed = json.loads(modules.read(0, modules.size))
    except ValueError as error:
        raise InputError("is no valid JSON", file=modules.path) from error
    places = [
        one.get("path")
        for one in (listed if isinstance(listed, list) else ())
        if isinstance(one, dict) and str(one.get("type", "")).endswith("Pooling")
    ]
    config = source.carried.get(f"{source.inside}{places[0]}/config.json") if places else None
    if config is None:
        return {}
    said = read_object(config, lenient=True)
    named = said.get("pooling_mode")
    kind = _NAMED.get(named) if isinstance(named, str) else None
    kind = kind or next((number for key, number in _TYPES.items() if said.get(key)), None)
    if kind is None:
        raise InputError("pools in a way that llama.cpp does not have", file=config.path)
    return {f"{family.gguf}.pooling_type": kind}
