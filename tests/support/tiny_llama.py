"""A llama of four small layers as a folder, for tests of what follows its architecture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

Array = Any
HIDDEN, INNER, HEADS, GROUPS, WIDTH, LAYERS = 16, 24, 4, 2, 8, 4
CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": HIDDEN,
    "intermediate_size": INNER,
    "num_attention_heads": HEADS,
    "num_key_value_heads": GROUPS,
    "head_dim": WIDTH,
    "num_hidden_layers": LAYERS,
    "layer_types": ["a", "b", "c", "d"],
    "eos_token_id": [1, 2, 3, 4],
    "max_window_layers": 2,
}
MLP = "model.layers.{}.mlp.{}_proj.weight"
ATTENTION = "model.layers.{}.self_attn.{}_proj.weight"


def llama(seed: int = 0, dtype: Any = np.float32) -> dict[str, Array]:
    random = np.random.default_rng(seed)
    shapes = {
        "model.embed_tokens.weight": (32, HIDDEN),
        "model.norm.weight": (HIDDEN,),
        "lm_head.weight": (32, HIDDEN),
    }
    for layer in range(LAYERS):
        shapes |= {MLP.format(layer, name): (INNER, HIDDEN) for name in ("gate", "up")}
        shapes[MLP.format(layer, "down")] = (HIDDEN, INNER)
        shapes[ATTENTION.format(layer, "q")] = (HEADS * WIDTH, HIDDEN)
        shapes |= {ATTENTION.format(layer, name): (GROUPS * WIDTH, HIDDEN) for name in "kv"}
        shapes[ATTENTION.format(layer, "o")] = (HIDDEN, HEADS * WIDTH)
        shapes[f"model.layers.{layer}.input_layernorm.weight"] = (HIDDEN,)
        shapes[f"model.layers.{layer}.post_attention_layernorm.weight"] = (HIDDEN,)
    return {name: random.normal(size=shape).astype(dtype) for name, shape in shapes.items()}


def folder(path: Path, tensors: dict[str, Array], config: dict[str, Any] | None = None, shards: int = 1) -> Path:
    path.mkdir()
    names = sorted(tensors)
    if shards == 1:
        save_file(tensors, path / "model.safetensors")
    else:
        files = {name: f"model-{n * shards // len(names):05d}.safetensors" for n, name in enumerate(names)}
        for file in set(files.values()):
            save_file({name: tensors[name] for name in names if files[name] == file}, path / file)
        (path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))
    if config is not None:
        (path / "config.json").write_text(json.dumps(config))
    return path


def weight(matrices: list[Array], power: int) -> Array:
    """The importance of units that are rows of all matrices: each relative to its mean, and of these the mean."""
    sums = [(np.abs(matrix.astype(np.float64)) ** power).sum(axis=1) for matrix in matrices]
    return np.mean([one / one.mean() for one in sums], axis=0)


def largest(values: Array, count: int) -> Array:
    return np.sort(np.argsort(-values, kind="stable")[:count])


def chain(names: list[str], sizes: list[int], transposed: bool = False) -> dict[str, Array]:
    random = np.random.default_rng(5)
    found = {}
    for name, inner, outer in zip(names, sizes, sizes[1:], strict=False):
        matrix = random.normal(size=(outer, inner)).astype(np.float32)
        found[f"{name}.weight"] = np.ascontiguousarray(matrix.T) if transposed else matrix
        found[f"{name}.bias"] = random.normal(size=outer).astype(np.float32)
    return found
