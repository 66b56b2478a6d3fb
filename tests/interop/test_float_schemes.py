"""The formats of small floats in the hands of the libraries that define them, and theirs in ours.

compressed-tensors gives 4-bit floats and microscaled ones in bfloat16 whatever the model's dtype; so what we
restore in another dtype is compared after the same rounding.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs torch: make test-interop")
pytest.importorskip("compressed_tensors", minversion="0.20", reason="needs compressed-tensors: make test-interop")
transformers = pytest.importorskip("transformers", reason="needs transformers: make test-interop")

from compressed_tensors.compressors import ModelCompressor, decompress_module
from compressed_tensors.entrypoints.convert.converters.modelopt_nvfp4 import ModelOptNvfp4Converter
from compressed_tensors.quantization import (
    QuantizationConfig,
    apply_quantization_config,
    preset_name_to_scheme,
)
from compressed_tensors.quantization.utils import calculate_qparams, generate_gparam
from test_compressed_tensors import (
    DTYPES,
    assert_same,
    bits_of,
    declared,
    decompressed,
    folder,
    linears,
    load,
    matrix,
    written_by_library,
)
from transformers import AutoModel, AutoModelForCausalLM, CompressedTensorsConfig

import compressor
from compressor.core.errors import InputError

pytestmark = pytest.mark.interop

SCHEMES: dict[str, dict[str, Any]] = {
    "fp8-channel": {"scheme": "fp8"},
    "fp8-tensor": {"scheme": "fp8", "granularity": "tensor"},
    "fp8-block": {"scheme": "fp8", "granularity": "block"},
    "fp8-channel-weights": {"scheme": "fp8", "layout": "naive-quantized"},
    "fp8-absmax": {"scheme": "fp8", "method": "absmax"},
    "nvfp4": {"scheme": "nvfp4"},
    "nvfp4-absmax": {"scheme": "nvfp4", "method": "absmax"},
    "mxfp4": {"scheme": "mxfp4"},
    "mxfp8": {"scheme": "mxfp8"},
}
FORMATS = {
    "fp8": "float-quantized",
    "nvfp4": "nvfp4-pack-quantized",
    "mxfp4": "mxfp4-pack-quantized",
    "mxfp8": "mxfp8-quantized",
}
SHAPES = [(9, 128), (16, 256), (33, 384), (130, 256)]
RAGGED = [(5, 100), (140, 130)]  # for fp8, which has no blocks that must divide a row


def tensors(dtype: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    shapes = SHAPES + RAGGED if options["scheme"] == "fp8" else SHAPES
    found = {f"model.layers.{n}.proj.weight": matrix(*shape, dtype, n) for n, shape in enumerate(shapes)}
    for times, part in enumerate("qkv", 2):
        found[f"model.layers.0.self_attn.{part}_proj.weight"] = matrix(9, 128, dtype, 70 + times) * times
    found["model.layers.0.proj.bias"] = matrix(1, 9, dtype, 90)[0]
    found["model.embed_tokens.weight"] = matrix(12, 32, dtype, 91)
    return found


def as_the_library_gives(content: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    if options["scheme"] == "fp8":
        return dict(content)
    return {n: t.bfloat16().to(t.dtype) if n.endswith("proj.weight") else t for n, t in content.items()}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("options", SCHEMES.values(), ids=SCHEMES)
def test_the_library_decompresses_what_we_wrote(tmp_path: Path, dtype: str, options: dict[str, Any]) -> None:
    content = tensors(DTYPES[dtype], options)
    source = folder(tmp_path / "source", content)
    compressor.quantize(source, tmp_path / "packed", **options)
    compressor.restore(tmp_path / "packed", tmp_path / "dense")
    restored = load(tmp_path / "dense")
    assert {n: (t.dtype, t.shape) for n, t in restored.items()} == {
        n: (t.dtype, t.shape) for n, t in content.items()
    }
    packed = load(tmp_path / "packed")
    assert sum(name.endswith("proj.weight_scale") for name in packed) == sum("proj.weight" in n for n in content)
    assert_same(decompressed(tmp_path / "packed", DTYPES[dtype]), as_the_library_gives(restored, options))
    for name in content:
        if "proj.weight" in name:
            assert 0 < (restored[name] - content[name]).float().norm() < 0.2 * content[name].float().norm()


def test_fused_parts_share_a_global_scale(tmp_path: Path) -> None:
    source = folder(tmp_path / "source", tensors(torch.bfloat16, SCHEMES["nvfp4"]))
    compressor.quantize(source, tmp_path / "packed", scheme="nvfp4")
    packed = load(tmp_path / "packed")
    shared = {float(packed[f"model.layers.0.self_attn.{p}_proj.weight_global_scale"]) for p in "qkv"}
    others = {float(packed[f"model.layers.{n}.proj.weight_global_scale"]) for n in range(3)}
    assert len(shared) == 1
    assert others
    assert shared.pop() == pytest.approx(448 * 6 / 12)  # v's largest is 4 · 3
    assert min(others) > 448 * 6 / 12


@pytest.mark.parametrize("options", SCHEMES.values(), ids=SCHEMES)
def test_the_config_is_what_the_preset_says(tmp_path: Path, options: dict[str, Any]) -> None:
    shapes = {"a.proj.weight": matrix(16, 128, torch.bfloat16, 1)}
    compressor.quantize(folder(tmp_path / "source", shapes), tmp_path / "packed", **options)
    raw = declared(tmp_path / "packed")
    config = QuantizationConfig.model_validate(raw)
    (group,) = config.config_groups.values()
    layout = options.get("layout", FORMATS[options["scheme"]])
    assert raw["format"] == group.format == layout
    presets = {"nvfp4": "NVFP4A16", "mxfp4": "MXFP4A16", "mxfp8": "MXFP8A16", "fp8": "FP8_DYNAMIC"}
    name = "FP8_BLOCK" if options.get("granularity") == "block" else presets[options["scheme"]]
    if options.get("granularity") == "tensor" or "layout" in options:
        return  # no preset says that
    wanted = preset_name_to_scheme(name, ["Linear"])
    for side in ("weights", "input_activations"):
        ours, theirs = getattr(group, side), getattr(wanted, side)
        shown = [
            None if args is None else args.model_dump(exclude={"zp_dtype", "observer"}) for args in (ours, theirs)
        ]
        assert shown[0] == shown[1]


def test_mixed_formats(tmp_path: Path) -> None:
    source = folder(tmp_path / "source", tensors(torch.bfloat16, SCHEMES["nvfp4"]))
    rules = [
        ("*.0.proj.*", {"scheme": "fp8"}),
        ("*.1.proj.*", {"scheme": "mxfp4"}),
        ("*.2.proj.*", {"scheme": "int", "bits": 4, "group_size": 32}),
        ("*.3.proj.*", {"scheme": "mxfp8"}),
    ]
    compressor.quantize(source, tmp_path / "packed", scheme="nvfp4", rules=rules)
    compressor.restore(tmp_path / "packed", tmp_path / "dense")
    assert declared(tmp_path / "packed")["format"] == "mixed-precision"
    assert len(declared(tmp_path / "packed")["config_groups"]) == 5
    assert_same(decompressed(tmp_path / "packed", torch.bfloat16), load(tmp_path / "dense"))
    forgotten(tmp_path / "packed")
    compressor.restore(tmp_path / "packed", tmp_path / "again")
    assert_same(load(tmp_path / "again"), load(tmp_path / "dense"))


def forgotten(path: Path) -> None:
    """Take our own record out of a folder, so that only its config tells how it is stored."""
    import safetensors.torch

    for shard in path.glob("*.safetensors"):
        safetensors.torch.save_file(safetensors.torch.load_file(shard), shard, metadata={"format": "pt"})


@pytest.mark.parametrize("options", SCHEMES.values(), ids=SCHEMES)
def test_folders_are_restored_by_their_config_alone(tmp_path: Path, options: dict[str, Any]) -> None:
    source = folder(tmp_path / "source", tensors(torch.bfloat16, options))
    compressor.quantize(source, tmp_path / "packed", **options)
    compressor.restore(tmp_path / "packed", tmp_path / "dense")
    forgotten(tmp_path / "packed")
    compressor.restore(tmp_path / "packed", tmp_path / "again")
    assert_same(load(tmp_path / "again"), load(tmp_path / "dense"))


# ---- the library's, read by us -------------------------------------------------------------------------


def compressed_by_library(model: Any, groups: Mapping[str, Any], ignore: list[str]) -> Any:
    """compressed-tensors' own way from a model of Linear modules to its compressed state; scales by its rules."""
    config = QuantizationConfig(config_groups=dict(groups), ignore=ignore)
    apply_quantization_config(model, config, show_progress=False)
    for module in model.modules():
        scheme = getattr(module, "quantization_scheme", None)
        if scheme is None or scheme.weights is None:
            continue
        args, weight = scheme.weights, module.weight.data
        if args.strategy in ("group", "tensor_group"):
            units = weight.unflatten(-1, (-1, args.group_size))
        elif args.strategy == "block":
            high, wide = args.block_structure
            padded = torch.nn.functional.pad(weight, (0, -weight.shape[1] % wide, 0, -weight.shape[0] % high))
            units = padded.unflatten(0, (-1, high)).unflatten(-1, (-1, wide)).transpose(1, 2).flatten(2)
        else:
            units = weight.reshape(1, -1) if args.strategy == "tensor" else weight.unsqueeze(1)
        given = {}
        if args.strategy == "tensor_group":
            given["global_scale"] = generate_gparam(weight.min(), weight.max())
            module.weight_global_scale.data.copy_(given["global_scale"])
        scale, _ = calculate_qparams(units.amin(-1), units.amax(-1), args, **given)
        module.weight_scale.data.copy_(scale.reshape(module.weight_scale.shape))
        for name in ("input_scale", "input_global_scale"):
            if hasattr(module, name):
                getattr(module, name).data.fill_(0.5)
    made = ModelCompressor.from_pretrained_model(model)
    made.compress_model(model)
    return made


