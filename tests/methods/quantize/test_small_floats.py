"""Floats of 4 and 8 bits: the kernels, what the searches reach, what loaders fuse, and how folders are read."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from support import archives
from support.console import LLAMA, compressor
from support.laws import numbers, run, store

from compressor import api
from compressor.architectures.fused_layers import fused_group
from compressor.cli.report import render
from compressor.core.errors import CompressorError, InputError, UsageError
from compressor.core.tensor import TensorSpec
from compressor.core.workspace import Workspace
from compressor.methods.contract import ReadableScheme
from compressor.methods.numerics.largest_magnitude import Largest, shared
from compressor.methods.numerics.minifloat import E2M1, E4M3, E5M2, Minifloat
from compressor.methods.registry import methods_of

FORMATS = {
    "e2m1": (E2M1, ml_dtypes.float4_e2m1fn),
    "e4m3": (E4M3, ml_dtypes.float8_e4m3fn),
    "e5m2": (E5M2, ml_dtypes.float8_e5m2),
}


def method(scheme: str, **options: Any) -> ReadableScheme:
    made = methods_of("quantize")[scheme](**options)
    assert isinstance(made, ReadableScheme)
    return made


# ---- the kernels ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["<f4", "<f8"])
@pytest.mark.parametrize("name", FORMATS)
def test_rounding_is_that_of_ml_dtypes(name: str, dtype: str) -> None:
    """Every number of the format, every tie, what lies next to either, and what is beyond the range (clamped)."""
    minifloat, kind = FORMATS[name]
    known = np.arange(1 << (minifloat.bits - 1), dtype=np.uint8).view(kind).astype(dtype)
    known = known[np.isfinite(known)]
    ties = (known[1:] + known[:-1]) / 2
    points = np.concatenate([known, ties, np.array([minifloat.largest * 1.01, 1e30, 1e-30, 0.0], dtype)]).astype(
        dtype
    )
    points = np.concatenate([points, np.nextafter(points, 0), points * 1.0000002]).astype(dtype)
    values = np.concatenate([points, -points]).reshape(1, -1)
    codes, restored = np.empty(values.shape, np.uint8), np.empty_like(values)
    minifloat.quantize(values, np.ones((1, 1), dtype), values.size, codes, restored, Workspace())
    # its cast from float64 goes by way of float32: rounding to odd keeps that from rounding twice
    narrow = values.astype(np.float32)
    inexact = (narrow != values) & (narrow.view(np.uint32) & 1 == 0)
    towards = np.where(np.abs(narrow) > np.abs(values), np.float32(0), 2 * narrow)
    narrow = np.where(inexact, np.nextafter(narrow, towards), narrow)
    wanted = np.clip(narrow, -minifloat.largest, minifloat.largest).astype(kind)
    assert np.array_equal(codes, wanted.view(np.uint8))
    assert np.array_equal(restored, wanted.astype(dtype))
    assert np.array_equal(np.signbit(restored), np.signbit(values))
    nearest = np.empty_like(values)
    minifloat.nearest(np.abs(values), nearest, Workspace())
    assert np.array_equal(nearest, np.abs(restored))


@pytest.mark.parametrize("name", FORMATS)
def test_tables_are_those_of_ml_dtypes(name: str) -> None:
    minifloat, kind = FORMATS[name]
    wanted = np.arange(1 << minifloat.bits, dtype=np.uint8).view(kind).astype(np.float32)
    assert np.array_equal(minifloat.table("<f4"), wanted, equal_nan=True)
    assert np.array_equal(minifloat.table("<f8"), wanted.astype(np.float64), equal_nan=True)


@pytest.mark.parametrize("dtype", ["<f4", "<f8"])
def test_a_byte_holds_two_numbers_the_first_in_its_low_bits(dtype: str) -> None:
    both = E2M1.pairs(dtype).view(dtype).reshape(256, 2)
    assert both[0x10].tolist() == [0, 0.5]
    assert both[0xF3].tolist() == [1.5, -6]
    assert np.signbit(both[0x08, 0])


# ---- what the searches reach ---------------------------------------------------------------------------


def error(scheme: str, dtype: str, rows: int = 512, **options: Any) -> float:
    weights = numbers(store(np.random.default_rng(0).standard_normal((rows, 4096)), dtype), dtype)
    outcome = run(method(scheme, **options), TensorSpec("w.weight", dtype, weights.shape), store(weights, dtype))
    return float(np.linalg.norm(outcome.restored - weights) / np.linalg.norm(weights))


@pytest.mark.parametrize(
    ("scheme", "options", "at_most"),
    [
        ("nvfp4", {}, 0.0813),
        ("nvfp4", {"method": "absmax"}, 0.0951),
        ("mxfp4", {}, 0.1117),
        ("mxfp4", {"method": "absmax"}, 0.1121),
        ("mxfp8", {}, 0.0267),
        ("fp8", {}, 0.0260),
        ("fp8", {"method": "absmax"}, 0.0265),
        ("fp8", {"granularity": "block"}, 0.0263),
        ("fp8", {"granularity": "tensor"}, 0.0265),
        ("fp8", {"element": "e5m2"}, 0.0517),
    ],
)
def test_error_on_normal_weights(scheme: str, options: dict[str, Any], at_most: float) -> None:
    assert 0.8 * at_most < error(scheme, "BF16", **options) <= at_most


def test_no_scales_are_much_better_than_those_found() -> None:
    """NVFP4 against the best of all 126 scales for every block."""
    values = np.random.default_rng(3).standard_t(3, (64, 256)).astype(np.float32)
    spec = TensorSpec("w.weight", "F32", values.shape)
    outcome = run(method("nvfp4"), spec, values)
    assert outcome.parts is not None
    blocks, found = values.reshape(-1, 1, 16), outcome.restored.reshape(-1, 16)
    ladder = E4M3.table("<f4")[1:127] / outcome.parts["_global_scale"]
    quotients = np.abs(blocks) / ladder[None, :, None]
    table = E2M1.table("<f4")[:8]
    rounded = table[np.abs(quotients[..., None] - table).argmin(-1)]
    best = (np.square((quotients - rounded) * ladder[None, :, None]).sum(-1)).min(-1)
    assert float(best.sum()) <= float(np.square(found - blocks[:, 0]).sum()) <= 1.003 * float(best.sum())


@pytest.mark.parametrize("scheme", ["fp8", "nvfp4", "mxfp4", "mxfp8"])
@pytest.mark.parametrize("dtype", ["F64", "F32", "F16", "BF16"])
def test_searching_never_loses_more(scheme: str, dtype: str) -> None:
    assert error(scheme, dtype, 16) <= error(scheme, dtype, 16, method="absmax") * (1 + 1e-9)


def test_a_coarse_scale_does_not_cut_the_largest_off() -> None:
    """A float16 row of small weights has a subnormal scale, which must be rounded up."""
    values = np.array([[4.2e-5, 1e-5, -3.9e-5, 0]])
    outcome = run(method("fp8", method="absmax"), TensorSpec("w.weight", "F16", (1, 4)), store(values, "F16"))
    assert outcome.settled[0, 0] == pytest.approx(4.2e-5, rel=0.04)


@pytest.mark.parametrize("scheme", ["nvfp4", "mxfp4", "mxfp8"])
def test_what_float32_cannot_reach_is_refused(scheme: str) -> None:
    values = np.full((2, 32), 1e300)
    with pytest.raises(InputError, match="beyond float32's range") as caught:
        run(method(scheme), TensorSpec("w.weight", "F64", values.shape), values)
    assert caught.value.tensor == "w.weight"


@pytest.mark.parametrize(("scheme", "columns"), [("nvfp4", 24), ("mxfp4", 16), ("mxfp8", 33)])
def test_rows_that_blocks_do_not_divide(scheme: str, columns: int) -> None:
    with pytest.raises(UsageError, match=f"do not divide the row of {columns}"):
        method(scheme).parts(TensorSpec("w.weight", "BF16", (4, columns)))


def test_ragged_blocks_are_stored_for_weights_only() -> None:
    """Nobody can round activations in blocks of 128 that do not divide them."""
    made = method("fp8", granularity="block")
    forms = [(made.config(TensorSpec("w.weight", "BF16", (130, n))) or {})["format"] for n in (256, 300)]
    assert forms == ["float-quantized", "naive-quantized"]
    assert made.parts(TensorSpec("w.weight", "BF16", (130, 300)))[1].shape == (2, 3)


def test_e5m2_is_our_own() -> None:
    made, spec = method("fp8", element="e5m2"), TensorSpec("w.weight", "BF16", (4, 4))
    assert (made.config(spec), made.dialect(spec), made.label) == (None, "", "fp8-e5m2")


# ---- what loaders fuse ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "whole"),
    [
        ("model.layers.0.self_attn.k_proj.weight", "model.layers.0.self_attn.qkv_proj"),
        ("model.layers.0.mlp.up_proj.weight", "model.layers.0.mlp.gate_up_proj"),
        ("model.layers.3.mlp.experts.17.gate_proj.weight", "model.layers.3.mlp.experts.17.gate_up_proj"),
        ("model.layers.3.block_sparse_moe.experts.1.w3.weight", "model.layers.3.block_sparse_moe.experts.1.w13"),
        ("encoder.layer.0.attention.self.query.weight", "encoder.layer.0.attention.self.qkv"),
        ("model.layers.0.linear_attn.in_proj_z.weight", "model.layers.0.linear_attn.in_proj_qkvz"),
        ("rwkv.blocks.0.feed_forward.key.weight", None),
        ("model.layers.0.self_attn.o_proj.weight", None),
        ("model.layers.0.mlp.down_proj.weight", None),
        ("model.layers.0.self_attn.k_proj.bias", None),
        ("model.layers.0.block_sparse_moe.experts.1.w2.weight", None),
        ("q_proj.weight", None),
        ("weight", None),
        ("", None),
    ],
)
def test_fused_groups(name: str, whole: str | None) -> None:
    assert fused_group(name) == whole


def test_the_largest_of_fused_parts_counts_for_all() -> None:
    given = {"a.q_proj.weight": 1.0, "a.k_proj.weight": 3.0, "b.q_proj.weight": 2.0, "a.o_proj.weight": 9.0}
    assert shared(given) == {**given, "a.q_proj.weight": 3.0}


def test_the_survey_merges_in_any_grouping() -> None:
    survey = method("nvfp4").prepare([])
    assert isinstance(survey, Largest)
    stats = [{"a.q_proj.weight": 1.0}, {"a.k_proj.weight": 5.0}, {"a.q_proj.weight": 2.0, "c": 0.0}]
    left, right = survey.start(), survey.start()
    for more in stats:
        left = survey.merge(left, dict(more))
    for more in reversed(stats):
        right = survey.merge(dict(more), right)
    assert survey.conclude(left) == survey.conclude(right)


@pytest.mark.parametrize("scheme", ["nvfp4", "fp8"])
def test_fused_parts_share_their_scale(scheme: str, tmp_path: Path) -> None:
    options = {"granularity": "tensor"} if scheme == "fp8" else {}
    api.quantize(LLAMA, tmp_path / "q", scheme=scheme, **options)
    suffix = "_global_scale" if scheme == "nvfp4" else "_scale"
    scales: dict[str, set[bytes]] = {}
    for shard in (tmp_path / "q").glob("*.safetensors"):
        for name, (_, _, data) in archives.read(shard).items():
            if name.endswith(f"_proj.weight{suffix}"):
                whole = fused_group(name.removesuffix(suffix)) or name
                scales.setdefault(whole, set()).add(data)
    assert len(scales) == 2 * 4
    assert all(len(found) == 1 for found in scales.values())


def test_reports_name_the_scheme(tmp_path: Path) -> None:
    report = api.quantize(LLAMA, tmp_path / "q", scheme="nvfp4", rules=[("*down*", {"scheme": "fp8"})])
    table = render(report, "table")
    assert "nvfp4" in table
    assert "fp8" in table
    assert any("--layout naive-quantized" in note for note in report.plan.notes)


# ---- reading: what strangers say of their files --------------------------------------------------------

Content = dict[str, tuple[str, Any]]


def fp8_content() -> Content:
    codes = np.random.default_rng(1).integers(0, 0x78, (140, 300)).astype(np.uint8)
    return {
        "a.weight": ("F8_E4M3", codes),
        "a.weight_scale_inv": ("F32", np.full((2, 3), 0.01, "<f4")),
        "a.activation_scale": ("F32", np.ones((), "<f4")),
        "norm.weight": ("BF16", np.zeros(4, "<u2")),
    }


def modelopt_content() -> Content:
    return {
        "a.weight": ("U8", np.arange(160, dtype=np.uint8).reshape(10, 16)),
        "a.weight_scale": ("F8_E4M3", np.full((10, 2), 0x38, np.uint8)),
        "a.weight_scale_2": ("F32", np.full((), 0.5, "<f4")),
        "a.input_scale": ("F32", np.ones((), "<f4")),
    }


def ct_content(scheme: str) -> Content:
    if scheme == "fp8":
        scale = ("BF16", np.full((10, 1), 0x3F80, "<u2"))
        return {"a.weight": ("F8_E4M3", np.full((10, 32), 0x38, np.uint8)), "a.weight_scale": scale}
    if scheme == "mxfp8":
        scale = ("U8", np.full((10, 1), 127, np.uint8))
        return {"a.weight": ("F8_E4M3", np.full((10, 32), 0x38, np.uint8)), "a.weight_scale": scale}
    packed: Content = {"a.weight_packed": ("U8", np.full((10, 16), 0x72, np.uint8))}
    if scheme == "mxfp4":
        return {**packed, "a.weight_scale": ("U8", np.full((10, 1), 127, np.uint8))}
    packed["a.weight_scale"] = ("F8_E4M3", np.full((10, 2), 0x38, np.uint8))
    return {**packed, "a.weight_global_scale": ("F32", np.full(1, 2, "<f4"))}


DEEPSEEK = {"quant_method": "fp8", "weight_block_size": [128, 128], "activation_scheme": "dynamic"}
MODELOPT = {"quant_method": "modelopt", "quant_algo": "NVFP4"}


def ct_config(scheme: str, **weights: Any) -> dict[str, Any]:
    made = method(scheme).config(TensorSpec("a.weight", "BF16", (10, 32)))
    assert made is not None
    group = {"targets": ["Linear"], **made, "weights": {**made["weights"], **weights}}
    return {"quant_method": "compressed-tensors", "format": made["format"], "config_groups": {"group_0": group}}


def written(folder: Path, content: Content, declared: Any, **config: Any) -> Path:
    folder.mkdir()
    archives.write(folder / "model.safetensors", content)
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": declared}))
    return folder


def restored(folder: Path, tmp_path: Path) -> dict[str, Any]:
    api.restore(folder, tmp_path / "dense")
    return {
        name: (dtype, shape, numbers(np.frombuffer(data, np.dtype(store(0, dtype).dtype)).reshape(shape), dtype))
        for name, (dtype, shape, data) in archives.read(tmp_path / "dense" / "model.safetensors").items()
    }


@pytest.mark.parametrize(("said", "dtype"), [({}, "BF16"), ({"torch_dtype": "float32"}, "F32")])
def test_a_deepseek_folder(tmp_path: Path, said: dict[str, Any], dtype: str) -> None:
    content = fp8_content()
    content["a.weight_scale_inv"][1][...] = [[1, 2, 4], [8, 16, 32]]
    report = render(api.inspect(written(tmp_path / "in", content, DEEPSEEK, **said)), "table")
    assert "quantized (fp8), 2 tensors" in report
    found = restored(tmp_path / "in", tmp_path)
    assert set(found) == {"a.weight", "norm.weight"}
    assert found["a.weight"][:2] == (dtype, (140, 300))
    codes = content["a.weight"][1].view(ml_dtypes.float8_e4m3fn).astype(np.float32)
    scale = np.repeat(np.repeat(content["a.weight_scale_inv"][1], 128, axis=0), 128, axis=1)[:140, :300]
    assert np.array_equal(found["a.weight"][2], codes * scale)


def test_one_scale_for_a_tensor(tmp_path: Path) -> None:
    content = fp8_content() | {"a.weight_scale_inv": ("BF16", np.full((), 0x4000, "<u2"))}
    found = restored(written(tmp_path / "in", content, {"quant_method": "fp8"}), tmp_path)
    codes = content["a.weight"][1].view(ml_dtypes.float8_e4m3fn).astype(np.float32)
    assert np.array_equal(found["a.weight"][2], codes * 2)


def test_a_modelopt_folder(tmp_path: Path) -> None:
    content = modelopt_content()
    found = restored(written(tmp_path / "in", content, MODELOPT), tmp_path)
    assert set(found) == {"a.weight"}
    assert found["a.weight"][:2] == ("BF16", (10, 32))
    assert np.array_equal(found["a.weight"][2], E2M1.pairs("<f4")[content["a.weight"][1]].view("<f4") * 0.5)


def test_modelopts_fp8(tmp_path: Path) -> None:
    content = ct_content("fp8") | {"a.weight_scale": ("F32", np.full((), 3, "<f4"))}
    declared = {"quant_method": "modelopt", "quant_algo": "FP8", "kv_cache_quant_algo": "FP8"}
    content["a.k_scale"] = ("F32", np.ones(1, "<f4"))
    found = restored(written(tmp_path / "in", content, declared), tmp_path)
    assert set(found) == {"a.weight"}
    assert np.all(found["a.weight"][2] == 3)


@pytest.mark.parametrize("scheme", ["fp8", "nvfp4", "mxfp4", "mxfp8"])
def test_a_compressed_tensors_folder(scheme: str, tmp_path: Path) -> None:
    content = ct_content(scheme) | {"a.input_scale": ("F32", np.ones(1, "<f4"))}
    report = api.restore(written(tmp_path / "in", content, ct_config(scheme)), tmp_path / "dense")
    assert any(
        "dropped, because it serves loaders of quantized weights only: a.input_scale" in note
        for note in report.plan.notes
    )
    ((name, (dtype, shape, data)),) = archives.read(tmp_path / "dense" / "model.safetensors").items()
    assert (name, dtype, shape) == ("a.weight", "BF16", (10, 32))
    found = numbers(np.frombuffer(data, "<u2").reshape(shape), "BF16")
    wanted = {"fp8": [1, 1], "mxfp8": [1, 1], "mxfp4": [1, 6], "nvfp4": [0.5, 3]}[scheme]
    assert np.array_equal(found, np.tile(wanted, (10, 16)))


def put(name: str, dtype: str, values: Any) -> Callable[[Content], None]:
    def change(content: Content) -> None:
        content[name] = (dtype, np.asarray(values))

    return change


def drop(name: str) -> Callable[[Content], None]:
    def change(content: Content) -> None:
        del content[name]

    return change


ONES = np.ones((10, 1), "<f4")
BROKEN: dict[str, tuple[str, Callable[[Content], None], str]] = {
    "fp8 no scale": ("deepseek", drop("a.weight_scale_inv"), "without a weight_scale_inv"),
    "fp8 no weight": ("deepseek", drop("a.weight"), "is the scale of a weight that is missing"),
    "fp8 shape": ("deepseek", put("a.weight_scale_inv", "F32", np.ones((3, 2), "<f4")), "belongs"),
    "fp8 byte scale": ("deepseek", put("a.weight_scale_inv", "U8", np.ones((2, 3), "u1")), "its scale is U8"),
    "fp8 fused": ("deepseek", put("a.weight", "F8_E4M3", np.ones((2, 140, 300), "u1")), "no matrix"),
    "fp8 other": ("deepseek", put("b.weight", "F8_E4M3FNUZ", np.ones((2, 2), "u1")), "is F8_E4M3FNUZ without"),
    "fp8 nan": ("deepseek", put("a.weight_scale_inv", "F32", np.full((2, 3), np.nan, "<f4")), "NaN or infinite"),
    "fp8 inf": ("deepseek", put("a.weight_scale_inv", "F32", np.full((2, 3), np.inf, "<f4")), "NaN or infinite"),
    "fp8 empty": ("deepseek", put("a.weight_scale_inv", "F32", np.ones((0, 3), "<f4")), "belongs"),
    "modelopt no scale": ("modelopt", drop("a.weight_scale"), "has no weight_scale beside it"),
    "modelopt no second": ("modelopt", drop("a.weight_scale_2"), "has no weight_scale_2"),
    "modelopt no weight": ("modelopt", drop("a.weight"), "is the scale of a weight that is missing"),
    "modelopt long": ("modelopt", put("a.weight_scale_2", "F32", np.ones(3, "<f4")), "has shape [3]"),
    "modelopt empty": ("modelopt", put("a.weight_scale_2", "F32", np.ones(0, "<f4")), "has shape [0]"),
    "modelopt flat": ("modelopt", put("a.weight", "U8", np.ones(160, "u1")), "its codes have shape [160]"),
    "modelopt shape": ("modelopt", put("a.weight_scale", "F8_E4M3", np.ones((10, 3), "u1")), "belongs"),
    "modelopt odd": ("modelopt", put("a.weight", "U8", np.ones((10, 15), "u1")), "belongs"),
    "modelopt nan": ("modelopt", put("a.weight_scale_2", "F32", np.float32(np.nan)), "its weight_scale_2 is nan"),
    "modelopt zero": ("modelopt", put("a.weight_scale_2", "F32", np.float32(0)), "its weight_scale_2 is 0"),
    "modelopt awq": ("modelopt", put("a.pre_quant_scale", "F32", ONES), "where a float for each"),
    "ct fp8 no scale": ("fp8", drop("a.weight_scale"), "has no float scale beside it"),
    "ct fp8 no weight": ("fp8", drop("a.weight"), "is the scale of a weight that is missing"),
    "ct fp8 integer": (
        "fp8",
        put("a.weight_scale", "I32", np.ones((10, 1), "<i4")),
        "has no float scale beside it",
    ),
    "ct fp8 shape": ("fp8", put("a.weight_scale", "F32", np.ones((1, 10), "<f4")), "belongs"),
    "ct nvfp4 no global": ("nvfp4", drop("a.weight_global_scale"), "_global_scale is missing"),
    "ct nvfp4 no scale": ("nvfp4", drop("a.weight_scale"), "has no float scale beside it"),
    "ct nvfp4 nan": (
        "nvfp4",
        put("a.weight_global_scale", "F32", np.full(1, np.nan, "<f4")),
        "its global scale is nan",
    ),
    "ct nvfp4 inf": (
        "nvfp4",
        put("a.weight_global_scale", "F32", np.full(1, np.inf, "<f4")),
        "its global scale is inf",
    ),
    "ct nvfp4 negative": ("nvfp4", put("a.weight_global_scale", "F32", -ONES[0]), "its global scale is -1"),
    "ct nvfp4 local nan": (
        "nvfp4",
        put("a.weight_scale", "F8_E4M3", np.full((10, 2), 0x7F, "u1")),
        "NaN or infinite",
    ),
    "ct nvfp4 flat": ("nvfp4", put("a.weight_packed", "U8", np.ones(160, "u1")), "its codes have shape [160]"),
    "ct mxfp4 nan": ("mxfp4", put("a.weight_scale", "U8", np.full((10, 1), 255, "u1")), "NaN or infinite"),
    "ct mxfp4 shape": ("mxfp4", put("a.weight_scale", "U8", np.ones((10, 2), "u1")), "belongs"),
    "ct mxfp8 nan": ("mxfp8", put("a.weight", "F8_E4M3", np.full((10, 32), 0x7F, "u1")), "NaN or infinite"),
    "ct lone global": ("fp8", put("b.weight_global_scale", "F32", ONES[0]), "is the scale of a weight"),
    "ct mx in nvfp4": ("nvfp4", put("a.weight_scale", "U8", np.ones((10, 1), "u1")), "fits no config group"),
}


def case(kind: str) -> tuple[Content, dict[str, Any]]:
    if kind == "deepseek":
        return fp8_content(), DEEPSEEK
    return (modelopt_content(), MODELOPT) if kind == "modelopt" else (ct_content(kind), ct_config(kind))


@pytest.mark.parametrize("name", BROKEN)
def test_broken_parts_are_refused_by_name(name: str, tmp_path: Path) -> None:
    kind, change, said = BROKEN[name]
    content, declared = case(kind)
    change(content)
    done = compressor("restore", written(tmp_path / "in", content, declared), "-o", tmp_path / "out")
    assert done.code == 3, (done.out, done.err)
    (line,) = done.err.splitlines()
    assert said in line
    assert "tensor '" in line
    assert not (tmp_path / "out").exists()


NASTY: list[Any] = [
    None,
    True,
    False,
    -1,
    0,
    3,
    2**70,
    1.5,
    "x",
    "",
    [],
    [128],
    [0, 128],
    [2**40, 128],
    {},
    {"a": 1},
    ["x", 1],
]


def changed(declared: Any, way: tuple[str, ...], value: Any) -> Any:
    if not way:
        return value
    return {**declared, way[0]: changed(declared[way[0]], way[1:], value)}


def ways(declared: Any, before: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for key, value in declared.items():
        yield (*before, key)
        if isinstance(value, dict):
            yield from ways(value, (*before, key))


@pytest.mark.parametrize("kind", ["deepseek", "modelopt", "fp8", "nvfp4", "mxfp4", "mxfp8"])
def test_any_value_in_the_config_is_read_or_refused(kind: str, tmp_path: Path) -> None:
    """Never a traceback, and never other numbers than those of the whole config."""
    content, declared = case(kind)
    folder = written(tmp_path / "in", content, declared)
    whole = archives_of(folder, tmp_path / "whole")
    for number, (way, value) in enumerate((way, value) for way in ways(declared) for value in NASTY):
        (folder / "config.json").write_text(json.dumps({"quantization_config": changed(declared, way, value)}))
        try:
            found = archives_of(folder, tmp_path / str(number))
        except CompressorError as refused:
            assert isinstance(refused, InputError), (way, value)  # noqa: PT017 - or it is read
            continue
        assert found in (whole, None), (way, value)


def archives_of(folder: Path, output: Path) -> Any:
    """What the folder's quantized tensor is restored to; None where the config says that it is not quantized."""
    api.restore(folder, output)
    found = archives.read(output / "model.safetensors")
    return None if any("scale" in name for name in found) else found["a.weight"]


