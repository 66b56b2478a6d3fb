"""compressed-tensors' `quantization_config` in a folder's config.json: written for loaders, read for `restore`.

Only keys that compressed-tensors knows are written inside groups (it forbids others). Modules that stay dense
are named exactly, so that loaders with other ideas of a regular expression agree, and by patterns, so that
loaders whose modules have another prefix than the file's tensors do. Reading is `_compressed_tensors_reading.py`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from compressor.architectures.conv1d import is_conv1d
from compressor.architectures.heads import heads_of, is_head
from compressor.architectures.renamed_modules import renamed, split_parameters
from compressor.architectures.roles import is_embedding
from compressor.checkpoint.dialects._compressed_tensors_reading import KEY, leftovers, stored_tensors
from compressor.core.tensor import TensorSpec
from compressor.methods.contract import Decoder
from compressor.methods.declared import declared

__all__ = ["METADATA", "NAME", "configure", "leftovers", "speaks", "stored_tensors"]

NAME = "compressed-tensors"
METADATA = "pt"

# What a model that holds a base model calls it, beside its model_type (`bert.decoder.…`)
_WRAPPERS = ("model", "transformer", "language_model")


def speaks(config: Mapping[str, Any]) -> bool:
    """Whether a config.json, which may declare no quantization, is in this dialect."""
    declared = config.get(KEY)
    return isinstance(declared, dict) and declared.get("quant_method") == NAME


def configure(
    config: Mapping[str, Any], packed: Sequence[tuple[TensorSpec, Decoder]], dense: Sequence[TensorSpec]
) -> dict[str, Any] | None:
    """config.json with the quantization_config of a folder with these packed and these dense tensors; None where
    a tensor belongs to a module that is never quantized."""
    schemes: dict[str, tuple[Mapping[str, Any], list[str]]] = {}
    for spec, decoder in packed:
        scheme, key, _ = declared(decoder, spec)
        if scheme is None or is_conv1d(config, spec.name):
            return None
        if is_embedding(spec.name):
            scheme = {**scheme, "input_activations": None}  # its input is token ids, which nobody may round
            key = json.dumps(scheme, sort_keys=True)
        schemes.setdefault(key, (scheme, []))[1].append(_module(spec.name))
    ordered = [schemes[key] for key in sorted(schemes)]
    all_packed = {_module(spec.name) for spec, _ in packed}
    untouched = {_module(spec.name) for spec in dense if len(spec.shape) == 2 and spec.name.endswith(".weight")}
    untouched |= set(split_parameters(config, (spec.name for spec in dense)))
    wrappers = {*_WRAPPERS, str(config.get("model_type", ""))}
    groups: dict[str, dict[str, Any]] = {}
    for number, (scheme, names) in enumerate(ordered):
        modules = set(names)
        others = (all_packed | untouched) - modules
        if len(ordered) == 1:  # as nearly all published models have it; to vLLM heads and embeddings are no Linear
            named = {_module(spec.name) for spec, _ in packed if is_embedding(spec.name) or is_head(spec.name)}
            targets = ["Linear", *_patterns(named, (modules - named) | untouched, wrappers, config)]
        else:
            targets = _patterns(modules, others, wrappers, config)
        groups[f"group_{number}"] = {"targets": targets, **scheme}
    formats = {scheme["format"] for scheme, _ in ordered}
    ignore = sorted(untouched) + _patterns(untouched, all_packed, wrappers, config)
    ignore += sorted(set(_heads(config, all_packed)) - untouched)
    whole = {
        "quant_method": NAME,
        "format": formats.pop() if len(formats) == 1 else "mixed-precision",
        "quantization_status": "compressed",
        "config_groups": groups,
        "ignore": ignore,
        "kv_cache_scheme": None,
        "global_compression_ratio": None,
    }
    return {**config, KEY: whole}


def _heads(config: Mapping[str, Any], packed: Iterable[str]) -> Iterator[str]:
    """Entries for output heads, none of which matches a packed module. One that shares the embedding's weight,
    or is called otherwise in the file, is a Linear all the same."""
    heads = list(heads_of(config))
    of_one = re.compile(rf"(.*\.)?({'|'.join(heads)})")  # most models' packed modules are none at all
    names = [name for name in packed if of_one.fullmatch(name)]
    heads = [head for head in heads if not any(re.fullmatch(rf"(.*\.)?{head}", name) for name in names)]
    if "lm_head" in heads:
        yield "lm_head"
    if heads:
        yield rf"re:(.*\.)?({'|'.join(heads)})$"


def _patterns(
    modules: Iterable[str], others: Iterable[str], wrappers: Iterable[str], config: Mapping[str, Any]
) -> list[str]:
    """Targets that match these modules and none of the others, also where a loader calls them by another prefix, or
    by another name altogether.

    A model that wraps a base model, and the base model alone, differ in what stands before `layers.0.…`; so a
    pattern begins there where it can. Numbers become `\\d+` where it can, which keeps the list as short as the
    model's layer is; a loader compares every module with every entry.
    """
    own, rivals = list(modules), list(others)
    found = _matching(own, rivals, wrappers)
    called, calling = ([name for one in given for name in renamed(config, one)] for given in (own, rivals))
    if called != own:
        found |= _matching(called, [*calling, *rivals], wrappers)
    return sorted(found)


def _matching(modules: Iterable[str], others: Iterable[str], wrappers: Iterable[str]) -> set[str]:
    """Entries for modules by one of their names."""
    lasts = {_last(module) for module in modules}
    rivals = [other.split(".") for other in others if _last(other) in lasts]
    taken = {name for parts in rivals for start in range(len(parts)) for name in _names(parts[start:])}
    found = set()
    for module in modules:
        parts = module.split(".")
        for name in (*_names(_tail(parts, wrappers)), *_names(parts)):
            if name not in taken:
                text = r"\.".join(r"\d+" if part is None else re.escape(part) for part in name)
                found.add(rf"re:(.*\.)?{text}$")
                break
        else:
            found.add(module)
    return found


def _last(module: str) -> str | None:
    """The last part of a module's name; None for a number, which patterns may not tell apart."""
    return _names([module.rpartition(".")[2]])[0][0]


_Name = tuple[str | None, ...]  # the parts of a module's name, None for any number


def _names(parts: Sequence[str]) -> tuple[_Name, _Name, _Name]:
    """A name that stands for all layers and experts, for all experts of a layer, for itself."""
    numbers = [place for place, part in enumerate(parts) if part.isascii() and part.isdecimal()]
    every = tuple(None if place in numbers else part for place, part in enumerate(parts))
    later = tuple(None if place in numbers[1:] else part for place, part in enumerate(parts))
    return every, later, tuple(parts)


def _tail(parts: Sequence[str], wrappers: Iterable[str]) -> Sequence[str]:
    """A name from the list of layers that the module is in, or without the names of wrapping models."""
    start = next((place - 1 for place, part in enumerate(_names(parts)[0]) if part is None), -1)
    if start < 0:
        start = next((place for place, part in enumerate(parts) if part not in wrappers), 0)
    return parts[start:]


def _module(name: str) -> str:
    return name.removesuffix(".weight")