PRESETS = ("FP8", "FP8_DYNAMIC", "FP8_BLOCK", "NVFP4A16", "NVFP4", "MXFP4A16", "MXFP4", "MXFP8A16", "MXFP8")


def group_of(preset: str, **more: Any) -> Any:
    return {
        "targets": ["Linear"],
        **preset_name_to_scheme(preset, ["Linear"]).model_dump(exclude={"targets"}),
        **more,
    }


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("preset", [*PRESETS, "FP8_DYNAMIC-weights", "FP8-weights"])
def test_we_restore_what_the_library_wrote(tmp_path: Path, preset: str, dtype: str) -> None:
    name, _, weights = preset.partition("-")
    content = {n: t for n, t in tensors(DTYPES[dtype], {"scheme": name.lower()}).items() if "bias" not in n}
    model = linears(content)
    group = group_of(name, **({"input_activations": None} if weights else {}))
    library = compressed_by_library(model, {"group_0": group}, ["model.embed_tokens"])
    theirs = written_by_library(tmp_path / "theirs", model, library)
    if weights:
        assert declared(theirs)["format"] == "naive-quantized"
    extra = {name for name in load(theirs) if "input_" in name}
    assert bool(extra) == (preset in ("FP8", "NVFP4"))
    report = compressor.restore(theirs, tmp_path / "dense")
    assert any("dropped" in note for note in report.plan.notes) == bool(extra)
    library.decompress_model(model)
    wanted = {n: t for n, t in model.state_dict().items() if n.endswith(".weight")}
    assert_same(load(tmp_path / "dense"), wanted)
    assert "quantization_config" not in json.loads((tmp_path / "dense" / "config.json").read_text())


