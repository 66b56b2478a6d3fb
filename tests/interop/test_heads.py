"""Models whose output heads have other names, or share the embedding's weight: what is quantized loads, and
computes what the restored weights do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs torch: make test-interop")
transformers = pytest.importorskip("transformers", minversion="5.0", reason="needs transformers: make test-interop")
pytest.importorskip("compressed_tensors", reason="needs compressed-tensors: make test-interop")

from transformers import CompressedTensorsConfig

import compressor

pytestmark = pytest.mark.interop
transformers.utils.logging.disable_progress_bar()

IDS = torch.arange(24).reshape(2, 12) * 7 % 60 + 3
TOKENS = {"input_ids": IDS}
PAIRS = {"input_ids": IDS, "decoder_input_ids": IDS}
DECODER = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
BERT = {key: DECODER[key] for key in DECODER if key not in ("num_key_value_heads", "head_dim")}
BART = {
    "vocab_size": 96,
    "d_model": 64,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 128,
    "decoder_ffn_dim": 128,
    "pad_token_id": 0,
}
XLM = {"vocab_size": 96, "emb_dim": 64, "n_layers": 2, "n_heads": 4, "max_position_embeddings": 64}
FRAMES = torch.sin(torch.arange(2 * 16 * 60).reshape(2, 16, 60) * 0.1)
SOUND = torch.sin(torch.arange(2 * 4000).reshape(2, 4000) * 0.1)
PICTURE = torch.sin(torch.arange(3 * 16 * 16).reshape(1, 3, 16, 16) * 0.1)

# class → the sizes of a small one, what it is given, and what its head is called
MODELS: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "WhisperForConditionalGeneration": (
        {**BART, "num_mel_bins": 16, "max_source_positions": 30, "max_target_positions": 32},
        {"input_features": FRAMES, "decoder_input_ids": IDS},
        "proj_out",
    ),
    "MoonshineForConditionalGeneration": (
        {
            **{key: DECODER[key] for key in ("vocab_size", "hidden_size", "intermediate_size", "pad_token_id")},
            **{f"{side}_num_hidden_layers": 2 for side in ("encoder", "decoder")},
            **{f"{side}_num_attention_heads": 4 for side in ("encoder", "decoder")},
        },
        {"input_values": SOUND, "decoder_input_ids": IDS},
        "proj_out",
    ),
    "ModernBertForMaskedLM": ({**BERT, "global_attn_every_n_layers": 2}, TOKENS, "decoder"),
    "ModernBertDecoderForCausalLM": ({**BERT, "global_attn_every_n_layers": 2}, TOKENS, "decoder"),
    "T5GemmaForConditionalGeneration": (
        {"encoder": DECODER, "decoder": {**DECODER, "cross_attention_hidden_size": 64}, "vocab_size": 96},
        PAIRS,
        "lm_head.out_proj",
    ),
    "RwkvForCausalLM": (
        {"vocab_size": 96, "hidden_size": 64, "num_hidden_layers": 2, "attention_hidden_size": 64},
        TOKENS,
        "head",
    ),
    "XLMWithLMHeadModel": (XLM, TOKENS, "pred_layer.proj"),
    "FlaubertWithLMHeadModel": (XLM, TOKENS, "pred_layer.proj"),
    "BioGptForCausalLM": (BERT, TOKENS, "output_projection"),
    "TrOCRForCausalLM": (
        {key.removeprefix("x"): BART[key] for key in BART if not key.startswith("encoder")},
        TOKENS,
        "output_projection",
    ),
    "FSMTForConditionalGeneration": (
        {**BART, "langs": ["en", "de"], "src_vocab_size": 96, "tgt_vocab_size": 96},
        PAIRS,
        "model.decoder.output_projection",
    ),
    "XLNetLMHeadModel": (
        {"vocab_size": 96, "d_model": 64, "n_layer": 2, "n_head": 4, "d_inner": 128},
        TOKENS,
        "lm_loss",
    ),
    "GitForCausalLM": (
        {
            **BERT,
            "vision_config": {
                "hidden_size": 64,
                "intermediate_size": 128,
                "num_hidden_layers": 1,
                "num_attention_heads": 4,
                "image_size": 16,
                "patch_size": 8,
            },
        },
        {"input_ids": IDS[:1], "pixel_values": PICTURE},
        "output",
    ),
    "ElectraForMaskedLM": ({**BERT, "embedding_size": 64}, TOKENS, "generator_lm_head"),
    "DistilBertForMaskedLM": (
        {
            "vocab_size": 96,
            "dim": 64,
            "n_layers": 2,
            "n_heads": 4,
            "hidden_dim": 128,
            "max_position_embeddings": 64,
        },
        TOKENS,
        "vocab_projector",
    ),
    "RobertaForMaskedLM": (BERT, TOKENS, "lm_head.decoder"),
    "AlbertForMaskedLM": ({**BERT, "embedding_size": 32}, TOKENS, "predictions.decoder"),
}
# Scales of 32 bits: told to dequantize, transformers rounds weights to the dtype of their scales
SCHEMES: dict[str, dict[str, Any]] = {
    "w8a8": {"bits": 8, "granularity": "channel", "scale_bits": 32},
    "fp8": {"scheme": "fp8"},
    "w4a16": {"bits": 4, "group_size": 32, "scale_bits": 32, "fallback": True},
}
# whose own initialisation reads the weight of a layer that has packed parts instead
DECOMPRESSED_ONLY = ("RwkvForCausalLM", "ModernBertForMaskedLM", "ModernBertDecoderForCausalLM")


def logits(model: Any, given: dict[str, Any]) -> Any:
    with torch.no_grad():
        return model(**given).logits.float()


def make(name: str, path: Path) -> Any:
    """A small model with random weights, saved; its class."""
    sizes, _, head = MODELS[name]
    kind = getattr(transformers, name)
    torch.manual_seed(0)
    model = kind(kind.config_class(**sizes)).eval()
    assert isinstance(model.get_submodule(head), torch.nn.Linear), name
    model.save_pretrained(path)
    return kind


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", MODELS)
def test_a_head_stays_as_it_is(tmp_path: Path, name: str, scheme: str) -> None:
    kind, (_, given, head) = make(name, tmp_path / "model"), MODELS[name]
    report = compressor.quantize(tmp_path / "model", tmp_path / "packed", **SCHEMES[scheme])
    treated = {job.spec.name for job in report.plan.jobs if job.steps}
    assert treated
    assert not [one for one in treated if one.endswith(f"{head}.weight")]
    compressor.restore(tmp_path / "packed", tmp_path / "restored")
    wanted = logits(kind.from_pretrained(tmp_path / "restored").eval(), given)
    loaded = kind.from_pretrained(
        tmp_path / "packed", quantization_config=CompressedTensorsConfig(dequantize=True)
    ).eval()
    found = logits(loaded, given)
    assert torch.isfinite(found).all()
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4 * float(wanted.abs().max()))
    if scheme == "w4a16" and name in DECOMPRESSED_ONLY:
        return
    # as users load it: activations are rounded too
    plain = logits(kind.from_pretrained(tmp_path / "packed").eval(), given)
    torch.testing.assert_close(plain, wanted, rtol=0, atol=0.1 * float(wanted.abs().max()))
