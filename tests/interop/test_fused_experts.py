"""Fused experts against transformers: what it computes with is what our matrices hold, and it loads their codes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs torch: make test-interop")
transformers = pytest.importorskip("transformers", minversion="5.0", reason="needs transformers: make test-interop")
pytest.importorskip("compressed_tensors", minversion="0.20", reason="needs compressed-tensors: make test-interop")

import safetensors.torch

import compressor

pytestmark = pytest.mark.interop
transformers.utils.logging.disable_progress_bar()

TOKENS = torch.arange(32).reshape(2, 16) * 7 % 256
COMMON = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
MODELS: dict[str, dict[str, Any]] = {
    "Qwen3MoeForCausalLM": EXPERTS,
    "Qwen3_5MoeForCausalLM": {
        **EXPERTS,
        "shared_expert_intermediate_size": 32,
        "layer_types": ["linear_attention", "full_attention"],
    },
    "MixtralForCausalLM": {"num_local_experts": 4},
    "DeepseekV3ForCausalLM": {
        "num_key_value_heads": 4,
        "n_routed_experts": 4,
        "n_shared_experts": 1,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "first_k_dense_replace": 0,
        "n_group": 1,
        "topk_group": 1,
        "q_lora_rank": 32,
        "kv_lora_rank": 32,
        "qk_nope_head_dim": 16,
        "qk_rope_head_dim": 16,
        "v_head_dim": 16,
    },
    "Llama4ForCausalLM": {
        "num_local_experts": 4,
        "intermediate_size": 32,
        "intermediate_size_mlp": 64,
        "interleave_moe_layer_step": 1,
    },
    "GptOssForCausalLM": {
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "intermediate_size": 32,
        "layer_types": ["full_attention", "full_attention"],
    },
}
MERGED = ("Qwen3MoeForCausalLM", "Qwen3_5MoeForCausalLM", "MixtralForCausalLM", "DeepseekV3ForCausalLM")


def fused(path: Path, name: str) -> Any:
    """A small random model whose file holds its parameters as transformers computes with them."""
    torch.manual_seed(0)
    kind = getattr(transformers, name)
    model = kind(kind.config_class(**{**COMMON, **MODELS[name]})).to(torch.bfloat16).eval()
    for parameter in model.parameters():  # some are left empty
        torch.nn.init.normal_(parameter, std=0.05)
    model.save_pretrained(path)
    for file in path.glob("*.safetensors"):
        file.unlink()
    state = {key: value.contiguous().clone() for key, value in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        state.pop("lm_head.weight")
    safetensors.torch.save_file(state, path / "model.safetensors", metadata={"format": "pt"})
    return model


def load(path: Path, name: str) -> Any:
    model, info = getattr(transformers, name).from_pretrained(path, output_loading_info=True)
    problems = {key for keys in info.values() for key in (keys if isinstance(keys, set) else [])}
    assert not problems, sorted(problems)[:8]
    return model.eval()


@pytest.mark.parametrize("name", MODELS)
def test_the_parts_compute_what_the_fused_module_does(tmp_path: Path, name: str) -> None:
    """At 8 bits our matrices give each projection of transformers' own module; in another order they would not."""
    model = fused(tmp_path / "in", name)
    compressor.quantize(tmp_path / "in", tmp_path / "q", bits=8, group_size=32)
    compressor.restore(tmp_path / "q", tmp_path / "dense")
    found = safetensors.torch.load_file(tmp_path / "dense" / "model.safetensors")
    module = next(m for key, m in model.named_modules() if key.endswith("experts") and ".layers.0." in f".{key}")
    hidden = torch.randn(5, 64, generator=torch.Generator().manual_seed(1))
    if name in ("Llama4ForCausalLM", "GptOssForCausalLM"):  # whose files have the experts together, here too
        for part in ("gate_up_proj", "down_proj"):
            (at,) = (key for key in found if ".layers.0." in key and key.endswith(f".experts.{part}"))
            theirs = getattr(module, part).data.float()
            assert (found[at].float() - theirs).norm() < 0.02 * theirs.norm()
        return
    names = ("w1", "w3", "w2") if name == "MixtralForCausalLM" else ("gate_proj", "up_proj", "down_proj")
    for expert in range(4):
        at = next(key for key in found if ".layers.0." in key and f".experts.{expert}.{names[0]}.weight" in key)
        gate, up, down = (found[at.replace(names[0], part)].float() for part in names)
        both, back = module.gate_up_proj.data[expert].float(), module.down_proj.data[expert].float()
        halves = (hidden @ both.T).chunk(2, dim=-1)
        for ours, theirs in ((hidden @ gate.T, halves[0]), (hidden @ up.T, halves[1]), (down, back)):
            assert (ours - theirs).norm() < 0.02 * theirs.norm()


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("name", MERGED)
def test_transformers_merges_the_codes(tmp_path: Path, name: str, bits: int) -> None:
    model = fused(tmp_path / "in", name)
    compressor.quantize(tmp_path / "in", tmp_path / "q", bits=bits, group_size=32)
    compressor.restore(tmp_path / "q", tmp_path / "dense")
    packed, dense = load(tmp_path / "q", name), load(tmp_path / "dense", name)
    with torch.no_grad():
        found, wanted, before = (m(TOKENS)[0].float() for m in (packed, dense, model))
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    assert (wanted - before).norm() < (0.5 if bits == 4 else 0.1) * before.norm()
    for key, value in model.state_dict().items():
        assert dense.state_dict()[key].shape == value.shape
        assert (dense.state_dict()[key].float() - value.float()).norm() <= 0.15 * value.float().norm(), key
