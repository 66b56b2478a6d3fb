"""compressed-tensors' `quantization_config` in a folder's config.json: written for loaders, read for `restore`.

Only keys that compressed-tensors knows are written inside groups (it forbids others), and modules that stay
dense are named exactly, so that loaders with other ideas of a regular expression agree.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from compressor.errors import CompressorError, InputError
from compressor.files.source import Source
from compressor.lazy import np
from compressor.method import Encoder
from compressor.recipe import make_method
from compressor.selection import kept
from compressor.tensor import TensorSpec
from compressor.text import printable
from compressor.workspace import Workspace

KEY = "quantization_config"

# What a model that holds a base model calls it, beside its model_type (`bert.encoder.…`)
_WRAPPERS = ("model", "transformer", "language_model")
# Output heads, which share the embedding's weight in many models
_HEADS = r"re:(.*\.)?(lm_head|lm_head\.decoder|embed_out|predictions\.decoder|vocab_projector|generator_lm_head)$"


def quantization(source: Source) -> str | None:
    """The quant_method that the folder's config declares; None when it declares none."""
    declared = (source.config or {}).get(KEY)
    if declared is None:
        return None
    if not isinstance(declared, dict):
        raise InputError(f"config.json: {KEY} is not an object", file=source.path)
    return printable(str(declared.get("quant_method", "unknown")), 60)


# ---- writing -------------------------------------------------------------------------------------------


def build(
    packed: Sequence[tuple[TensorSpec, Encoder]], dense: Sequence[TensorSpec], config: Mapping[str, Any]
) -> dict[str, Any]:
    """The quantization_config of a folder with these packed and these dense tensors.

    Where a tensor lies in a layout of our own no loader could take the folder; then the quant_method is
    `compressor`, so that loaders refuse it by name instead of missing weights.
    """
    schemes: dict[str, tuple[dict[str, Any], list[str]]] = {}
    for spec, encoder in packed:
        scheme = encoder.config(spec)
        if scheme is None:
            return {"quant_method": "compressor", "restore": "compressor restore FOLDER -o DENSE"}
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
            asked = {_module(spec.name) for spec, _ in packed if kept(spec, "quantize", (), ()) is not None}
            targets = ["Linear", *_patterns(asked, (modules - asked) | untouched, wrappers)]
        else:
            targets = _patterns(modules, others, wrappers)
        groups[f"group_{number}"] = {"targets": targets, **scheme}
    formats = {scheme["format"] for scheme, _ in ordered}
    ignore = sorted(untouched) + _patterns(untouched, all_packed, wrappers)
    if not any(re.match(_HEADS[3:], name) for name in all_packed):
        # a head that shares the embedding's weight is a Linear of the model without a tensor in any file
        ignore += sorted({"lm_head", _HEADS} - set(ignore))
    return {
        "quant_method": "compressed-tensors",
        "format": formats.pop() if len(formats) == 1 else "mixed-precision",
        "quantization_status": "compressed",
        "config_groups": groups,
        "ignore": ignore,
        "kv_cache_scheme": None,
        "global_compression_ratio": None,
    }


def _patterns(modules: Iterable[str], others: Iterable[str], wrappers: Iterable[str]) -> list[str]:
    """Targets that match these modules and none of the others, also where a loader calls them by another prefix.

    A model that wraps a base model, and the base model alone, differ in what stands before `layers.0.…`; so a
    pattern begins there where it can. Numbers become `\\d+` where it can, which keeps the list as short as the
    model's layer is; a loader compares every module with every entry.
    """
    taken = {end for other in others for name in _namings(other) for end in _ends(name)}
    found = set()
    for module in modules:
        whole, tail = module.split("."), _tail(module.split("."), wrappers)
        for name in (_collapsed(tail), tuple(tail), _collapsed(whole), tuple(whole)):
            if name not in taken:
                parts = (r"\d+" if part is None else re.escape(part) for part in name)
                found.add(r"re:(.*\.)?" + r"\.".join(parts) + "$")
                break
        else:
            found.add(module)
    return sorted(found)


_Name = tuple[str | None, ...]  # the parts of a module's name, None for any number
_Group = Mapping[str, Any]


def _namings(module: str) -> tuple[_Name, _Name]:
    parts = module.split(".")
    return tuple(parts), _collapsed(parts)


def _collapsed(parts: Sequence[str]) -> _Name:
    return tuple(None if re.fullmatch("[0-9]+", part) else part for part in parts)


def _ends(name: _Name) -> Iterator[_Name]:
    return (name[start:] for start in range(len(name)))


