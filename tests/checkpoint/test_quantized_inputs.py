"""Quantized inputs of every shape: read where files say how they are stored, refused where they do not, and never
taken for weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from support import archives
from support.fault_injection import invoke, is_one_line

from compressor import api
from compressor.checkpoint.checkpoint import open_checkpoint
from compressor.checkpoint.rows import read_whole

Array = Any
Stored = dict[str, tuple[str, Array]]
RANDOM = np.random.default_rng(3)
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)


def e4m3(*shape: int) -> Array:
    return RANDOM.standard_normal(shape).astype(ml_dtypes.float8_e4m3fn).view(np.uint8)


def number(codes: Array, kind: Any = ml_dtypes.float8_e4m3fn) -> Array:
    return codes.view(kind).astype(np.float32)


def put(path: Path, stored: Stored, config: dict[str, Any] | None = None, **files: dict[str, Any]) -> Path:
    """A folder, or a lone file where the name says so."""
    if path.suffix:
        archives.write(path, stored)
        return path
    path.mkdir()
    archives.write(path / "model.safetensors", stored)
    if config is not None:
        (path / "config.json").write_text(json.dumps(config))
    for name, content in files.items():
        (path / f"{name}.json").write_text(json.dumps(content))
    return path


def restored(path: Path) -> dict[str, Array]:
    tensors = open_checkpoint(path).tensors
    return {name: read_whole(tensor) for name, tensor in tensors.items() if tensor.spec.is_float}


def near(values: Array, expected: Array) -> bool:
    """Equal but for the rounding to the 16 bits of the model."""
    return values.shape == expected.shape and np.allclose(values, expected, rtol=2**-10, atol=0)


def gptq(shift: int = 1) -> tuple[Stored, Array]:
    """A layer [64, 32] at 4 bits in groups of 16, and what it stands for."""
    codes = RANDOM.integers(0, 16, (32, 64), np.uint32)
    zeros = RANDOM.integers(1, 16, (2, 64), np.uint32)
    scales = RANDOM.random((2, 64)).astype(np.float16)

    def words(values: Array) -> Array:
        return sum(values[..., i].astype(np.uint32) << np.uint32(4 * i) for i in range(8)).view(np.int32)  # type: ignore[no-any-return, union-attr]

    stored = {
        "a.qweight": ("I32", words(codes.reshape(4, 8, 64).transpose(0, 2, 1))),
        "a.qzeros": ("I32", words((zeros - shift).reshape(2, 8, 8))),
        "a.scales": ("F16", scales),
        "a.g_idx": ("I32", np.arange(32, dtype=np.int32) // 16),
    }
    spread = np.arange(32) // 16
    return stored, (scales.astype(np.float32)[spread] * (codes.astype(np.float32) - zeros[spread])).T


# ---- where a config says it ------------------------------------------------------------------------------------


def test_the_first_name_of_compressed_tensors_key(tmp_path: Path) -> None:
    codes = RANDOM.integers(-128, 128, (8, 16), np.int8)
    scales = RANDOM.random((8, 1)).astype(np.float32)
    stored: Stored = {"a.weight": ("I8", codes), "a.weight_scale": ("F32", scales)}
    weights = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel"}
    said = {"format": "int-quantized", "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}}}
    path = put(tmp_path / "m", stored, {"compression_config": {**said, "quant_method": "sparseml"}})
    assert near(restored(path)["a.weight"], codes * scales)
    api.restore(path, tmp_path / "o")
    assert json.loads((tmp_path / "o" / "config.json").read_text()) == {}


def test_a_quantized_cache_alone(tmp_path: Path) -> None:
    """Of whose weights nothing is quantized."""
    weight = RANDOM.standard_normal((8, 128)).astype(np.float32)
    stored: Stored = {"k_proj.weight": ("F32", weight), "k_scale": ("F32", np.ones(1, np.float32))}
    said = {"quant_method": "compressed-tensors", "kv_cache_scheme": {"num_bits": 8, "type": "float"}}
    for number, groups in enumerate(({}, {"config_groups": {}})):
        path = put(tmp_path / f"m{number}", stored, {"quantization_config": {**said, **groups}})
        assert np.array_equal(restored(path)["k_proj.weight"], weight)
        assert api.quantize(path, tmp_path / f"o{number}", bits=4).bits_per_weight < 5


def test_what_is_not_read_has_a_way_on(tmp_path: Path) -> None:
    stored, _ = gptq()
    config = {"quant_method": "gptq", "bits": 4, "group_size": 16, "checkpoint_format": "marlin"}
    path = put(tmp_path / "m", stored, {"quantization_config": config})
    code, said = invoke(["inspect", str(path)])
    assert code == 3
    assert "is not read here. Give the model before it was quantized" in said[0]


BLOCK_FP8 = {"quant_method": "fp8", "weight_block_size": [128, 128]}


@pytest.mark.parametrize(
    "place", ["text_config", "llm_config", "language_config", "thinker_config.text_config", "x.y.z"]
)
def test_a_config_within_the_config(tmp_path: Path, place: str) -> None:
    codes = e4m3(8, 16)
    stored: Stored = {
        "m.weight": ("F8_E4M3", codes),
        "m.weight_scale_inv": ("F32", np.full((1, 1), 0.5, np.float32)),
    }
    config: dict[str, Any] = {"quantization_config": BLOCK_FP8, "hidden_size": 16}
    for key in reversed(place.split(".")):
        config = {key: config, "model_type": "made-up"}
    model = put(tmp_path / "in", stored, config)
    assert np.array_equal(restored(model)["m.weight"], number(codes) * 0.5)
    assert invoke(["restore", str(model), "-o", str(tmp_path / "out"), "-q"])[0] == 0
    assert "quantization_config" not in (tmp_path / "out" / "config.json").read_text()
    assert "hidden_size" in (tmp_path / "out" / "config.json").read_text()


def test_scales_that_are_powers_of_two(tmp_path: Path) -> None:
    codes, powers = e4m3(130, 8), np.array([[126], [129]], np.uint8)
    stored: Stored = {"m.weight": ("F8_E4M3", codes), "m.weight_scale_inv": ("F8_E8M0", powers)}
    model = put(tmp_path / "in", stored, {"quantization_config": {**BLOCK_FP8, "scale_fmt": "ue8m0"}})
    factors = np.repeat(np.float32([0.5, 4]), [128, 2])[:, None]
    assert np.array_equal(restored(model)["m.weight"], number(codes) * factors)


def test_configs_within_it_that_say_different_things(tmp_path: Path) -> None:
    configs = {name: {"quantization_config": {"quant_method": name}} for name in ("fp8", "awq")}
    model = put(tmp_path / "in", {"m.weight": ("F8_E4M3", e4m3(8, 16))}, configs)
    assert "its configs are quantized in several ways" in refused(model)


def test_files_beside_the_config(tmp_path: Path) -> None:
    stored, values = gptq()
    said = {"bits": 4, "group_size": 16, "desc_act": False, "sym": False}
    model = put(tmp_path / "gptq", stored, {}, quantize_config=said)
    assert near(restored(model)["a.weight"], values)
    assert invoke(["restore", str(model), "-o", str(tmp_path / "out"), "-q"])[0] == 0
    assert not (tmp_path / "out" / "quantize_config.json").exists()
    awq: Stored = {
        "a.qweight": ("I32", RANDOM.integers(-(2**31), 2**31, (32, 2), np.int32)),
        "a.qzeros": ("I32", RANDOM.integers(-(2**31), 2**31, (2, 2), np.int32)),
        "a.scales": ("F16", RANDOM.random((2, 16)).astype(np.float16)),
    }
    here = {"zero_point": True, "q_group_size": 16, "w_bit": 4, "version": "GEMM"}
    there = {"quant_method": "awq", "bits": 4, "group_size": 16, "version": "gemm"}
    one = put(tmp_path / "awq", awq, {}, quant_config=here)
    two = put(tmp_path / "awq2", awq, {"quantization_config": there})
    assert np.array_equal(restored(one)["a.weight"], restored(two)["a.weight"])
    empty = put(tmp_path / "none", awq, {}, quantize_config={})
    assert "says nothing of quantization" in refused(empty)


@pytest.mark.parametrize(
    ("packing", "shift"), [("auto_round:auto_gptq", 1), ("auto_round", 0), ("auto_round:gptqmodel", 0)]
)
def test_auto_round(tmp_path: Path, packing: str, shift: int) -> None:
    stored, values = gptq(shift)
    del stored["a.g_idx"]
    said = {"quant_method": "auto-round", "bits": 4, "group_size": 16, "packing_format": packing, "sym": False}
    config = {"quantization_config": said}
    assert near(restored(put(tmp_path / "in", stored, config))["a.weight"], values)
    said["extra_config"] = {"lm_head": {"bits": 16}, "a": {"bits": 8}}
    assert "has 2 groups, where 16 columns have 1 of 16" in refused(put(tmp_path / "b", stored, config))
    for own in ("a", ".*a", "(never run"):  # by its name, or by a pattern and the shapes
        said |= {"bits": 2, "group_size": 128, "extra_config": {own: {"bits": 4, "group_size": 16}}}
        assert near(restored(put(tmp_path / own.strip("(."), stored, config))["a.weight"], values)
    said["extra_config"] = {"x": {"bits": 4, "group_size": 16}, "y": {"bits": 4, "group_size": 17}}
    assert "several groups that a may have" in refused(put(tmp_path / "c", stored, config))
    said["extra_config"] = {"x": 4}
    assert "does not describe layers" in refused(put(tmp_path / "d", stored, config))


def test_mxfp4_experts_of_gpt_oss(tmp_path: Path) -> None:
    name = "model.layers.0.mlp.experts.gate_up_proj"
    blocks = RANDOM.integers(0, 256, (3, 10, 2, 16), np.uint8)
    scales = RANDOM.integers(120, 130, (3, 10, 2), np.uint8)
    stored: Stored = {f"{name}_blocks": ("U8", blocks), f"{name}_scales": ("U8", scales)}
    model = put(
        tmp_path / "in", stored, {"model_type": "gpt_oss", "quantization_config": {"quant_method": "mxfp4"}}
    )
    values = np.stack([E2M1[blocks & 15], E2M1[blocks >> 4]], axis=-1).reshape(3, 10, 2, 32)
    values = values * np.exp2(scales.astype(np.float32) - 127)[..., None]
    assert np.array_equal(restored(model)[name], values.reshape(3, 10, 64).transpose(0, 2, 1))
    stored[f"{name}_scales"] = ("U8", scales[:, :9])
    assert "its blocks and scales do not fit together" in refused(
        put(tmp_path / "b", stored, {"quantization_config": {"quant_method": "mxfp4"}})
    )


@pytest.mark.parametrize("algorithm", ["MIXED_PRECISION", "W4A16_NVFP4"])
def test_mixtures_of_modelopt(tmp_path: Path, algorithm: str) -> None:
    codes, eight = RANDOM.integers(0, 256, (4, 16), np.uint8), e4m3(4, 8)
    scale = np.abs(RANDOM.standard_normal((4, 2))).astype(ml_dtypes.float8_e4m3fn)
    stored: Stored = {
        "a.weight": ("U8", codes),
        "a.weight_scale": ("F8_E4M3", scale.view(np.uint8)),
        "a.weight_scale_2": ("F32", np.float32(0.25)),
        "b.weight": ("F8_E4M3", eight),
        "b.weight_scale": ("F32", np.float32(2)),
        "b.input_scale": ("F32", np.float32(2)),
    }
    model = put(tmp_path / "in", stored, {}, hf_quant_config={"quantization": {"quant_algo": algorithm}})
    values = np.stack([E2M1[codes & 15], E2M1[codes >> 4]], axis=-1).reshape(4, 2, 16)
    values = values * (scale.astype(np.float32) * np.float32(0.25))[..., None]
    assert np.array_equal(restored(model)["a.weight"], values.reshape(4, 32))
    assert np.array_equal(restored(model)["b.weight"], number(eight) * 2)


@pytest.mark.parametrize("kind", ["F32", "BF16"])
@pytest.mark.parametrize("flat", [True, False])
def test_awq_of_modelopt(tmp_path: Path, kind: str, flat: bool) -> None:
    """Integers [out/2, in] with two rows to a byte in two's complement, and NVFP4, whose columns were divided by
    what loaders multiply the inputs by."""
    codes = RANDOM.integers(0, 256, (30, 32), np.uint8)
    scale = np.abs(RANDOM.standard_normal((60, 2))).astype(np.float32)
    before = (np.abs(RANDOM.standard_normal(32)) + 0.5).astype(ml_dtypes.bfloat16)
    floats = RANDOM.integers(0, 256, (4, 16), np.uint8)
    of_floats = np.abs(RANDOM.standard_normal((4, 2))).astype(ml_dtypes.float8_e4m3fn)
    stored: Stored = {
        "a.weight": ("U8", codes),
        "a.weight_scale": ("F32", scale),
        "a.pre_quant_scale": ("BF16", (before if flat else before[None]).view(np.uint16)),
        "b.weight": ("U8", floats),
        "b.weight_scale": ("F8_E4M3", of_floats.view(np.uint8)),
        "b.weight_scale_2": ("F32", np.float32(0.25)),
        "b.pre_quant_scale": ("F32", before.astype(np.float32)),
        "c.weight": ("U8", codes),
        "c.weight_scale": ("F32", scale),
    }
    if kind == "BF16":
        scale = scale.astype(ml_dtypes.bfloat16).astype(np.float32)
        for name in ("a", "c"):
            stored[f"{name}.weight_scale"] = ("BF16", scale.astype(ml_dtypes.bfloat16).view(np.uint16))
    said = {"quant_algo": "W4A16_AWQ", "group_size": 16, "has_zero_point": False, "pre_quant_scale": True}
    model = put(tmp_path / "in", stored, {"dtype": "float32"}, hf_quant_config={"quantization": said})
    rows = np.stack([codes & 15, codes >> 4], axis=1).reshape(60, 32).astype(np.int8)
    integers = np.where(rows > 7, rows - 16, rows).astype(np.float32) * np.repeat(scale, 16, axis=1)
    found = restored(model)
    assert np.array_equal(found["c.weight"], integers)
    assert np.array_equal(found["a.weight"], integers * before.astype(np.float32))
    values = np.stack([E2M1[floats & 15], E2M1[floats >> 4]], axis=-1).reshape(4, 2, 16)
    values = (values * (of_floats.astype(np.float32) * np.float32(0.25))[..., None]).reshape(4, 32)
    assert np.array_equal(found["b.weight"], values * before.astype(np.float32))
    assert invoke(["inspect", str(model), "--stats"])[0] == 0
    assert invoke(["prune", str(model), "-o", str(tmp_path / "p"), "--sparsity", "0.5", "-q"])[0] == 0
    stored["c.weight_scale_2"] = ("F32", np.float32(2))
    stored["a.weight_scale_2"] = ("F32", np.float32(3))
    stored["a.input_scale"] = ("F32", np.float32(4))
    said["quant_algo"] = "W4A8_AWQ"  # kernels divide by it and multiply by it: the weights are the same
    again = restored(put(tmp_path / "w4a8", stored, {"dtype": "float32"}, hf_quant_config={"quantization": said}))
    assert again.keys() == found.keys()
    assert all(np.array_equal(again[name], found[name]) for name in found)


def test_what_else_modelopt_stores(tmp_path: Path) -> None:
    """FP8 by row and by block, MXFP8, the 4-bit floats that go with 8-bit ones, and bytes."""
    codes, nibbles = e4m3(6, 64), RANDOM.integers(0, 256, (6, 32), np.uint8)
    rows = np.abs(RANDOM.standard_normal(6)).astype(np.float32)
    large, blocks = e4m3(130, 260), np.abs(RANDOM.standard_normal((2, 3))).astype(np.float32)
    powers = RANDOM.integers(120, 130, (6, 2), np.uint8)
    wide = np.abs(RANDOM.standard_normal((6, 2))).astype(ml_dtypes.float8_e4m3fn)
    whole = RANDOM.integers(-128, 128, (6, 64), np.int8)
    before = np.abs(RANDOM.standard_normal(64)).astype(np.float32)
    stored: Stored = {
        "rows.weight": ("F8_E4M3", codes),
        "rows.weight_scale": ("F32", rows),
        "blocks.weight": ("F8_E4M3", large),
        "blocks.weight_scale": ("F32", blocks.reshape(2, 1, 3, 1)),
        "flat.weight": ("F8_E4M3", large),
        "flat.weight_scale": ("F32", blocks),
        "mx8.weight": ("F8_E4M3", codes),
        "mx8.weight_scale": ("U8", powers),
        "mx4.weight": ("U8", nibbles),
        "mx4.weight_scale": ("U8", powers),
        "nv4.weight": ("U8", nibbles),
        "nv4.weight_scale": ("F8_E4M3", wide.view(np.uint8)),
        "nv4.weight_scale_2": ("BF16", np.full(1, 0.25, ml_dtypes.bfloat16).view(np.uint16)),
        "bytes.weight": ("I8", whole),
        "bytes.weight_scale": ("F32", rows),
        "bytes.pre_quant_scale": ("F32", before),
    }
    said = {"quantization": {"quant_algo": "MIXED_PRECISION"}}
    model = put(tmp_path / "in", stored, {"dtype": "float32"}, hf_quant_config=said)
    steps = np.exp2(powers.astype(np.float32) - 127)
    floats = np.stack([E2M1[nibbles & 15], E2M1[nibbles >> 4]], axis=-1).reshape(6, 64)
    of_blocks = np.repeat(np.repeat(blocks, 128, 0), 128, 1)[:130, :260]
    expected = {
        "rows": number(codes) * rows[:, None],
        "blocks": number(large) * of_blocks,
        "flat": number(large) * of_blocks,
        "mx8": number(codes) * np.repeat(steps, 32, 1),
        "mx4": floats * np.repeat(steps, 32, 1),
        "nv4": floats * np.repeat(wide.astype(np.float32) * np.float32(0.25), 32, 1),
        "bytes": whole.astype(np.float32) * rows[:, None] * before,
    }
    found = restored(model)
    assert found.keys() == {f"{name}.weight" for name in expected}
    for name, values in expected.items():
        assert np.array_equal(found[f"{name}.weight"], values), name
    assert invoke(["quantize", str(model), "-o", str(tmp_path / "q"), "--bits", "8", "--requantize", "-q"])[0] == 0
    stored["bytes.weight_scale"] = ("F32", rows[:5])
    assert "where a float for each row belongs" in refused(put(tmp_path / "odd", stored, {}, hf_quant_config=said))


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [4, 8])
def test_activation_order_of_compressed_tensors(tmp_path: Path, bits: int, symmetric: bool) -> None:
    """w[:, c] = scale[:, g_idx[c]] · (q[:, c] − zero[:, g_idx[c]]), codes where their columns are."""
    dense = RANDOM.standard_normal((24, 64)).astype(np.float32)
    put(tmp_path / "dense", {"a.weight": ("F32", dense)}, {"model_type": "llama"})
    how: dict[str, Any] = {"bits": bits, "group_size": 16, "symmetric": symmetric, "layout": "pack-quantized"}
    how["scale_bits"] = 32  # by which a folder without a record tells that its weights were float32
    api.quantize(tmp_path / "dense", tmp_path / "plain", **how)
    in_order = restored(tmp_path / "plain")["a.weight"]
    order = RANDOM.permutation(64)
    parts = load_file(tmp_path / "plain" / "model.safetensors")
    each = 32 // bits
    places = np.arange(each, dtype=np.uint32) * np.uint32(bits)
    codes = ((parts["a.weight_packed"].view(np.uint32)[..., None] >> places) & ((1 << bits) - 1)).reshape(24, 64)
    moved = np.bitwise_or.reduce(codes[:, order].reshape(24, -1, each).astype(np.uint32) << places, axis=-1)
    parts["a.weight_packed"] = np.ascontiguousarray(moved).view(np.int32)
    parts["a.weight_g_idx"] = (order // 16).astype(np.int32)
    shutil.copytree(tmp_path / "plain", tmp_path / "in")
    save_file(parts, tmp_path / "in" / "model.safetensors", metadata={"format": "pt"})
    found = restored(tmp_path / "in")
    assert found.keys() == {"a.weight"}
    assert np.array_equal(found["a.weight"], in_order[:, order])
    assert invoke(["inspect", str(tmp_path / "in"), "--stats"])[0] == 0
    parts["a.weight_g_idx"] = np.full(64, -1, np.int32)  # as long as nothing was calibrated
    parts["a.weight_packed"] = load_file(tmp_path / "plain" / "model.safetensors")["a.weight_packed"]
    save_file(parts, tmp_path / "in" / "model.safetensors", metadata={"format": "pt"})
    found = restored(tmp_path / "in")
    assert found.keys() == {"a.weight"}
    assert np.array_equal(found["a.weight"], in_order)
    parts["a.weight_g_idx"] = np.zeros(64, np.int32)
    save_file(parts, tmp_path / "in" / "model.safetensors", metadata={"format": "pt"})
    assert "its g_idx does not name each of 4 groups for 16 columns" in refused(tmp_path / "in")


@pytest.mark.parametrize(("bits", "columns", "words"), [(3, 128, 13), (6, 128, 26), (7, 64, 16), (5, 8, 2)])
def test_whole_codes_in_words_of_an_older_compressed_tensors(
    tmp_path: Path, bits: int, columns: int, words: int
) -> None:
    """Before 0.20 no code lay across two words; rows so short that both take as many are told apart by nobody."""
    stored: Stored = {
        "a.weight_packed": ints("I32", 8, words),
        "a.weight_scale": ("BF16", np.ones((8, 1), ml_dtypes.bfloat16).view(np.uint16)),
        "a.weight_shape": ("I64", np.array([8, columns], np.int64)),
    }
    weights = {"num_bits": bits, "type": "int", "strategy": "channel", "symmetric": True}
    config = {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "config_groups": {"a": {"targets": ["Linear"], "weights": weights}},
    }
    line = refused(put(tmp_path / "in", stored, {"quantization_config": config}))
    assert "as compressed-tensors before 0.20 packed them" in line


def test_one_scale_a_row_of_fbgemm(tmp_path: Path) -> None:
    codes, row = e4m3(4, 8), np.array([[0.5], [1], [2], [4]], np.float32)
    stored: Stored = {
        "a.weight": ("F8_E4M3", codes),
        "a.weight_scale": ("F32", row),
        "a.input_scale_ub": ("F32", np.ones(1, np.float32)),
    }
    config = {"quantization_config": {"quant_method": "fbgemm_fp8"}}
    assert np.array_equal(restored(put(tmp_path / "in", stored, config))["a.weight"], number(codes) * row)


@pytest.mark.parametrize("place", ["top", "list", "deep"])
def test_gptq_before_it_had_a_name(tmp_path: Path, place: str) -> None:
    stored, values = gptq()
    config: dict[str, Any] = {"quantization_config": {"bits": 4, "group_size": 16, "desc_act": False, "sym": False}}
    if place != "top":
        config["quantization_config"]["quant_method"] = "gptq"
        config = {"parts": [config]} if place == "list" else {"a": {"b": {"c": {"d": {"e": config}}}}}
    model = put(tmp_path / "in", stored, config)
    assert near(restored(model)["a.weight"], values)
    assert invoke(["restore", str(model), "-o", str(tmp_path / "out"), "-q"])[0] == 0
    assert "quantization_config" not in (tmp_path / "out" / "config.json").read_text()


@pytest.mark.parametrize("location", ["input", "weight_output"])
def test_weights_that_go_with_a_transform(tmp_path: Path, location: str) -> None:
    """Those rotated for good are read; those that stand for the model's only behind a rotation are not."""
    codes = e4m3(4, 8)
    stored: Stored = {"a.weight": ("F8_E4M3", codes), "a.weight_scale": ("F32", np.ones((4, 1), np.float32))}
    weights = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "channel", "dynamic": False}
    said = {
        "quant_method": "compressed-tensors",
        "format": "float-quantized",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
        "transform_config": {"config_groups": {"u": {"type": "hadamard", "apply": [{"location": location}]}}},
    }
    model = put(tmp_path / "in", stored, {"quantization_config": said})
    if location == "input":
        assert "transform_config" in refused(model)
    else:
        assert np.array_equal(restored(model)["a.weight"], number(codes))


