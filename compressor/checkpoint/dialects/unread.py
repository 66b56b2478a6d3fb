"""Codes that stand beside scales and that nobody took: recognised, so that they are never taken for weights.

A quantized layer's names tell which tool wrote it, but not always how (bits, groups, order). A tensor of codes is
one of integers or floats of at most 8 bits with two axes or more; its scales are called so, or by one of the names
below, and lie in the same module. What looks like that and belongs to no tensor that was read is refused.
"""

from __future__ import annotations

import re
from collections.abc import Container, Mapping, Sequence
from typing import Any

from compressor.core.errors import UnreadCodes
from compressor.core.text import printable
from compressor.files.source import Source, StoredTensor

_CODES = ("U8", "I8", "I16", "U16", "I32", "U32", "I4", "U4", "F4", "F6_E2M3", "F6_E3M2")
_FLOAT_CODES = ("F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "F8_E8M0")
_SCALE = re.compile(r"scale|absmax|zero_?point|codebook|centroid", re.IGNORECASE)
_OTHER_SCALES = frozenset(("SCB", "qzeros", "suh", "svh", "SU", "SV", "row_offsets", "delta"))
_NO_SCALES = re.compile(r"logit_scale|layer_?scale|scale_shift|embed_scale", re.IGNORECASE)
# Names of codes, or of what lies beside them, and whose they are; the first that fits
_TOOLS = (
    (r"\.comfy_quant$|\.scale_weight$|(^|\.)scaled_fp8$", "ComfyUI's scaled weights"),
    (r"\.weight_quantizer\.", "Quark's codes"),
    (r"\.W_q$", "HQQ's codes (W_q)"),
    (r"\.SCB$|\.weight_format$", "bitsandbytes' 8-bit codes (SCB)"),
    (r"\.quant_state\.|\.absmax$|\.quant_map$", "bitsandbytes' 4-bit codes"),
    (r"\.(q_weight|q_scale|q_invperm)$", "ExLlamaV2's codes"),
    (r"\.(trellis|suh|svh)$", "ExLlamaV3's codes"),
    (r"\.Qidxs$", "QuIP#'s codes"),
    (r"\.(codebooks|codes)$", "AQLM's codes"),
    (r"\.dense_weights$", "SpQR's codes"),
    (r"\.(centroids|res_centroids|indices)$", "VPTQ's codes"),
    (r"_qdata$|\.qdata$", "torchao's serialised tensors"),
    (r"\.weight\._(data|scale)$", "Quanto's codes"),
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
    modules: dict[str, list[str]] = {}
    for name in source.tensors:
        if name not in taken:
            modules.setdefault(_module(name), []).append(name)
    for names in modules.values():
        codes = [name for name in names if _is_codes(source.tensors[name])]
        scales = [name for name in names if _is_scale(name) and not _of_a_mask(name, names)]
        lone = next((name for name in codes if any(other != name for other in scales)), None)
        if lone is not None:
            scale = next(name for name in scales if name != lone)
            raise refusal(source, lone, scale)


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
    return UnreadCodes(
        f"looks quantized: {tool} beside {printable(scale.rpartition('.')[2], 60)}, and {says}",
        file=source.path,
        tensor=codes,
        remedy=remedy,
    )


def _module(name: str) -> str:
    """The module whose codes and scales a tensor is one of."""
    found = name.rpartition(".")[0]
    return re.sub(r"\.(weight_quantizer|weight|_weight|quant_state)$", "", found)


def _of_a_mask(name: str, names: Sequence[str]) -> bool:
    """Whether these are the offsets of rows of a bit mask, and not SpQR's."""
    stem, _, kind = name.rpartition(".")
    return kind == "row_offsets" and f"{stem}.bitmask" in names


def _is_codes(tensor: StoredTensor) -> bool:
    spec = tensor.spec
    return (spec.dtype in _CODES and len(spec.shape) >= 2) or spec.dtype in _FLOAT_CODES


def _is_scale(name: str) -> bool:
    leaf = name.rpartition(".")[2]
    return (bool(_SCALE.search(leaf)) or leaf in _OTHER_SCALES) and not _NO_SCALES.search(leaf)


def declared_in(config: Mapping[str, Any], keys: tuple[str, ...], deepest: int = 3) -> list[Mapping[str, Any]]:
    """Every object that a config, or a config within it, has under one of these keys; the outermost first."""
    found: list[Mapping[str, Any]] = []
    level: list[Mapping[str, Any]] = [config]
    for _ in range(deepest + 1):
        found += [inner for one in level for key in keys if isinstance(inner := one.get(key), dict)]
        level = [
            inner for one in level for key, inner in one.items() if isinstance(inner, dict) and key not in keys
        ]
    return found
