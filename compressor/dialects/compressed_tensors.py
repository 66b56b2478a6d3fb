"""compressed-tensors' `quantization_config` in a folder's config.json: written for loaders, read for `restore`.

Only keys that compressed-tensors knows are written inside groups (it forbids others). Modules that stay dense
are named exactly, so that loaders with other ideas of a regular expression agree, and by patterns, so that
loaders whose modules have another prefix than the file's tensors do.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from compressor.errors import CompressorError, InputError, UsageError
from compressor.files.source import Source
from compressor.lazy import np
from compressor.method import Encoder
from compressor.recipe import make_method
from compressor.selection import kept
from compressor.tensor import TensorSpec
from compressor.text import printable
from compressor.workspace import Workspace

NAME = "compressed-tensors"
METADATA = "pt"
KEY = "quantization_config"

# What a model that holds a base model calls it, beside its model_type (`bert.encoder.…`)
_WRAPPERS = ("model", "transformer", "language_model")
# Output heads, which share the embedding's weight in many models
_HEADS = r"re:(.*\.)?(lm_head|lm_head\.decoder|embed_out|predictions\.decoder|vocab_projector|generator_lm_head)$"

# The models whose linear layers are transformers' Conv1D, [in, out], which no loader quantizes
_TRANSPOSED = ("gpt2", "openai-gpt", "imagegpt", "decision_transformer")
_CONV1D = re.compile(r"\.(c_attn|q_attn|c_proj|c_fc)\.weight$")


def speaks(config: Mapping[str, Any]) -> bool:
    declared = config.get(KEY)
    return isinstance(declared, dict) and declared.get("quant_method") == NAME


# ---- writing -------------------------------------------------------------------------------------------


def configure(
    config: Mapping[str, Any], packed: Sequence[tuple[TensorSpec, Encoder]], dense: Sequence[TensorSpec]
) -> dict[str, Any] | None:
    """config.json with the quantization_config of a folder with these packed and these dense tensors; None where
    a tensor belongs to a module that is never quantized."""
    schemes: dict[str, tuple[dict[str, Any], list[str]]] = {}
    for spec, encoder in packed:
        scheme = encoder.config(spec)
        if scheme is None or holds_transposed(config, [(spec, encoder)]):
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


def holds_transposed(config: Mapping[str, Any], packed: Sequence[tuple[TensorSpec, Encoder]]) -> bool:
    """Whether any of the packed tensors is the weight of a Conv1D."""
    return config.get("model_type") in _TRANSPOSED and any(_CONV1D.search(spec.name) for spec, _ in packed)


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


# ---- reading -------------------------------------------------------------------------------------------


def stored_tensors(source: Source) -> list[tuple[TensorSpec, Encoder]]:
    """The tensors that a compressed-tensors folder stores as parts. InputError for what is not read here."""
    config = (source.config or {})[KEY]
    declared = config.get("config_groups")
    if not isinstance(declared, dict) or not declared or not all(isinstance(g, dict) for g in declared.values()):
        raise InputError(f"config.json: {KEY} has no config_groups", file=source.path)
    groups: dict[str, list[Encoder | str]] = {
        layout: [_encoder(group, layout, config.get("format")) for group in declared.values()]
        for layout in ("pack-quantized", "int-quantized")
    }
    found = []
    for name in source.tensors:
        if name.endswith(".weight_packed"):
            base, layout = name.removesuffix("_packed"), "pack-quantized"
        elif name.endswith(".weight") and f"{name}_scale" in source.tensors:
            base, layout = name, "int-quantized"
        else:
            continue
        if f"{base}_g_idx" in source.tensors:
            raise InputError("is stored in activation order, which is not read here", file=source.path, tensor=base)
        spec = _original(base, source)
        found.append((spec, _choose(spec, groups[layout], source)))
    return found


def _choose(spec: TensorSpec, groups: Sequence[Encoder | str], source: Source) -> Encoder:
    """The encoder of the group that this tensor was stored by.

    Its parts tell: their shapes follow from width, granularity and zero point. So the patterns by which groups
    name their modules need not be run, which in a stranger's file may take for ever.
    """
    known = [group for group in groups if not isinstance(group, str)]
    unknown = [group for group in groups if isinstance(group, str)]
    fits = known if len(groups) == 1 else [encoder for encoder in known if _fits(spec, encoder, source)]
    if not fits:
        reason = f"is stored in a way that is not read here: {unknown[0]}" if unknown else "fits no config group"
        raise InputError(reason, file=source.path, tensor=spec.name)
    if len({getattr(encoder, "bits", 0) for encoder in fits}) > 1:
        raise InputError("is so narrow that it fits groups of 4 and of 8 bits", file=source.path, tensor=spec.name)
    return fits[0]


def _fits(spec: TensorSpec, encoder: Encoder, source: Source) -> bool:
    try:
        parts = encoder.parts(spec)
    except UsageError:
        return False
    zero = "_zero_point"
    if (f"{spec.name}{zero}" in source.tensors) != any(part.suffix == zero for part in parts):
        return False
    stored = [source.tensors.get(spec.name + part.suffix) for part in parts]
    return all(
        found is not None and (found.spec.dtype, found.spec.shape) == (part.dtype, part.shape)
        for found, part in zip(stored, parts, strict=True)
    )


def _encoder(group: Mapping[str, Any], layout: str, common: object) -> Encoder | str:
    """The encoder of a group for tensors in this layout, or the reason why there is none."""
    weights, form = group.get("weights"), group.get("format") or common
    # older files name the format once for all groups; `naive` is int-quantized without activations
    if form not in ("pack-quantized", "int-quantized", "naive-quantized", "mixed-precision"):
        return f"its format is {printable(str(form), 40)!r}"
    try:
        if not isinstance(weights, dict) or weights.get("type", "int") != "int":
            return "its scheme is not of scaled integers"
        size = weights.get("group_size")
        strategy = weights.get("strategy") or {None: "tensor", -1: "channel"}.get(size, "group")
        made = make_method(
            "quantize",
            {
                "scheme": "int",
                "bits": weights["num_bits"],
                "symmetric": weights.get("symmetric", True),
                "granularity": strategy,
                "layout": layout,
                **({"group_size": size} if strategy == "group" else {}),
            },
            where="quantization_config ",
        )
    except (KeyError, TypeError, CompressorError) as error:
        return error.reason if isinstance(error, CompressorError) else "its scheme is not of scaled integers"
    assert isinstance(made, Encoder)  # noqa: S101 - the scheme named above
    return made


def _original(name: str, source: Source) -> TensorSpec:
    """The tensor as it was: shape from `weight_shape` or the codes, dtype from the scale."""
    scale = source.tensors.get(f"{name}_scale")
    if scale is None or not scale.spec.is_float:
        raise InputError("has no float scale beside it", file=source.path, tensor=name)
    shape_of = source.tensors.get(f"{name}_shape")
    if shape_of is None and f"{name}_packed" in source.tensors:
        raise InputError("has no weight_shape beside it", file=source.path, tensor=name)
    if shape_of is None:
        return TensorSpec(name, scale.spec.dtype, source.tensors.get(name, scale).spec.shape)
    if shape_of.spec.dtype not in ("I64", "I32") or shape_of.spec.shape != (2,):
        raise InputError("its weight_shape is not two integers", file=source.path, tensor=name)
    values = shape_of.read_rows(1, 0, 2, Workspace(), "shape").reshape(-1)
    if not np.all((values >= 0) & (values < 2**40)):
        raise InputError("its weight_shape makes no sense", file=source.path, tensor=name)
    return TensorSpec(name, scale.spec.dtype, (int(values[0]), int(values[1])))
