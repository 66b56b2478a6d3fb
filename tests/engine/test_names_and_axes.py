"""What the parts of a plan must not be: called like another's, or cut along the wrong axis."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from safetensors.numpy import load_file, save_file

import compressor
from compressor.core.errors import InputError, UsageError


def numbers(*shape: int) -> npt.NDArray[np.float32]:
    return np.random.default_rng(len(shape)).standard_normal(shape).astype(np.float32)


def test_a_part_with_the_name_of_another_tensor_is_refused(tmp_path: Path) -> None:
    source, out = tmp_path / "in.safetensors", tmp_path / "out.safetensors"
    save_file({"a.weight": numbers(64, 64), "a.weight.codes": numbers(64, 64)}, source)
    with pytest.raises(InputError, match=r"a\.weight\.codes' would have the name of one of 'a\.weight\.codes'"):
        compressor.quantize(source, out, layout="compressor")
    assert not out.exists()
    report = compressor.quantize(source, out, layout="compressor", exclude=["a.weight"])  # as the message says
    assert report.plan.size_after == out.stat().st_size
    report = compressor.prune(source, out, sparsity=0.5, store="csr", force=True)  # parts of other names
    restored = tmp_path / "restored.safetensors"
    compressor.restore(out, restored)
    assert set(load_file(restored)) == {"a.weight", "a.weight.codes"}
    assert report.total is not None


def test_what_loaders_would_take_for_a_part_is_refused(tmp_path: Path) -> None:
    """An order of columns that a dense weight does not need would be one of its codes' columns."""
    (tmp_path / "in").mkdir()
    tensors = {"a.weight": numbers(64, 64), "a.weight_g_idx": np.arange(64, dtype=np.int32)}
    save_file({**tensors, "b.weight": numbers(64, 64)}, tmp_path / "in" / "model.safetensors")
    (tmp_path / "in" / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(InputError, match=r"loaders would take 'a\.weight_g_idx', which is there already"):
        compressor.quantize(tmp_path / "in", tmp_path / "out", bits=4, group_size=32)
    compressor.quantize(tmp_path / "in", tmp_path / "out", bits=4, group_size=32, exclude=["a.weight"])


def test_a_lone_shard_of_fp8_codes_is_refused(tmp_path: Path) -> None:
    header = {
        "a.weight": {"dtype": "F8_E4M3", "shape": [8, 8], "data_offsets": [0, 64]},
        "a.weight_scale": {"dtype": "F32", "shape": [8, 1], "data_offsets": [64, 96]},
    }
    text = json.dumps(header).encode()
    shard, out = tmp_path / "model-00002-of-00003.safetensors", tmp_path / "out.safetensors"
    shard.write_bytes(struct.pack("<Q", len(text)) + text + b"\x38" * 64 + np.ones(8, np.float32).tobytes())
    for run in (compressor.quantize, compressor.restore):
        with pytest.raises(InputError, match=r"a\.weight': looks quantized.*Give the folder"):
            run(shard, out)
    with pytest.raises(InputError, match="looks quantized"):
        compressor.prune(shard, out, sparsity=0.5)
    assert not out.exists()


def test_a_pattern_along_inputs_is_not_put_along_outputs(tmp_path: Path) -> None:
    """Conv1D weights lie [in, out]."""
    source, out = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    name = "transformer.h.0.mlp.c_fc"
    tensors = {f"{name}.weight": numbers(16, 64), f"{name}.bias": numbers(64), "extra.weight": numbers(8, 16)}
    save_file(tensors, source / "model.safetensors")
    for config in ('{"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}', "{}"):  # or by its bias
        (source / "config.json").write_text(config)
        with pytest.raises(UsageError, match=r"c_fc\.weight': is stored transposed \(Conv1D\).*Exclude it"):
            compressor.prune(source, out, pattern="2:4")
        assert not out.exists()
    report = compressor.prune(source, out, pattern="2:4", exclude=[f"{name}*"])
    assert [job.spec.name for job, _ in report.rows] == ["extra.weight"]
    assert compressor.prune(source, out, sparsity=0.5, force=True).total is not None
    (source / "config.json").write_text('{"model_type": "gptj"}')  # which has them upright
    assert compressor.prune(source, out, pattern="2:4", force=True).total is not None
