"""What a tensor is to its model, by its name and shape: the weight of a layer, or something else.

Methods are made for the matrices and kernels that inputs are multiplied with. What hurts a language model most for
the least gain, and what its loaders want dense, is told apart from these.
"""

from __future__ import annotations

import re
from enum import Enum

from compressor.architectures.heads import is_head


class Role(Enum):
    """What a tensor is; the value is how reports call it."""

    LAYER = "weight of a layer"
    VECTOR = "vector or scalar (biases, norms)"
    HEAD = "output head"
    EMBEDDING = "embedding"
    ROUTER = "router"


_EMBEDDING = re.compile(
    r"(^|\.)(embed[^.]*|[^.]*_embed(ding)?s?|wte|wpe|relative_attention_bias)\.([^.]+\.)?weight$|(^|\.)shared\.weight$"
)
_ROUTER = re.compile(r"(^|\.)(gate|router|[^.]*_router|shared_expert_gate|gate\.wg|router\.[^.]+)\.weight$")


def role_of(name: str, shape: tuple[int, ...]) -> Role:
    """What a tensor of this name and shape is; a name that says nothing is that of a layer's weight."""
    if len(shape) < 2:
        return Role.VECTOR
    if is_head(name):  # before embeddings: `embed_out` is a head
        return Role.HEAD
    if is_embedding(name):
        return Role.EMBEDDING
    return Role.ROUTER if _ROUTER.search(name) else Role.LAYER


def is_embedding(name: str) -> bool:
    """Whether a tensor of this name has rows that are looked up, and no inputs that it is multiplied with."""
    return _EMBEDDING.search(name) is not None
