"""A mixture-of-experts model of two layers as a folder, each expert's matrices apart."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

HIDDEN, LAYERS, EXPERTS = 64, 2, 3
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
EXPERT = ("gate_proj", "up_proj", "down_proj")
CONFIG: dict[str, Any] = {"architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe"}


def moe_folder(path: Path, *, inner: int = 64, config: dict[str, Any] = CONFIG) -> Path:
    random = np.random.default_rng(0)
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (96, HIDDEN),
        "model.norm.weight": (HIDDEN,),
        "lm_head.weight": (96, HIDDEN),
    }
    for layer in range(LAYERS):
        at = f"model.layers.{layer}"
        shapes |= {f"{at}.self_attn.{name}.weight": (HIDDEN, HIDDEN) for name in ATTENTION}
        shapes[f"{at}.mlp.gate.weight"] = (EXPERTS, HIDDEN)
        for expert in range(EXPERTS):
            part = f"{at}.mlp.experts.{expert}"
            shapes |= {f"{part}.{name}.weight": (inner, HIDDEN) for name in EXPERT[:2]}
            shapes[f"{part}.{EXPERT[2]}.weight"] = (HIDDEN, inner)
    path.mkdir()
    tensors = {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    (path / "config.json").write_text(json.dumps(config))
    return path
