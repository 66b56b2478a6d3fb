"""Activation-aware scales: the model's products stay, outputs lose less, and what cannot be scaled is said."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from support import archives
from support.console import compressor as command
from support.laws import run
from support.tiny_llama import ATTENTION, CONFIG, GROUPS, HEADS, HIDDEN, LAYERS, MLP, WIDTH, folder, llama

import compressor
from compressor.api import run_recipe
from compressor.architectures.families import FAMILIES
from compressor.architectures.recognise import lines, recognise
from compressor.calibration.fingerprint import fingerprint
from compressor.calibration.statistics import write_statistics
from compressor.checkpoint.checkpoint import Checkpoint, open_checkpoint
from compressor.checkpoint.rows import read_whole
from compressor.core.errors import InputError, UsageError
from compressor.core.layer_inputs import Gather, Layer
from compressor.core.tensor import TensorSpec
from compressor.methods.quantize.int import Int
from compressor.recipe.model import Recipe
from compressor.recipe.stages import make_stage
from compressor.surgery.scale_folding import Fold, folded, folds_of

Array = Any
AWQ: dict[str, Any] = {"scheme": "int", "method": "awq", "bits": 4, "group_size": 8}
NORM = "model.layers.{}.{}_layernorm.weight"
MATRICES = sorted(name for name, tensor in llama().items() if ".layers." in name and tensor.ndim == 2)


def layer_like(width: int, seed: int) -> Layer:
    """Inputs that vary together, and a few of which are far larger than others."""
    random = np.random.default_rng(seed)
    size = np.exp(random.normal(0, 1, width))
    gather = Gather(width, gram=True)
    gather.add(random.standard_normal((400, width)) @ (np.eye(width) + 0.2 * random.random((width, width))) * size)
    return gather.layer


def layers() -> dict[str, Layer]:
    """Statistics of the matrices of all blocks; q, k and v, and gate and up, read the same."""
    found = {}
    for number, name in enumerate(MATRICES):
        layer, module = name.split(".")[2:4]
        seed = 100 * int(layer) + (number if re.search("o_proj|down", name) else len(module))
        found[name.removesuffix(".weight")] = layer_like(llama()[name].shape[1], seed)
    return found


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return folder(tmp_path / "model", llama(), CONFIG, shards=2)


def stats_of(model: Path, known: Mapping[str, Layer] | None = None, *, named: bool = True) -> Path:
    path = model.parent / "stats.safetensors"
    prints = fingerprint(open_checkpoint(model)) if named else ("", "")
    write_statistics(path, (known or layers()).items(), model=prints[0], weights=prints[1], force=True)
    return path


def tensors_of(path: Path) -> dict[str, Array]:
    return {name: array for file in sorted(path.glob("*.safetensors")) for name, array in load_file(file).items()}


def places(path: Path) -> tuple[Checkpoint, tuple[Fold, ...], dict[str, str]]:
    checkpoint = open_checkpoint(path)
    specs = [tensor.spec for tensor in checkpoint.tensors.values()]
    folds, why = folds_of(recognise(checkpoint.source.config, specs, checkpoint.path, "awq").parts, checkpoint)
    return checkpoint, folds, why


# ---- scales in a model -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
def test_the_products_stay_and_the_tensors_do_not(tmp_path: Path, dtype: Any) -> None:
    before = llama(dtype=dtype)
    checkpoint, folds, why = places(folder(tmp_path / "model", before, CONFIG))
    assert len(folds) == 4 * LAYERS
    assert {name for fold in folds for name in fold.readers} == set(MATRICES)
    assert set(why) == {"lm_head.weight", "model.embed_tokens.weight"}
    random = np.random.default_rng(0)
    chosen = [(fold, np.exp(random.normal(0, 0.5, fold.channels))) for fold in folds]
    made, columns = folded(checkpoint, chosen)
    after = {name: read_whole(tensor) for name, tensor in made.tensors.items()}
    assert {made.tensors[name].spec for name in after} == {checkpoint.tensors[name].spec for name in before}
    assert set(columns) == set(MATRICES)
    close = {"rtol": 8 * float(np.finfo(dtype).eps), "atol": 0}
    for layer in range(LAYERS):
        for norm, names in (("input", [ATTENTION.format(layer, name) for name in "qk"]),):
            for name in names:
                one, other = (x[NORM.format(layer, norm)] * x[name].astype(np.float64) for x in (before, after))
                np.testing.assert_allclose(other, one, **close)
        gate = MLP.format(layer, "gate")
        one, other = (x[NORM.format(layer, "post_attention")] * x[gate].astype(np.float64) for x in (before, after))
        np.testing.assert_allclose(other, one, **close)
        chains = (
            ("input", ATTENTION.format(layer, "v"), ATTENTION.format(layer, "o")),
            ("post_attention", MLP.format(layer, "up"), MLP.format(layer, "down")),
        )
        for norm, inner, outer in chains:
            one, other = (chained(x, NORM.format(layer, norm), inner, outer) for x in (before, after))
            np.testing.assert_allclose(other, one, rtol=2 * close["rtol"])
    moved = {name for name in before if not np.array_equal(before[name], after[name])}
    assert moved == {*MATRICES, *(name for name in before if "layernorm" in name)}


def chained(tensors: dict[str, Array], norm: str, inner: str, outer: str) -> Array:
    """What each input of a norm gives to each output over each channel between two matrices."""
    wide = {name: tensors[name].astype(np.float64) for name in (norm, inner, outer)}
    first = wide[inner] * wide[norm]
    if "self_attn" in inner:  # each head of values serves several of queries
        first = np.repeat(first.reshape(GROUPS, WIDTH, -1), HEADS // GROUPS, axis=0).reshape(-1, first.shape[1])
    found: Array = wide[outer][:4, :, None] * first
    return found


def test_what_rounding_a_norm_changed_is_put_right_in_its_readers(tmp_path: Path) -> None:
    """With norms of few digits a scale is another one than was asked for, and products hold all the same."""
    before = llama(dtype=np.float16)
    names = [name for name in before if "layernorm" in name]
    before |= {name: np.full_like(before[name], 6e-8) for name in names}  # the least there is
    checkpoint, folds, _ = places(folder(tmp_path / "model", before, CONFIG))
    made, columns = folded(checkpoint, [(fold, np.full(fold.channels, 0.7)) for fold in folds if fold.exact])
    after = {name: read_whole(tensor) for name, tensor in made.tensors.items()}
    for layer in range(LAYERS):
        name, norm = MLP.format(layer, "gate"), NORM.format(layer, "post_attention")
        assert (columns[name] == 1).all()  # 6e-8 / 0.7 is still 6e-8
        assert np.array_equal(after[name] * after[norm], before[name].astype(np.float32) * before[norm])


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.types[0])
def test_the_places_in_the_tables_are_sound(family: Any) -> None:
    """Whatever reads what a norm writes is named, and sections are those of the module; a norm whose readers are
    named has no other."""
    known = {line.module: line for line in lines(family.block)}
    inner = [(line.module, line.axes[line.reads]) for line in known.values() if line.reads is not None]
    inward = {module for module, read in inner if "hidden" in read}
    seen: set[str] = set()
    for text in filter(str.strip, family.folds.splitlines()):
        writer, *readers = text.split()
        module, _, section = writer.partition(":")
        width = known[module].axes[0][int(section or 0)]
        for reader in readers:
            line = known[reader]
            assert line.reads == len(line.axes) - 1
            read = line.axes[line.reads]
            assert read == (width,) or (width, read) == ("kv", ("q",))
        seen |= set(readers)
    for text in filter(str.strip, family.folds.splitlines()):
        writer, *readers = text.split()
        if "norm" in writer:  # beside a reader in its part of the block there is none that is not named
            parts = {reader.partition(".")[0] for reader in readers}
            assert {module for module in inward if module.partition(".")[0] in parts} <= seen


# ---- the search ------------------------------------------------------------------------------------------


def lost(before: Array, after: Array, layer: Layer) -> float:
    apart = after.astype(np.float64) - before
    return float(np.sum((apart @ layer.gram) * apart))


def test_outputs_lose_less_than_by_the_search_and_as_much_as_is_said(model: Path) -> None:
    known, before = layers(), llama()
    options = {"stats": stats_of(model), "force": True, "store": "dense"}
    report = compressor.quantize(model, model.parent / "awq", **AWQ, **options)
    compressor.quantize(model, model.parent / "search", **{**AWQ, "method": "search"}, store="dense")
    awq, search = tensors_of(model.parent / "awq"), tensors_of(model.parent / "search")
    losses = np.zeros(3)
    for layer in range(LAYERS):
        scale = before[NORM.format(layer, "post_attention")] / awq[NORM.format(layer, "post_attention")]
        name = MLP.format(layer, "gate")  # whose rows have no scale
        inputs = known[name.removesuffix(".weight")]
        weighed = run(Int(bits=4, group_size=8, method="awq"), TensorSpec(name, "F32", before[name].shape),
                      before[name], inputs=inputs).restored  # fmt: skip
        losses += [lost(before[name], one, inputs) for one in (search[name], weighed, awq[name] / scale)]
    assert losses[2] < losses[1] < losses[0]
    assert losses[2] < 0.8 * losses[0]
    (said,) = (note for note in report.plan.notes if "alpha" in note)
    assert re.search(r"the inputs of [0-9]+ matrices are scaled, alpha 0.[0-9]+ to 0.[0-9]+", said)


def test_equal_inputs_need_no_scale(model: Path) -> None:
    """Then it is the search, to the byte."""
    even = {
        name: Layer(9, np.zeros(one.width), np.ones(one.width), np.eye(one.width)) for name, one in layers().items()
    }
    report = compressor.quantize(model, model.parent / "awq", **AWQ, stats=stats_of(model, even), store="dense")
    compressor.quantize(model, model.parent / "search", **{**AWQ, "method": "search"}, store="dense")
    awq, search = tensors_of(model.parent / "awq"), tensors_of(model.parent / "search")
    assert all(np.array_equal(awq[name], search[name]) for name in search)
    assert any("no inputs are scaled: no scale loses less than none" in note for note in report.plan.notes)


def test_diagonals_serve_where_there_are_no_grams(model: Path) -> None:
    bare = {name: Layer(one.count, one.mean, one.square) for name, one in layers().items()}
    report = compressor.quantize(model, model.parent / "out", **AWQ, stats=stats_of(model, bare))
    assert any("alpha" in note for note in report.plan.notes)


def test_the_same_bytes_for_any_number_of_workers(model: Path) -> None:
    stats, found = stats_of(model), []
    for workers in (1, 2, 4):
        out = model.parent / f"out{workers}"
        compressor.quantize(model, out, **AWQ, stats=stats, workers=workers)
        found.append({file.name: file.read_bytes() for file in out.iterdir()})
    assert found[0] == found[1] == found[2]


def test_rules_exclusions_and_what_is_said_of_them(model: Path) -> None:
    """What is left alone is scaled with the others that read the same; a rule's bits are those that are tried."""
    before, options = llama(), {"stats": stats_of(model), "store": "dense"}
    rules = [("*down_proj*", {"method": "search"}), ("*.mlp.*", {"bits": 8, "group_size": 4})]
    compressor.quantize(model, model.parent / "out", **AWQ, **options, exclude=["*k_proj*"], rules=rules)
    after = tensors_of(model.parent / "out")
    for layer in range(LAYERS):
        scale = before[NORM.format(layer, "input")] / after[NORM.format(layer, "input")]
        name = ATTENTION.format(layer, "k")
        np.testing.assert_allclose(after[name], before[name] * scale, rtol=1e-6)
        up = MLP.format(layer, "up")  # 8 bits, and nothing after it was to be scaled
        scale = before[NORM.format(layer, "post_attention")] / after[NORM.format(layer, "post_attention")]
        assert np.abs(after[up] / scale - before[up]).max() < 0.05


