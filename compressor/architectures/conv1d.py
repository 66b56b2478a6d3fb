"""Layers that transformers builds from its `Conv1D`: linear layers whose weight lies transposed, [in, out].

Everything else that is known here of linear layers is for weights [out, in]: rows are outputs, columns inputs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from compressor.architectures.model_types import model_types

# As transformers 5.24 has them. GPT-J, GPT-Neo and GPT-BigCode call some layers alike and store them [out, in]
_TYPES = frozenset(("gpt2", "openai-gpt", "imagegpt", "decision_transformer", "clvp", "clvp_decoder"))
_LAYER = re.compile(r"(^|\.)(c_attn|q_attn|c_proj|c_fc)\.weight$")


def is_conv1d(config: Mapping[str, Any] | None, name: str) -> bool:
    """Whether a tensor of this name is the weight [in, out] of a Conv1D, in the model that config.json describes or
    in one inside it; False where there is no config."""
    return _LAYER.search(name) is not None and not _TYPES.isdisjoint(model_types(config))


def conv1d_weights(config: Mapping[str, Any] | None, shapes: Mapping[str, tuple[int, ...]]) -> frozenset[str]:
    """The names of all Conv1D weights among tensors of these shapes.

    Where no config names a model the shapes have to tell: a bias is as long as a weight [in, out] has columns. One
    layer that is not square tells it of all.
    """
    layers = frozenset(name for name in shapes if _LAYER.search(name) and len(shapes[name]) == 2)
    if model_types(config):
        return frozenset(name for name in layers if is_conv1d(config, name))
    told = any(
        shapes.get(f"{name.removesuffix('weight')}bias") == shapes[name][1:] != shapes[name][:1] for name in layers
    )
    return layers if told else frozenset()
