"""How files say that weights are quantized: one module a dialect.

Most dialects are declared in a Hugging Face folder's config.json, at its top or in a config within it
(`text_config`, `llm_config`, …), or in a file beside it (`SIDECARS`); some are recognised by the names of their
tensors alone. Codes beside scales that no dialect took are refused (`unread`) by who opens a checkpoint.

A dialect module provides

* `NAME`: what users call it, and the `quant_method` that its configs declare where they declare one;
* `speaks(config)`: whether a config.json is in this dialect;
* `found_in(source)`, where names are enough: whether tensors are called as in this dialect;
* `stored_tensors(source)`: the tensors of such a folder with what decodes them; InputError for what is
  not read here, and for parts that contradict the config;
* `configure(config, packed, dense)`: the config.json (without an older quantization) of a folder that stores
  `packed` in the dialect's layouts and `dense` as numbers. A dialect that is only read has none;
* `SAID`: where it is not quantization, what it is in words;
* `METADATA`: what the `format` entry of the container files must be;
* `leftovers(source, stored)`, where the dialect has such: names of tensors that nobody needs once weights are
  numbers, as the scales of activations.

A `Decoder` names the dialect whose loaders take its parts (`Decoder.dialect`); "" is our own layout, which
only `restore` reads.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from types import ModuleType
from typing import Any

from compressor.checkpoint.dialects import unread
from compressor.checkpoint.dialects.unread import check as check_read
from compressor.core.errors import InputError, UnreadCodes, UsageError
from compressor.core.tensor import TensorSpec
from compressor.core.text import printable
from compressor.files.source import Source
from compressor.files.strict_json import read_object
from compressor.methods.contract import Decoder
from compressor.methods.declared import declared

KEYS = ("quantization_config", "quantization")  # of config.json; the second is MLX's
_OLDER = ("sparsity_config", "compression_config")  # also of config.json, as compressed-tensors once wrote them
_UNREAD = "Give the model before it was quantized"
_MODULES = (
    "compressed_tensors_sparse",
    "compressed_tensors",
    "fp8",
    "modelopt",
    "bitsandbytes",
    "mlx",
    "gptq",
    "awq",
    "mxfp4",
    "comfy",
    "deepseek",
    "gguf",
)

# A valid scheme, so that vLLM too reads on to the format, which its message then names
_KNOWN = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "tensor", "dynamic": False}

__all__ = ["Stored", "check_read", "configure", "dialects", "metadata_format", "read", "without"]

Stored = Sequence[tuple[TensorSpec, Decoder]]


@cache
def dialects() -> dict[str, ModuleType]:
    """Every dialect by its name, in the order in which they are asked."""
    modules = [importlib.import_module(f"compressor.checkpoint.dialects.{name}") for name in _MODULES]
    return {module.NAME: module for module in modules}


def read(source: Source) -> tuple[str, Stored, frozenset[str]]:
    """What a file or folder says of quantization, in words, what it stores as parts, and what is left over then;
    ("", (), …) if nothing.

    InputError for what is declared and not read here, and for parts that contradict it.
    """
    config = _declaring(source)
    source = replace(source, config=config)
    module = _dialect(config, source)
    if module is None:
        return "", (), frozenset()
    try:
        stored = module.stored_tensors(source)
    except UsageError as error:  # a decoder of what a file says, not of what a user asked for
        raise InputError(error.reason, file=source.path, tensor=error.tensor, remedy=_UNREAD) from error
    except InputError as error:
        error.remedy = error.remedy or _UNREAD
        raise
    left = frozenset(module.leftovers(source, stored)) if hasattr(module, "leftovers") else frozenset[str]()
    return getattr(module, "SAID", f"quantized ({module.NAME})"), stored, left


def _dialect(config: Mapping[str, Any], source: Source) -> ModuleType | None:
    """The dialect of a config, or of a file's names where the config declares none; None where nothing is
    quantized."""
    declared = next((config[key] for key in KEYS if config.get(key) not in (None, {})), None)
    if declared is not None and not isinstance(declared, dict):
        raise InputError("config.json: quantization_config is not an object", file=source.path)
    if declared is None and not any(key in config for key in _OLDER):
        named = (one for one in dialects().values() if hasattr(one, "found_in"))
        return next((one for one in named if one.found_in(source)), None)
    spoken = next((one for one in dialects().values() if one.speaks(config)), None)
    if spoken is None and declared is not None:
        method = printable(str(declared.get("quant_method", "unknown")), 60)
        raise UnreadCodes(
            f"is quantized by {method!r}, which is not read here",
            file=source.path,
            remedy=_UNREAD,
        )
    return spoken


def _declaring(source: Source) -> Mapping[str, Any]:
    """config.json with what it, a config within it, or a file beside it says of quantization at its top."""
    config = source.config or {}
    if any(config.get(key) is not None for key in KEYS):
        said = config.get(KEYS[0])
        early = (
            isinstance(said, dict)
            and "quant_method" not in said
            and {"bits", "group_size", "desc_act"} <= set(said)
        )
        return {**config, KEYS[0]: _auto_gptq(said)} if early and said else config  # as GPTQ's first tools wrote it
    older = config.get("compression_config")
    if isinstance(older, dict) and older.get("config_groups"):  # compressed-tensors' own first name of the key
        return {**config, KEYS[0]: {**older, "quant_method": "compressed-tensors"}}
    nested = unread.declared_in(config, KEYS)
    if any(one != nested[0] for one in nested):
        raise InputError(
            "config.json: its configs are quantized in several ways",
            file=source.path,
            remedy=_UNREAD,
        )
    if nested:
        return {**config, KEYS[0]: nested[0]}
    for name, translated in SIDECARS.items():
        beside = source.carried.get(name)
        if beside is not None:
            try:
                return {**config, KEYS[0]: translated(read_object(beside, lenient=True))}
            except (KeyError, TypeError, AttributeError) as error:
                raise InputError("says nothing of quantization", file=beside.path) from error
    return config


def _modelopt(said: Mapping[str, Any]) -> dict[str, Any]:
    return {"quant_method": "modelopt", **said["quantization"]}


def _auto_gptq(said: Mapping[str, Any]) -> dict[str, Any]:
    return {"quant_method": "gptq", "bits": said["bits"], **said}


def _auto_awq(said: Mapping[str, Any]) -> dict[str, Any]:
    return {"quant_method": "awq", "bits": said["w_bit"], "group_size": said["q_group_size"], **said}


# Files beside config.json in which tools say how they quantized, and what each would be in config.json
SIDECARS: Mapping[str, Callable[[Mapping[str, Any]], dict[str, Any]]] = {
    "hf_quant_config.json": _modelopt,
    "quantize_config.json": _auto_gptq,
    "quant_config.json": _auto_awq,
}


def without(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config.json that says nothing of quantization, nor do the configs within it."""
    return {key: _bare(value) for key, value in config.items() if key not in (*KEYS, *_OLDER)}