def test_a_recipe_and_the_command_are_the_same(model: Path, tmp_path: Path) -> None:
    stats, out = stats_of(model), tmp_path / "out"
    options = ["--method", "awq", "--bits", "4", "--group-size", "8", "--stats", stats]
    done = command("quantize", model, "-o", out, *options, "--show-recipe")
    assert (done.code, out.exists()) == (0, False)
    assert 'method = "awq"' in done.out
    (tmp_path / "recipe.toml").write_text(done.out)
    dry = command("quantize", model, "-o", out, *options, "--dry-run", "--format", "json")
    assert not out.exists()
    assert command("quantize", model, "-o", out, *options).code == 0
    assert command("pipeline", model, "-o", tmp_path / "other", "--recipe", tmp_path / "recipe.toml").code == 0
    files = {file.name: file.read_bytes() for file in out.iterdir()}
    assert files == {file.name: file.read_bytes() for file in (tmp_path / "other").iterdir()}
    told = json.loads(dry.out)
    sizes = sum(len(content) for name, content in files.items() if name.endswith(".safetensors"))
    assert told["size_after"] == sizes
    header = next(data for name, data in files.items() if name.endswith(".safetensors"))
    assert told["fingerprint"].encode() in header
    assert any("scales will be searched for the inputs of 28 matrices" in note for note in told["notes"])
    assert b'\\"method\\":\\"awq\\"' in header


