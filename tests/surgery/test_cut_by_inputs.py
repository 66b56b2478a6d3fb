"""Structured cuts that go by statistics of layer inputs: what comes of a unit on data decides."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from support.tiny_llama import ATTENTION, CONFIG, GROUPS, HEADS, HIDDEN, INNER, LAYERS, MLP, WIDTH, folder, llama

import compressor
from compressor.calibration.fingerprint import fingerprint
from compressor.calibration.statistics import influence_of, write_statistics
from compressor.checkpoint.checkpoint import open_checkpoint
from compressor.core.errors import CompressorError, InputError, UsageError
from compressor.core.layer_inputs import Layer
from compressor.recipe.stages import parse_stage
from compressor.recipe.toml_file import parse_recipe

Array = Any


def layers_of(tensors: dict[str, Array], seed: int = 3) -> dict[str, Layer]:
    """Statistics for every matrix of the blocks, with mean squares over three powers of ten."""
    random = np.random.default_rng(seed)
    found = {}
    for name, tensor in tensors.items():
        if tensor.ndim == 2 and "layers" in name:
            square = 10 ** random.uniform(-1.5, 1.5, tensor.shape[1])
            found[name.removesuffix(".weight")] = Layer(int(random.integers(1, 99)), np.zeros_like(square), square)
    return found


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return folder(tmp_path / "model", llama(), CONFIG, shards=2)


def stats_of(model: Path, layers: dict[str, Layer] | None = None, *, named: bool = True) -> Path:
    path = model.parent / "stats.safetensors"
    print_ = fingerprint(open_checkpoint(model)) if named else ("", "")
    known = layers_of(llama()) if layers is None else layers
    write_statistics(path, known.items(), model=print_[0], weights=print_[1], force=True)
    return path


def cut(model: Path, **options: Any) -> dict[str, Array]:
    out = model.parent / "out"
    compressor.prune(model, out, force=True, **options)
    return {name: array for file in out.glob("*.safetensors") for name, array in load_file(file).items()}


def read_energy(tensor: Array, layer: Layer) -> Array:
    """By input: what it gives to all outputs over all rows, in squares."""
    narrow = layer.square.astype(np.float32).astype(np.float64)  # as it is stored
    found: Array = (tensor.astype(np.float64) ** 2).sum(axis=0) * narrow * layer.count
    return found


def largest(values: Array, count: int) -> Array:
    return np.sort(np.argsort(-values, kind="stable")[:count])


def test_neurons_stay_that_give_most_to_what_reads_them(model: Path) -> None:
    before, known = llama(), layers_of(llama())
    after = cut(model, structure="neurons", count=6, stats=stats_of(model))
    differs = 0
    for layer in range(LAYERS):
        down = MLP.format(layer, "down")
        keep = largest(read_energy(before[down], known[down.removesuffix(".weight")]), INNER - 6)
        assert np.array_equal(after[down], before[down][:, keep])
        assert np.array_equal(after[MLP.format(layer, "up")], before[MLP.format(layer, "up")][keep])
        by_weights = largest((before[down] ** 2).sum(axis=0), INNER - 6)
        differs += not np.array_equal(keep, by_weights)
    assert differs


def test_a_cut_by_data_is_not_warned_of_as_one_without(model: Path) -> None:
    options: dict[str, Any] = {"structure": "neurons", "fraction": 0.8, "force": True}
    blind = compressor.prune(model, model.parent / "out", **options)
    known = compressor.prune(model, model.parent / "out", stats=stats_of(model), **options)
    assert [len(report.warnings) for report in (blind, known)] == [2, 1]
    assert "removes much" in known.warnings[0]


def test_heads_and_width(model: Path) -> None:
    before, known, stats = llama(), layers_of(llama()), stats_of(model)
    after = cut(model, structure="heads", count=1, stats=stats)
    for layer in range(LAYERS):
        out = ATTENTION.format(layer, "o")
        energy = read_energy(before[out], known[out.removesuffix(".weight")])
        group = int(np.argmax(energy.reshape(GROUPS, -1).sum(axis=1)))
        each = HEADS // GROUPS * WIDTH
        assert np.array_equal(after[out], before[out][:, group * each : (group + 1) * each])
    after = cut(model, structure="hidden", fraction=0.25, importance="inputs", stats=stats)
    inward = [name for name, one in before.items() if "layers" in name and one.ndim == 2 and one.shape[1] == HIDDEN]
    inward = [name for name in inward if not name.endswith(("o_proj.weight", "down_proj.weight"))]
    parts = [read_energy(before[name], known[name.removesuffix(".weight")]) for name in inward]
    keep = largest(np.mean([part / part.mean() for part in parts], axis=0), 12)
    assert np.array_equal(after["model.embed_tokens.weight"], before["model.embed_tokens.weight"][:, keep])


def influence(*values: float) -> dict[str, Layer]:
    """Of each block the mean of 1 − cos between what enters and what leaves it."""
    return {
        influence_of(f"model.layers.{block}"): Layer(9, np.array([one]), np.array([one**2]))
        for block, one in enumerate(values)
    }


def kept_blocks(after: dict[str, Array]) -> list[int]:
    """The old numbers of the blocks that are left."""
    before, up = llama(), MLP.format("{}", "up")
    new = sorted(int(name.split(".")[2]) for name in after if name.endswith("up_proj.weight"))
    old = range(LAYERS)
    return [next(n for n in old if np.array_equal(before[up.format(n)], after[up.format(block)])) for block in new]


@pytest.mark.parametrize(
    ("values", "count", "kept"),
    [
        ((0.9, 0.1, 0.3, 0.2), 1, [0, 2, 3]),
        ((0.0, 0.1, 0.3, 0.0), 1, [0, 2, 3]),  # the first and the last stay, whatever they do
        ((0.0, 0.1, 0.3, 0.0), 2, [0, 3]),
        ((0.0, 0.1, 0.3, 0.0), 3, [0]),
    ],
)
def test_blocks_go_that_turn_the_residual_stream_least(
    model: Path, values: tuple[float, ...], count: int, kept: list[int]
) -> None:
    stats = stats_of(model, {**layers_of(llama()), **influence(*values)})
    assert kept_blocks(cut(model, structure="layers", count=count, stats=stats)) == kept


def test_blocks_that_an_earlier_cut_renumbered_keep_their_influence(model: Path) -> None:
    stats = stats_of(model, influence(0.9, 0.1, 0.2, 0.3))
    stages = ["prune:structure=layers,layers=1", f"prune:structure=layers,count=1,stats={stats}"]
    compressor.pipeline(model, model.parent / "twice", stages=stages)
    found = {k: v for file in (model.parent / "twice").glob("*.safetensors") for k, v in load_file(file).items()}
    assert kept_blocks(found) == [0, 3]


def test_without_statistics_blocks_in_the_middle_go(model: Path) -> None:
    assert kept_blocks(cut(model, structure="layers", count=1)) == [0, 2, 3]
    assert kept_blocks(cut(model, structure="layers", count=2)) == [0, 3]
    assert kept_blocks(cut(model, structure="layers", count=1, importance="index")) == [0, 1, 2]  # a control


def test_what_does_not_decide_on_blocks(model: Path) -> None:
    stats = stats_of(model)
    with pytest.raises(InputError, match="there is no influence of this block") as caught:
        cut(model, structure="layers", count=1, stats=stats)
    assert "else leave stats out" in caught.value.remedy
    assert kept_blocks(cut(model, structure="layers", count=1)) == [0, 2, 3]
    with pytest.raises(UsageError, match="picks the very layers that carry everything"):
        cut(model, structure="layers", count=1, importance="inputs", stats=stats)
    with pytest.raises(UsageError, match="importance influence is for structure layers, not heads"):
        cut(model, structure="heads", count=1, importance="influence", stats=stats)
    with pytest.raises(UsageError, match="importance influence goes by statistics"):
        cut(model, structure="layers", count=1, importance="influence")


def test_later_cuts_go_by_what_is_left_of_the_statistics(model: Path) -> None:
    """Statistics are of the model before any cut; what they say of what stayed still counts."""
    before, known, stats = llama(), layers_of(llama()), stats_of(model)
    stages = [
        "prune:structure=layers,layers=1",
        "prune:structure=neurons,count=4,importance=inputs",
        f"prune:structure=neurons,count=4,stats={stats}",
    ]
    report = compressor.pipeline(model, model.parent / "out", stages=stages, stats=stats)
    after = {k: v for file in (model.parent / "out").glob("*.safetensors") for k, v in load_file(file).items()}
    for new, old in enumerate((0, 2, 3)):
        down = MLP.format(old, "down")
        keep = largest(read_energy(before[down], known[down.removesuffix(".weight")]), INNER - 8)
        assert np.array_equal(after[MLP.format(new, "down")], before[down][:, keep])
    first, second, third = report.plan.stages
    assert "importance" not in first
    assert "stats" not in first
    assert second["importance"] == third["importance"] == "inputs"
    assert second["stats"] == third["stats"]
    assert second["stats"].startswith("sha256:")


def test_statistics_for_stages_after_a_cut_are_those_of_what_it_leaves(model: Path) -> None:
    """One --stats serves the cut or the stages; a recipe names both."""
    stats = stats_of(model)
    small = model.parent / "small"
    compressor.prune(model, small, structure="neurons", count=4, stats=stats)
    tensors = {name: tensor for file in small.glob("*.safetensors") for name, tensor in load_file(file).items()}
    print_ = fingerprint(open_checkpoint(small))
    own = model.parent / "own.safetensors"
    write_statistics(own, layers_of(tensors).items(), model=print_[0], weights=print_[1])
    recipe = parse_recipe(
        f'[[stage]]\nkind = "prune"\nstructure = "neurons"\ncount = 4\nstats = "{stats}"\n'
        f'[[stage]]\nkind = "prune"\nmethod = "wanda"\nsparsity = 0.5\nstats = "{own}"\n',
        "recipe",
    )
    report = compressor.pipeline(model, model.parent / "both", recipe=recipe)
    assert [stage["stats"][:7] for stage in report.plan.stages] == ["sha256:"] * 2
    text = [f"prune:structure=neurons,count=4,stats={own}"]
    with pytest.raises(InputError, match="statistics are of another model"):
        compressor.pipeline(model, model.parent / "no", stages=text)
    wanda = ["prune:structure=neurons,count=4", "prune:method=wanda,sparsity=0.5"]
    done = compressor.pipeline(model, model.parent / "wanda", stages=wanda, stats=own, force=True)
    assert done.plan.stages[0]["importance"] == "l2"


def test_a_plain_chain_and_a_described_structure(tmp_path: Path) -> None:
    random = np.random.default_rng(5)
    tensors = {f"fc{n}.weight": random.normal(size=shape) for n, shape in enumerate([(9, 4), (6, 9), (3, 6)], 1)}
    tensors = {name: tensor.astype(np.float32) for name, tensor in tensors.items()}
    save_file(tensors, tmp_path / "m.safetensors")
    known = {
        name.removesuffix(".weight"): Layer(7, np.zeros(one.shape[1]), 10 ** random.uniform(-2, 2, one.shape[1]))
        for name, one in tensors.items()
    }
    write_statistics(tmp_path / "s.safetensors", known.items())
    report = compressor.prune(
        tmp_path / "m.safetensors",
        tmp_path / "o.safetensors",
        structure="neurons",
        count=2,
        stats=tmp_path / "s.safetensors",
    )
    keep = largest(read_energy(tensors["fc2.weight"], known["fc2"]), 7)
    after = load_file(tmp_path / "o.safetensors")
    assert np.array_equal(after["fc1.weight"], tensors["fc1.weight"][keep])
    assert report.plan.stages[0]["importance"] == "inputs"
    (tmp_path / "r.toml").write_text(
        '[[structure]]\naxes = ["fc1.weight:0", "fc2.weight:1"]\n[[stage]]\nkind = "prune"\nstructure = "neurons"\n'
        f'count = 2\nstats = "{tmp_path / "s.safetensors"}"\n'
        '[[structure]]\nname = "outputs"\naxes = ["fc3.weight:0"]\n'
    )
    compressor.pipeline(tmp_path / "m.safetensors", tmp_path / "d.safetensors", recipe=str(tmp_path / "r.toml"))
    cut_so = load_file(tmp_path / "d.safetensors")
    assert np.array_equal(cut_so["fc1.weight"], after["fc1.weight"])
    assert np.array_equal(cut_so["fc2.weight"], tensors["fc2.weight"][:, keep])
    text = (tmp_path / "r.toml").read_text().replace('structure = "neurons"', 'structure = "outputs"')
    with pytest.raises(UsageError, match="structure outputs: no layer with inputs of its own reads outputs"):
        compressor.pipeline(tmp_path / "m.safetensors", tmp_path / "e.safetensors", recipe=parse_recipe(text, "r"))


def test_an_expert_that_no_token_was_sent_to_goes_first(tmp_path: Path) -> None:
    config = {**CONFIG, "model_type": "qwen3_moe", "num_experts": 3, "num_experts_per_tok": 1}
    config |= {"moe_intermediate_size": 6, "num_hidden_layers": 1}
    tensors = {name: one for name, one in llama().items() if "mlp" not in name and ".layers.0" in name}
    tensors |= {name: one for name, one in llama().items() if "layers" not in name}
    random = np.random.default_rng(0)
    base = "model.layers.0.mlp"
    tensors[f"{base}.gate.weight"] = random.normal(size=(3, HIDDEN)).astype(np.float32)
    for expert in range(3):
        for name in ("gate", "up"):
            tensors[f"{base}.experts.{expert}.{name}_proj.weight"] = np.ones((6, HIDDEN), np.float32) * (9 - expert)
        tensors[f"{base}.experts.{expert}.down_proj.weight"] = np.ones((HIDDEN, 6), np.float32) * (9 - expert)
    model = folder(tmp_path / "moe", tensors, {key: config[key] for key in config if key != "layer_types"})
    seen = {"0": 0, "1": 1, "2": 50}
    known = {
        name: Layer(seen[name.split(".")[5]] if "experts" in name else 5, one.mean, one.square)
        for name, one in layers_of(tensors).items()
    }
    for one in known.values():
        one.square[:] = 1
    out = tmp_path / "out"
    compressor.prune(model, out, structure="experts", count=1, stats=stats_of(model, known))
    after = load_file(out / "model.safetensors")
    assert [after[f"{base}.experts.{n}.down_proj.weight"][0, 0] for n in range(2)] == [8, 7]
    assert np.array_equal(after[f"{base}.gate.weight"], tensors[f"{base}.gate.weight"][1:])
    with pytest.raises(InputError, match="its layer saw no input at all"):
        compressor.prune(model, out, structure="neurons", count=1, stats=stats_of(model, known), force=True)


def test_statistics_that_do_not_fit(model: Path) -> None:
    """Every layer that lacks is named, at once."""
    known = layers_of(llama())
    for layer in (1, 3):
        del known[MLP.format(layer, "down").removesuffix(".weight")]
    wrong = MLP.format(0, "down").removesuffix(".weight")
    known[wrong] = Layer(3, np.zeros(5), np.ones(5))
    with pytest.raises(CompressorError) as caught:
        cut(model, structure="neurons", count=1, stats=stats_of(model, known, named=False))
    assert len(caught.value.problems) == 3  # type: ignore[attr-defined]
    said = str(caught.value)
    assert (
        "'model.layers.0.mlp.down_proj.weight': has shape [16, 24], inputs on axis 1, and its statistics 5" in said
    )
    assert "'model.layers.3.mlp.down_proj.weight': there are no statistics of its inputs" in said
    assert 'Calibrate this model, or use importance="l2"' in said
    other = {**layers_of(llama())}
    write_statistics(model.parent / "o.safetensors", other.items(), model="0" * 64)
    with pytest.raises(InputError, match="statistics are of another model"):
        cut(model, structure="neurons", count=1, stats=model.parent / "o.safetensors")
    assert not (model.parent / "out").exists()


def test_which_file_a_cut_goes_by(model: Path) -> None:
    with pytest.raises(UsageError, match="importance l2 goes by no statistics: drop stats"):
        parse_stage("prune:structure=neurons,count=1,importance=l2,stats=x")
    with pytest.raises(UsageError, match=r"stage\[0\]\.stats: Expected `str \| null`, got `int`"):
        parse_recipe('[[stage]]\nkind = "prune"\nstructure = "neurons"\ncount = 1\nstats = 3', "r")
    with pytest.raises(InputError, match="no file of statistics"):
        cut(model, structure="neurons", count=1, stats=model / "model-00000.safetensors")
    text = '[[stage]]\nkind = "prune"\nstructure = "neurons"\ncount = 1\n'
    recipe = parse_recipe(f'stats = "{stats_of(model)}"\n{text}', "r")
    report = compressor.pipeline(model, model.parent / "out", recipe=recipe)
    assert json.loads(json.dumps(report.plan.stages[0]))["importance"] == "inputs"


def test_gains_decide_of_the_width_unless_they_are_alike(model: Path) -> None:
    after = cut(model, structure="hidden", fraction=0.25)
    by_gains = cut(model, structure="hidden", fraction=0.25, importance="gains")
    by_weights = cut(model, structure="hidden", fraction=0.25, importance="l2")
    name = "model.embed_tokens.weight"
    assert np.array_equal(after[name], by_gains[name])
    assert not np.array_equal(after[name], by_weights[name])
    plain = llama() | {name: np.ones_like(one) for name, one in llama().items() if one.ndim == 1}
    model = folder(model.parent / "plain", plain, CONFIG, shards=2)
    after, by_weights = (cut(model, structure="hidden", fraction=0.25, importance=by) for by in ("auto", "l2"))
    assert np.array_equal(after[name], by_weights[name])
