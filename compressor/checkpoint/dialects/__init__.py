"""How a Hugging Face folder says in its config.json that weights are quantized: one module a dialect.

A dialect module provides

* `NAME`: what users call it, and the `quant_method` that its configs declare where they declare one;
* `speaks(config)`: whether a config.json is in this dialect;
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
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from types import ModuleType
from typing import Any

from compressor.core.errors import InputError
from compressor.core.tensor import TensorSpec
from compressor.core.text import printable
from compressor.files.source import Source
from compressor.files.strict_json import read_object
from compressor.methods.contract import Decoder

KEYS = ("quantization_config", "quantization")  # of config.json; the second is MLX's
_OLDER = ("sparsity_config", "compression_config")  # also of config.json, as compressed-tensors once wrote them
SIDECAR = "hf_quant_config.json"  # where some of NVIDIA's tools say it beside config.json
_MODULES = (
    "compressed_tensors_sparse",
    "compressed_tensors",
    "fp8",
    "modelopt",
    "bitsandbytes",
    "mlx",
    "gptq",
    "awq",
)

Stored = Sequence[tuple[TensorSpec, Decoder]]


@cache
def dialects() -> dict[str, ModuleType]:
    """Every dialect by its name, in the order in which they are asked."""
    modules = [importlib.import_module(f"compressor.checkpoint.dialects.{name}") for name in _MODULES]
    return {module.NAME: module for module in modules}


def read(source: Source) -> tuple[str, Stored, frozenset[str]]:
    """What a folder's config says of quantization, in words, what it stores as parts, and what is left over then;
    ("", (), …) if nothing."""
    config = _with_sidecar(source)
    source = replace(source, config=config)
    declared = next((config[key] for key in KEYS if config.get(key) is not None), None)
    if declared is None and not any(key in config for key in _OLDER):
        return "", (), frozenset()
    if declared is not None and not isinstance(declared, dict):
        raise InputError("config.json: quantization_config is not an object", file=source.path)
    for name, module in dialects().items():
        if module.speaks(config):
            stored = module.stored_tensors(source)
            left = module.leftovers(source, stored) if hasattr(module, "leftovers") else ()
            return getattr(module, "SAID", f"quantized ({name})"), stored, frozenset(left)
    if declared is None:
        return "", (), frozenset()
    method = printable(str(declared.get("quant_method", "unknown")), 60)
    raise InputError(
        f"is quantized by {method!r}, which is not read here", file=source.path, remedy="Give the unquantized model"
    )


def _with_sidecar(source: Source) -> Mapping[str, Any]:
    """config.json, and what the file beside it says of quantization where config.json says nothing."""
    config = source.config or {}
    beside = source.carried.get(SIDECAR)
    if beside is None or any(config.get(key) is not None for key in KEYS):
        return config
    said = read_object(beside).get("quantization")
    if not isinstance(said, dict):
        raise InputError("says nothing of quantization", file=beside.path)
    return {**config, KEYS[0]: {"quant_method": "modelopt", **said}}


def without(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config.json that says nothing of quantization."""
    return {key: value for key, value in config.items() if key not in (*KEYS, *_OLDER)}


def configure(config: Mapping[str, Any], packed: Stored, dense: Sequence[TensorSpec]) -> dict[str, Any]:
    """The config.json of a folder that stores `packed` as parts.

    Where a tensor lies in a layout of our own, or in that of another dialect than the rest, no loader could take
    the folder; then the scheme is one that they refuse. (A quant_method of our own would not do: transformers
    skips those it does not know with a warning, and fills the missing weights with random numbers.)
    """
    spoken = {decoder.dialect(spec) for spec, decoder in packed}
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
            "config_groups": {"compressor": {"targets": ["Linear"], "weights": None, "format": unknown}},
        },
    }


def metadata_format(packed: Stored) -> str | None:
    """What the `format` of the container files must be for these parts; None where anything goes."""
    spoken = {decoder.dialect(spec) for spec, decoder in packed}
    return str(dialects()[spoken.pop()].METADATA) if len(spoken) == 1 and "" not in spoken else None