def test_what_came_before_is_pruned_before_scales_are_searched(model: Path) -> None:
    """In a pass of its own, so that magnitudes are those of the model, and scales go by what is left."""
    stats, parent = stats_of(model), model.parent
    stages = ["prune:sparsity=0.5", "quantize:method=awq,bits=4,group_size=8,store=dense"]
    compressor.pipeline(model, parent / "both", stages=stages, stats=stats)
    compressor.prune(model, parent / "pruned", sparsity=0.5)
    compressor.quantize(parent / "pruned", parent / "apart", **AWQ, stats=stats, store="dense")
    both, apart, pruned = (tensors_of(parent / name) for name in ("both", "apart", "pruned"))
    assert all(np.array_equal(both[name], apart[name]) for name in apart)
    assert all(not both[name][pruned[name] == 0].any() for name in MATRICES)
    assert [path.name for path in parent.iterdir() if "legs" in path.name] == []
    stage = [make_stage("prune", {"sparsity": 0.5}), make_stage("quantize", AWQ)]
    with pytest.raises(UsageError, match="so no other may come before it"):
        run_recipe("pipeline", model, parent / "direct", Recipe(tuple(stage)), stats=stats)


def test_sizes_that_go_by_the_codes_are_known_before(model: Path) -> None:
    options = {**AWQ, "bits": 2, "stats": stats_of(model), "store": "csr"}
    dry = compressor.quantize(model, model.parent / "out", **options, dry_run=True)
    done = compressor.quantize(model, model.parent / "out", **options)
    assert dry.plan.size_after == done.plan.size_after
    assert dry.plan.notes == done.plan.notes