def test_the_dtype_of_the_model_is_what_its_config_says(tmp_path: Path) -> None:
    model = linears({"a.proj.weight": matrix(16, 128, torch.float32, 1)})
    library = compressed_by_library(model, {"group_0": group_of("NVFP4A16")}, [])
    theirs = written_by_library(tmp_path / "theirs", model, library)
    config = json.loads((theirs / "config.json").read_text())
    (theirs / "config.json").write_text(json.dumps({**config, "torch_dtype": "float32"}))
    compressor.restore(theirs, tmp_path / "dense")
    (found,) = load(tmp_path / "dense").values()
    assert found.dtype == torch.float32
    library.decompress_model(model)
    assert torch.equal(found.bfloat16(), model.state_dict()["a.proj.weight"].bfloat16())


# ---- transformers --------------------------------------------------------------------------------------


TOKENS = torch.arange(32).reshape(2, 16) * 7 % 256


def loaded(path: Path, kind: Any = AutoModelForCausalLM, **options: Any) -> Any:
    model, info = kind.from_pretrained(path, output_loading_info=True, **options)
    problems = {key for keys in info.values() for key in (keys if isinstance(keys, set) else [])}
    assert not problems - ({"lm_head.weight"} if kind is AutoModel else set()), sorted(problems)[:8]
    return model.eval()


def weights_of(model: Any) -> dict[str, Any]:
    for module in model.modules():
        if getattr(module, "quantization_status", None) == "compressed":
            decompress_module(module)
    return {name: t for name, t in model.state_dict().items() if name.endswith(".weight")}


