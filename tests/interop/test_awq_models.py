"""Activation-aware scales in transformers: a model with scales in it computes what it did; its codes lose less."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs torch: make test-interop")
transformers = pytest.importorskip("transformers", minversion="5.0", reason="needs transformers: make test-interop")

import numpy as np
import test_structured_stacks as stacks
from safetensors.torch import save_file
from test_calibration import TEXT, save_tokenizer, windows_of
from test_structured_models import CUTS, EXPERTS, assert_equal, load, make, outputs, weights

import compressor
from compressor.architectures.recognise import recognise
from compressor.checkpoint.checkpoint import open_checkpoint
from compressor.checkpoint.experts import split_experts
from compressor.checkpoint.rows import read_whole
from compressor.surgery.scale_folding import (
    folded,
    folds_of,
)

pytestmark = pytest.mark.interop
NONE = ("gpt2", "falcon", "falcon-new", "mpnet")  # no place that nothing else reads
FOLDED = [name for name in CUTS if name not in (*NONE, "gpt-oss")]
# by block: what reads each norm, values of attention, and what is beside the gate; 4 where not said
PLACES = {
    **dict.fromkeys(
        ("bert", "bert-mlm", "roberta", "distilbert", "deberta", "opt", "opt-narrow", "electra", "electra-wide"), 1
    ),
    **dict.fromkeys(("phi", "gpt-neox", "gptj", "olmo2", "olmo3", "exaone4"), 2),
    **dict.fromkeys(("vit", "cohere", "cohere2", "starcoder2", "gemma4", "gemma4-vision"), 3),
}
MIXED = [*EXPERTS, "deepseek-v3", "qwen3.5", "qwen3.5-vision", "modernbert"]  # whose blocks are not all alike


def scaled(source: Path, out: Path) -> tuple[int, set[str]]:
    """A copy of a model with random scales in all its places: how many there are, and what was not moved of what
    should have been."""
    checkpoint = split_experts(open_checkpoint(source))
    specs = [tensor.spec for tensor in checkpoint.tensors.values()]
    folds, why = folds_of(recognise(checkpoint.source.config, specs, str(source), "awq").parts, checkpoint)
    random = np.random.default_rng(3)
    chosen = [(fold, np.exp(random.normal(0, 1, fold.channels))) for fold in folds]
    made = {key: read_whole(tensor) for key, tensor in folded(checkpoint, chosen)[0].tensors.items()}
    before = {key: read_whole(tensor) for key, tensor in checkpoint.tensors.items()}
    moved = {key for key in made if not np.array_equal(made[key], before[key])}
    assert not moved & set(why) - {one.tensor for fold in folds for one in fold.writers}
    out.mkdir()
    whole = {key: np.ascontiguousarray(array).reshape(array.shape) for key, array in made.items()}  # also scalars
    tensors = {key: torch.from_numpy(array) for key, array in whole.items()}
    save_file(tensors, out / "model.safetensors", {"format": "pt"})
    (out / "config.json").write_text((source / "config.json").read_text())
    return len(folds), {reader for fold in folds for reader in fold.readers} - moved


@pytest.mark.parametrize("name", FOLDED)
def test_the_model_does_not_notice_scales(tmp_path: Path, name: str) -> None:
    source = make(tmp_path / "source", name)
    count, lacking = scaled(source, tmp_path / "out")
    assert not lacking
    assert count == 4 * PLACES.get(name, 4) or (name in MIXED and count > 4)
    assert_equal(outputs(load(tmp_path / "out", name)), outputs(load(source, name)))


@pytest.mark.parametrize("name", stacks.STACKS)
def test_models_of_several_stacks_do_not_notice_scales(tmp_path: Path, name: str) -> None:
    source = stacks.make(tmp_path / "source", name)
    count, lacking = scaled(source, tmp_path / "out")
    assert not lacking
    assert count >= 3
    assert_equal(stacks.outputs(stacks.load(tmp_path / "out", name)), stacks.outputs(stacks.load(source, name)))


LLAMA = {
    "vocab_size": 100,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
}
KINDS: dict[str, Any] = {
    "LlamaForCausalLM": lambda: transformers.LlamaConfig(**LLAMA),
    "Qwen3ForCausalLM": lambda: transformers.Qwen3Config(**LLAMA, head_dim=32),
    "Gemma2ForCausalLM": lambda: transformers.Gemma2Config(**LLAMA, head_dim=32, sliding_window=7),
    "Phi3ForCausalLM": lambda: transformers.Phi3Config(**LLAMA, pad_token_id=3),
}


def outlying(path: Path, kind: str, dtype: Any) -> Path:
    """A random model some of whose channels are far larger than others, as those of language models are."""
    torch.manual_seed(1)
    model = getattr(transformers, kind)(KINDS[kind]())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:  # blocks add to the residual stream, and are not all of it
                parameter.normal_(0, 1 if "embed" in name else 0.02)
            elif "norm" in name:
                parameter.copy_(torch.rand_like(parameter) + 0.5 - float("Gemma" in kind))
                parameter[torch.randperm(len(parameter))[:4]] += 12
    model.to(dtype).save_pretrained(path)
    save_tokenizer(path, special=False)
    return path


def logits(path: Path, kind: str) -> Any:
    model = getattr(transformers, kind).from_pretrained(path, dtype=torch.float32).eval()
    with torch.no_grad():
        return model(torch.tensor(windows_of(False, 32, 12))).logits.double()


@pytest.mark.parametrize("kind", KINDS)
def test_outputs_lose_less_than_by_the_search(tmp_path: Path, kind: str) -> None:
    source = outlying(tmp_path / "source", kind, torch.bfloat16)
    (tmp_path / "text.txt").write_text(TEXT)
    stats = tmp_path / "stats.safetensors"
    compressor.calibrate(source, stats, text=tmp_path / "text.txt", length=32, samples=8)
    before = logits(source, kind)
    for bits in (3, 4):
        options: dict[str, Any] = {"bits": bits, "group_size": 64}
        lost = []
        for method, more in (("search", {}), ("awq", {"stats": stats})):
            out = tmp_path / f"{method}{bits}"
            compressor.quantize(source, out, method=method, **options, **more)
            if bits == 3:  # in our own layout
                compressor.restore(out, tmp_path / f"{out.name}-dense")
                out = tmp_path / f"{out.name}-dense"
            lost.append(float((logits(out, kind) - before).square().sum() / before.square().sum()))
        assert lost[1] < 0.85 * lost[0]


def test_with_codes_of_eight_bits_it_is_the_model_that_it_was(tmp_path: Path) -> None:
    source = outlying(tmp_path / "source", "LlamaForCausalLM", torch.float32)
    (tmp_path / "text.txt").write_text(TEXT)
    stats = tmp_path / "stats.safetensors"
    compressor.calibrate(source, stats, text=tmp_path / "text.txt", length=32, samples=8)
    report = compressor.quantize(
        source, tmp_path / "out", bits=8, group_size=32, method="awq", stats=stats, store="dense"
    )
    assert any("alpha" in note for note in report.plan.notes)
    kept, moved = weights(source), weights(tmp_path / "out")
    norm = "model.layers.1.input_layernorm.weight"
    assert (kept[norm] / moved[norm]).max() > 1.5 * (kept[norm] / moved[norm]).min()
    before, after = logits(source, "LlamaForCausalLM"), logits(tmp_path / "out", "LlamaForCausalLM")
    assert float((after - before).square().sum() / before.square().sum()) < 1e-3