def _bare(value: Any) -> Any:
    if isinstance(value, list):
        return [_bare(inner) for inner in value]
    return without(value) if isinstance(value, dict) else value


def configure(config: Mapping[str, Any], packed: Stored, dense: Sequence[TensorSpec]) -> dict[str, Any]:
    """The config.json of a folder that stores `packed` as parts.

    Where a tensor lies in a layout of our own, or in that of another dialect than the rest, no loader could take
    the folder; then the scheme is one that they refuse. (A quant_method of our own would not do: transformers
    skips those it does not know with a warning, and fills the missing weights with random numbers.)
    """
    dense = [*dense, *(spec for spec, decoder in packed if decoder.numbers)]
    packed = [(spec, decoder) for spec, decoder in packed if not decoder.numbers]
    if not packed:
        return without(config)
    spoken = {declared(decoder, spec).dialect for spec, decoder in packed}
    if len(spoken) == 1 and "" not in spoken:
        found: dict[str, Any] | None = dialects()[spoken.pop()].configure(without(config), packed, dense)
        if found is not None:
            return found
    unknown = "run `compressor restore`"
    return {
        **without(config),
        "quantization_config": {
            "quant_method": "compressed-tensors",
            "format": unknown,
            "quantization_status": "compressed",
            "config_groups": {"compressor": {"targets": ["Linear"], "weights": _KNOWN, "format": unknown}},
        },
    }


def metadata_format(packed: Stored) -> str | None:
    """What the `format` of the container files must be for these parts; None where anything goes."""
    spoken = {declared(decoder, spec).dialect for spec, decoder in packed}
    return str(dialects()[spoken.pop()].METADATA) if len(spoken) == 1 and "" not in spoken else None