def _tail(parts: Sequence[str], wrappers: Iterable[str]) -> Sequence[str]:
    """A name from the list of layers that the module is in, or without the names of wrapping models."""
    start = next((place - 1 for place, part in enumerate(_collapsed(parts)) if part is None), -1)
    if start < 0:
        start = next((place for place, part in enumerate(parts) if part not in wrappers), 0)
    return parts[start:]


def _module(name: str) -> str:
    return name.removesuffix(".weight")


# ---- reading -------------------------------------------------------------------------------------------


def stored_tensors(source: Source) -> list[tuple[TensorSpec, Encoder]]:
    """The tensors that a compressed-tensors folder stores as parts. InputError for what is not read here."""
    config = (source.config or {})[KEY]
    method = config.get("quant_method")
    if method != "compressed-tensors":
        raise InputError(
            f"is quantized by {printable(str(method), 60)!r}, which is not read here",
            file=source.path,
            remedy="Give the unquantized model",
        )
    groups = config.get("config_groups")
    if not isinstance(groups, dict) or not all(isinstance(group, dict) for group in groups.values()):
        raise InputError(f"config.json: {KEY} has no config_groups", file=source.path)
    targets = {str(target): group for group in groups.values() for target in group.get("targets") or ()}
    patterns = [(_pattern(text[3:], source), targets[text]) for text in sorted(targets) if text.startswith("re:")]
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
        group = _group_of(_module(base), targets, patterns)
        if group is None:
            raise InputError("is in no group of quantization_config", file=source.path, tensor=base)
        declared = str(group.get("format") or config.get("format"))
        # older files name the format once for all groups, and `naive` is int-quantized without activations
        layout = layout if declared in ("mixed-precision", "naive-quantized") else declared
        found.append((_original(base, source), _encoder(base, group, layout, source)))
    return found


def _pattern(text: str, source: Source) -> re.Pattern[str]:
    if len(text) > 1000:
        raise InputError("config.json: a target is longer than 1000 characters", file=source.path)
    try:
        return re.compile(text)
    except re.error as error:
        raise InputError(f"config.json: target {printable(text, 60)!r} is no pattern", file=source.path) from error


def _group_of(
    module: str, targets: Mapping[str, _Group], patterns: Iterable[tuple[re.Pattern[str], _Group]]
) -> _Group | None:
    """The group of a module, in the order in which compressed-tensors looks: by its name, by the patterns in the
    order of their texts, by its class. A class is guessed: Embedding where the name says so, else Linear."""
    if module in targets:
        return targets[module]
    for pattern, group in patterns:
        if pattern.match(module):
            return group
    classes = [target for target in targets if target[:1].isupper() and target.isidentifier()]
    likely = "Embedding" if "embed" in module else "Linear"
    return targets[min(classes, key=lambda name: (name != likely, name))] if classes else None


def _encoder(name: str, group: Mapping[str, Any], layout: str, source: Source) -> Encoder:
    weights = group.get("weights")
    try:
        if not isinstance(weights, dict) or weights.get("type", "int") != "int":
            raise ValueError
        strategy = weights.get("strategy") or ("group" if weights.get("group_size") else "tensor")
        made = make_method(
            "quantize",
            {
                "scheme": "int",
                "bits": weights["num_bits"],
                "symmetric": weights.get("symmetric", True),
                "granularity": strategy,
                "layout": layout,
                **({"group_size": weights["group_size"]} if strategy == "group" else {}),
            },
            where="quantization_config ",
        )
    except (KeyError, ValueError, TypeError, CompressorError) as error:
        reason = error.reason if isinstance(error, CompressorError) else "its scheme is not of scaled integers"
        raise InputError(
            f"is stored in a way that is not read here: {reason}", file=source.path, tensor=name
        ) from error
    assert isinstance(made, Encoder)  # noqa: S101 - the scheme named above
    return made


def _original(name: str, source: Source) -> TensorSpec:
    """The tensor as it was: shape from `weight_shape` or the codes, dtype from the scale."""
    scale = source.tensors.get(f"{name}_scale")
    if scale is None or not scale.spec.is_float:
        raise InputError("has no float scale beside it", file=source.path, tensor=name)
    shape_of = source.tensors.get(f"{name}_shape")
    if shape_of is None:
        return TensorSpec(name, scale.spec.dtype, source.tensors.get(name, scale).spec.shape)
    if shape_of.spec.dtype not in ("I64", "I32") or shape_of.spec.shape != (2,):
        raise InputError("its weight_shape is not two integers", file=source.path, tensor=name)
    values = shape_of.read_rows(1, 0, 2, Workspace(), "shape").reshape(-1)
    if not np.all((values >= 0) & (values < 2**40)):
        raise InputError("its weight_shape makes no sense", file=source.path, tensor=name)
    return TensorSpec(name, scale.spec.dtype, (int(values[0]), int(values[1])))
