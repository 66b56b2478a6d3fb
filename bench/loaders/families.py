"""Small models with random weights, one of each family, as transformers builds and saves them.

A `Family` is a class of transformers with the sizes of a small one and what it is given. Sizes are multiples of 128
where a family allows it, so that each scheme has blocks that fit.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers

VOCABULARY = 256
IDS = torch.arange(32).reshape(2, 16) * 7 % 200 + 3
TOKENS = {"input_ids": IDS}
PAIRS = {"input_ids": IDS, "decoder_input_ids": IDS}
SOUND = {"input_values": torch.sin(torch.arange(2 * 4000).reshape(2, 4000) * 0.1)}
MELS = {"input_features": torch.sin(torch.arange(2 * 16 * 60).reshape(2, 16, 60) * 0.1), "decoder_input_ids": IDS}
PICTURE = {"pixel_values": torch.sin(torch.arange(3 * 32 * 32).reshape(1, 3, 32, 32) * 0.1)}
BOTH = {**PICTURE, "input_ids": IDS[:1]}


@dataclass(frozen=True)
class Family:
    """A class of transformers, the sizes of a small model of it, and what that is `given`."""

    name: str
    kind: str
    sizes: Mapping[str, Any]
    given: Mapping[str, Any] = field(default_factory=lambda: TOKENS)

    @property
    def model(self) -> Any:
        """The class."""
        return getattr(transformers, self.kind)

    def make(self, folder: Path) -> None:
        """Write a model with random weights there, the same in every run."""
        torch.manual_seed(0)
        with_random_weights(self.model(self.model.config_class(**self.sizes))).save_pretrained(folder)


def with_random_weights(model: Any) -> Any:
    """The model in bfloat16, with weights that let layers outweigh what goes past them."""
    model = model.to(torch.bfloat16).eval()
    with torch.no_grad():
        for module in model.modules():
            table = isinstance(module, torch.nn.Embedding)
            for name, parameter in module.named_parameters(recurse=False):
                if parameter.ndim > 1 and name != "A_log":
                    parameter.normal_(std=0.05 if table else 0.12)
                elif not torch.isfinite(parameter).all() or 0 < parameter.abs().max() < 1e-3:  # a layer scale
                    parameter.fill_(0.5)
    return model


_LLAMA: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_BERT = {key: _LLAMA[key] for key in _LLAMA if key not in ("num_key_value_heads", "head_dim")}
_PLAIN = {key: _LLAMA[key] for key in _LLAMA if key != "head_dim"}  # of those that derive it
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 256}
_SHARED = {"shared_expert_intermediate_size": 128}
_MIXED = {"layer_types": ["linear_attention", "full_attention"]}
_LINEAR = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 32,
    "linear_value_head_dim": 32,
    "linear_conv_kernel_dim": 4,
}
_DEEPSEEK = {
    **_PLAIN,
    "num_key_value_heads": 4,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 256,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
    "q_lora_rank": 128,
    "kv_lora_rank": 128,
    "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 32,
    "v_head_dim": 32,
}
_VISION = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
}
_QWEN_VISION = {
    "depth": 1,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_heads": 4,
    "out_hidden_size": 128,
    "patch_size": 8,
    "spatial_merge_size": 2,
}
_ROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 6, 6]}
_BART = {
    "vocab_size": VOCABULARY,
    "d_model": 128,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 256,
    "decoder_ffn_dim": 256,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
}
_SOUNDS = {
    **_BERT,
    "conv_dim": [32, 32],
    "conv_stride": [5, 2],
    "conv_kernel": [10, 3],
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
}
_CLIP_TEXT = {**_BERT, "max_position_embeddings": 32}

FAMILIES: dict[str, Family] = {
    one.name: one
    for one in (
        Family("llama", "LlamaForCausalLM", _LLAMA),
        Family("mistral", "MistralForCausalLM", _LLAMA),
        Family("mixtral", "MixtralForCausalLM", {**_LLAMA, "num_local_experts": 4}),
        Family("qwen2", "Qwen2ForCausalLM", _PLAIN),
        Family("qwen2-moe", "Qwen2MoeForCausalLM", {**_PLAIN, **_EXPERTS, **_SHARED}),
        Family("qwen3", "Qwen3ForCausalLM", _LLAMA),
        Family("qwen3-moe", "Qwen3MoeForCausalLM", {**_LLAMA, **_EXPERTS}),
        Family("qwen3-next", "Qwen3NextForCausalLM", {**_LLAMA, **_EXPERTS, **_SHARED, **_LINEAR, **_MIXED}),
        Family("qwen3.5", "Qwen3_5ForCausalLM", {**_LLAMA, **_LINEAR, **_MIXED}),
        Family("qwen3.5-moe", "Qwen3_5MoeForCausalLM", {**_LLAMA, **_EXPERTS, **_SHARED, **_LINEAR, **_MIXED}),
        Family(
            "qwen2.5-vl",
            "Qwen2_5_VLForConditionalGeneration",
            {
                "text_config": {**_PLAIN, "rope_parameters": _ROPE},
                "vision_config": {**_QWEN_VISION, "fullatt_block_indexes": [0]},
            },
        ),
        Family(
            "qwen3-vl",
            "Qwen3VLForConditionalGeneration",
            {
                "text_config": {**_LLAMA, "rope_parameters": _ROPE},
                "vision_config": {**_QWEN_VISION, "deepstack_visual_indexes": [0]},
            },
        ),
        Family(
            "qwen3-vl-moe",
            "Qwen3VLMoeForConditionalGeneration",
            {
                "text_config": {**_LLAMA, **_EXPERTS, "rope_parameters": _ROPE},
                "vision_config": {**_QWEN_VISION, "deepstack_visual_indexes": [0]},
            },
        ),
        Family("gemma2", "Gemma2ForCausalLM", _LLAMA),
        Family("gemma3", "Gemma3ForCausalLM", _LLAMA),
        Family(
            "gemma3 with vision",
            "Gemma3ForConditionalGeneration",
            {"text_config": _LLAMA, "vision_config": _VISION, "mm_tokens_per_image": 4},
        ),
        Family("gemma4", "Gemma4ForCausalLM", {**_LLAMA, "global_head_dim": 32, "hidden_size_per_layer_input": 0}),
        Family("phi3", "Phi3ForCausalLM", _PLAIN),
        Family("phi-moe", "PhimoeForCausalLM", {**_PLAIN, "num_local_experts": 4}),
        Family(
            "gpt-oss",
            "GptOssForCausalLM",
            {**_LLAMA, "num_local_experts": 4, "num_experts_per_tok": 2, "layer_types": ["full_attention"] * 2},
        ),
        Family("deepseek-v2", "DeepseekV2ForCausalLM", _DEEPSEEK),
        Family("deepseek-v3", "DeepseekV3ForCausalLM", _DEEPSEEK),
        Family("glm4", "Glm4ForCausalLM", _LLAMA),
        Family(
            "glm4-moe",
            "Glm4MoeForCausalLM",
            {
                **_LLAMA,
                "n_routed_experts": 4,
                "n_shared_experts": 1,
                "num_experts_per_tok": 2,
                "moe_intermediate_size": 256,
                "first_k_dense_replace": 1,
            },
        ),
        Family(
            "llama4",
            "Llama4ForCausalLM",
            {**_LLAMA, "num_local_experts": 4, "intermediate_size_mlp": 256, "interleave_moe_layer_step": 1},
        ),
        Family("granite", "GraniteForCausalLM", _PLAIN),
        Family(
            "granite hybrid",
            "GraniteMoeHybridForCausalLM",
            {
                **_PLAIN,
                "num_local_experts": 4,
                "num_experts_per_tok": 2,
                "shared_intermediate_size": 256,
                "layer_types": ["mamba", "attention"],
                "mamba_n_heads": 8,
                "mamba_d_state": 16,
                "mamba_expand": 2,
                "mamba_d_head": 32,
                "position_embedding_type": "rope",
            },
        ),
        Family(
            "mamba",
            "MambaForCausalLM",
            {
                "vocab_size": VOCABULARY,
                "hidden_size": 128,
                "num_hidden_layers": 2,
                "state_size": 16,
                "time_step_rank": 8,
            },
        ),
        Family(
            "mamba2",
            "Mamba2ForCausalLM",
            {
                "vocab_size": VOCABULARY,
                "hidden_size": 128,
                "num_hidden_layers": 2,
                "num_heads": 8,
                "head_dim": 32,
                "state_size": 16,
                "n_groups": 1,
            },
        ),
        Family(
            "jamba",
            "JambaForCausalLM",
            {
                **_PLAIN,
                "num_experts": 4,
                "num_experts_per_tok": 2,
                "attn_layer_period": 2,
                "attn_layer_offset": 1,
                "expert_layer_period": 2,
                "expert_layer_offset": 1,
                "use_mamba_kernels": False,
                "mamba_dt_rank": 8,
            },
        ),
        Family(
            "falcon-h1",
            "FalconH1ForCausalLM",
            {
                **_LLAMA,
                "mamba_d_ssm": 256,
                "mamba_n_heads": 8,
                "mamba_d_head": 32,
                "mamba_d_state": 16,
                "mamba_n_groups": 1,
            },
        ),
        Family("lfm2", "Lfm2ForCausalLM", {**_PLAIN, "layer_types": ["conv", "full_attention"]}),
        Family("minimax", "MiniMaxForCausalLM", {**_LLAMA, "num_local_experts": 4, **_MIXED, "block_size": 16}),
        Family("ernie4.5", "Ernie4_5ForCausalLM", _LLAMA),
        Family(
            "ernie4.5-moe",
            "Ernie4_5_MoeForCausalLM",
            {
                **_PLAIN,
                "moe_num_experts": 4,
                "moe_k": 2,
                "moe_intermediate_size": 256,
                "moe_layer_start_index": 1,
                "moe_num_shared_experts": 1,
            },
        ),
        Family("smollm3", "SmolLM3ForCausalLM", _PLAIN),
        Family("olmo2", "Olmo2ForCausalLM", _PLAIN),
        Family("cohere2", "Cohere2ForCausalLM", _LLAMA),
        Family("starcoder2", "Starcoder2ForCausalLM", _PLAIN),
        Family(
            "gpt2",
            "GPT2LMHeadModel",
            {"vocab_size": VOCABULARY, "n_embd": 128, "n_layer": 2, "n_head": 4, "n_positions": 128},
        ),
        Family("gpt-neox", "GPTNeoXForCausalLM", _BERT),
        Family(
            "bloom", "BloomForCausalLM", {"vocab_size": VOCABULARY, "hidden_size": 128, "n_layer": 2, "n_head": 4}
        ),
        Family("opt", "OPTForCausalLM", {**_BERT, "ffn_dim": 256, "word_embed_proj_dim": 128}),
        Family(
            "t5",
            "T5ForConditionalGeneration",
            {
                "vocab_size": VOCABULARY,
                "d_model": 128,
                "d_kv": 32,
                "d_ff": 256,
                "num_layers": 2,
                "num_heads": 4,
                "decoder_start_token_id": 0,
            },
            PAIRS,
        ),
        Family("bart", "BartForConditionalGeneration", _BART, PAIRS),
        Family("marian", "MarianMTModel", {**_BART, "decoder_start_token_id": 0}, PAIRS),
        Family(
            "whisper",
            "WhisperForConditionalGeneration",
            {**_BART, "num_mel_bins": 16, "max_source_positions": 30, "max_target_positions": 32},
            MELS,
        ),
        Family("wav2vec2", "Wav2Vec2ForCTC", _SOUNDS, SOUND),
        Family("bert", "BertForMaskedLM", _BERT),
        Family("roberta", "RobertaForMaskedLM", _BERT),
        Family(
            "distilbert",
            "DistilBertForMaskedLM",
            {
                "vocab_size": VOCABULARY,
                "dim": 128,
                "n_layers": 2,
                "n_heads": 4,
                "hidden_dim": 256,
                "max_position_embeddings": 128,
            },
        ),
        Family(
            "deberta-v2",
            "DebertaV2ForMaskedLM",
            {**_BERT, "relative_attention": True, "pos_att_type": ["p2c", "c2p"]},
        ),
        Family("electra", "ElectraForMaskedLM", {**_BERT, "embedding_size": 128}),
        Family("modernbert", "ModernBertForMaskedLM", {**_BERT, "cls_token_id": 1, "sep_token_id": 2}),
        Family("albert", "AlbertForMaskedLM", {**_BERT, "embedding_size": 64}),
        Family(
            "clip", "CLIPModel", {"text_config": _CLIP_TEXT, "vision_config": _VISION, "projection_dim": 128}, BOTH
        ),
        Family("siglip", "SiglipModel", {"text_config": _CLIP_TEXT, "vision_config": _VISION}, BOTH),
        Family("vit", "ViTForImageClassification", {**_VISION, "num_labels": 10}, PICTURE),
        Family(
            "swin",
            "SwinForImageClassification",
            {
                "image_size": 32,
                "patch_size": 4,
                "embed_dim": 32,
                "depths": [1, 1],
                "num_heads": [2, 4],
                "window_size": 4,
                "num_labels": 10,
            },
            PICTURE,
        ),
        Family(
            "dinov2", "Dinov2ForImageClassification", {**_VISION, "use_swiglu_ffn": True, "num_labels": 10}, PICTURE
        ),
        Family(
            "convnext",
            "ConvNextForImageClassification",
            {"hidden_sizes": [32, 64], "depths": [1, 1], "num_stages": 2, "num_labels": 10, "image_size": 32},
            PICTURE,
        ),
        Family(
            "llava",
            "LlavaForConditionalGeneration",
            {
                "text_config": {**_LLAMA, "model_type": "llama"},
                "vision_config": {**_VISION, "model_type": "clip_vision_model"},
                "image_token_index": 255,
            },
        ),
        Family(
            "smolvlm",
            "SmolVLMForConditionalGeneration",
            {
                "text_config": {**_LLAMA, "model_type": "llama"},
                "vision_config": _VISION,
                "image_token_id": 255,
                "scale_factor": 2,
            },
        ),
        Family(
            "dbrx",
            "DbrxForCausalLM",
            {
                "vocab_size": VOCABULARY,
                "d_model": 128,
                "n_heads": 4,
                "n_layers": 2,
                "max_seq_len": 128,
                "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0},
                "ffn_config": {"hidden_size": 128, "ffn_hidden_size": 256, "moe_num_experts": 4, "moe_top_k": 2},
            },
        ),
        Family(
            "zamba",
            "ZambaForCausalLM",
            {
                **_PLAIN,
                "num_key_value_heads": 4,
                "num_hidden_layers": 4,
                "layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"],
                "use_mamba_kernels": False,
                "n_mamba_heads": 2,
                "mamba_dt_rank": 8,
            },
        ),
        Family(
            "zamba2",
            "Zamba2ForCausalLM",
            {
                **_PLAIN,
                "num_key_value_heads": 4,
                "num_hidden_layers": 4,
                "layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"],
                "use_mamba_kernels": False,
                "n_mamba_heads": 8,
                "mamba_d_state": 16,
            },
        ),
        Family("biogpt", "BioGptForCausalLM", _BERT),
        Family(
            "flaubert",
            "FlaubertWithLMHeadModel",
            {
                "vocab_size": VOCABULARY,
                "emb_dim": 128,
                "n_layers": 2,
                "n_heads": 4,
                "max_position_embeddings": 128,
                "pad_index": 0,
                "mask_index": 3,
            },
        ),
        Family("xlm-roberta", "XLMRobertaForMaskedLM", _BERT),
        Family("mpnet", "MPNetForMaskedLM", _BERT),
        Family("squeezebert", "SqueezeBertForMaskedLM", {**_BERT, "embedding_size": 128}),
        Family("wavlm", "WavLMForCTC", _SOUNDS, SOUND),
        Family("ijepa", "IJepaForImageClassification", {**_VISION, "num_labels": 10}, PICTURE),
        Family(
            "segformer",
            "SegformerForSemanticSegmentation",
            {
                "depths": [1, 1],
                "num_encoder_blocks": 2,
                "hidden_sizes": [64, 128],
                "num_attention_heads": [2, 4],
                "sr_ratios": [2, 1],
                "patch_sizes": [3, 3],
                "strides": [2, 2],
                "mlp_ratios": [2, 2],
                "decoder_hidden_size": 128,
                "num_labels": 10,
            },
            PICTURE,
        ),
        Family(
            "detr",
            "DetrForObjectDetection",
            {
                "d_model": 128,
                "encoder_layers": 1,
                "decoder_layers": 1,
                "encoder_attention_heads": 4,
                "decoder_attention_heads": 4,
                "encoder_ffn_dim": 256,
                "decoder_ffn_dim": 256,
                "num_queries": 8,
                "backbone_config": {
                    "model_type": "resnet",
                    "embedding_size": 16,
                    "hidden_sizes": [32, 64],
                    "depths": [1, 1],
                    "out_features": ["stage2"],
                },
            },
            PICTURE,
        ),
    )
}


def output_of(model: Any, given: Mapping[str, Any], dtype: Any = torch.bfloat16) -> Any:
    """All numbers that a model answers with, as float32 in a row, for inputs in this dtype. What it draws at random
    is the same each time."""
    torch.manual_seed(0)
    given = {key: value.to(dtype) if value.is_floating_point() else value for key, value in given.items()}
    with torch.no_grad():
        answer = model(**given)
    found = [value for value in answer.values() if isinstance(value, torch.Tensor) and value.is_floating_point()]
    return torch.cat([value.float().flatten() for value in found])


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Without what transformers tells of its progress."""
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    yield
