"""Folders of small models of every family that can be a GGUF file, with tokenizers, without transformers."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from compressor.architectures.gguf import hyperparameters
from compressor.architectures.gguf.families import FAMILIES, Family
from compressor.architectures.gguf.naming import axes
from compressor.architectures.gguf.pretokenizers import pre_tokenizer_of

Array = np.ndarray[Any, Any]
VOCABULARY, LAYERS, EXPERTS = 40, 2, 3
CONFIG: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 4,
    "max_position_embeddings": 16,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
}
_LATENT = {
    "num_hidden_layers": 2,
    "first_k_dense_replace": 1,
    "kv_lora_rank": 6,
    "q_lora_rank": 5,
    "qk_rope_head_dim": 2,
    "qk_nope_head_dim": 4,
    "v_head_dim": 3,
    "n_routed_experts": EXPERTS,
    "n_shared_experts": 2,
    "moe_intermediate_size": 7,
    "num_experts_per_tok": 2,
    "num_key_value_heads": 4,
}
MORE: dict[str, dict[str, Any]] = {
    "mixtral": {"num_local_experts": EXPERTS, "num_experts_per_tok": 2},
    "qwen2_moe": {
        "head_dim": 2,
        "num_experts": EXPERTS,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 7,
        "shared_expert_intermediate_size": 9,
    },
    "qwen3_moe": {"num_experts": EXPERTS, "num_experts_per_tok": 2, "moe_intermediate_size": 7},
    **{name: {"head_dim": 2} for name in ("qwen2", "starcoder2", "olmo2")},
    "gemma": {"tie_word_embeddings": True},
    "gemma2": {"sliding_window": 4, "tie_word_embeddings": True},
    "gemma3_text": {"sliding_window": 4},
    "gpt_oss": {"num_local_experts": EXPERTS, "num_experts_per_tok": 2, "sliding_window": 4},
    "deepseek_v2": _LATENT,
    "deepseek_v3": _LATENT,
    "phi3": {"head_dim": 2},
    "bert": {"type_vocab_size": 2, "num_key_value_heads": 4, "head_dim": 2, "hidden_act": "gelu"},
    "nomic_bert": {"type_vocab_size": 2, "num_key_value_heads": 4, "head_dim": 2},
    "gpt2": {"num_key_value_heads": 4, "head_dim": 2, "intermediate_size": 32},
}
_ACTS = {"gemma": "gelu_pytorch_tanh", "gemma2": "gelu_pytorch_tanh", "gemma3_text": "gelu_pytorch_tanh"}
_ACTS |= {"gpt2": "gelu_new", "starcoder2": "gelu_pytorch_tanh", "bert": "gelu"}
NAMES = [family.model_type for family in FAMILIES]


def family_named(name: str) -> Family:
    return next(family for family in FAMILIES if family.model_type == name)


def config_named(name: str) -> dict[str, Any]:
    act = _ACTS.get(name, "silu")
    return {"model_type": name, **CONFIG, "hidden_act": act, **MORE.get(name, {})}


def tensors_named(name: str, *, dtype: Any = np.float32, config: dict[str, Any] | None = None) -> dict[str, Array]:
    """Random tensors of every rule, of experts one by one where both are known."""
    family, config = family_named(name), config or config_named(name)
    sizes, random = hyperparameters.sizes(config, family), np.random.default_rng(3)
    first, found = hyperparameters.sparse_from(config, family), {}
    for rule in family.rules:
        if re.search(r"experts\.(gate_up|down)_proj$", rule.folder) and name != "gpt_oss":
            continue
        if rule.folder.endswith("self_attn.q_proj.weight") and config.get("q_lora_rank"):
            continue
        if rule.folder.startswith("lm_head") and config["tie_word_embeddings"]:
            continue
        layers = range(first if rule.layers == "sparse" else 0, first if rule.layers == "dense" else LAYERS)
        for layer in range(1) if rule.layers == "once" else layers:
            body = "" if rule.folder.startswith("lm_head") else family.body
            for expert in range(sizes["E"] if rule.form == "experts" else 1):
                called = f"{body}{rule.folder}".format(n=layer, e=expert)
                found[called] = random.normal(size=axes(rule.shape, sizes)).astype(dtype)
    return found


def tokenizer(kind: str = "gpt-2", count: int = VOCABULARY) -> dict[str, dict[str, Any]]:
    """tokenizer.json and tokenizer_config.json of a vocabulary of so many, made by hand."""
    special = ["<s>", "</s>", "<unk>"]
    letters = [chr(number) for number in range(ord("a"), ord("z") + 1)]
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    added = [{"id": number, "content": text, "special": True, **flags} for number, text in enumerate(special)]
    config = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    whole: dict[str, Any] = {"version": "1.0", "added_tokens": added, "normalizer": None, "post_processor": None}
    if kind == "wordpiece":
        special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
        words = [*special, *letters[:10], *(f"##{letter}" for letter in letters)][:count]
        whole["added_tokens"] = [{**added[0], "id": n, "content": text} for n, text in enumerate(special)]
        whole["normalizer"] = {"type": "BertNormalizer", "lowercase": True, "strip_accents": None}
        both = {"cls": ["[CLS]", 2], "sep": ["[SEP]", 3]}
        whole |= {
            "pre_tokenizer": {"type": "BertPreTokenizer"},
            "post_processor": {"type": "BertProcessing", **both},
        }
        model = {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##"}
        whole["model"] = {**model, "vocab": {word: number for number, word in enumerate(words)}}
        named = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
        return {"tokenizer.json": whole, "tokenizer_config.json": named}
    merges = [["a", "b"], ["c", "d"], ["ab", "cd"], ["e", "f"]]
    vocab = [*special, *letters, *("".join(pair) for pair in merges)][:count]
    model = {"type": "BPE", "vocab": {text: number for number, text in enumerate(vocab)}, "merges": merges}
    whole |= {"pre_tokenizer": pre_tokenizer_of(kind), "model": model}
    return {"tokenizer.json": whole, "tokenizer_config.json": config}


def folder_named(
    place: Path,
    name: str,
    *,
    dtype: Any = np.float32,
    config: dict[str, Any] | None = None,
    tensors: dict[str, Array] | None = None,
    files: dict[str, dict[str, Any]] | None = None,
) -> Path:
    """A folder of a model of this `model_type`."""
    place.mkdir()
    config = config or config_named(name)
    save_file(tensors or tensors_named(name, dtype=dtype, config=config), place / "model.safetensors")
    (place / "config.json").write_text(json.dumps(config))
    if files is None:
        files = tokenizer("wordpiece" if "bert" in name else "gpt-2")
    for called, content in files.items():
        (place / called).write_text(json.dumps(content), "utf-8")
    return place