def test_a_codec_that_quantizes_sound(tmp_path: Path) -> None:
    model = put(tmp_path / "in", {"a.weight": F16}, {"codec": {"quantization": {"n_q": 8}}})
    assert invoke(["restore", str(model), "-o", str(tmp_path / "out"), "-q"])[0] == 0


# ---- where names say it ----------------------------------------------------------------------------------------


def test_scaled_fp8_of_comfyui(tmp_path: Path) -> None:
    codes, five = e4m3(4, 8), RANDOM.standard_normal((4, 8)).astype(ml_dtypes.float8_e5m2).view(np.uint8)
    old: Stored = {
        "d.a.weight": ("F8_E4M3", codes),
        "d.a.scale_weight": ("F32", np.float32(0.5)),
        "d.a.scale_input": ("F32", np.float32(1)),
        "d.b.weight": ("F8_E5M2", five),
        "d.b.scale_weight": ("F32", np.array([0.25], np.float32)),
        "d.plain.weight": ("F8_E4M3", codes),
        "d.scaled_fp8": ("F8_E4M3", np.zeros(0, np.uint8)),
    }
    checkpoint = open_checkpoint(put(tmp_path / "old.safetensors", old))
    assert set(checkpoint.tensors) == {"d.a.weight", "d.b.weight", "d.plain.weight"}
    assert np.array_equal(read_whole(checkpoint.tensors["d.a.weight"]), number(codes) * 0.5)
    assert np.array_equal(read_whole(checkpoint.tensors["d.b.weight"]), number(five, ml_dtypes.float8_e5m2) * 0.25)
    text = np.frombuffer(b'{"format": "float8_e4m3fn"}', np.uint8)
    new: Stored = {
        "a.weight": ("F8_E4M3", codes),
        "a.weight_scale": ("F32", np.float32(0.5)),
        "a.input_scale": ("F32", np.float32(1)),
        "a.comfy_quant": ("U8", text),
    }
    assert np.array_equal(restored(put(tmp_path / "new.safetensors", new))["a.weight"], number(codes) * 0.5)
    new["a.comfy_quant"] = ("U8", np.frombuffer(b'{"format": "nvfp4"}', np.uint8))
    assert "is stored as 'nvfp4', which is not read here" in refused(put(tmp_path / "b.safetensors", new))


