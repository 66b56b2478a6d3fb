"""Which linear layers loaders fuse into one, by the names of their weights.

vLLM joins the query, key and value projections of a layer, its gate and up projections, and those of every
expert, so that they are one matrix to its kernels: such parts need one scheme, and one value of whatever a scheme
has once for a tensor.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

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


# The experts of a layer are one matrix to kernels and one module to loaders; shared experts are ordinary layers
_EXPERT = re.compile(r"(?P<experts>(?:.*\.)?experts)\.[0-9]+\..*weight")
_JOINING = ("compressed-tensors", "gptq")  # dialects whose loaders join projections


def experts_module(name: str) -> str | None:
    """The module of experts that this is a weight of, `model.layers.0.mlp.experts`; None where it is none's."""
    found = _EXPERT.fullmatch(name)
    return None if found is None else found["experts"]


def one_scheme(name: str, spoken: Collection[str]) -> str | None:
    """What the tensors that must have one scheme with this one are called together, where any of them is stored for
    the loaders of the `spoken` dialects ("" is none); None where it may have a scheme of its own.

    All projections of all experts of a layer are one such group to every loader; what else is joined (above) is one
    to compressed-tensors' and GPTQ's.
    """
    experts = experts_module(name)
    if experts is not None:
        return experts if any(spoken) else None
    return fused_group(name) if any(dialect in _JOINING for dialect in spoken) else None


# ---- layers that a file holds as one matrix already ----------------------------------------------------

_OF_ATTENTION = re.compile(r"\.(qkv_proj|query_key_value|Wqkv)\.weight")
_OF_GATES = re.compile(r"\.gate_up_proj\.weight")


def rows_of_parts(config: Mapping[str, Any] | None, name: str, rows: int) -> tuple[int, ...]:
    """The rows of the layers that lie in a matrix of this name one below the other, by the heads that config.json
    tells of: queries, keys and values, or gate and up; of what is no such matrix, or not told, its own rows."""
    if _OF_GATES.search(name) and rows % 2 == 0:
        return (rows // 2, rows // 2)
    if _OF_ATTENTION.search(name):
        for one in _objects(config or {}):
            heads, hidden = one.get("num_attention_heads"), one.get("hidden_size")
            if not isinstance(heads, int) or not isinstance(hidden, int) or heads < 1:
                continue
            size = one.get("head_dim")
            size = size if isinstance(size, int) and size > 0 else hidden // heads
            keys, odd = divmod(rows - heads * size, 2)
            if size and keys > 0 and not odd and keys % size == 0 and keys <= heads * size:
                return (heads * size, keys, keys)
    return (rows,)


def _objects(config: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """A config, and those directly within it."""
    yield config
    yield from (inner for inner in config.values() if isinstance(inner, dict))
