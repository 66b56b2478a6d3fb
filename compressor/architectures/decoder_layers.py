"""Which matrices lie in the layers of a language model: all that GPTQ's loaders take as codes.

They make quantized modules of the linear layers inside the model's list of layers, of nothing before or behind it
(heads, projectors), of no tower beside it, and of no experts, which transformers holds as one tensor. Of a model
with more than one list, or one of another name than optimum knows, and of layers that stay dense inside a list,
the config.json has to tell.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

from compressor.architectures.fused_layers import experts_module
from compressor.architectures.roles import Role, role_of

_IN_A_LIST = re.compile(r"(^|\.)(?P<layer>[a-z_]+\.\d+\.(?P<module>.+))\.weight", re.IGNORECASE)
# The one list of layers that optimum looks for by itself, by the names that it knows
KNOWN_LIST = (
    r"(transformer\.h|h|model\.decoder\.layers|decoder\.layers|gpt_neox\.layers|layers"
    r"|(model\.)?(language_model\.)?(model\.)?layers)\.\d"
)


def has_layers(names: Iterable[str]) -> bool:
    """Whether any of these tensors lies in a list of layers."""
    return any(_IN_A_LIST.search(name) for name in names)


def in_known_list(name: str) -> bool:
    """Whether a matrix lies in a list that optimum looks for without being told."""
    return re.match(KNOWN_LIST, name) is not None


def modules_of(names: Collection[str], dense: Collection[str]) -> list[str]:
    """What tells the modules of the matrices of these names, which lie in lists of layers, from the `dense` ones,
    by how their names end: `self_attn.q_proj` for those of all layers, `layers.1.mlp.down_proj` where not all are
    among them."""
    found: set[str] = set()
    left = [name.removesuffix(".weight") for name in dense]
    for name in names:
        place = _IN_A_LIST.search(name)
        if place is not None:
            module = place["module"]
            found.add(place["layer"] if any(module in one for one in left) else module)
    return sorted(found)


def not_in_a_layer(name: str) -> str:
    """Why a matrix is none of a language model's layers that GPTQ's loaders take, in words; "" where it is one."""
    if experts_module(name) is not None:
        return "an expert, of which GPTQ's loaders take no codes"
    role = role_of(name, (2, 2))
    if role in (Role.TOWER, Role.HEAD, Role.EMBEDDING, Role.ROUTER):
        return f"{role.value}, of which GPTQ's loaders take no codes"
    return "" if _IN_A_LIST.search(name) else "outside of the list of layers, where GPTQ's loaders take no codes"