@pytest.mark.parametrize("block", [[64, 128], [128, 2000], "128x128", [1, 1]])
def test_other_block_sizes(block: Any, tmp_path: Path) -> None:
    """Any size is read that does not make one read too much at once; as text it was written long ago."""
    sizes = [128, 128] if block == "128x128" else block
    shape = tuple(-(-have // size) for have, size in zip((10, 32), sizes, strict=True))
    scale = np.random.default_rng(5).random(shape).astype("<f4")
    content = {"a.weight": ("F8_E4M3", np.full((10, 32), 0x38, np.uint8)), "a.weight_scale": ("F32", scale)}
    declared = ct_config("fp8", strategy="block", block_structure=block)
    folder = written(tmp_path / "in", content, declared, dtype="float32")
    if max(sizes) > 1024:
        with pytest.raises(InputError, match="its block_structure is"):
            api.inspect(folder)
        return
    _, _, found = restored(folder, tmp_path)["a.weight"]
    assert np.array_equal(found, np.repeat(np.repeat(scale, sizes[0], 0), sizes[1], 1)[:10, :32])


def test_what_fits_several_block_sizes_is_refused(tmp_path: Path) -> None:
    content = ct_content("fp8") | {"a.weight_scale": ("F32", np.ones((1, 1), "<f4"))}
    declared = ct_config("fp8", strategy="block", block_structure=[128, 128])
    more = ct_config("fp8", strategy="block", block_structure=[64, 64])["config_groups"]["group_0"]
    declared["config_groups"]["group_1"] = more
    with pytest.raises(InputError, match="several block sizes"):
        api.inspect(written(tmp_path / "in", content, declared))


@pytest.mark.parametrize("text", ["[]", "{}", '{"quantization": 3}', '{"quantization": {"quant_algo": "W2A8"}}'])
def test_a_file_beside_the_config_that_says_nothing(text: str, tmp_path: Path) -> None:
    folder = written(tmp_path / "in", modelopt_content(), None)
    (folder / "hf_quant_config.json").write_text(text)
    with pytest.raises(InputError):
        api.restore(folder, tmp_path / "out")


def test_a_minifloat_is_described() -> None:
    assert Minifloat(8, 3, -6, 448.0) == E4M3
