"""Layouts of other worlds than compressed-tensors': MLX, GPTQ and AWQ, against formulas in NumPy.

That their own libraries read and write the same is proved under `interop`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from support import archives
from support.console import compressor
from support.laws import numbers, store

from compressor import api
from compressor.core.errors import UsageError

Array = np.ndarray[Any, Any]
RANDOM = np.random.default_rng(5)


def folder(path: Path, tensors: archives.Tensors, config: Mapping[str, Any] | None = None) -> Path:
    path.mkdir()
    archives.write(path / "model.safetensors", tensors, {"format": "pt"})
    (path / "config.json").write_text(json.dumps({"model_type": "llama", **(config or {})}))
    return path


def config_of(path: Path) -> dict[str, Any]:
    return json.loads((path / "config.json").read_text())  # type: ignore[no-any-return]


def parts_of(path: Path) -> dict[str, Array]:
    """The tensors of a folder as stored."""
    kinds = {"U32": "<u4", "I32": "<i4", "F16": "<u2", "BF16": "<u2", "F32": "<f4"}
    return {
        name: np.frombuffer(data, kinds[dtype]).reshape(shape)
        for name, (dtype, shape, data) in archives.read(path / "model.safetensors").items()
    }


def weight(rows: int, columns: int, dtype: str = "BF16") -> tuple[str, Array]:
    values = RANDOM.standard_normal((rows, columns)) * 0.02
    values[1], values[2, ::2] = 0, 0
    return dtype, store(values, dtype)


def stream(words: Array, bits: int) -> Array:
    """The codes of rows of 32-bit words, by single bits."""
    single = np.unpackbits(words.astype("<u4").view(np.uint8).reshape(len(words), -1), axis=1, bitorder="little")
    return (single.reshape(len(words), -1, bits) << np.arange(bits)).sum(axis=2)  # type: ignore[no-any-return]


# ---- what is written -----------------------------------------------------------------------------------


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
def test_mlx_parts_mean_what_mlx_says(tmp_path: Path, bits: int, symmetric: bool) -> None:
    source = folder(tmp_path / "in", {"l.weight": weight(8, 128)})
    options = {"bits": bits, "symmetric": symmetric, "group_size": 64, "layout": "mlx"}
    api.quantize(source, tmp_path / "out", **options)
    parts = parts_of(tmp_path / "out")
    assert {name: part.shape for name, part in parts.items()} == {
        "l.weight": (8, 4 * bits),
        "l.scales": (8, 2),
        "l.biases": (8, 2),
    }
    codes = stream(parts["l.weight"], bits).reshape(8, 2, 64).astype(np.float32)
    scale, bias = (parts[f"l.{name}"].view(ml_dtypes.bfloat16)[..., None] for name in ("scales", "biases"))
    product = (codes * scale.astype(np.float32)).astype(ml_dtypes.bfloat16).astype(np.float32)
    wanted = (product + bias.astype(np.float32)).astype(ml_dtypes.bfloat16).reshape(8, 128)
    api.restore(tmp_path / "out", tmp_path / "dense")
    assert np.array_equal(parts_of(tmp_path / "dense")["l.weight"].view(ml_dtypes.bfloat16), wanted)
    metadata = archives.metadata_of(tmp_path / "out" / "model.safetensors")
    assert metadata["format"] == "mlx"


@pytest.mark.parametrize("bits", [4, 8])
def test_gptq_parts_mean_what_gptq_says(tmp_path: Path, bits: int) -> None:
    """Over several blocks and chunks, whose columns interleave in the file; by two workers."""
    rows, columns, word = 2072, 1024, 32 // bits
    source = folder(tmp_path / "in", {"l.weight": weight(rows, columns, "F16")})
    options = {"bits": bits, "group_size": 128, "layout": "gptq"}
    api.quantize(source, tmp_path / "out", workers=2, **options)
    parts = parts_of(tmp_path / "out")
    assert {name: part.shape for name, part in parts.items()} == {
        "l.qweight": (columns // word, rows),
        "l.qzeros": (8, rows // word),
        "l.scales": (8, rows),
        "l.g_idx": (columns,),
    }
    assert np.array_equal(parts["l.g_idx"], np.arange(columns) // 128)
    assert set(parts["l.qzeros"].reshape(-1)) == {{4: 0x77777777, 8: 0x7F7F7F7F}[bits]}
    codes = stream(np.ascontiguousarray(parts["l.qweight"].T), bits).reshape(rows, 8, 128)
    scale = parts["l.scales"].view(np.float16).T[..., None].astype(np.float32)
    wanted = ((codes - (1 << (bits - 1))) * scale).astype(np.float16).reshape(rows, columns)
    api.restore(tmp_path / "out", tmp_path / "dense", workers=2)
    assert np.array_equal(parts_of(tmp_path / "dense")["l.weight"].view(np.float16), wanted)
    api.quantize(source, tmp_path / "alone", workers=1, **options)
    one, two = (tmp_path / place / "model.safetensors" for place in ("out", "alone"))
    assert one.read_bytes() == two.read_bytes()


def test_weights_beyond_float16_are_clipped_where_gptq_needs_it(tmp_path: Path) -> None:
    values = RANDOM.standard_normal((8, 32))
    values[3, 5], values[4, 6] = 1e30, -2e30
    source = folder(tmp_path / "in", {"l.weight": ("BF16", store(values, "BF16"))})
    api.quantize(source, tmp_path / "out", bits=4, group_size=32, layout="gptq")
    scales = parts_of(tmp_path / "out")["l.scales"].view(np.float16).astype(np.float64)
    assert np.isfinite(scales).all()
    assert scales.max() * 8 <= 65504
    api.restore(tmp_path / "out", tmp_path / "dense")
    restored = numbers(parts_of(tmp_path / "dense")["l.weight"], "BF16")
    assert restored[3, 5] == pytest.approx(57316, rel=0.01)
    assert restored[4, 6] == pytest.approx(-65504, rel=0.01)


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
def test_a_zero_point_times_a_scale_is_exact_where_there_are_zeros(tmp_path: Path, bits: int, dtype: str) -> None:
    values = RANDOM.standard_normal((64, 32)) + np.linspace(-3, 3, 64)[:, None]
    values[:, 4] = 0
    source = folder(tmp_path / "in", {"l.weight": (dtype, store(values, dtype))})
    api.quantize(source, tmp_path / "out", bits=bits, symmetric=False, group_size=32, layout="mlx")
    parts = parts_of(tmp_path / "out")
    codes = stream(parts["l.weight"], bits)[:, 4].astype(np.float64)
    scale, bias = (numbers(parts[f"l.{name}"], dtype).astype(np.float64)[:, 0] for name in ("scales", "biases"))
    assert np.all(codes * scale + bias == 0)


# ---- what the config says ------------------------------------------------------------------------------


MODEL = {
    f"model.layers.{layer}.{name}.weight": weight(32, 64)
    for layer in range(3)
    for name in ("self_attn.q_proj", "self_attn.v_proj", "mlp.down_proj")
} | {"model.embed_tokens.weight": weight(32, 64), "lm_head.weight": weight(32, 64)}


def test_mlx_names_the_modules_that_differ(tmp_path: Path) -> None:
    rules = [("*.v_proj.*", {"bits": 8}), ("*.1.*down*", {"group_size": 32})]
    options = {"bits": 4, "group_size": 64, "layout": "mlx", "exclude": ["*.2.*down*"]}
    api.quantize(folder(tmp_path / "in", MODEL), tmp_path / "out", rules=rules, **options)
    config = config_of(tmp_path / "out")
    eight = {"group_size": 64, "bits": 8, "mode": "affine"}
    assert config["quantization"] == config["quantization_config"]
    assert config["quantization"] == {
        "group_size": 64,
        "bits": 4,
        "mode": "affine",
        **{f"model.layers.{layer}.self_attn.v_proj": eight for layer in range(3)},
        "model.layers.1.mlp.down_proj": {"group_size": 32, "bits": 4, "mode": "affine"},
    }
    api.restore(tmp_path / "out", tmp_path / "dense")
    assert config_of(tmp_path / "dense") == {"model_type": "llama"}


def test_mlx_means_groups_also_at_8_bits(tmp_path: Path) -> None:
    source = folder(tmp_path / "in", {"l.weight": weight(4, 128)})
    api.quantize(source, tmp_path / "out", bits=8, layout="mlx")
    assert config_of(tmp_path / "out")["quantization"]["group_size"] == 128


def test_gptq_names_the_modules_that_differ_and_those_that_stay_dense(tmp_path: Path) -> None:
    rules = [("*.1.*[qv]_proj.*", {"bits": 8}), ("*.1.*down*", {"granularity": "channel", "group_size": None})]
    options = {"bits": 4, "group_size": 32, "layout": "gptq", "exclude": ["*.2.*down*"]}
    api.quantize(folder(tmp_path / "in", MODEL), tmp_path / "out", rules=rules[:1], **options)
    found = config_of(tmp_path / "out")["quantization_config"]
    dynamic = found.pop("dynamic")
    (modules,) = found.pop("modules_in_block_to_quantize")  # which optimum reads
    down = [f"layers.{layer}.mlp.down_proj" for layer in range(2)]
    assert modules == [*down, "self_attn.q_proj", "self_attn.v_proj"]
    assert found == {
        "quant_method": "gptq",
        "bits": 4,
        "group_size": 32,
        "desc_act": False,
        "sym": True,
        "lm_head": False,
        "checkpoint_format": "gptq",
        "pack_dtype": "int32",
    }
    layer = r"^(.*\.)?model\.layers"
    assert dynamic == {
        **{rf"+:{layer}\.1\.self_attn\.({n}_proj|qkv_proj)$": {"bits": 8, "group_size": 32} for n in "qv"},
        rf"-:{layer}\.2\.mlp\.(down_proj)$": {},
    }


@pytest.mark.parametrize(
    ("layout", "config"),
    [
        ("gptq", {"model_type": "gpt2"}),
        ("mlx", {"model_type": "gpt2"}),
    ],
)
def test_what_no_loader_takes_is_refused_by_all(tmp_path: Path, layout: str, config: dict[str, Any]) -> None:
    source = folder(tmp_path / "in", {"h.0.attn.c_attn.weight": weight(64, 64)}, config)
    with pytest.raises(UsageError, match="transposed Conv1D layers: no loader takes such a folder"):
        api.quantize(source, tmp_path / "out", bits=4, group_size=32, layout=layout)
    assert not (tmp_path / "out").exists()


def test_one_folder_speaks_to_loaders_of_one_kind(tmp_path: Path) -> None:
    source = folder(tmp_path / "in", MODEL)
    rules = [("*.0.*", {"layout": "pack-quantized"})]
    with pytest.raises(UsageError, match=r"layouts of several loaders: .* would be compressed-tensors's, .* mlx's"):
        api.quantize(source, tmp_path / "out", bits=4, group_size=32, layout="mlx", rules=rules)
    assert not (tmp_path / "out").exists()
    # a single file has no config, and `restore` knows
    api.quantize(
        source / "model.safetensors", tmp_path / "o.safetensors", bits=4, group_size=32, layout="mlx", rules=rules
    )


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "mlx 7 bits": ({"bits": 7, "layout": "mlx"}, "layout mlx holds 2, 3, 4, 5, 6 or 8 bits, not 7"),
    "mlx group": ({"bits": 4, "layout": "mlx", "group_size": 16}, "groups of 32, 64 or 128, not groups of 16"),
    "mlx channel": ({"bits": 4, "layout": "mlx", "granularity": "channel"}, "not one scale a channel"),
    "gptq 3 bits": ({"bits": 3, "layout": "gptq"}, "layout gptq holds symmetric codes of 4 or 8 bits"),
    "gptq asymmetric": ({"bits": 4, "layout": "gptq", "symmetric": False}, "layout gptq holds symmetric"),
    "gptq tensor": ({"bits": 4, "layout": "gptq", "granularity": "tensor"}, "by channel or group only"),
    "gptq rows": ({"bits": 4, "layout": "gptq", "group_size": 8}, "whole words of 8 codes both ways"),
    "mlx row": ({"bits": 4, "layout": "mlx", "group_size": 32}, "group size 32 does not divide the row of 24"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_layout_cannot_hold(tmp_path: Path, name: str) -> None:
    options, said = REFUSED[name]
    source = folder(tmp_path / "in", {"l.weight": weight(9, 24)})
    with pytest.raises(UsageError, match=said):
        api.quantize(source, tmp_path / "out", **options)


# ---- what is read --------------------------------------------------------------------------------------


def mlx_folder(path: Path) -> Path:
    """8 rows of 64 codes of 4 bits in groups of 32, with scales of both signs."""
    words = RANDOM.integers(0, 2**32, (8, 8), np.uint32)
    scales = RANDOM.standard_normal((8, 2)).astype(np.float16)
    biases = RANDOM.standard_normal((8, 2)).astype(np.float16)
    tensors = {"l.weight": ("U32", words), "l.scales": ("F16", scales), "l.biases": ("F16", biases)}
    return folder(path, tensors, {"quantization": {"group_size": 32, "bits": 4}})


def gptq_folder(path: Path) -> Path:
    """64 columns of 32 rows of 4 bits in groups of 16, in an order of their own."""
    tensors = {
        "l.qweight": ("I32", RANDOM.integers(-(2**31), 2**31, (8, 32)).astype("<i4")),
        "l.qzeros": ("I32", RANDOM.integers(-(2**31), 2**31, (4, 4)).astype("<i4")),
        "l.scales": ("F16", RANDOM.random((4, 32)).astype(np.float16)),
        "l.g_idx": ("I32", RANDOM.permutation(np.arange(64) // 16).astype("<i4")),
    }
    declared = {
        "quant_method": "gptq",
        "bits": 4,
        "group_size": 16,
        "desc_act": True,
        "checkpoint_format": "gptq_v2",
    }
    return folder(path, tensors, {"quantization_config": declared})


def awq_folder(path: Path) -> Path:
    """64 columns of 16 rows in groups of 32."""
    tensors = {
        "l.qweight": ("I32", RANDOM.integers(-(2**31), 2**31, (64, 2)).astype("<i4")),
        "l.qzeros": ("I32", RANDOM.integers(-(2**31), 2**31, (2, 2)).astype("<i4")),
        "l.scales": ("F16", RANDOM.random((2, 16)).astype(np.float16)),
    }
    declared = {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "gemm"}
    return folder(path, tensors, {"quantization_config": declared})


def restored(path: Path) -> Array:
    api.restore(path, path.parent / "dense")
    assert config_of(path.parent / "dense") == {"model_type": "llama"}
    (found,) = parts_of(path.parent / "dense").values()
    return found.view(np.float16)


def test_an_mlx_folder_is_read(tmp_path: Path) -> None:
    source = mlx_folder(tmp_path / "in")
    parts = parts_of(source)
    codes = stream(parts["l.weight"], 4).reshape(8, 2, 32).astype(np.float16)
    scale, bias = (parts[f"l.{name}"].view(np.float16)[..., None] for name in ("scales", "biases"))
    assert np.array_equal(restored(source), (codes * scale + bias).reshape(8, 64))
    assert "F16 as mlx" in compressor("inspect", source).out


@pytest.mark.parametrize(("mode", "bits", "group"), [("mxfp4", 4, 32), ("mxfp8", 8, 32), ("nvfp4", 4, 16)])
def test_an_mlx_folder_of_tiny_floats_is_read(tmp_path: Path, mode: str, bits: int, group: int) -> None:
    codes = RANDOM.integers(0, 0x7F if bits == 8 else 16, (8, 64)).astype(np.uint8)
    scales = RANDOM.integers(100, 126, (8, 64 // group)).astype(np.uint8)
    packed = codes if bits == 8 else codes[:, ::2] | codes[:, 1::2] << 4
    tensors = {"l.weight": ("U32", np.ascontiguousarray(packed).view("<u4")), "l.scales": ("U8", scales)}
    config = {"quantization": {"group_size": group, "bits": bits, "mode": mode}}
    source = folder(tmp_path / "in", tensors, config)
    floats = ml_dtypes.float8_e4m3fn if bits == 8 else ml_dtypes.float4_e2m1fn
    kind = ml_dtypes.float8_e4m3fn if mode == "nvfp4" else ml_dtypes.float8_e8m0fnu
    wide = np.repeat(scales.view(kind).astype(np.float32), group, axis=1)
    wanted = codes.view(floats).astype(np.float32) * wide
    api.restore(source, tmp_path / "dense")
    (found,) = archives.read(tmp_path / "dense" / "model.safetensors").values()
    assert found == ("BF16", (8, 64), wanted.astype(ml_dtypes.bfloat16).tobytes())


def test_a_gptq_folder_is_read(tmp_path: Path) -> None:
    source = gptq_folder(tmp_path / "in")
    parts = parts_of(source)
    codes = stream(np.ascontiguousarray(parts["l.qweight"].T), 4)
    zero = stream(parts["l.qzeros"], 4).T[:, parts["l.g_idx"]]
    scale = parts["l.scales"].view(np.float16).T[:, parts["l.g_idx"]]
    assert np.array_equal(restored(source), (codes - zero).astype(np.float16) * scale)


def test_an_awq_folder_is_read(tmp_path: Path) -> None:
    source = awq_folder(tmp_path / "in")
    parts = parts_of(source)
    places = np.array([0, 4, 1, 5, 2, 6, 3, 7])

    def rows(words: Array) -> Array:
        return stream(words, 4).reshape(len(words), -1, 8)[:, :, places].reshape(len(words), -1)  # type: ignore[no-any-return]

    zero = np.repeat(rows(parts["l.qzeros"]), 32, axis=0)
    scale = np.repeat(parts["l.scales"].view(np.float16), 32, axis=0)
    wanted = ((rows(parts["l.qweight"]) - zero).astype(np.float16) * scale).T
    assert np.array_equal(restored(source), wanted)


def test_numbers_that_float16_cannot_hold_are_refused(tmp_path: Path) -> None:
    source = change(gptq_folder(tmp_path / "in"), {"l.scales": ("F16", np.full((4, 32), 6e4, np.float16))})
    done = compressor("restore", source, "-o", tmp_path / "out")
    assert done.code == 3
    assert "NaN or infinite value" in done.err


# ---- hostile folders -----------------------------------------------------------------------------------


def change(source: Path, tensors: Mapping[str, tuple[str, Array] | None], **declared: Any) -> Path:
    """The folder with some tensors replaced (None: gone) and some entries of its quantization, too."""
    kinds = {"U32": "<u4", "I32": "<i4", "F16": "<f2"}
    held: dict[str, tuple[str, Array]] = {
        name: (dtype, np.frombuffer(data, kinds[dtype]).reshape(shape))
        for name, (dtype, shape, data) in archives.read(source / "model.safetensors").items()
    }
    for name, tensor in tensors.items():
        if tensor is None:
            del held[name]
        else:
            held[name] = tensor
    archives.write(source / "model.safetensors", held, {"format": "pt"})
    config = config_of(source)
    for key in ("quantization", "quantization_config"):
        if key in config:
            config[key] |= declared
    (source / "config.json").write_text(json.dumps(config))
    return source


def half(*shape: int, fill: float = 1.0) -> tuple[str, Array]:
    return "F16", np.full(shape, fill, np.float16)


def words(*shape: int, dtype: str = "I32") -> tuple[str, Array]:
    return dtype, np.zeros(shape, "<u4" if dtype == "U32" else "<i4")


Change = tuple[Callable[[Path], Path], dict[str, Any], dict[str, Any], str]
HOSTILE: dict[str, Change] = {
    "mlx no scales": (mlx_folder, {"l.scales": None}, {}, "tensor 'l.weight': has no scales beside its codes"),
    "mlx no biases": (mlx_folder, {"l.biases": None}, {}, "tensor 'l.weight': its part .biases is missing"),
    "mlx biases": (mlx_folder, {"l.biases": half(8, 3)}, {}, "tensor 'l.weight': its part .biases is F16 [8, 3]"),
    "mlx rows": (mlx_folder, {"l.scales": half(7, 2)}, {}, "do not make 4 bits in groups of 32"),
    "mlx vector": (mlx_folder, {"l.scales": half(16)}, {}, "its scales are F16 [16], where a matrix of"),
    "mlx integers": (mlx_folder, {"l.scales": words(8, 2)}, {}, "its scales are I32 [8, 2], where a matrix of"),
    "mlx none": (mlx_folder, {"l.scales": half(8, 0)}, {}, "its scales are F16 [8, 0], where a matrix of"),
    "mlx words": (mlx_folder, {"l.weight": words(8, 9, dtype="U32")}, {}, "do not make 4 bits in groups of 32"),
    "mlx bits": (mlx_folder, {}, {"bits": 8}, "do not make 8 bits in groups of 32, as config.json says"),
    "mlx 7 bits": (mlx_folder, {}, {"bits": 7}, "quantization bits is 7, and 1, 2, 3, 4, 5, 6, 8 are read here"),
    "mlx true bits": (mlx_folder, {}, {"bits": True}, "quantization bits is True, and 1, 2, 3"),
    "mlx huge bits": (mlx_folder, {}, {"bits": 10**30}, "quantization bits is 1000000"),
    "mlx group": (
        mlx_folder,
        {},
        {"group_size": 10**12},
        "quantization group_size is 1000000000000, and 32, 64, 128",
    ),
    "mlx group 0": (mlx_folder, {}, {"group_size": 0}, "quantization group_size is 0"),
    "mlx own bits": (mlx_folder, {}, {"l": {"group_size": 32, "bits": "4"}}, "quantization of l bits is '4'"),
    "mlx own nothing": (mlx_folder, {}, {"l": {}}, "quantization of l bits is None"),
    "mlx denied": (mlx_folder, {}, {"l": False}, "is stored as codes, and config.json says that it is not"),
    "mlx mode": (mlx_folder, {}, {"mode": "mxfp2"}, "is in MLX's mode 'mxfp2', which is not read here"),
    "mlx other mode": (
        mlx_folder,
        {},
        {"mode": "mxfp4"},
        "its scales are F16 [8, 2], where a matrix of U8 belongs",
    ),
    "mlx floats": (
        mlx_folder,
        {"l.scales": ("U8", np.full((8, 3), 127, np.uint8))},
        {"mode": "mxfp4"},
        "do not fit together in mode mxfp4",
    ),
    "mlx NaN floats": (
        mlx_folder,
        {"l.scales": ("U8", np.full((8, 2), 255, np.uint8))},
        {"mode": "mxfp4"},
        "tensor 'l.weight': holds 512 NaN",
    ),
    "mlx global scale": (
        mlx_folder,
        {"l.scales": ("U8", np.full((8, 4), 60, np.uint8)), "l.global_scale": half(1)},
        {"mode": "nvfp4"},
        "has a global scale, which is not read here",
    ),
    "mlx mode of a list": (mlx_folder, {}, {"mode": ["\x1b"]}, "is in MLX's mode"),
    "mlx NaN": (
        mlx_folder,
        {"l.scales": half(8, 2, fill=np.nan)},
        {},
        "tensor 'l.weight': holds 512 NaN or infinite",
    ),
    "mlx infinite": (mlx_folder, {"l.biases": half(8, 2, fill=np.inf)}, {}, "holds 512 NaN or infinite"),
    "gptq no scales": (gptq_folder, {"l.scales": None}, {}, "tensor 'l.weight': has no scales beside its codes"),
    "gptq no zero points": (gptq_folder, {"l.qzeros": None}, {}, "tensor 'l.weight': its part .qzeros is missing"),
    "gptq zero points": (gptq_folder, {"l.qzeros": words(4, 5)}, {}, "its part .qzeros is I32 [4, 5], where"),
    "gptq scales": (gptq_folder, {"l.scales": half(4, 31)}, {}, "do not fit together at 4 bits"),
    "gptq groups": (gptq_folder, {"l.scales": half(5, 32)}, {}, "has 5 groups, where 64 columns have 4 of 16"),
    "gptq a vector": (gptq_folder, {"l.qweight": words(256)}, {}, "its qweight are I32 [256], where a matrix"),
    "gptq deep": (gptq_folder, {"l.qweight": words(2, 8, 32)}, {}, "do not fit together at 4 bits"),
    "gptq columns": (gptq_folder, {"l.g_idx": words(63)}, {}, "its qweight [8, 32], scales [4, 32] and 63 columns"),
    "gptq no columns": (gptq_folder, {"l.g_idx": words(0)}, {}, "and 0 columns do not fit together"),
    "gptq beyond": (
        gptq_folder,
        {"l.g_idx": ("I32", np.full(64, 4, "<i4"))},
        {},
        "its g_idx does not name one of 4 groups for each column",
    ),
    "gptq below": (gptq_folder, {"l.g_idx": ("I32", np.full(64, -1, "<i4"))}, {}, "its g_idx does not name"),
    "gptq matrix index": (gptq_folder, {"l.g_idx": words(8, 8)}, {}, "its g_idx does not name"),
    "gptq float index": (gptq_folder, {"l.g_idx": half(64)}, {}, "its g_idx does not name"),
    "gptq bits": (gptq_folder, {}, {"bits": 5}, "quantization_config bits is 5, and 2, 3, 4, 8 are read here"),
    "gptq no bits": (gptq_folder, {}, {"bits": None}, "quantization_config bits is None"),
    "gptq other bits": (gptq_folder, {}, {"bits": 8}, "do not fit together at 8 bits"),
    "gptq group": (gptq_folder, {}, {"group_size": 10**30}, "group_size is 1000000"),
    "gptq group 0": (gptq_folder, {}, {"group_size": 0}, "group_size is 0, which makes no sense"),
    "gptq format": (gptq_folder, {}, {"checkpoint_format": "marlin"}, "GPTQ's format 'marlin' is not read here"),
    "gptq format list": (gptq_folder, {}, {"checkpoint_format": [1]}, "GPTQ's format '[1]' is not read here"),
    "gptq NaN": (gptq_folder, {"l.scales": half(4, 32, fill=np.nan)}, {}, "tensor 'l.weight': holds 2048 NaN"),
    "gptq no order": (gptq_folder, {"l.g_idx": None}, {"group_size": 32}, "has 4 groups, where 64 columns have 2"),
    "gptq dynamic": (gptq_folder, {"l.g_idx": words(51)}, {"dynamic": {"+:l": {"bits": 5}}}, "do not fit together"),
    "awq no scales": (awq_folder, {"l.scales": None}, {}, "tensor 'l.weight': has no scales beside its codes"),
    "awq no zero points": (awq_folder, {"l.qzeros": None}, {}, "tensor 'l.weight': its part .qzeros is missing"),
    "awq zero points": (awq_folder, {"l.qzeros": words(3, 2)}, {}, "its part .qzeros is I32 [3, 2], where"),
    "awq scales": (awq_folder, {"l.scales": half(2, 17)}, {}, "do not fit together in groups of 32"),
    "awq group": (awq_folder, {}, {"group_size": 10**30}, "do not fit together in groups of 1000000"),
    "awq group 0": (awq_folder, {}, {"group_size": 0}, "do not fit together in groups of 0"),
    "awq group text": (awq_folder, {}, {"group_size": "\x1b[31m"}, "do not fit together in groups of '"),
    "awq bits": (awq_folder, {}, {"bits": 8}, "quantization_config bits is 8, and 4 are read here"),
    "awq version": (awq_folder, {}, {"version": "gemv"}, "AWQ's version 'gemv' is not read here"),
    "awq NaN": (awq_folder, {"l.scales": half(2, 16, fill=np.inf)}, {}, "tensor 'l.weight': holds 1024 NaN"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_contradictions_are_refused_in_a_sentence(name: str, tmp_path: Path) -> None:
    make, tensors, declared, said = HOSTILE[name]
    source = change(make(tmp_path / "in"), tensors, **declared)
    done = compressor("restore", source, "-o", tmp_path / "out")
    assert done.code == 3, done
    (line,) = done.err.splitlines()
    assert said in line
    assert line.isprintable()
    assert not (tmp_path / "out").exists()


def test_such_sources_are_not_quantized_again(tmp_path: Path) -> None:
    done = compressor("quantize", gptq_folder(tmp_path / "in"), "-o", tmp_path / "out", "--bits", "8")
    assert done.code == 3
    assert "is already quantized (gptq)" in done.err
