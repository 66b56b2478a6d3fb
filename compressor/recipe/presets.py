"""Ready choices of options per tensor, by what the field found to work. A preset is turned into rules once the
tensors' names are known; the rules are what a plan and a file's record show.

`q4_mixed`: 4 bits, and more where they help most: value and down projections in the first and last eighth of the
layers and in every third layer between (the rule of llama.cpp's Q4_K_M, which mlx-lm's mixed recipes follow).
More is 8 bits in compressed-tensors' layouts, whose loaders fuse q, k and v, so that all three get them; 6 bits
in MLX's. Experts have 4 bits throughout: those of a layer need one scheme, and transformers one for all layers.

`edge-conv`: 4 bits (or as many as asked for) by channel, and 8 for what has few weights and passes on everything in
a network of convolutions: depthwise kernels, the first convolution and the last dense layer. 8 bits for these is
what integer networks of phones have since Krishnamoorthi (arXiv 1806.08342) found them to suffer most.

`q4_k_m` and others of llama.cpp's: mixtures of ggml's types by its own rules (`architectures/ggml_mixtures.py`),
for models whose metadata a `.gguf` has.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from math import prod
from typing import Any

from compressor.architectures.chain import natural
from compressor.core.tensor import TensorSpec

MIXTURES: Mapping[str, str] = {  # presets of llama.cpp's, with the scheme of most tensors
    **{name: name for name in ("q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "q2_k")},
    "q2_k_s": "q2_k",
    **{f"q{bits}_k_{size}": f"q{bits}_k" for bits, sizes in ((3, "sml"), (4, "sm"), (5, "sm")) for size in sizes},
    **{name: name for name in ("q6_k", "iq4_nl", "iq4_xs", "tq1_0", "tq2_0")},
    "mxfp4_moe": "ggml-mxfp4",
}
PRESETS: Mapping[str, Mapping[str, Any]] = {
    "q4_mixed": {"scheme": "int", "bits": 4},
    "edge-conv": {"scheme": "int", "bits": 4, "granularity": "channel"},
    **{preset: {"scheme": scheme} for preset, scheme in MIXTURES.items()},
}

_PLANES = 4  # of an image at most: colours and what is transparent
_LAYER = re.compile(r"(?:^|\.)(layers|layer|h|blocks)\.([0-9]{1,6})\.")
_DOWN = "down_proj|w2|fc2|output\\.dense"
_VALUE = "v_proj|value|wv"
_FUSED = "q_proj|k_proj|v_proj|query|key|value|wq|wk|wv"


def rules(preset: str, specs: Iterable[TensorSpec], layout: str) -> list[tuple[str, dict[str, Any]]]:
    """(pattern, options) of a preset for the tensors of a checkpoint; nothing where it has none for these."""
    assert preset in PRESETS  # noqa: S101 - recipes checked it
    if preset == "edge-conv":
        return [(f"re:{re.escape(name)}", {"bits": 8}) for name in _few_weights(list(specs))]
    named = [spec.name for spec in specs]
    found = [match for match in map(_LAYER.search, named) if match is not None]
    count = max((int(match[2]) for match in found), default=-1) + 1
    chosen = [layer for layer in range(count) if _more(layer, count)]
    if not chosen:
        return []
    lists = "|".join(sorted({match[1] for match in found}))
    mlx = layout == "mlx"
    kinds = f"{_VALUE if mlx else _FUSED}|{_DOWN}"
    layers = rf"(?:{lists})\.(?:{'|'.join(map(str, chosen))})"
    pattern = rf"(?!.*\.experts\.[0-9])(?:.*\.)?{layers}\.(?:.*\.)?(?:{kinds})\.weight"
    if not any(re.fullmatch(pattern, name) for name in named):
        return []
    return [(f"re:{pattern}", {"bits": 6 if mlx else 8})]


def _more(layer: int, count: int) -> bool:
    first, last = count // 8, 7 * count // 8
    return layer < first or layer >= last or (layer - first) % 3 == 2


def _few_weights(specs: list[TensorSpec]) -> list[str]:
    """The depthwise kernels, the first convolution (of the fewest channels) and the last dense layer by name."""
    kernels = [spec for spec in specs if spec.is_float and len(spec.shape) > 2]
    if not kernels:
        return []
    depthwise = [spec for spec in kernels if spec.shape[1] == 1 < spec.shape[0] and prod(spec.shape[2:]) > 1]
    others = [spec for spec in kernels if spec not in depthwise]
    first = [spec for spec in others or kernels if spec.shape[1] <= _PLANES][:1]
    dense = [spec for spec in specs if spec.is_float and len(spec.shape) == 2]
    last = sorted(dense, key=lambda spec: natural(spec.name))[-1:]
    return [spec.name for spec in dict.fromkeys((*first, *depthwise, *last))]
