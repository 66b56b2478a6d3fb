"""Models that make images as GGUF files: their own names, and the architecture that these tell."""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ml_dtypes import bfloat16, float8_e4m3fn
from safetensors.numpy import load_file, save_file
from support import gguf_files
from support.console import compressor

from compressor import api
from compressor.core.errors import InputError
from compressor.files.gguf.reading import GgufHeader, read_header
from compressor.files.input_file import InputFile

FLUX = {
    "double_blocks.0.img_attn.proj.weight": (32, 64),
    "double_blocks.0.img_attn.norm.query_norm.scale": (64,),
    "img_in.bias": (32,),
}
WAN = {"blocks.0.self_attn.norm_q.weight": (32,), "text_embedding.2.weight": (8, 64), "head.modulation": (1, 2, 64)}
FIVE = WAN | {"patch_embedding.weight": (6, 2, 1, 2, 2)}
UNET = {
    "input_blocks.3.0.op.weight": (4, 4, 3, 3),
    "input_blocks.6.0.op.weight": (4, 4, 3, 3),
    "output_blocks.2.2.conv.weight": (4, 4, 3, 3),
    "output_blocks.5.2.conv.weight": (4, 4, 3, 3),
}


def write(path: Path, shapes: dict[str, tuple[int, ...]], prefix: str = "") -> Path:
    random = np.random.default_rng(5)
    save_file({prefix + one: random.normal(size=shape).astype(bfloat16) for one, shape in shapes.items()}, path)
    return path


def header_of(path: Path) -> GgufHeader:
    return read_header(InputFile.open(path))


@pytest.mark.parametrize(
    ("shapes", "arch"), [(FLUX, "flux"), (WAN, "wan"), (UNET, "sdxl"), ({"label_emb.0.0.weight": (4, 8)}, "sdxl")]
)
@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_names_tell_the_model(tmp_path: Path, shapes: dict[str, tuple[int, ...]], arch: str, prefix: str) -> None:
    source, file = write(tmp_path / "m.safetensors", shapes, prefix), tmp_path / "m.gguf"
    api.restore(source, file)
    header = header_of(file)
    assert header.fields["general.architecture"].python() == arch
    assert {name: header.shapes[name] for name in header.shapes} == {prefix + one: shapes[one] for one in shapes}
    for name, shape in shapes.items():
        plain = len(shape) == 1 or not name.endswith(".weight") or prod(shape) <= 1024
        assert header.types[prefix + name].name == ("F32" if plain else "BF16")
    assert api.compare(source, file).total.error == 0
    api.restore(file, tmp_path / "back.safetensors")
    back = load_file(tmp_path / "back.safetensors")
    for name, array in load_file(source).items():
        assert np.array_equal(back[name].astype(np.float32), array.astype(np.float32))


def test_what_is_no_weight_of_a_layer_stays_numbers(tmp_path: Path) -> None:
    source = write(tmp_path / "m.safetensors", WAN)
    report = api.quantize(source, tmp_path / "m.gguf", scheme="q8_0", include=["*"])
    kinds = {name: kind.name for name, kind in header_of(tmp_path / "m.gguf").types.items()}
    assert kinds["text_embedding.2.weight"] == "Q8_0"
    assert kinds["head.modulation"] == "F32"
    assert any("takes it in F32 only" in why.reason for job in report.plan.jobs for why in job.left_alone)


def test_the_form_of_diffusers(tmp_path: Path) -> None:
    shapes = {"transformer_blocks.0.attn.norm_added_k.weight": (8,), "x_embedder.weight": (8, 8)}
    with pytest.raises(InputError, match="is a flux with the names of diffusers"):
        api.restore(write(tmp_path / "m.safetensors", shapes), tmp_path / "m.gguf")


def test_a_checkpoint_that_holds_more(tmp_path: Path) -> None:
    shapes = {f"model.diffusion_model.{name}": shape for name, shape in FLUX.items()}
    source = write(tmp_path / "m.safetensors", shapes | {"first_stage_model.conv.weight": (4, 4)})
    with pytest.raises(InputError, match=r"holds 1 tensors beside the diffusion model: 'first_stage_model\.conv"):
        api.restore(source, tmp_path / "m.gguf")
    done = compressor("restore", source, "-o", tmp_path / "m.gguf", "--leave-out", "first_stage_model.*")
    assert done.code == 0
    assert set(header_of(tmp_path / "m.gguf").shapes) == set(shapes)


def test_names_of_no_such_model(tmp_path: Path) -> None:
    looked_for = r"no diffusion model that is known \(aura, .*wan\): there is no 'double_blocks\.0\.img_attn\.proj"
    with pytest.raises(InputError, match=looked_for):
        api.restore(write(tmp_path / "m.safetensors", {"a.weight": (4, 4)}), tmp_path / "m.gguf")


COSMOS = {"blocks.0.mlp.layer1.weight": (64, 32), "blocks.0.adaln_modulation_cross_attn.1.weight": (64, 32)}


