"""Codes that stand beside scales and that nobody took: recognised, so that they are never taken for weights.

A quantized layer's names tell which tool wrote it, but not always how (bits, groups, order). What belongs to no
tensor that was read is refused where it is one of these:

* a name that only codes have (`W_q`, `qweight`, …), whatever is beside it;
* integers that are called a weight, with any float in their module that is no bias, or a scale in a module below;
* floats of at most 8 bits that are called a weight, with a scale in their module or in one below;
* any other integers or floats of at most 8 bits with two axes or more, with a scale in their very module.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterator, Mapping, Sequence
from typing import Any

from compressor.core.errors import UnreadCodes
from compressor.core.tensor import TensorSpec
from compressor.core.text import printable
from compressor.files.source import Source

_CODES = ("U8", "I8", "I16", "U16", "I32", "U32", "I4", "U4", "F4", "F6_E2M3", "F6_E3M2")
_FLOAT_CODES = ("F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "F8_E8M0")
_INTEGERS = ("U8", "I8", "I16", "U16", "I32", "U32", "I64", "U64", "I4", "U4", "F4", "F6_E2M3", "F6_E3M2")
_SCALE = re.compile(r"scale|scaling|absmax|zero_?point|codebook|centroid|lookup_table|^lut\d*$", re.IGNORECASE)
_OTHER_SCALES = frozenset(
    ("SCB", "qzeros", "suh", "svh", "SU", "SV", "row_offsets", "delta", "s", "s_channel", "s_group", "alpha")
)
_NO_SCALES = re.compile(r"logit_scale|layer_?scale|scale_shift|embed_scale", re.IGNORECASE)
# What nothing but codes is called, of any dtype and number of axes
_ONLY_CODES = re.compile(
    r"(^|\.)(W_q|qweight|q_weight|Qidxs(_\d+)?|dense_weights|weight_packed|\w*_qdata)$|[.:]qdata$|\.weight\._data(\._data)?$"
)
_WEIGHT = re.compile(r"(^|[._])weights?([:_][^.]*)?$|\.weight\.|(^|\.)(indices|codes)$")
_NO_WEIGHT = re.compile(r"mask|shape|offsets|g_idx|bias", re.IGNORECASE)
_HOW = frozenset(("quant_method", "quant_algo", "quant_type", "bits", "w_bit", "group_size", "config_groups"))
# Names of codes, or of what lies beside them, and whose they are; the first that fits
_TOOLS = (
    (r"\.comfy_quant$|\.scale_weight$|(^|\.)scaled_fp8$", "ComfyUI's scaled weights"),
    (r"\.weight_quantizer\.", "Quark's codes"),
    (r"\.W_q$", "HQQ's codes (W_q)"),
    (r"\.SCB$|\.weight_format$", "bitsandbytes' 8-bit codes (SCB)"),
    (r"\.quant_state\.|\.absmax$|\.quant_map$", "bitsandbytes' 4-bit codes"),
    (r"\.(q_weight|q_scale|q_invperm)$", "ExLlamaV2's codes"),
    (r"\.(trellis|suh|svh)$", "ExLlamaV3's codes"),
    (r"\.Qidxs(_\d+)?$", "QuIP#'s codes"),
    (r"\.(codebooks|codes)$", "AQLM's codes"),
    (r"\.dense_weights$", "SpQR's codes"),
    (r"\.(centroids|res_centroids|indices)$", "VPTQ's codes"),
    (r"_qdata$|[.:]qdata$|\btensor_impl\b", "torchao's serialised tensors"),
    (r"\.weight\._(data|scale)(\._data)?$", "Quanto's codes"),
    (r"\.(lookup_table|lut\d*)$", "SqueezeLLM's or Any-Precision's codes"),
    (r"\.s_(channel|group)$", "QQQ's codes"),
    (r"\.s$", "Marlin's codes"),
    (r"_scaling_factor$", "TensorRT-LLM's codes"),
    (r"\.pre_ops\.", "NNCF's codes"),
    (r"\.qweight$", "GPTQ or AWQ codes (qweight)"),
    (r"_blocks$", "MXFP4 blocks as gpt-oss has them"),
    (r"\.weight_packed$", "compressed-tensors' packed codes"),
    (r"\.weight_scale_inv$", "FP8 weights with scales of blocks"),
    (r"\.weight_scale_2$|\.pre_quant_scale$", "ModelOpt's codes"),
    (r"\.biases$", "MLX's codes"),
    (r"\.weight_scales?$", "codes with a weight_scale"),
)


def check(source: Source, taken: Container[str]) -> None:
    """UnreadCodes where codes stand beside scales and are no part of a tensor that was read.

    `taken`: the names of tensors that belong to one, or serve only those who quantize activations.
    """
    left = [name for name in source.tensors if name not in taken]
    codes = [name for name in left if _is_codes(source.tensors[name].spec)]
    if not codes:
        return
    modules: dict[str, list[str]] = {}
    below: dict[str, str] = {}  # a scale somewhere below each module
    for name in left:
        modules.setdefault(_module(name), []).append(name)
        below.update(dict.fromkeys(_modules_above_scales(name), name))
    for name in codes:
        scale = _scale_among(source, name, modules[_module(name)])
        if not scale and _named_a_weight(name):
            scale = below.get(_module(name), "")
        if scale or _ONLY_CODES.search(name):
            raise refusal(source, name, scale)


def _scale_among(source: Source, codes: str, module: Sequence[str]) -> str:
    """What of their module scales these codes, as far as names tell; "" for nothing."""
    beside = [name for name in module if name != codes]
    for name in beside:
        if _is_scale(name.rpartition(".")[2]) and not _of_a_mask(name, module):
            return name
    if _named_a_weight(codes) and source.tensors[codes].spec.dtype in _INTEGERS:
        return next((one for one in beside if source.tensors[one].spec.is_float and not _NO_WEIGHT.search(one)), "")
    return ""


def _modules_above_scales(name: str) -> Iterator[str]:
    """The modules below which a tensor lies that is called a scale, or is of a module that is."""
    parts = name.split(".")
    last = max((place for place, part in enumerate(parts) if _is_scale(part)), default=0)
    yield from (".".join(parts[:length]) for length in range(1, last + 1))


def refusal(source: Source, codes: str, scale: str) -> UnreadCodes:
    """What such a pair of names looks like, and the way on."""
    tool = next((tool for sign, tool in _TOOLS for name in (scale, codes) if re.search(sign, name)), "codes")
    if source.kind == "folder":
        says = "config.json says nothing of it that is read here" if source.config is not None else "no config.json"
        remedy = "Give the model before it was quantized, or the folder with the config that its tool wrote"
    else:
        says = "a lone file does not say how they are stored"
        remedy = "Give the folder that it belongs to, with its config.json, or the model before it was quantized"
    if codes.endswith(".qweight"):
        remedy += '; of GPTQ a quantize_config.json with "bits" and "group_size" in the folder is enough'
    beside = f" beside {printable(scale.rpartition('.')[2], 60)}" if scale else ""
    return UnreadCodes(
        f"looks quantized: {tool}{beside}, and {says}",
        file=source.path,
        tensor=codes,
        remedy=remedy,
    )


def _module(name: str) -> str:
    """The module whose codes and scales a tensor is one of."""
    found = name.rpartition(".")[0]
    return re.sub(r"(\.(weight_quantizer|weight|_weight|_data|quant_state))+$", "", found)


def _of_a_mask(name: str, names: Sequence[str]) -> bool:
    """Whether these are the offsets of rows of a bit mask, and not SpQR's."""
    stem, _, kind = name.rpartition(".")
    return kind == "row_offsets" and f"{stem}.bitmask" in names