def test_deepseeks_own_names(tmp_path: Path) -> None:
    codes, exponents = e4m3(130, 200), RANDOM.integers(120, 130, (2, 2), np.uint8)
    packed, steps = RANDOM.integers(0, 256, (4, 32), np.uint8), RANDOM.integers(120, 130, (4, 2), np.uint8)
    stored: Stored = {
        "a.weight": ("F8_E4M3", codes),
        "a.scale": ("F8_E8M0", exponents),
        "b.weight": ("I8", packed.view(np.int8)),
        "b.scale": ("F8_E8M0", steps),
    }
    found = restored(put(tmp_path / "m.safetensors", stored))
    spread = np.exp2(exponents.astype(np.float32) - 127).repeat(128, 0)[:130].repeat(128, 1)[:, :200]
    assert np.array_equal(found["a.weight"], number(codes) * spread)
    values = np.stack([E2M1[packed & 15], E2M1[packed >> 4]], axis=-1).reshape(4, 2, 32)
    assert np.array_equal(
        found["b.weight"], (values * np.exp2(steps.astype(np.float32) - 127)[..., None]).reshape(4, 64)
    )
    stored["a.scale"] = ("F8_E8M0", exponents[:1])
    assert "its scale is [1, 2], where [2, 2] belongs" in refused(put(tmp_path / "b.safetensors", stored))


