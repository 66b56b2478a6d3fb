"""Budgets whose errors are weighed by what they cost the outputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import compressor
from compressor.core.errors import UsageError

pytestmark = pytest.mark.interop
torch = pytest.importorskip("torch", reason="needs torch: make test-interop")
transformers = pytest.importorskip("transformers", reason="needs transformers: make test-interop")

from interop.test_calibration import DECODER, TEXT, save_model


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model whose last block adds next to nothing, by weights that are as large as others'."""
    (tmp_path / "text.txt").write_text(TEXT)
    config = transformers.LlamaConfig(**DECODER | {"hidden_size": 64, "head_dim": 16, "intermediate_size": 64})
    folder = save_model(tmp_path / "model", "LlamaForCausalLM", config)
    tensors = load_file(folder / "model.safetensors")
    for name in ("input_layernorm", "post_attention_layernorm"):
        tensors[f"model.layers.2.{name}.weight"] *= np.float32(1e-3)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_bits_go_where_the_outputs_need_them(model: Path, tmp_path: Path) -> None:
    how: dict[str, Any] = {"target_bits": 4.0, "layout": "compressor"}
    plain = compressor.quantize(model, tmp_path / "plain", **how).allocation
    text = tmp_path / "text.txt"
    report = compressor.quantize(model, tmp_path / "weighed", **how, text=str(text))
    weighed = report.allocation
    assert weighed.point.bits <= 4
    assert (plain.sloped, weighed.sloped) == (False, True)
    bits = [
        {last: np.mean([one.bits for one in each.chosen if (".2." in one.name) == last]) for last in (False, True)}
        for each in (plain, weighed)
    ]
    assert abs(bits[0][True] - bits[0][False]) < 0.5
    assert bits[1][True] < bits[1][False] - 0.5
    losses = [compressor.compare(model, tmp_path / name, text=text).loss for name in ("plain", "weighed")]
    assert losses[1].outputs.kld < 0.85 * losses[0].outputs.kld
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_what_text_is_not_for(model: Path, tmp_path: Path) -> None:
    out, text = tmp_path / "o", str(tmp_path / "text.txt")
    with pytest.raises(UsageError, match="no dry run of text"):
        compressor.quantize(model, out, target_bits=4.5, text=text, dry_run=True)
    with pytest.raises(UsageError, match=r"text weighs budgets of folders and \.safetensors"):
        compressor.quantize(model, tmp_path / "o.gguf", target_bits=8.5, text=text, no_tokenizer=True)
    with pytest.raises(UsageError, match="text runs Hugging Face folders"):
        compressor.quantize(model / "model.safetensors", tmp_path / "o.safetensors", target_bits=4.5, text=text)
    assert not out.exists()


def test_where_nothing_costs_the_outputs_anything_the_text_is_left_out(model: Path, tmp_path: Path) -> None:
    tensors = load_file(model / "model.safetensors")
    idle = {
        name: values * np.float32("o_proj" not in name and "down" not in name) for name, values in tensors.items()
    }
    save_file(idle, model / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UsageError, match="costs the outputs anything") as caught:
        compressor.quantize(model, tmp_path / "o", target_bits=4.5, text=str(tmp_path / "text.txt"))
    assert caught.value.remedy == "Leave --text out".replace("--", "")
    compressor.quantize(model, tmp_path / "o", target_bits=4.5)
