"""Folders of codes that become GGUF files: the same numbers as by way of the restored folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import gguf_models, small_models
from support.gguf_files import gguf_package
from support.small_models import Model, Stored, array, e4m3, f16, f32, integers

from compressor import api
from compressor.core.errors import CompressorError


def numbers_of(path: Path) -> dict[str, tuple[str, np.ndarray[Any, Any]]]:
    gguf = gguf_package()
    return {
        one.name: (one.tensor_type.name, gguf.quants.dequantize(one.data, one.tensor_type))
        for one in gguf.GGUFReader(path).tensors
    }


def coded(parts: Callable[[int, int], Mapping[str, Stored]], **said: Any) -> Model:
    """A llama whose layers are stored as these parts of a weight [rows, columns]."""
    tensors: dict[str, Stored] = {}
    for name, one in small_models.llama().tensors.items():
        if len(one.shape) == 2 and ".layers." in name:
            made = parts(*one.shape)
            tensors |= {f"{name.removesuffix('weight')}{part}": stored for part, stored in made.items()}
        else:
            tensors[name] = one
    return Model(tensors, {"config.json": {**small_models.LLAMA, **said}})


def quantized(method: str, **said: Any) -> dict[str, Any]:
    return {"quantization_config": {"quant_method": method, **said}}


def words(*shape: int) -> Stored:
    return integers("I32", *shape, high=2**31)


def awq() -> Model:
    def parts(rows: int, columns: int) -> dict[str, Stored]:
        groups = columns // 16
        return {
            "qweight": words(columns, rows // 8),
            "qzeros": words(groups, rows // 8),
            "scales": f16(groups, rows),
        }

    return coded(parts, **quantized("awq", bits=4, group_size=16, version="gemm"))


def gptq_sorted() -> Model:
    def parts(rows: int, columns: int) -> dict[str, Stored]:
        groups = columns // 16
        index = array("I32", np.arange(columns, dtype="<i4")[::-1] // 16)
        own = {"qweight": words(columns // 8, rows), "qzeros": words(groups, rows // 8)}
        return {**own, "scales": f16(groups, rows), "g_idx": index}

    return coded(parts, **quantized("gptq", bits=4, group_size=16, desc_act=True))


def mlx_floats() -> Model:
    def parts(rows: int, columns: int) -> dict[str, Stored]:
        codes, scales = (
            integers("U32", rows, columns // 8, high=100),
            integers("U8", rows, columns // 32, high=130),
        )
        return {"weight": codes, "scales": scales}

    return coded(parts, quantization={"bits": 4, "group_size": 32, "mode": "mxfp4"})


def bitsandbytes_8() -> Model:
    def parts(rows: int, columns: int) -> dict[str, Stored]:
        return {"weight": integers("I8", rows, columns), "SCB": f32(rows), "weight_format": integers("U8", high=1)}

    return coded(parts, **quantized("bitsandbytes", load_in_8bit=True))


def deepseek_blocks() -> Model:
    """DeepSeek-V3, whose experts are stacked and whose latents are divided, in FP8 with a scale for a block."""
    config, tensors = gguf_models.config_named("deepseek_v3"), dict[str, Stored]()
    for name, one in gguf_models.tensors_named("deepseek_v3").items():
        if one.ndim == 2 and ".layers." in name and "norm" not in name and not name.endswith("gate.weight"):
            tensors |= {name: e4m3(*one.shape), f"{name}_scale_inv": f32(1, 1)}
        else:
            tensors[name] = array("F32", one)
    said = quantized("fp8", weight_block_size=[128, 128])
    return Model(tensors, {"config.json": {**config, **said}})


def gpt_oss() -> Model:
    """gpt-oss as published: experts in MXFP4, gate and up by turns, which are divided in a GGUF file."""
    config = gguf_models.config_named("gpt_oss") | {"hidden_size": 32, "intermediate_size": 32, "head_dim": 8}
    tensors = dict[str, Stored]()
    for name, one in gguf_models.tensors_named("gpt_oss", config=config).items():
        if name.endswith(("gate_up_proj", "down_proj")):
            experts, columns, rows = one.shape
            tensors[f"{name}_blocks"] = integers("U8", experts, rows, columns // 32, 16, high=256)
            tensors[f"{name}_scales"] = integers("U8", experts, rows, columns // 32, high=130)
        else:
            tensors[name] = array("F32", one)
    return Model(tensors, {"config.json": {**config, **quantized("mxfp4")}})


OURS = [kind for kind, (make, *_) in small_models.WRITTEN.items() if make is small_models.llama]
THEIRS: dict[str, Callable[[], Model]] = {
    "awq": awq,
    "gptq sorted": gptq_sorted,
    "mlx mxfp4": mlx_floats,
    "bitsandbytes 8": bitsandbytes_8,
    "deepseek": deepseek_blocks,
    "gpt-oss": gpt_oss,
}


@pytest.mark.parametrize("kind", [*OURS, *THEIRS])
def test_codes_become_the_file_that_their_numbers_become(tmp_path: Path, kind: str) -> None:
    made = THEIRS[kind]() if kind in THEIRS else small_models.written(kind)
    source = made.write(tmp_path)
    api.restore(source, tmp_path / "restored")
    api.restore(source, tmp_path / "one.gguf", no_tokenizer=True)
    api.restore(tmp_path / "restored", tmp_path / "other.gguf", no_tokenizer=True)
    one, other = numbers_of(tmp_path / "one.gguf"), numbers_of(tmp_path / "other.gguf")
    assert one.keys() == other.keys()
    for name, (type_, numbers) in other.items():
        assert one[name][0] == type_
        assert np.array_equal(one[name][1], numbers, equal_nan=True), name
    with pytest.raises(CompressorError, match=r"is already .* Use --requantize"):
        api.quantize(source, tmp_path / "codes.gguf", scheme="f32", no_tokenizer=True)
    api.quantize(source, tmp_path / "codes.gguf", scheme="f32", no_tokenizer=True, requantize=True)
    for name, (type_, numbers) in numbers_of(tmp_path / "codes.gguf").items():
        assert type_ == "F32"
        assert np.array_equal(numbers, other[name][1], equal_nan=True), name
