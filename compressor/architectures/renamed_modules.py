"""Modules that transformers calls otherwise than files do: a config that names which layers are codes, or dense,
has to give both names.

From the mapping of checkpoints in transformers 5.24, for families whose linear layers it renames beyond what stands
before the list of layers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from compressor.architectures.model_types import model_types

_VIT = (
    (r"encoder\.layer\.", "layers."),
    (r"attention\.attention\.(query|key|value)$", r"attention.\1"),
    (r"attention\.query$", "attention.q_proj"),
    (r"attention\.key$", "attention.k_proj"),
    (r"attention\.value$", "attention.v_proj"),
    (r"attention\.output\.dense$", "attention.o_proj"),
    (r"intermediate\.dense$", "mlp.fc1"),
    (r"output\.dense$", "mlp.fc2"),
)
_SWIN = ((r"attention\.self\.(query|key|value)$", r"attention.\1"), *_VIT[2:])
_DINOV2 = (*_VIT[1:6], (r"mlp\.weights_in$", "mlp.gate_proj|mlp.up_proj"), (r"mlp\.weights_out$", "mlp.down_proj"))
# By model_type: regular expressions of the end or the middle of a module's name, and what stands there instead, of
# a module that becomes two both
_RENAMED: Mapping[str, Sequence[tuple[str, str]]] = {
    **dict.fromkeys(
        ("vit", "deit", "beit", "ijepa", "vit_mae", "vit_msn", "vivit", "audio-spectrogram-transformer"), _VIT
    ),
    "swin": _SWIN,
    "segformer": (
        *_SWIN[:5],
        (r"encoder\.block\.(\d+)\.", r"stages.\1.blocks."),
        (r"attention\.self\.sr$", "attention.sequence_reduction.sequence_reduction"),
        (r"mlp\.dense1$", "mlp.fc1"),
        (r"mlp\.dense2$", "mlp.fc2"),
        (r"decode_head\.linear_c\.", "decode_head.linear_projections."),
    ),
    **dict.fromkeys(("dinov2", "dinov2_with_registers"), _DINOV2),
    "phimoe": ((r"block_sparse_moe\.", "mlp."), (r"mlp\.gate$", "mlp.router")),
    **dict.fromkeys(("mixtral", "minimax", "minimax_m2"), ((r"block_sparse_moe\.", "mlp."),)),
}


def renamed(config: Mapping[str, Any] | None, module: str) -> list[str]:
    """What transformers calls a module of a file, in the model that config.json describes."""
    names = [module]
    for one in model_types(config):
        for pattern, texts in _RENAMED.get(one, ()):
            names = [re.sub(pattern, text, name) for name in names for text in texts.split("|")]
    return list(dict.fromkeys(names))
