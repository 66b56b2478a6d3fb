"""Which linear layers loaders fuse into one, by the names of their weights.

vLLM joins the query, key and value projections of a layer, its gate and up projections, and those of every
expert, so that they are one matrix to its kernels: such parts need one scheme, and one value of whatever a scheme
has once for a tensor.
"""

from __future__ import annotations

_WHOLES = {
    "qkv_proj": ("q_proj", "k_proj", "v_proj"),
    "qkv": ("query", "key", "value"),
    "gate_up_proj": ("gate_proj", "up_proj"),
    "w13": ("w1", "w3"),
    "in_proj_qkvz": ("in_proj_qkv", "in_proj_z"),
    "in_proj_ba": ("in_proj_b", "in_proj_a"),
    "qkv_a_proj": ("q_a_proj", "kv_a_proj_with_mqa"),
}
_WHOLE_OF = {part: whole for whole, parts in _WHOLES.items() for part in parts}


def fused_group(name: str) -> str | None:
    """The name of what loaders fuse this weight into, the same for all its parts; None where they fuse nothing."""
    module, _, last = name.rpartition(".")
    parent, _, part = module.rpartition(".")
    whole = _WHOLE_OF.get(part)
    if last != "weight" or whole is None or not parent:
        return None
    if whole == "qkv" and not parent.endswith((".self", ".self_attn", ".attention.attention")):
        return None  # common words, which are an attention's there only
    return f"{parent}.{whole}"