def _is_codes(spec: TensorSpec) -> bool:
    if _ONLY_CODES.search(spec.name) or spec.dtype in _FLOAT_CODES:
        return True
    if spec.dtype in _INTEGERS and _named_a_weight(spec.name):
        return spec.size > 1
    return spec.dtype in _CODES and len(spec.shape) >= 2


def _named_a_weight(name: str) -> bool:
    return bool(_WEIGHT.search(name)) and not _NO_WEIGHT.search(name)


def _is_scale(leaf: str) -> bool:
    return (bool(_SCALE.search(leaf)) or leaf in _OTHER_SCALES) and not _NO_SCALES.search(leaf)


def declared_in(config: Mapping[str, Any], keys: tuple[str, ...], deepest: int = 8) -> list[Mapping[str, Any]]:
    """Every object that a config, or a config within it or in a list of it, has under one of these keys; the
    outermost first."""
    found: list[Mapping[str, Any]] = []
    level: list[Mapping[str, Any]] = [config]
    for _ in range(deepest + 1):
        said = [inner for one in level for key in keys if isinstance(inner := one.get(key), dict)]
        found += [
            one for one in said if not _HOW.isdisjoint(one)
        ]  # an audio codec's `quantization` is another thing
        values = [value for one in level for key, value in one.items() if key not in keys]
        level = [
            inner
            for value in values
            for inner in (value if isinstance(value, list) else [value])
            if isinstance(inner, dict)
        ]
    return found
