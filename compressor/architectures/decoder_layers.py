"""Which matrices lie in the layers of a language model: all that GPTQ's loaders take as codes.

They make quantized modules of the linear layers inside the model's list of layers, of nothing before or behind it
(heads, projectors), of no tower beside it, and of no experts, which transformers holds as one tensor.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from compressor.architectures.fused_layers import experts_module
from compressor.architectures.roles import Role, role_of

_IN_A_LIST = re.compile(r"(^|\.)[a-z_]+\.[0-9]+\.", re.IGNORECASE)


def has_layers(names: Iterable[str]) -> bool:
    """Whether any of these tensors lies in a list of layers."""
    return any(_IN_A_LIST.search(name) for name in names)


def not_in_a_layer(name: str) -> str:
    """Why a matrix is none of a language model's layers that GPTQ's loaders take, in words; "" where it is one."""
    if experts_module(name) is not None:
        return "an expert, of which GPTQ's loaders take no codes"
    role = role_of(name, (2, 2))
    if role in (Role.TOWER, Role.HEAD, Role.EMBEDDING, Role.ROUTER):
        return f"{role.value}, of which GPTQ's loaders take no codes"
    return "" if _IN_A_LIST.search(name) else "outside of the list of layers, where GPTQ's loaders take no codes"
