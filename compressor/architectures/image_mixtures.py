"""The mixtures of ggml's types for models that make images: which tensor of a file for ComfyUI gets which type.

The rules are those of ComfyUI-GGUF's quantizer (tools/lcpp.patch: `img_tensor_get_type`), by parts of names, as
data; mixtures that it does not have (iq4_xs, …) are one type throughout. Where it takes float16 because a block
does not divide a row, the schemes take what llama.cpp does.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from compressor.architectures.gguf.diffusion import KINDS
from compressor.core.tensor import TensorSpec

_EXPERTS, _EXPERTS_DOWN = "experts.", ".w2.weight"
_VALUE, _FUSED, _DOWN = "value", "fused", "down"
_CONTAINS = (  # the first that a name contains
    *((part, _VALUE) for part in ("attn_v.weight", ".to_v.weight", ".v.weight", "_attn.v_proj.weight")),
    *((part, _VALUE) for part in (".attn.w1v.weight", ".attn.w2v.weight")),
    *((part, _FUSED) for part in ("attn_qkv.weight", "attn.qkv.weight", "attention.qkv.weight")),
    *((part, _DOWN) for part in ("ffn_down", ".ffn.2.weight", ".ff.net.2.weight", ".mlp.layer2.weight")),
    *((part, _DOWN) for part in (".adaln_modulation_mlp.2.weight", ".feed_forward.w2.weight")),
)
_SCHEMES: Mapping[str, Mapping[str, str]] = {
    _VALUE: {"q2_k": "q3_k", "q3_k_m": "q4_k", "q3_k_l": "q5_k", "q4_k_m": "q6_k", "q5_k_m": "q6_k"},
    _FUSED: {"q3_k_m": "q4_k", "q3_k_l": "q4_k", "q4_k_m": "q5_k", "q5_k_m": "q6_k"},
    _DOWN: {
        "q3_k_m": "q4_k",
        "q3_k_l": "q5_k",
        "q4_k_s": "q5_k",
        "q4_k_m": "q6_k",
        "q5_k_m": "q6_k",
        "q4_0": "q4_1",
        "q5_0": "q5_1",
    },
}
_FIRST_VALUES: Mapping[str, tuple[int, str]] = {"q3_k_m": (2, "q5_k"), "q4_k_s": (4, "q5_k")}


def image_mixture(preset: str, usual: str, specs: Iterable[TensorSpec], architecture: str) -> dict[str, str]:
    """The scheme of each tensor that is quantized, by its name; of most it is the `usual` one of the preset. The
    first projections of values are those by name. KeyError for an architecture that makes no images."""
    kind, found, values = KINDS[architecture], dict[str, str](), 0
    for spec in sorted(specs, key=lambda spec: spec.name):
        axes = len(spec.shape) - next((at for at, size in enumerate(spec.shape) if size > 1), len(spec.shape))
        if axes != 2 or not spec.name.endswith("weight") or "_norm.weight" in spec.name:
            continue
        if kind.stays_numbers(spec.name) or kind.is_exact(spec.name, spec.size):
            continue
        role = _role(spec.name)
        count, first = _FIRST_VALUES.get(preset, (0, usual))
        early = role == _VALUE and values < count
        values += role == _VALUE
        found[spec.name] = first if early else _SCHEMES.get(role, {}).get(preset, usual)
    return found


def _role(name: str) -> str:
    """What a tensor of this name is to the rules; "" for most."""
    found = next((role for part, role in _CONTAINS if part in name), "")
    return found or (_DOWN if _EXPERTS in name and _EXPERTS_DOWN in name else "")