@pytest.mark.parametrize("prefix", ["net.", "model."])
def test_what_stands_before_the_names_of_a_saved_model_goes(tmp_path: Path, prefix: str) -> None:
    source, file = write(tmp_path / "m.safetensors", COSMOS, prefix), tmp_path / "m.gguf"
    assert f"it is a cosmos, and keeps its names without '{prefix}'" in api.restore(source, file).plan.notes
    assert set(header_of(file).shapes) == set(COSMOS)
    assert api.compare(source, file).total.error == 0


def test_what_belongs_to_a_training_stays_behind(tmp_path: Path) -> None:
    more = {"blocks.0.mlp._extra_state": np.zeros(0, np.uint8), "accum_iteration": np.zeros(1, np.int64)}
    save_file(load_file(write(tmp_path / "a.safetensors", COSMOS)) | more, tmp_path / "m.safetensors")
    report = api.restore(tmp_path / "m.safetensors", tmp_path / "m.gguf")
    assert any(note.startswith("2 tensors of its training stay behind: 'accum_it") for note in report.plan.notes)
    assert set(header_of(tmp_path / "m.gguf").shapes) == set(COSMOS)


ENDS = {
    "flux": (FLUX, "img_in.weight", "double_blocks.0.img_mlp.0.weight"),
    "cosmos": (COSMOS, "x_embedder.proj.1.weight", "blocks.0.self_attn.q_proj.weight"),
    "sdxl": (UNET, "out.2.weight", "middle_block.1.attn.to_out.2.weight"),
}


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
@pytest.mark.parametrize("kind", ENDS)
def test_the_ends_of_a_model_are_codes_where_they_are_asked_for(tmp_path: Path, kind: str, prefix: str) -> None:
    shapes, end, inner = ENDS[kind]
    source = write(tmp_path / "m.safetensors", shapes | {end: (32, 64), inner: (32, 64)}, prefix)
    report = api.quantize(source, tmp_path / "m.gguf", scheme="q8_0", strict=kind != "sdxl")
    types = header_of(tmp_path / "m.gguf").types
    assert (types[prefix + end].name, types[prefix + inner].name) == ("BF16", "Q8_0")
    (job,) = (one for one in report.plan.jobs if one.spec.name == prefix + end)
    assert [why.reason for why in job.left_alone] == [f"at the ends of a {kind} (--include treats it)"]
    api.quantize(source, tmp_path / "all.gguf", scheme="q8_0", include=["*"])
    assert header_of(tmp_path / "all.gguf").types[prefix + end].name == "Q8_0"


def test_five_axes_as_other_tools_write_them(tmp_path: Path) -> None:
    """ComfyUI-GGUF's fix_5d_tensors.py puts convolutions of videos into files with the axes that they have."""
    gguf, random = gguf_files.gguf_package(), np.random.default_rng(7)
    held = {name: random.normal(size=shape).astype(np.float32) for name, shape in FIVE.items()}
    held["blocks.0.ffn.0.weight"] = random.normal(size=(32, 64)).astype(np.float32)
    writer = gguf.GGUFWriter(tmp_path / "in.gguf", "wan")
    for name, array in held.items():
        writer.add_tensor(name, array)
    for write_part in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        write_part()
    writer.close()
    api.restore(tmp_path / "in.gguf", tmp_path / "back.safetensors")
    back = load_file(tmp_path / "back.safetensors")
    assert all(np.array_equal(back[name], array) for name, array in held.items())
    api.quantize(tmp_path / "in.gguf", tmp_path / "out.gguf", scheme="q8_0")
    found = as_comfyui_loads_it(tmp_path / "out.gguf")[1]
    kind, numbers = found["patch_embedding.weight"]
    assert kind == "F32"
    assert np.array_equal(numbers, held["patch_embedding.weight"])
    assert found["blocks.0.ffn.0.weight"][0] == "Q8_0"


def as_comfyui_loads_it(path: Path) -> tuple[str, dict[str, tuple[str, np.ndarray[Any, Any]]]]:
    """The architecture, and types and numbers of tensors in the shapes that ComfyUI-GGUF gives them (loader.py):
    what the metadata says, else the file's."""
    gguf = gguf_files.gguf_package()
    reader = gguf.GGUFReader(path)
    field, found = reader.get_field("general.architecture"), {}
    assert field.types == [gguf.GGUFValueType.STRING]
    for tensor in reader.tensors:
        said = reader.get_field(f"comfy.gguf.orig_shape.{tensor.name}")
        shape = tuple(int(size) for size in reversed(tensor.shape))
        if said is not None:
            assert said.types == [gguf.GGUFValueType.ARRAY, gguf.GGUFValueType.INT32]
            shape = tuple(int(said.parts[place][0]) for place in said.data)
        numbers = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        found[tensor.name] = (tensor.tensor_type.name, numbers.reshape(shape))
    return bytes(field.parts[field.data[-1]]).decode(), found


