"""MLX reads what we write and we read what it writes, bit for bit; mlx-lm loads the folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

mx = pytest.importorskip("mlx.core", reason="needs mlx: make test-interop")
pytest.importorskip("mlx_lm", reason="needs mlx-lm: make test-interop")

import mlx.nn as nn
from mlx_lm import load as load_with_tokenizer
from mlx_lm.utils import load_model, quantize_model, save_config, save_model

import compressor

pytestmark = pytest.mark.interop

BITS, GROUPS = (2, 3, 4, 5, 6, 8), (32, 64, 128)
DTYPES = {"BF16": mx.bfloat16, "F16": mx.float16, "F32": mx.float32}
SAMPLES = Path(__file__).parents[2] / "sample_weights"
TOKENS = mx.array([[1, 5, 9, 2, 77, 31, 8]])


def matrix(rows: int, columns: int, dtype: Any, seed: int) -> Any:
    """Random weights off centre, with rows that are zero, pruned, constant, tiny, huge, or hold an outlier."""
    random = np.random.default_rng(seed)
    weights = random.standard_normal((rows, columns)).astype(np.float32) * 0.02 + (seed % 3 - 1) * 0.01
    weights[1], weights[2], weights[3] = 0.0, 0.5, -0.25
    weights[4] *= 1e-5
    weights[5, columns // 2] = 3.0
    weights[6] = np.abs(weights[6])
    weights[7, ::2] = -0.0
    weights[8:12] = np.where(random.random((4, columns)) < 0.5, 0, weights[8:12])
    weights[12] *= 3e5 if dtype == mx.float16 else 1e36
    weights[13] *= 1e-6 if dtype == mx.float16 else 1e-37
    return mx.array(weights).astype(dtype)


def tensors(dtype: Any) -> dict[str, Any]:
    found = {f"model.layers.{n}.proj.weight": matrix(n + 16, 384, dtype, n) for n in range(3)}
    found["model.layers.0.proj.bias"] = mx.arange(16).astype(dtype)
    found["lm_head.weight"] = matrix(20, 128, dtype, 7)
    return found


def folder(path: Path, content: Mapping[str, Any], config: Mapping[str, Any] | None = None) -> Path:
    path.mkdir()
    mx.save_safetensors(str(path / "model.safetensors"), dict(content), metadata={"format": "pt"})
    (path / "config.json").write_text(json.dumps({"model_type": "test", **(config or {})}))
    return path


def load(path: Path) -> dict[str, Any]:
    return dict(mx.load(str(path / "model.safetensors")))


def config_of(path: Path) -> dict[str, Any]:
    return json.loads((path / "config.json").read_text())


def bits_of(tensor: Any) -> bytes:
    kind = {2: mx.uint16, 4: mx.uint32}[tensor.itemsize]
    return np.array(mx.contiguous(tensor).view(kind)).tobytes()


def dequantized(content: Mapping[str, Any], quantization: Mapping[str, Any]) -> dict[str, Any]:
    """Every tensor of a folder as MLX reads it."""
    found = {}
    for name, tensor in content.items():
        module, _, last = name.rpartition(".")
        if f"{module}.scales" not in content or last not in ("weight", "scales", "biases"):
            found[name] = tensor
        elif last == "weight":
            own = quantization.get(module, quantization)
            beside = (content[f"{module}.scales"], content[f"{module}.biases"])
            found[name] = mx.dequantize(tensor, *beside, group_size=own["group_size"], bits=own["bits"])
    return found


def assert_same(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    assert set(found) == set(wanted)
    for name, tensor in wanted.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape), name
        assert bits_of(found[name]) == bits_of(tensor), name


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("bits", "group"), list(product(BITS, GROUPS)))
def test_mlx_dequantizes_what_we_wrote(tmp_path: Path, bits: int, group: int, symmetric: bool, dtype: str) -> None:
    content = tensors(DTYPES[dtype])
    source = folder(tmp_path / "source", content)
    options = {"bits": bits, "group_size": group, "symmetric": symmetric, "layout": "mlx"}
    compressor.quantize(source, tmp_path / "packed", **options)
    compressor.restore(tmp_path / "packed", tmp_path / "dense")
    packed, restored, config = load(tmp_path / "packed"), load(tmp_path / "dense"), config_of(tmp_path / "packed")
    assert config["quantization"] == {"group_size": group, "bits": bits, "mode": "affine"}
    assert config["quantization_config"] == config["quantization"]
    assert packed["model.layers.0.proj.weight"].dtype == mx.uint32
    assert packed["model.layers.0.proj.scales"].dtype == DTYPES[dtype]
    assert_same(dequantized(packed, config["quantization"]), restored)
    for name, tensor in content.items():
        assert mx.all(mx.where(tensor == 0, restored[name] == 0, True)), f"{name}: a zero was lost"


@pytest.mark.parametrize("dtype", ["BF16", "F16"])
@pytest.mark.parametrize("bits", BITS)
def test_a_zero_stays_zero_however_the_sum_is_computed(tmp_path: Path, bits: int, dtype: str) -> None:
    """Kernels that multiply and add at once, in more digits, see no crumb either."""
    content = tensors(DTYPES[dtype])
    options = {"bits": bits, "group_size": 64, "symmetric": False, "layout": "mlx"}
    compressor.quantize(folder(tmp_path / "source", content), tmp_path / "packed", **options)
    packed = load(tmp_path / "packed")
    for name, tensor in content.items():
        module = name.removesuffix(".weight")
        if f"{module}.scales" in packed:
            wide = [packed[f"{module}.{part}"].astype(mx.float32) for part in ("scales", "biases")]
            exact = mx.dequantize(packed[name], *wide, group_size=64, bits=bits)
            assert mx.all(mx.where(tensor == 0, exact == 0, True)), name


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("bits", "group"), list(product((1, *BITS), GROUPS)))
def test_we_restore_what_mlx_wrote(tmp_path: Path, bits: int, group: int, dtype: str) -> None:
    content = {}
    for name, tensor in tensors(DTYPES[dtype]).items():
        module, _, last = name.rpartition(".")
        if last == "weight" and "layers" in name:
            made = mx.quantize(tensor[:12], group_size=group, bits=bits)
            content |= zip((name, f"{module}.scales", f"{module}.biases"), made, strict=True)
        else:
            content[name] = tensor
    quantization = {"group_size": group, "bits": bits}
    theirs = folder(tmp_path / "theirs", content, {"quantization": quantization})
    compressor.restore(theirs, tmp_path / "dense")
    assert_same(load(tmp_path / "dense"), dequantized(content, quantization))
    assert not {"quantization", "quantization_config"} & set(config_of(tmp_path / "dense"))


@pytest.mark.parametrize(("mode", "group", "bits"), [("mxfp4", 32, 4), ("mxfp8", 32, 8), ("nvfp4", 16, 4)])
def test_we_restore_the_tiny_floats_that_mlx_wrote(tmp_path: Path, mode: str, group: int, bits: int) -> None:
    weight = matrix(40, 256, mx.bfloat16, 4)[:12]
    words, scales = mx.quantize(weight, group_size=group, bits=bits, mode=mode)
    content = {"a.proj.weight": words, "a.proj.scales": scales}
    quantization = {"group_size": group, "bits": bits, "mode": mode}
    theirs = folder(tmp_path / "theirs", content, {"quantization": quantization})
    compressor.restore(theirs, tmp_path / "dense")
    wanted = mx.dequantize(words, scales, group_size=group, bits=bits, mode=mode)
    assert wanted.dtype == mx.bfloat16
    assert_same(load(tmp_path / "dense"), {"a.proj.weight": wanted})


def test_stacked_experts_of_mlx_are_restored(tmp_path: Path) -> None:
    experts = mx.random.normal((4, 24, 128), dtype=mx.bfloat16)
    made = mx.quantize(experts, group_size=64, bits=6)
    content = dict(zip(("mlp.switch.weight", "mlp.switch.scales", "mlp.switch.biases"), made, strict=True))
    quantization = {"group_size": 64, "bits": 4, "mlp.switch": {"group_size": 64, "bits": 6}}
    theirs = folder(tmp_path / "theirs", content, {"quantization": quantization})
    compressor.restore(theirs, tmp_path / "dense")
    assert_same(load(tmp_path / "dense"), dequantized(content, quantization))


# ---- whole models --------------------------------------------------------------------------------------


def logits(path: Path) -> Any:
    model, _ = load_model(path)
    return model(TOKENS).astype(mx.float32)


def closeness(found: Any, wanted: Any) -> float:
    return float(mx.max(mx.abs(found - wanted)) / mx.max(mx.abs(wanted)))


@pytest.fixture(scope="module")
def wide_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample in float32, where products of activations lose nothing to speak of."""
    path = tmp_path_factory.mktemp("models") / "wide"
    content: dict[str, Any] = {}
    for shard in sorted((SAMPLES / "tiny-llama").glob("*.safetensors")):
        content |= mx.load(str(shard))
    config = json.loads((SAMPLES / "tiny-llama" / "config.json").read_text())
    return folder(path, {name: tensor.astype(mx.float32) for name, tensor in content.items()}, config)


