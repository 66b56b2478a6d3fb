"""A mixture-of-experts model of two layers as a folder, each expert's matrices apart."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ml_dtypes import bfloat16
from safetensors.numpy import save_file

HIDDEN, LAYERS, EXPERTS = 64, 2, 3
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
EXPERT = ("gate_proj", "up_proj", "down_proj")
CONFIG: dict[str, Any] = {"architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe"}


def moe_folder(path: Path, *, inner: int = 64, more: Mapping[str, tuple[int, ...]] | None = None) -> Path:
    """`inner` is the experts' width; `more` are shapes of further tensors by name."""
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
    shapes |= more or {}
    path.mkdir()
    tensors = {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    (path / "config.json").write_text(json.dumps(CONFIG))
    return path


def runnable_moe(path: Path) -> Path:
    """A Qwen3-MoE that loaders can run, small and random, in bfloat16: rows of 128 and 256."""
    hidden, inner, vocabulary, heads, width, experts = 128, 256, 256, 4, 32, 4
    random = np.random.default_rng(1)
    shapes = {"model.embed_tokens.weight": (vocabulary, hidden), "lm_head.weight": (vocabulary, hidden)}
    gains = {"model.norm.weight": hidden}
    for layer in range(LAYERS):
        at = f"model.layers.{layer}"
        gains |= {f"{at}.{name}.weight": hidden for name in ("input_layernorm", "post_attention_layernorm")}
        gains |= {f"{at}.self_attn.{name}.weight": width for name in ("q_norm", "k_norm")}
        shapes[f"{at}.self_attn.q_proj.weight"] = (heads * width, hidden)
        shapes[f"{at}.self_attn.o_proj.weight"] = (hidden, heads * width)
        shapes |= {f"{at}.self_attn.{name}.weight": (heads // 2 * width, hidden) for name in ("k_proj", "v_proj")}
        shapes[f"{at}.mlp.gate.weight"] = (experts, hidden)
        for expert in range(experts):
            part = f"{at}.mlp.experts.{expert}"
            shapes |= {f"{part}.{name}.weight": (inner, hidden) for name in EXPERT[:2]}
            shapes[f"{part}.{EXPERT[2]}.weight"] = (hidden, inner)
    tensors = {name: (random.standard_normal(shape) * 0.1).astype(bfloat16) for name, shape in shapes.items()}
    tensors |= {name: np.ones(size, bfloat16) for name, size in gains.items()}
    path.mkdir()
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    config = {
        **CONFIG,
        "hidden_size": hidden,
        "intermediate_size": inner,
        "moe_intermediate_size": inner,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": heads,
        "num_key_value_heads": heads // 2,
        "head_dim": width,
        "num_experts": experts,
        "num_experts_per_tok": experts,  # all, so that no rounding changes which are chosen
        "norm_topk_prob": True,
        "vocab_size": vocabulary,
        "max_position_embeddings": 128,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    (path / "config.json").write_text(json.dumps(config))
    return path