def test_quantized_input_is_scaled_as_what_its_codes_stand_for(model: Path) -> None:
    parent = model.parent
    compressor.quantize(model, parent / "eight", bits=8, group_size=8)
    compressor.restore(parent / "eight", parent / "dense")
    options = {**AWQ, "stats": stats_of(model), "store": "dense"}
    compressor.quantize(parent / "eight", parent / "a", **options, requantize=True)
    compressor.quantize(parent / "dense", parent / "b", **options)
    one, other = tensors_of(parent / "a"), tensors_of(parent / "b")
    assert all(np.array_equal(one[name], other[name]) for name in one)


def test_it_does_under_a_budget(model: Path) -> None:
    options = {"method": "awq", "stats": stats_of(model), "target_bits": 12.0, "candidates": ("int4g8", "int8g8")}
    report = compressor.quantize(model, model.parent / "out", **options)
    assert any("alpha" in note for note in report.plan.notes)


def test_a_student_that_was_scaled_is_told_of(model: Path) -> None:
    parent = model.parent
    compressor.quantize(model, parent / "awq", **AWQ, stats=stats_of(model))
    compressor.quantize(model, parent / "search", bits=4, group_size=8)
    for name, said in (("awq", True), ("search", False)):
        report = compressor.distill(
            parent / name, parent / f"{name}-adapter", teacher=model, method="blend", alpha=0.5
        )
        assert any("was quantized by method awq" in note for note in report.plan.notes) == said