@pytest.mark.parametrize("bits", BITS)
def test_mlx_lm_loads_the_folder(tmp_path: Path, wide_llama: Path, bits: int) -> None:
    compressor.quantize(wide_llama, tmp_path / "packed", bits=bits, group_size=64, layout="mlx")
    compressor.restore(tmp_path / "packed", tmp_path / "dense")
    model, _ = load_model(tmp_path / "packed")
    layers = [module for _, module in model.named_modules() if isinstance(module, nn.QuantizedLinear)]
    assert layers
    assert {layer.bits for layer in layers} == {bits}
    assert closeness(logits(tmp_path / "packed"), logits(tmp_path / "dense")) <= 1e-4


def test_mlx_lm_loads_what_a_budget_chose(tmp_path: Path, wide_llama: Path) -> None:
    report = compressor.quantize(wide_llama, tmp_path / "packed", target_bits=5.3, layout="mlx")
    compressor.restore(tmp_path / "packed", tmp_path / "dense")
    model, _ = load_model(tmp_path / "packed")
    widths = {module.bits for _, module in model.named_modules() if isinstance(module, nn.QuantizedLinear)}
    assert len(widths) > 1
    assert report.allocation is not None
    assert widths == {int(row.choice[3]) for row in report.allocation.chosen if row.choice != "dense"}
    assert closeness(logits(tmp_path / "packed"), logits(tmp_path / "dense")) <= 1e-4