WIDE = UNET | {"input_blocks.1.0.in_layers.2.weight": (32, 16, 3, 3), "middle_block.1.proj_in.weight": (96, 160)}
EXPERTS = {
    "caption_projection.0.linear.weight": (8, 64),
    "double_stream_blocks.0.block.ff_i.shared_experts.w3.weight": (8, 64),
    "double_stream_blocks.0.block.ff_i.gate.weight": (4, 64),
}


@pytest.mark.parametrize("shapes", [FLUX, FIVE, WIDE, EXPERTS])
@pytest.mark.parametrize("scheme", [None, "q8_0", "q4_k"])
def test_as_comfyui_loads_it(tmp_path: Path, shapes: dict[str, tuple[int, ...]], scheme: str | None) -> None:
    source, file = write(tmp_path / "m.safetensors", shapes), tmp_path / "m.gguf"
    if scheme is None:
        api.restore(source, file)
    else:
        api.quantize(source, file, scheme=scheme)
    arch, found = as_comfyui_loads_it(file)
    assert arch in ("flux", "wan", "sdxl", "hidream")
    limit = {None: 0, "q8_0": 0.01, "q4_k": 0.1}[scheme]
    api.restore(file, tmp_path / "back.safetensors")
    back = load_file(tmp_path / "back.safetensors")
    for name, array in load_file(source).items():
        kind, numbers = found[name]
        assert numbers.shape == array.shape == back[name].shape
        exact = array.astype(np.float32)
        assert np.linalg.norm(numbers - exact) <= limit * np.linalg.norm(exact)
        assert np.array_equal(numbers, back[name].astype(np.float32))
        no_weight = array.ndim in (1, 5) or not name.endswith(".weight") or "ff_i.gate" in name
        if no_weight or array.size > 1024:
            assert kind == "F32" if no_weight else kind != "F32"
    if scheme == "q4_k" and shapes is WIDE:
        assert (
            found["input_blocks.1.0.in_layers.2.weight"][0] == found["middle_block.1.proj_in.weight"][0] == "Q4_K"
        )
    assert api.compare(source, file).total.error <= limit


def test_fp8(tmp_path: Path) -> None:
    random, source, file = np.random.default_rng(5), tmp_path / "m.safetensors", tmp_path / "m.gguf"
    tensors = {name: random.normal(size=shape).astype(float8_e4m3fn) for name, shape in FLUX.items()}
    save_file(tensors, source)
    api.restore(source, file)
    _, found = as_comfyui_loads_it(file)
    assert {kind for kind, _ in found.values()} == {"F16", "F32"}
    assert all(np.array_equal(found[name][1], one.astype(np.float32)) for name, one in tensors.items())


MIXED = FLUX | {
    "double_blocks.0.img_attn.qkv.weight": (32, 256),
    "double_blocks.0.img_mlp.2.weight": (32, 256),
    "double_blocks.0.conv.weight": (8, 8, 4, 8),
    "final_layer.linear.weight": (32, 256),
    "blocks.0.ffn.2.weight": (32, 256),
    **{f"blocks.{n}.cross_attn.v.weight": (32, 256) for n in range(5)},
}


@pytest.mark.parametrize(
    ("preset", "qkv", "down", "values", "most"),
    [
        ("q4_k_m", "Q5_K", "Q6_K", ["Q6_K"] * 5, "Q4_K"),
        ("q4_k_s", "Q4_K", "Q5_K", [*["Q5_K"] * 4, "Q4_K"], "Q4_K"),
        ("q3_k_m", "Q4_K", "Q4_K", ["Q5_K", "Q5_K", *["Q4_K"] * 3], "Q3_K"),
        ("q2_k", "Q2_K", "Q2_K", ["Q3_K"] * 5, "Q2_K"),
        ("q5_0", "Q5_0", "Q5_1", ["Q5_0"] * 5, "Q5_0"),
    ],
)
def test_presets_mix_types_as_comfyui_gguf_does(
    tmp_path: Path, preset: str, qkv: str, down: str, values: list[str], most: str
) -> None:
    source, file = write(tmp_path / "m.safetensors", MIXED), tmp_path / "m.gguf"
    api.quantize(source, file, preset=preset)
    kinds = {name: kind.name for name, kind in header_of(file).types.items()}
    assert kinds["double_blocks.0.img_attn.qkv.weight"] == qkv
    assert kinds["blocks.0.ffn.2.weight"] == down
    assert [kinds[f"blocks.{n}.cross_attn.v.weight"] for n in range(5)] == values
    assert kinds["double_blocks.0.img_mlp.2.weight"] == most
    assert kinds["final_layer.linear.weight"] == kinds["double_blocks.0.conv.weight"] == "BF16"
    assert api.compare(source, file).total.error <= 0.3
    restored = tmp_path / "dense.gguf"
    api.restore(source, restored)
    api.quantize(restored, tmp_path / "again.gguf", preset=preset)
    assert {n: k.name for n, k in header_of(tmp_path / "again.gguf").types.items()} == kinds