def test_eight_bits_of_bitsandbytes(tmp_path: Path) -> None:
    codes = RANDOM.integers(-127, 128, (4, 8), np.int8)
    row = (RANDOM.random(4) + 0.25).astype(np.float32)  # no product so small that 16 bits round it coarsely
    stored: Stored = {
        "a.weight": ("I8", codes),
        "a.SCB": ("F32", row),
        "a.weight_format": ("U8", np.uint8(0)),
    }
    found = restored(put(tmp_path / "m.safetensors", stored))
    assert near(found["a.weight"], codes * (row[:, None] / np.float32(127)))
    stored["a.SCB"] = ("F32", row[:3])
    assert "its SCB does not have a float for each row" in refused(put(tmp_path / "b.safetensors", stored))


# ---- where nothing says it -------------------------------------------------------------------------------------


def ints(dtype: str = "I32", *shape: int) -> tuple[str, Array]:
    kind = {"I32": np.int32, "U8": np.uint8, "I8": np.int8, "U32": np.uint32, "I16": np.int16, "U16": np.uint16}[
        dtype
    ]
    return dtype, np.ones(shape or (8, 8), kind)


F16 = ("F16", np.ones((2, 8), np.float16))
F32 = ("F32", np.ones(8, np.float32))
UNREAD: dict[str, tuple[Stored, str]] = {
    "gptq": ({"a.qweight": ints(), "a.scales": F16}, "GPTQ or AWQ codes"),
    "compressed-tensors": ({"a.weight_packed": ints(), "a.weight_scale": F16}, "compressed-tensors' packed codes"),
    "hqq": ({"a.W_q": ints("U8"), "a.scale": F16, "a.zero": F16}, "HQQ's codes"),
    "quark": ({"a.weight": ints("I8"), "a.weight_quantizer.scale": F32}, "Quark's codes"),
    "torchao": ({"a._weight_qdata": ints("I8"), "a._weight_scale": F32}, "torchao's serialised tensors"),
    "quanto": ({"a.weight._data": ints("I8"), "a.weight._scale": F32}, "Quanto's codes"),
    "mlx": ({"a.weight": ints("U32"), "a.scales": F16, "a.biases": F16}, "codes beside scales"),
    "exl2": ({"a.q_weight": ints(), "a.q_scale": ints(), "a.q_scale_max": F16}, "ExLlamaV2's codes"),
    "exl3": ({"a.trellis": ints("I16"), "a.suh": F16, "a.svh": F16}, "ExLlamaV3's codes"),
    "aqlm": ({"a.codes": ints("I8"), "a.codebooks": F16, "a.scales": F16}, "AQLM's codes"),
    "vptq": ({"a.indices": ints("I32"), "a.centroids.weight": F16, "a.weight_scale": F16}, "VPTQ's codes"),
    "eetq": ({"a.weight": ints("I8"), "a.weight_scales": F16}, "codes with a weight_scale"),
    "bitnet": ({"a.weight": ints("U8"), "a.weight_scale": F32}, "codes with a weight_scale"),
    "fp8": ({"a.weight": ("F8_E4M3", e4m3(8, 8)), "a.weight_scale": F32}, "codes with a weight_scale"),
    "fp8 of blocks": ({"a.weight": ("F8_E4M3", e4m3(8, 8)), "a.weight_scale_inv": F32}, "FP8 weights with scales"),
    "gpt-oss": ({"e.up_blocks": ints("U8", 2, 2, 2, 16), "e.up_scales": ints("U8", 2, 2, 2)}, "MXFP4 blocks"),
    "spqr": ({"a.dense_weights": ints(), "a.row_offsets": ("I32", np.ones(9, np.int32))}, "SpQR's codes"),
    "steps": ({"a.weight": ints("I8"), "a.delta": F32}, "codes beside delta"),
    "vptq without norms": ({"a.indices": ints("U16", 1, 8, 8), "a.centroids.weight": F16}, "VPTQ's codes"),
    "hqq as floats": ({"a.W_q": F16, "a.scale": F16, "a.zero": F16}, "HQQ's codes"),
    "hqq with a tree of scales": ({"a.W_q": ints("U8", 64), "a.meta.scale": F16}, "HQQ's codes"),
    "quip": ({"a.Qidxs": ("I64", np.ones((4, 4), np.int64)), "a.SU": F16, "a.SV": F16}, "QuIP#'s codes"),
    "spqr in a row": ({"a.dense_weights": ("I64", np.ones(9, np.int64)), "a.in_perm": F16}, "SpQR's codes"),
    "aqlm of 64 bits": ({"a.codes": ("I64", np.ones((4, 4, 1), np.int64)), "a.codebooks": F16}, "AQLM's codes"),
    "marlin": ({"a.B": ints("I32", 4, 16), "a.s": F16, "a.workspace": ints("I32", 4)}, "Marlin's codes"),
    "qqq": ({"a.B": ints("I32", 4, 16), "a.s_channel": F32}, "QQQ's codes"),
    "tensorrt": ({"a.weight": ("F8_E4M3", e4m3(8, 8)), "a.weights_scaling_factor": F32}, "TensorRT-LLM's codes"),
    "squeezellm": ({"a.qweight": ints("I32"), "a.lookup_table": F16}, "SqueezeLLM's"),
    "any-precision": ({"a.qweight": ints("I32", 3, 8, 8), "a.lut3": F16}, "SqueezeLLM's or Any-Precision's"),
    "lut-gemm": ({"a.binary": ints("I32", 4, 2, 8), "a.alpha": F16}, "codes beside alpha"),
    "quanto of 4 bits": ({"a.weight._data._data": ints("U8"), "a.weight._scale": F16}, "Quanto's codes"),
    "torchao in a tree": (
        {"a.weight.tensor_impl.int_data": ints("I8"), "a.weight.tensor_impl.scale": F16},
        "torchao's serialised tensors",
    ),
    "torchao by colons": ({"a.weight:qdata": ints("I8"), "a.weight:scale": F16}, "torchao's serialised tensors"),
    "quantizers below": ({"a.weight": ints("I8"), "a.quantizer.scale": F16}, "codes beside scale"),
    "nncf": ({"a.weight": ints("U8", 64), "a.pre_ops.0._scale": F16}, "NNCF's codes"),
    "lowest and highest": ({"a.weight": ints("U8"), "a.min": F32, "a.max": F32}, "codes beside m"),
    "ranges": ({"a.weight_codes": ints("U8"), "a.weight_range": F32}, "codes beside weight_range"),
    "tiny floats in a row": ({"a.weight": ("F4", np.ones(64, np.uint8)), "a.amax": F32}, "codes beside amax"),
    "made up": ({"a.stuff": ints("U8"), "a.step_scale": F32}, "codes beside step_scale"),
}


