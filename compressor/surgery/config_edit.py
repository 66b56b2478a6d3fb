"""config.json after a cut: every entry that counts what went, and every list with an entry for each block."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from compressor.architectures.family import Family
from compressor.architectures.groups import Structure
from compressor.architectures.model import Model
from compressor.core.errors import InputError, UsageError
from compressor.core.text import printable
from compressor.core.workspace import Array
from compressor.files.folder import json_bytes
from compressor.files.source import Source
from compressor.files.strict_json import parse_object, read_object

# Lists that have as many entries as the model has blocks by chance only
_NO_LAYERS = (
    "architectures",
    "_ids",
    "_id",
    "_tokens",
    "label2id",
    "id2label",
    "languages",
    "pos_att_type",
    "keys_to_ignore_at_inference",
)
_MODULE = re.compile(r"[0-9]+_\w+/config\.json")  # of sentence-transformers
_WEIGHTS = re.compile(r"[0-9]+_\w+/.*\.(safetensors|bin)")


def edited(
    config: Mapping[str, Any],
    model: Model | None,
    structure: Structure,
    keep: Mapping[str, Array],
    path: str,
) -> dict[str, Any]:
    """The config of the model that is left."""
    if model is None or model.part is config:
        return _edited(config, model, structure, keep, path)
    name, part = model.family.part, _edited(model.part, model, structure, keep, path)
    found = {**config, name: part}
    twin = config.get(f"{name}_dict")  # of older CLIP models, which counts where both say something
    if isinstance(twin, Mapping):
        changed = {key: value for key, value in part.items() if value != model.part.get(key)}
        found[f"{name}_dict"] = {**twin, **changed}
    return found


def _edited(
    config: Mapping[str, Any],
    model: Model | None,
    structure: Structure,
    keep: Mapping[str, Array],
    path: str,
) -> dict[str, Any]:
    found = dict(config)
    for group in (*structure.groups, *structure.followers):
        left = int(keep[group.name].sum())
        for key, each in group.keys:
            for name in _names(model, key):
                if name == key or name in config:
                    found[name] = left * each
    found |= structure.pins
    if structure.layers:
        mask = keep[structure.groups[0].name]
        family = model.family if model is not None else None
        found = _layers({**config, **_implied(config, len(mask), family)}, found, mask, path)
        for key, default in (family.first_blocks if family is not None else {}).items():
            limit = config.get(key, default)
            limit = limit if type(limit) is int else default
            found[key] = int(mask[: max(limit, 0)].sum())
    return found


def _names(model: Model | None, key: str) -> tuple[str, ...]:
    """What a size is called in configs, of which this is one."""
    known = model.family.keys.values() if model is not None else ()
    return next((names for names in known if key in names), (key,))


def pooling(source: Source, structure: Structure, keep: Mapping[str, Array]) -> dict[str, bytes]:
    """The files of sentence-transformers' modules that name the width, where that was cut.

    UsageError where a module has weights that take the width.
    """
    found: dict[str, bytes] = {}
    if structure.kind != "hidden" or "modules.json" not in source.carried:
        return found
    width = structure.groups[0].units
    for name, file in source.carried.items():
        if _WEIGHTS.fullmatch(name):
            raise UsageError(
                f"structure hidden: {printable(name, 100)} holds weights that take a width of {width}, and are not "
                "part of the model"
            )
        if not _MODULE.fullmatch(name):
            continue
        held = parse_object(source.texts[name], file.path) if name in source.texts else read_object(file)
        if held.get("word_embedding_dimension") == width:
            left = int(keep[structure.groups[0].name].sum())
            found[name] = json_bytes({**held, "word_embedding_dimension": left})
    return found


def _layers(config: Mapping[str, Any], found: dict[str, Any], keep: Array, path: str) -> dict[str, Any]:
    """Cut what is said of each block, and what is said by a block's number."""
    count = len(keep)
    kept = [number for number, stays in enumerate(keep.tolist()) if stays]
    for key, value in config.items():
        if isinstance(value, list) and len(value) == count and not key.endswith(_NO_LAYERS):
            found[key] = [value[number] for number in kept]
    found |= _by_number(config, kept, count)
    limit = config.get("max_window_layers")
    if type(limit) is int and limit < count:
        found["max_window_layers"] = sum(number < limit for number in kept)
    if "mlp_only_layers" in config or config.get("decoder_sparse_step") not in (None, 1):
        dense = _dense_layers(config, count, path)
        found["mlp_only_layers"] = [new for new, old in enumerate(kept) if old in dense]
        if "decoder_sparse_step" in config:
            found["decoder_sparse_step"] = 1
    return found