# ---- what has no place for a scale -----------------------------------------------------------------------


def bert(path: Path) -> Path:
    random = np.random.default_rng(1)
    config = {"model_type": "bert", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    config["num_attention_heads"] = 2
    tensors = {"embeddings.word_embeddings.weight": (20, 16)}
    for layer in range(2):
        prefix = f"encoder.layer.{layer}."
        inner = [f"{prefix}attention.self.{name}" for name in ("query", "key", "value")]
        for module in (*inner, f"{prefix}attention.output.dense"):
            tensors |= {f"{module}.weight": (16, 16), f"{module}.bias": (16,)}
        tensors |= {f"{prefix}intermediate.dense.weight": (32, 16), f"{prefix}output.dense.weight": (16, 32)}
        tensors |= {f"{prefix}{name}.LayerNorm.weight": (16,) for name in ("attention.output", "output")}
    made = {name: random.normal(size=shape).astype(np.float32) for name, shape in tensors.items()}
    return folder(path, made, config)


def test_norms_before_the_residual_stream_are_let_be(tmp_path: Path) -> None:
    source = bert(tmp_path / "model")
    before = tensors_of(source)
    names = [name for name, tensor in before.items() if tensor.ndim == 2 and "layer" in name]
    known = {name.removesuffix(".weight"): layer_like(before[name].shape[1], 5) for name in names}
    report = compressor.quantize(source, tmp_path / "out", **AWQ, stats=stats_of(source, known), store="dense")
    after = tensors_of(tmp_path / "out")
    assert all(np.array_equal(before[name], after[name]) for name in before if "LayerNorm" in name)
    for layer in range(2):
        bias = f"encoder.layer.{layer}.attention.self.value.bias"
        assert not np.array_equal(before[bias], after[bias])
    said = " ".join(report.plan.notes)
    assert "the inputs of 2 matrices are scaled" in said
    assert "8 matrices are not scaled (inputs that also go on in the residual stream)" in said
    assert "2 matrices are not scaled (inputs out of an activation function)" in said


def test_without_a_known_architecture_errors_are_weighed_only(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(12, 32)).astype(np.float32)
    inputs = layer_like(32, 1)
    save_file({"a.weight": values}, tmp_path / "model.safetensors")
    stats = stats_of(tmp_path / "model.safetensors", {"a": inputs})
    options = {**AWQ, "stats": stats, "store": "dense", "force": True}
    report = compressor.quantize(tmp_path / "model.safetensors", tmp_path / "out.safetensors", **options)
    assert any("nothing can be scaled, errors are only weighed by the inputs" in note for note in report.plan.notes)
    found = load_file(tmp_path / "out.safetensors")["a.weight"]
    compressor.quantize(
        tmp_path / "model.safetensors", tmp_path / "s.safetensors", bits=4, group_size=8, store="dense"
    )
    plain = load_file(tmp_path / "s.safetensors")["a.weight"]
    weigh = inputs.square
    assert (((found - values) ** 2) @ weigh).sum() < 0.95 * (((plain - values) ** 2) @ weigh).sum()
    with pytest.raises(InputError, match="cannot be recognised") as caught:
        compressor.quantize(tmp_path / "model.safetensors", tmp_path / "out.safetensors", **options, strict=True)
    assert "Drop strict=True" in caught.value.remedy


def test_narrow_floats_are_not_scaled(model: Path, tmp_path: Path) -> None:
    tensors: dict[str, tuple[str, Array]] = {name: ("F32", array) for name, array in llama().items()}
    for layer in range(LAYERS):
        name = MLP.format(layer, "down")
        tensors[name] = "F8_E4M3", np.random.default_rng(layer).integers(0, 0x50, tensors[name][1].shape, "u1")
    source = tmp_path / "narrow"
    source.mkdir()
    archives.write(source / "model.safetensors", tensors)
    (source / "config.json").write_text(json.dumps(CONFIG))
    report = compressor.quantize(source, tmp_path / "out", **AWQ, stats=stats_of(source), exclude=["*lm_head*"])
    name = MLP.format(0, "down")
    assert any(
        f"(scaling would round the F8_E4M3 of '{name}' anew): '{name}'" in note for note in report.plan.notes
    )


# ---- what is refused -------------------------------------------------------------------------------------


def test_bad_statistics_are_refused(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(UsageError, match="goes by statistics of the layers' inputs"):
        compressor.quantize(model, out, **AWQ)
    other = folder(tmp_path / "other", {**llama(), "model.extra.weight": np.ones((4, 4), np.float32)}, CONFIG)
    with pytest.raises(InputError, match="of another model"):
        compressor.quantize(model, out, **AWQ, stats=stats_of(other))
    some = {name: one for name, one in layers().items() if ".0." not in name}
    with pytest.raises(Exception, match="there are no statistics of its inputs") as caught:
        compressor.quantize(model, out, **AWQ, stats=stats_of(model, some))
    assert len(getattr(caught.value, "problems", ())) == 7
    idle = {**layers(), "model.layers.1.mlp.up_proj": Layer(0, np.zeros(HIDDEN), np.zeros(HIDDEN))}
    with pytest.raises(InputError, match="saw no input at all"):
        compressor.quantize(model, out, **AWQ, stats=stats_of(model, idle))
    assert not out.exists()


def test_a_model_that_contradicts_its_config_is_refused(tmp_path: Path) -> None:
    source = folder(tmp_path / "model", llama(), {**CONFIG, "intermediate_size": 25})
    with pytest.raises(InputError, match=r"by config\.json axis 1"):
        compressor.quantize(source, tmp_path / "out", **AWQ, stats=stats_of(source, named=False))


def test_what_is_not_finite_is_refused_or_kept(model: Path, tmp_path: Path) -> None:
    bad = llama()
    bad[MLP.format(1, "down")][2, 3] = np.nan
    source = folder(tmp_path / "bad", bad, CONFIG)
    options = {**AWQ, "stats": stats_of(source)}
    with pytest.raises(InputError, match="holds 1 NaN"):
        compressor.quantize(source, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()
    compressor.quantize(source, tmp_path / "out", **options, non_finite="keep")
    assert np.isnan(tensors_of(tmp_path / "out")[MLP.format(1, "down")]).sum() == 1


def test_scales_beyond_the_range_of_the_dtype_are_refused(tmp_path: Path) -> None:
    big = llama(dtype=np.float16)
    big[ATTENTION.format(0, "q")][:] = 6e4
    checkpoint, folds, _ = places(folder(tmp_path / "model", big, CONFIG))
    fold = next(fold for fold in folds if ATTENTION.format(0, "q") in fold.readers)
    made, _ = folded(checkpoint, [(fold, np.full(HIDDEN, 2.0))])
    with pytest.raises(InputError, match="leaves the range of F16") as caught:
        read_whole(made.tensors[ATTENTION.format(0, "q")])
    assert caught.value.tensor == ATTENTION.format(0, "q")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"granularity": "tensor"}, "method awq works on channels and groups"),
        ({"damp": 0.1}, "damp and act_order hold for method gptq only"),
        ({"symmetric": False, "signed_scales": True}, "methods search and awq with symmetric codes only"),
    ],
)
def test_options_that_contradict_each_other(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        Int(method="awq", **options)