def test_mlx_lm_loads_mixed_widths_with_embeddings(tmp_path: Path, tiny_llama: Path) -> None:
    rules = [("*.v_proj.*", {"bits": 8}), ("*.0.mlp.down_proj.*", {"bits": 6, "group_size": 32})]
    options = {"bits": 4, "group_size": 64, "layout": "mlx", "include": ["*proj.weight", "*embed_tokens.weight"]}
    compressor.quantize(tiny_llama, tmp_path / "packed", rules=rules, **options)
    compressor.restore(tmp_path / "packed", tmp_path / "dense")
    model, config = load_model(tmp_path / "packed")
    widths = {name: module.bits for name, module in model.named_modules() if hasattr(module, "bits")}
    assert widths["model.layers.0.self_attn.v_proj"] == 8
    assert widths["model.layers.0.mlp.down_proj"] == 6
    assert widths["model.embed_tokens"] == widths["model.layers.1.mlp.down_proj"] == 4
    assert config["quantization"]["bits"] == 4
    # in bfloat16, whose products MLX keeps in more digits than its dequantize does
    assert closeness(logits(tmp_path / "packed"), logits(tmp_path / "dense")) <= 0.04


def test_mlx_lm_loads_model_and_tokenizer(tmp_path: Path, tiny_llama: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers", reason="needs tokenizers: make test-interop")
    compressor.quantize(tiny_llama, tmp_path / "packed", bits=4, group_size=64, layout="mlx")
    words = {"<s>": 0, "</s>": 1, "a": 2, "b": 3}
    tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="a")).save(  # noqa: S106 - no password
        str(tmp_path / "packed" / "tokenizer.json")
    )
    (tmp_path / "packed" / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>"})
    )
    model, tokenizer = load_with_tokenizer(str(tmp_path / "packed"))
    assert tokenizer.decode([3])
    assert model(TOKENS).shape[:2] == TOKENS.shape


def test_we_restore_a_model_that_mlx_lm_quantized(tmp_path: Path, tiny_llama: Path) -> None:
    model, config = load_model(tiny_llama)
    model, config = quantize_model(
        model,
        config,
        64,
        4,
        quant_predicate=lambda path, _: {"group_size": 32, "bits": 8} if "v_proj" in path else "norm" not in path,
    )
    save_model(tmp_path / "theirs", model)
    save_config(config, tmp_path / "theirs" / "config.json")
    compressor.restore(tmp_path / "theirs", tmp_path / "dense")
    quantized, dense = load_model(tmp_path / "theirs")[0], load_model(tmp_path / "dense")[0]
    weights = {name: module.weight for name, module in dense.named_modules() if isinstance(module, nn.Linear)}
    checked = 0
    for name, module in quantized.named_modules():
        if isinstance(module, nn.QuantizedLinear):
            own = {"group_size": module.group_size, "bits": module.bits}
            wanted = mx.dequantize(module.weight, module.scales, module.biases, **own)
            assert bits_of(weights[name]) == bits_of(wanted), name
            checked += 1
    assert checked >= 14