def outputs(model: Any) -> Any:
    with torch.no_grad():
        return model(TOKENS).logits.float()


@pytest.mark.parametrize("options", SCHEMES.values(), ids=SCHEMES)
def test_a_quantized_model_is_the_restored_one(tmp_path: Path, tiny_llama: Path, options: dict[str, Any]) -> None:
    """Where activations are rounded as well, outputs differ by that, and only the weights are the same."""
    compressor.quantize(tiny_llama, tmp_path / "packed", **options)
    compressor.restore(tmp_path / "packed", tmp_path / "dense")
    restored = loaded(tmp_path / "dense")
    found, wanted = outputs(loaded(tmp_path / "packed")), outputs(restored)
    if options["scheme"] == "fp8" and "layout" not in options:
        torch.testing.assert_close(found, wanted, rtol=0, atol=0.15 * float(wanted.abs().max()))
    else:
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    assert_same(weights_of(loaded(tmp_path / "packed")), weights_of(restored))
    while_loading = {"quantization_config": CompressedTensorsConfig(dequantize=True)}
    assert_same(weights_of(loaded(tmp_path / "packed", **while_loading)), weights_of(restored))
    base = loaded(tmp_path / "packed", AutoModel)
    assert_same(weights_of(base), weights_of(loaded(tmp_path / "dense", AutoModel)))


def test_the_parts_of_a_layer_share_their_scale_across_shards(tmp_path: Path, tiny_llama: Path) -> None:
    compressor.quantize(tiny_llama, tmp_path / "packed", scheme="nvfp4")
    found: dict[str, Any] = {}
    for shard in (tmp_path / "packed").glob("*.safetensors"):
        import safetensors.torch

        found |= safetensors.torch.load_file(shard)
    for layer in range(2):
        for parts in (
            ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
            ("mlp.gate_proj", "mlp.up_proj"),
        ):
            scales = {float(found[f"model.layers.{layer}.{part}.weight_global_scale"]) for part in parts}
            assert len(scales) == 1


# ---- FP8 as Hugging Face and DeepSeek have it ----------------------------------------------------------


