"""compressed-tensors' `quantization_config` in a folder's config.json: written for loaders, read for `restore`.

Only keys that compressed-tensors knows are written inside groups (it forbids others). Modules that stay dense
are named exactly, so that loaders with other ideas of a regular expression agree, and by patterns, so that
loaders whose modules have another prefix than the file's tensors do. Reading is `_compressed_tensors_reading.py`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from compressor.checkpoint.dialects._compressed_tensors_reading import KEY, leftovers, stored_tensors
from compressor.core.selection import kept
from compressor.core.tensor import TensorSpec
from compressor.methods.contract import Decoder

__all__ = ["METADATA", "NAME", "configure", "leftovers", "speaks", "stored_tensors"]

NAME = "compressed-tensors"
METADATA = "pt"

# What a model that holds a base model calls it, beside its model_type (`bert.decoder.…`)
_WRAPPERS = ("model", "transformer", "language_model")
# Output heads, which share the embedding's weight in many models
_HEADS = r"re:(.*\.)?(lm_head|lm_head\.decoder|embed_out|predictions\.decoder|vocab_projector|generator_lm_head)$"

# The models whose linear layers are transformers' Conv1D, [in, out], which no loader quantizes
_TRANSPOSED = ("gpt2", "openai-gpt", "imagegpt", "decision_transformer")
_CONV1D = re.compile(r"\.(c_attn|q_attn|c_proj|c_fc)\.weight$")


def speaks(config: Mapping[str, Any]) -> bool:
    declared = config.get(KEY)
    return isinstance(declared, dict) and declared.get("quant_method") == NAME


def configure(
    config: Mapping[str, Any], packed: Sequence[tuple[TensorSpec, Decoder]], dense: Sequence[TensorSpec]
) -> dict[str, Any] | None:
    """config.json with the quantization_config of a folder with these packed and these dense tensors; None where
    a tensor belongs to a module that is never quantized."""
    schemes: dict[str, tuple[dict[str, Any], list[str]]] = {}
    for spec, decoder in packed:
        scheme = decoder.config(spec)
        if scheme is None or holds_transposed(config, [(spec, decoder)]):
            return None
        if _is_embedding(spec):
            scheme = {**scheme, "input_activations": None}  # its input is token ids, which nobody may round
        key = json.dumps(scheme, sort_keys=True)
        schemes.setdefault(key, (scheme, []))[1].append(_module(spec.name))
    ordered = [schemes[key] for key in sorted(schemes)]
    all_packed = {_module(spec.name) for spec, _ in packed}
    untouched = {_module(spec.name) for spec in dense if len(spec.shape) == 2 and spec.name.endswith(".weight")}
    wrappers = {*_WRAPPERS, str(config.get("model_type", ""))}
    groups: dict[str, dict[str, Any]] = {}
    for number, (scheme, names) in enumerate(ordered):
        modules = set(names)
        others = (all_packed | untouched) - modules
        if len(ordered) == 1:  # as nearly all published models have it
            embeddings = {_module(spec.name) for spec, _ in packed if _is_embedding(spec)}
            targets = ["Linear", *_patterns(embeddings, (modules - embeddings) | untouched, wrappers)]
        else:
            targets = _patterns(modules, others, wrappers)
        groups[f"group_{number}"] = {"targets": targets, **scheme}
    formats = {scheme["format"] for scheme, _ in ordered}
    ignore = sorted(untouched) + _patterns(untouched, all_packed, wrappers)
    if not any(re.match(_HEADS[3:], name) for name in all_packed):
        # a head that shares the embedding's weight, or is called otherwise in the file, is a Linear all the same
        ignore += sorted({"lm_head", _HEADS} - untouched)
    declared = {
        "quant_method": NAME,
        "format": formats.pop() if len(formats) == 1 else "mixed-precision",
        "quantization_status": "compressed",
        "config_groups": groups,
        "ignore": ignore,
        "kv_cache_scheme": None,
        "global_compression_ratio": None,
    }
    return {**config, KEY: declared}


def holds_transposed(config: Mapping[str, Any], packed: Sequence[tuple[TensorSpec, Decoder]]) -> bool:
    """Whether any of the packed tensors is the weight of a Conv1D."""
    return any(is_transposed(config, spec) for spec, _ in packed)


def is_transposed(config: Mapping[str, Any] | None, spec: TensorSpec) -> bool:
    """Whether the tensor is the weight of a Conv1D, which has a row for each input."""
    return (config or {}).get("model_type") in _TRANSPOSED and _CONV1D.search(spec.name) is not None


def _is_embedding(spec: TensorSpec) -> bool:
    """Whether a packed tensor belongs to a module that is no Linear, and is treated because the user asked."""
    default = kept(spec, "quantize", (), ())
    return default is not None and default.reason.startswith("embedding")


def _patterns(modules: Iterable[str], others: Iterable[str], wrappers: Iterable[str]) -> list[str]:
    """Targets that match these modules and none of the others, also where a loader calls them by another prefix.

    A model that wraps a base model, and the base model alone, differ in what stands before `layers.0.…`; so a
    pattern begins there where it can. Numbers become `\\d+` where it can, which keeps the list as short as the
    model's layer is; a loader compares every module with every entry.
    """
    lasts = {module.rpartition(".")[2] for module in modules}
    rivals = [other.split(".") for other in others if other.rpartition(".")[2] in lasts]
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
    return sorted(found)


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