def _by_number(config: Mapping[str, Any], kept: Sequence[int], count: int) -> dict[str, Any]:
    """What is said of single blocks by their numbers, and what a backbone calls the outcomes of its blocks: those
    that it gives, the last one where it gave none of what is left."""
    found: dict[str, Any] = {}
    said = config.get("per_layer_config")
    if isinstance(said, Mapping):
        by_number = {int(key): value for key, value in said.items() if str(key).isdigit()}
        width = max((len(str(key)) for key in said), default=1)
        found["per_layer_config"] = {
            f"{new:0{width}}": by_number[old] for new, old in enumerate(kept) if old in by_number
        }
    stages, given = config.get("stage_names"), config.get("out_indices")
    if isinstance(stages, list) and len(stages) == count + 1:
        numbers = {0: 0, **{old + 1: new + 1 for new, old in enumerate(kept)}}
        given = [one for one in given if type(one) is int] if isinstance(given, list) else []
        left = [numbers[one % len(stages)] for one in given if one % len(stages) in numbers] or [len(kept)]
        found["stage_names"] = stages[: len(kept) + 1]
        found["out_indices"], found["out_features"] = left, [stages[one] for one in left]
    return found


def _dense_layers(config: Mapping[str, Any], count: int, path: str) -> set[int]:
    """The blocks of a mixture-of-experts model that have an ordinary MLP."""
    named, step = config.get("mlp_only_layers") or [], config.get("decoder_sparse_step", 1)
    if not isinstance(named, list) or not all(type(number) is int for number in named):
        raise InputError("config.json says mlp_only_layers that are no list of numbers", file=path)
    if type(step) is not int or step < 1:
        raise InputError("config.json says a decoder_sparse_step that is no number from 1", file=path)
    return set(named) | {number for number in range(count) if (number + 1) % step}


def _implied(config: Mapping[str, Any], count: int, family: Family | None) -> dict[str, list[Any]]:
    """The kind of attention of each block where the library would tell it from the block's number."""
    kinds = family.kinds if family is not None else None
    if config.get(kinds.entry if kinds is not None else "layer_types") is not None:
        return {}
    if kinds is not None:
        said = next((config[key] for key in kinds.period if config.get(key) is not None), kinds.default)
        period = said if type(said) is int and said > 0 else kinds.default
        last = 0 if kinds.first else period - 1
        full = [number % period == last for number in range(count)]
        return {kinds.entry: [kinds.full if one else kinds.others for one in full]}
    kind = config.get("model_type")
    slides = None
    if kind == "gemma2":
        slides = [bool((number + 1) % 2) for number in range(count)]
    elif kind == "qwen2_moe" and config.get("use_sliding_window"):
        limit = config.get("max_window_layers", 28)
        limit = limit if type(limit) is int else 28
        slides = [bool((number + 1) % 2) and number < limit for number in range(count)]
    elif kind in ("qwen2", "qwen3") and config.get("use_sliding_window"):
        limit = config.get("max_window_layers", 28)
        limit = limit if type(limit) is int else 28
        slides = [number >= limit for number in range(count)]
    if slides is None:
        return {}
    return {"layer_types": ["sliding_attention" if slide else "full_attention" for slide in slides]}