def refused(model: Path) -> str:
    """The line with which everything that treats an input refuses one; nothing is written."""
    out = model.parent / "refused"
    for command in (["prune", "--sparsity", "0.5"], ["quantize", "--bits", "8"], ["restore"]):
        code, lines = invoke([*command, str(model), "-o", str(out)])
        assert code == 3, lines
        assert is_one_line(lines)
        assert not out.exists()
    return lines[0]


@pytest.mark.parametrize("kind", UNREAD)
@pytest.mark.parametrize("container", ["in", "in.safetensors"])
def test_codes_that_nothing_tells_about_are_refused(tmp_path: Path, kind: str, container: str) -> None:
    stored, looks = UNREAD[kind]
    line = refused(put(tmp_path / container, stored, {"model_type": "llama"}))
    assert "looks quantized" in line
    assert looks in line
    lone = "config.json" if container == "in" else "a lone file does not say how they are stored"
    assert lone in line


def test_layers_that_a_config_does_not_tell_about(tmp_path: Path) -> None:
    """Half of a model is read; of the rest nobody knows."""
    stored: Stored = {
        "a.weight": ("F8_E4M3", e4m3(8, 16)),
        "a.weight_scale_inv": ("F32", np.ones((1, 1), np.float32)),
        "b.qweight": ints(),
        "b.scales": F16,
    }
    model = put(tmp_path / "in", stored, {"quantization_config": BLOCK_FP8})
    assert "tensor 'b.qweight': looks quantized" in refused(model)


