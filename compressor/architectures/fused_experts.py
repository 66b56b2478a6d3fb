"""What models call the matrices of an expert, where a file may hold those of all experts as one tensor.

Which half of a fused tensor is the gate, and what loaders call the parts, cannot be seen in a file: the model has
to be known.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from compressor.architectures.model_types import model_types


@dataclass(frozen=True)
class FusedExperts:
    """How models call an expert's matrices; `interleaved`: rows of gate and up take turns; `block`: what the module
    around the experts is called in files, where transformers calls it `mlp`; `merges`: transformers makes the fused
    tensors of them while it loads; `codes`: it takes codes of single matrices."""

    gate: str = "gate_proj"
    up: str = "up_proj"
    down: str = "down_proj"
    interleaved: bool = False
    block: str = ""
    merges: bool = True
    codes: bool = True


LLAMA4 = FusedExperts(merges=False)
_QWEN_VL, GPT_OSS = (
    FusedExperts(merges=False, codes=False),
    FusedExperts(interleaved=True, merges=False, codes=False),
)
_QWEN, _MIXTRAL = FusedExperts(), FusedExperts("w1", "w3", "w2", block="block_sparse_moe")
# By model_type, as transformers 5.24 maps their checkpoints' names and vLLM those of codes
_TYPES: Mapping[str, FusedExperts] = {
    **dict.fromkeys(
        (
            *("afmoe", "axk1", "axk2", "cohere2_moe", "deepseek_v2", "deepseek_v3", "deepseek_v32", "dots1"),
            *("ernie4_5_moe", "exaone_moe", "flex_olmo", "glm4_moe", "glm4_moe_lite", "glm4v_moe", "glm_moe_dsa"),
            *("hunyuan_v1_moe", "jamba", "longcat_flash", "mimo_v2_flash", "olmoe", "qwen2_moe", "qwen3_moe"),
            *("qwen3_next", "qwen3_omni_moe", "qwen3_omni_moe_text", "qwen3_5_moe", "qwen3_5_moe_text"),
            *("sarvam_moe", "solar_open"),
        ),
        _QWEN,
    ),
    **dict.fromkeys(("mixtral", "minimax", "minimax_m2"), _MIXTRAL),
    "lfm2_moe": FusedExperts("w1", "w3", "w2"),
    **dict.fromkeys(("llama4", "llama4_text"), LLAMA4),
    **dict.fromkeys(("qwen3_vl_moe", "qwen3_vl_moe_text"), _QWEN_VL),
    "gpt_oss": GPT_OSS,
}


def fused_experts(config: Mapping[str, Any]) -> FusedExperts | None:
    """The names in the model that config.json describes, or in the first known one inside it; None for others."""
    return next((_TYPES[name] for name in model_types(config) if name in _TYPES), None)


_COUNTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts", "num_moe_experts")


def holds_experts(config: Mapping[str, Any], shape: tuple[int, ...]) -> bool:
    """Whether a tensor of this shape has a matrix for each expert of the model that config.json describes, or a
    part of it."""
    parts = [config, *(value for value in config.values() if isinstance(value, Mapping))]
    return (
        len(shape) == 3 and shape[0] > 1 and any(part.get(entry) == shape[0] for part in parts for entry in _COUNTS)
    )