def blockwise(weight: Any, block: int) -> tuple[Any, Any]:
    """E4M3 codes and the multiplier of every block, by the definition and not by the package's code."""
    rows, columns = weight.shape
    scales = torch.empty(-(-rows // block), -(-columns // block))
    codes = torch.empty(weight.shape, dtype=torch.float8_e4m3fn)
    for i in range(scales.shape[0]):
        for j in range(scales.shape[1]):
            place = (slice(i * block, (i + 1) * block), slice(j * block, (j + 1) * block))
            scales[i, j] = weight[place].float().abs().max() / 448
            codes[place] = (weight[place].float() / scales[i, j]).clamp(-448, 448).to(torch.float8_e4m3fn)
    return codes, scales


def deepseek(path: Path, source: Path) -> Path:
    """tiny-llama in FP8 blocks, each scale in the shard that its weight is not in."""
    import safetensors.torch

    path.mkdir()
    shards = sorted(source.glob("*.safetensors"))
    content: dict[str, dict[str, Any]] = {shard.name: {} for shard in shards}
    for shard in shards:
        (other,) = [name for name in content if name != shard.name]
        for name, tensor in safetensors.torch.load_file(shard).items():
            if name.endswith("_proj.weight"):
                codes, scales = blockwise(tensor, 128)
                content[shard.name][name], content[other][f"{name}_scale_inv"] = codes, scales
            else:
                content[shard.name][name] = tensor
    for shard_name, held in content.items():
        safetensors.torch.save_file(held, path / shard_name, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": {n: shard for shard, held in content.items() for n in held}}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    config = json.loads((source / "config.json").read_text())
    declared = {
        "quant_method": "fp8",
        "weight_block_size": [128, 128],
        "activation_scheme": "dynamic",
        "fmt": "e4m3",
    }
    (path / "config.json").write_text(json.dumps({**config, "quantization_config": declared}))
    return path


def test_a_deepseek_folder_is_what_transformers_makes_of_it(tmp_path: Path, tiny_llama: Path) -> None:
    pytest.importorskip("accelerate", reason="transformers loads FP8 with accelerate only")
    source = deepseek(tmp_path / "source", tiny_llama)
    compressor.restore(source, tmp_path / "dense")
    assert not any(
        "scale" in name for shard in (tmp_path / "dense").glob("*.safetensors") for name in names_in(shard)
    )
    theirs = loaded(source)  # on a processor it dequantizes while loading
    assert_same(weights_of(theirs), weights_of(loaded(tmp_path / "dense")))


def names_in(shard: Path) -> list[str]:
    import safetensors

    with safetensors.safe_open(shard, "pt") as opened:
        return list(opened.keys())


def test_ragged_blocks_of_a_deepseek_folder(tmp_path: Path) -> None:
    from compressed_tensors.entrypoints.convert.converters.fp8block_dequantizer import FP8BlockDequantizer

    weight = matrix(140, 300, torch.bfloat16, 3)
    codes, scales = blockwise(weight, 128)
    content = {"layer.weight": codes, "layer.weight_scale_inv": scales}
    config = {"dtype": "bfloat16", "quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}
    source = folder(tmp_path / "source", content, config)
    compressor.restore(source, tmp_path / "dense")
    assert_same(load(tmp_path / "dense"), FP8BlockDequantizer().process(dict(content)))


# ---- ModelOpt ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("beside", [True, False], ids=["hf_quant_config", "config"])
def test_a_modelopt_folder_is_what_the_library_makes_of_it(tmp_path: Path, beside: bool) -> None:
    """Made from ours by NVIDIA's names and conventions; the library's converter leads back to its own."""
    weights = {f"layers.{n}.proj.weight": matrix(24, 128, torch.bfloat16, n) for n in range(3)}
    compressor.quantize(folder(tmp_path / "dense", weights), tmp_path / "ct", scheme="nvfp4")
    ct = load(tmp_path / "ct")
    content: dict[str, Any] = {"norm.weight": torch.ones(8, dtype=torch.bfloat16)}
    for name in weights:
        content[name] = ct[f"{name}_packed"]
        content[f"{name}_scale"] = ct[f"{name}_scale"]
        content[f"{name}_scale_2"] = (1 / ct[f"{name}_global_scale"]).reshape(())
        content[f"{name.removesuffix('weight')}input_scale"] = torch.tensor(0.01)
        content[f"{name.removesuffix('weight')}k_scale"] = torch.tensor(1.0)
    said = {"quant_algo": "NVFP4", "kv_cache_quant_algo": "FP8", "group_size": 16, "exclude_modules": ["lm_head"]}
    config = {} if beside else {"quantization_config": {"quant_method": "modelopt", **said}}
    source = folder(tmp_path / "source", content, {"torch_dtype": "bfloat16", **config})
    if beside:
        record = {"producer": {"name": "modelopt", "version": "0.29"}, "quantization": said}
        (source / "hf_quant_config.json").write_text(json.dumps(record))
    compressor.restore(source, tmp_path / "restored")
    found = load(tmp_path / "restored")
    assert set(found) == {*weights, "norm.weight"}
    assert not (tmp_path / "restored" / "hf_quant_config.json").exists()
    converted = ModelOptNvfp4Converter(targets=["re:.*proj$"]).process(
        {name: tensor.reshape(1) if tensor.ndim == 0 else tensor for name, tensor in content.items()}
    )
    assert all(bits_of(converted[f"{n}_packed"]) == bits_of(ct[f"{n}_packed"]) for n in weights)
    packed = {n: t for n, t in converted.items() if not n.endswith(("input_global_scale", "k_scale"))}
    ct_config = {"quantization_config": declared(tmp_path / "ct")}
    library = decompressed(folder(tmp_path / "back", packed, ct_config), torch.bfloat16)
    for name in weights:  # s · (1/g) and s / g are not always the same float32
        torch.testing.assert_close(found[name], library[name], rtol=2**-7, atol=0)
        assert (found[name] == library[name]).float().mean() > 0.99


def test_scales_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    compressor.quantize(
        folder(tmp_path / "dense", {"a.proj.weight": matrix(16, 128, torch.bfloat16, 1)}),
        tmp_path / "p",
        scheme="nvfp4",
    )
    content, config = load(tmp_path / "p"), {"quantization_config": declared(tmp_path / "p")}
    for name, value in (
        ("global_scale", torch.tensor([float("nan")])),
        ("global_scale", torch.tensor([float("inf")])),
        ("scale", torch.full((16, 8), float("nan")).to(torch.float8_e4m3fn)),
    ):
        broken = {**content, f"a.proj.weight_{name}": value}
        source = folder(tmp_path / f"broken-{name}-{value.reshape(-1)[0]}", broken, config)
        with pytest.raises(InputError, match=r"a\.proj\.weight"):
            compressor.restore(source, tmp_path / "out")
        assert not (tmp_path / "out").exists()