@pytest.mark.parametrize("kind", UNREAD)
def test_they_can_be_looked_at(tmp_path: Path, kind: str) -> None:
    stored, looks = UNREAD[kind]
    model = put(tmp_path / "in.safetensors", stored)
    report = api.inspect(model, stats=True)
    assert looks in report.compression
    assert {tensor.spec.name for tensor, _ in report.rows} == set(stored)


def test_floats_of_eight_bits_are_shown_as_numbers(tmp_path: Path) -> None:
    stored: Stored = {
        "exponents": ("F8_E8M0", np.array([126, 127, 129], np.uint8)),
        "fnuz": ("F8_E4M3FNUZ", np.array([1.5, -2.0], np.float32).astype(ml_dtypes.float8_e4m3fnuz).view(np.uint8)),
    }
    rows = {
        tensor.spec.name: moments
        for tensor, moments in api.inspect(put(tmp_path / "m.safetensors", stored), stats=True).rows
    }
    assert (rows["exponents"].low, rows["exponents"].high) == (0.5, 4.0)
    assert (rows["fnuz"].low, rows["fnuz"].high) == (-2.0, 1.5)


NO_CODES: dict[str, Callable[[], Stored]] = {
    "masks of GPT-2": lambda: {"h.attn.bias": ints("U8", 1, 1, 8, 8), "h.attn.c_attn.weight": F16},
    "positions of CLIP": lambda: {"position_ids": ints("I32", 1, 8), "logit_scale": ("F32", np.float32(1))},
    "windows of Swin": lambda: {
        "s.relative_position_index": ("I64", np.ones((8, 8), np.int64)),
        "s.logit_scale": F32,
    },
    "plain FP8": lambda: {"a.weight": ("F8_E4M3", e4m3(8, 8)), "a.bias": F32},
    "a vector that is called SCB": lambda: {"a.SCB": F32, "a.weight": F16},
    "an SCB alone": lambda: {"SCB": F32, "a.weight": F16},
    "a scale_weight of a float weight": lambda: {"a.scale_weight": F32, "a.weight": F16},
    "a mark without codes": lambda: {"scaled_fp8": F32, "a.weight": F16},
    "scales alone": lambda: {"a.weight_scale_inv": F32, "a.absmax": F32, "a.qzeros": F32, "a.weight": F16},
    "a mask of a weight": lambda: {"a.weight": F16, "a.weight_keep_mask": ints("U8", 8, 8)},
    "scales of a whole model": lambda: {"position_ids": ints("I32", 1, 8), "layers.0.scale": F32, "a.weight": F16},
    "integers that index": lambda: {"a.relative_index": ("I64", np.ones((4, 4), np.int64)), "a.scale": F32},
    "layer scale": lambda: {"a.index": ints("I32", 8, 8), "a.layer_scale": F32},
}


@pytest.mark.parametrize("kind", NO_CODES)
def test_what_only_looks_a_little_like_codes(tmp_path: Path, kind: str) -> None:
    model = put(tmp_path / "m.safetensors", NO_CODES[kind]())
    assert invoke(["prune", "--sparsity", "0.5", str(model), "-o", str(tmp_path / "o.safetensors"), "-q"])[0] == 0


def test_a_config_that_says_nothing_of_quantization_or_what_is_not_there(tmp_path: Path) -> None:
    dense: Stored = {"a.weight": ("F32", RANDOM.standard_normal((8, 64)).astype(np.float32))}
    empty = put(tmp_path / "empty", dense, {"quantization_config": {}})
    assert np.array_equal(restored(empty)["a.weight"], dense["a.weight"][1])
    claims = put(tmp_path / "claims", dense, {"quantization_config": {"quant_method": "gptq", "bits": 4}})
    report = api.quantize(claims, tmp_path / "out", bits=8)
    assert "the input calls itself quantized (gptq), and none of its tensors are codes" in report.plan.notes
    assert not any("stand for" in note for note in report.plan.notes)
