"""Codes of other tools that are only read: what the tools themselves make of them is what we restore."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs torch: make test-interop")
transformers = pytest.importorskip("transformers", minversion="5.0", reason="needs transformers: make test-interop")

from safetensors.torch import save_file

from compressor.checkpoint.checkpoint import open_checkpoint
from compressor.checkpoint.rows import read_whole

pytestmark = pytest.mark.interop


def test_mxfp4_experts_as_transformers_reads_them(tmp_path: Path) -> None:
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    random = torch.Generator().manual_seed(0)
    name = "model.layers.0.mlp.experts.down_proj"
    blocks = torch.randint(0, 256, (2, 24, 3, 16), dtype=torch.uint8, generator=random)
    scales = torch.randint(120, 130, (2, 24, 3), dtype=torch.uint8, generator=random)
    save_file({f"{name}_blocks": blocks, f"{name}_scales": scales}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(
        '{"model_type": "gpt_oss", "quantization_config": {"quant_method": "mxfp4"}}'
    )
    tensor = open_checkpoint(tmp_path).tensors[name]
    theirs = convert_moe_packed_tensors(blocks, scales, dtype=torch.bfloat16).float().numpy()
    assert tensor.spec.shape == theirs.shape
    assert np.array_equal(read_whole(tensor), theirs)


def test_eight_bits_as_bitsandbytes_reads_them(tmp_path: Path) -> None:
    bitsandbytes = pytest.importorskip("bitsandbytes", reason="needs bitsandbytes: make test-interop")
    weight = torch.randn(24, 16, generator=torch.Generator().manual_seed(0)).half()
    layer = bitsandbytes.nn.Linear8bitLt(16, 24, bias=False, has_fp16_weights=False)
    layer.weight = bitsandbytes.nn.Int8Params(weight, requires_grad=False, has_fp16_weights=False)
    layer = layer.to("cpu")
    layer(torch.randn(4, 16).half())
    state = {f"m.{name}": part.contiguous() for name, part in layer.state_dict().items()}
    assert state["m.weight"].dtype == torch.int8
    save_file({name: part.reshape(part.shape) for name, part in state.items()}, tmp_path / "model.safetensors")
    found = read_whole(open_checkpoint(tmp_path / "model.safetensors").tensors["m.weight"])
    theirs = bitsandbytes.functional.int8_vectorwise_dequant(state["m.weight"], state["m.SCB"])
    assert np.allclose(found, theirs.numpy(), rtol=2**-10, atol=0)


@pytest.mark.parametrize("legacy", [False, True])
def test_state_dicts_of_torch(tmp_path: Path, legacy: bool) -> None:
    state = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.Linear(4, 2)).state_dict()
    torch.save(state, tmp_path / "m.pt", _use_new_zipfile_serialization=not legacy)
    if legacy:
        with pytest.raises(Exception, match=r"PyTorch before 1\.6"):
            open_checkpoint(tmp_path / "m.pt")
        return
    tensors = open_checkpoint(tmp_path / "m.pt").tensors
    assert set(tensors) == set(state)
    assert all(np.array_equal(read_whole(tensor), state[name].numpy()) for name, tensor in tensors.items())
