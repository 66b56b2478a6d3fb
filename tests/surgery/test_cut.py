"""Structured cuts against slices taken with NumPy: the same weights, the config that fits, and every refusal."""

from __future__ import annotations

import json
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from safetensors.numpy import load_file, save_file
from support.tiny_llama import (
    ATTENTION,
    CONFIG,
    GROUPS,
    HIDDEN,
    LAYERS,
    MLP,
    WIDTH,
    chain,
    folder,
    largest,
    llama,
    weight,
)

import compressor
from compressor.architectures.families import FAMILIES
from compressor.architectures.recognise import lines
from compressor.checkpoint.checkpoint import Tensor, open_checkpoint
from compressor.checkpoint.rows import Rows
from compressor.checkpoint.views import gathered
from compressor.cli.main import run
from compressor.core.errors import InputError, UsageError
from compressor.core.workspace import Workspace
from compressor.methods.structured_cut import StructuredCut
from compressor.recipe.gates import Gates
from compressor.recipe.stages import parse_stage
from compressor.recipe.toml_file import load_recipe
from compressor.surgery.cut import restructure
from compressor.workflows.results import ReportedGateFailed

Array = Any


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return folder(tmp_path / "model", llama(), CONFIG, shards=3)


def cut(model: Path, **options: Any) -> tuple[dict[str, Array], dict[str, Any]]:
    out = model.parent / "out"
    compressor.prune(model, out, force=True, **options)
    tensors = {name: array for file in out.glob("*.safetensors") for name, array in load_file(file).items()}
    index = json.loads((out / "model.safetensors.index.json").read_text())["weight_map"]
    assert set(index) == set(tensors)
    assert {path.name for path in out.glob("*.safetensors")} == set(index.values())
    return tensors, json.loads((out / "config.json").read_text())


# ---- what goes, and what the config then says ----------------------------------------------------------


@pytest.mark.parametrize(("importance", "power"), [("l2", 2), ("l1", 1)])
def test_neurons_of_least_norm_go_from_all_three_matrices(model: Path, importance: str, power: int) -> None:
    before = llama()
    after, config = cut(model, structure="neurons", fraction=0.4, multiple_of=4, importance=importance)
    assert config == {**CONFIG, "intermediate_size": 16}  # 24 - 10 = 14, and up to a multiple of 4
    for layer in range(LAYERS):
        gate, up, down = (before[MLP.format(layer, name)] for name in ("gate", "up", "down"))
        keep = largest(weight([gate, up, down.T], power), 16)
        assert np.array_equal(after[MLP.format(layer, "gate")], gate[keep])
        assert np.array_equal(after[MLP.format(layer, "up")], up[keep])
        assert np.array_equal(after[MLP.format(layer, "down")], down[:, keep])
    rest = {name for name in before if ".mlp." not in name}
    assert all(np.array_equal(after[name], before[name]) for name in rest)


def test_heads_go_with_the_queries_that_share_them(model: Path) -> None:
    before = llama()
    after, config = cut(model, structure="heads", count=1)
    assert config == {**CONFIG, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": WIDTH}
    for layer in range(LAYERS):
        q, k, v, o = (before[ATTENTION.format(layer, name)] for name in "qkvo")
        rows = [matrix.reshape(GROUPS, -1) for matrix in (q, k, v, o.T)]
        ((kept,),) = (largest(weight(rows, 2), 1),)
        queries = slice(kept * 2 * WIDTH, (kept + 1) * 2 * WIDTH)
        values = slice(kept * WIDTH, (kept + 1) * WIDTH)
        assert np.array_equal(after[ATTENTION.format(layer, "q")], q[queries])
        assert np.array_equal(after[ATTENTION.format(layer, "k")], k[values])
        assert np.array_equal(after[ATTENTION.format(layer, "v")], v[values])
        assert np.array_equal(after[ATTENTION.format(layer, "o")], o[:, queries])


@pytest.mark.parametrize(("layers", "kept"), [("0", [1, 2, 3]), ("1-2", [0, 3]), ("0|2-3", [1]), ("3,1", [0, 2])])
def test_layers_are_renumbered_and_so_is_what_the_config_says_of_them(
    model: Path, layers: str, kept: list[int]
) -> None:
    before = llama()
    after, config = cut(model, structure="layers", layers=layers)
    assert config == {
        **CONFIG,
        "num_hidden_layers": len(kept),
        "layer_types": [CONFIG["layer_types"][number] for number in kept],
        "max_window_layers": sum(number < 2 for number in kept),
    }
    for new, old in enumerate(kept):
        for name in (MLP.format("{}", "up"), ATTENTION.format("{}", "o"), "model.layers.{}.input_layernorm.weight"):
            assert np.array_equal(after[name.format(new)], before[name.format(old)])
    assert len(after) == 3 + 9 * len(kept)


def test_layers_of_least_norm_go(tmp_path: Path) -> None:
    tensors = llama()
    for name in tensors:
        if ".layers.1." in name:
            tensors[name] *= 0.5
    path = folder(tmp_path / "model", tensors, CONFIG)
    report = compressor.prune(path, tmp_path / "out", structure="layers", count=1, importance="l2")
    after = load_file(tmp_path / "out" / "model.safetensors")
    assert np.array_equal(after[MLP.format(1, "up")], tensors[MLP.format(2, "up")])
    (group,) = report.plan.cuts
    gone = sum(float((x.astype(np.float64) ** 2).sum()) for n, x in tensors.items() if ".layers.1." in n)
    all_of = sum(float((x.astype(np.float64) ** 2).sum()) for n, x in tensors.items() if ".layers." in n)
    assert group.error == pytest.approx((gone / all_of) ** 0.5, abs=1e-6)
    assert group.removed < 0.15


def test_the_width_goes_through_every_tensor(model: Path) -> None:
    before = llama()
    after, config = cut(model, structure="hidden", fraction=0.25, importance="l2")
    assert config == {**CONFIG, "hidden_size": 12, "head_dim": WIDTH}
    outward = [name for name in before if name.endswith(("o_proj.weight", "down_proj.weight"))]
    inward = [name for name in before if before[name].ndim == 2 and name not in outward]
    rows = [before[name].T if name in inward else before[name] for name in [*inward, *outward]]
    keep = largest(weight(rows, 2), 12)
    for name, tensor in before.items():
        expected = tensor[:, keep] if name in inward else tensor[keep]
        assert np.array_equal(after[name], expected), name


def test_random_and_index_are_what_they_say(model: Path) -> None:
    before = llama()
    after, _ = cut(model, structure="neurons", count=6, importance="index")
    assert np.array_equal(after[MLP.format(2, "up")], before[MLP.format(2, "up")][:18])
    drawn = [
        cut(model, structure="neurons", count=6, importance="random", seed=seed)[0][MLP.format(2, "up")]
        for seed in (0, 0, 1)
    ]
    assert np.array_equal(drawn[0], drawn[1])
    assert not np.array_equal(drawn[0], drawn[2])


def test_a_shard_that_loses_everything_is_no_more(tmp_path: Path) -> None:
    path = folder(tmp_path / "model", llama(), CONFIG, shards=8)
    after, _ = cut(path, structure="layers", layers="0-2")
    assert len(list((tmp_path / "out").glob("*.safetensors"))) < 8
    assert len(after) == 12


def test_cuts_follow_one_another_and_other_stages_follow_them(model: Path) -> None:
    out = model.parent / "out"
    report = compressor.pipeline(
        model,
        out,
        stages=[
            "prune:structure=layers,layers=1|2",
            "prune:structure=neurons,fraction=0.5",
            "prune:structure=hidden,count=4",
            "prune:method=magnitude,sparsity=0.5,scope=global",
            "quantize:bits=4,granularity=channel",
        ],
    )
    assert [stage["kind"] for stage in report.plan.stages] == ["prune"] * 4 + ["quantize"]
    steps = {step.stage for job in report.plan.jobs for step in job.steps}
    assert steps == {3, 4}
    assert json.loads((out / "config.json").read_text())["intermediate_size"] == 12
    compressor.restore(out, model.parent / "dense")
    names = {name: tensor.spec.shape for name, tensor in open_checkpoint(model.parent / "dense").tensors.items()}
    assert names[MLP.format(1, "down")] == (12, 12)
    assert not any(name.startswith("model.layers.2.") for name in names)


def test_quantized_input_is_cut_by_what_its_codes_stand_for(model: Path) -> None:
    packed, dense = model.parent / "packed", model.parent / "dense"
    compressor.quantize(model, packed, bits=8, granularity="group", group_size=8)
    compressor.restore(packed, dense)
    for structure in ("neurons", "heads", "hidden"):
        a, _ = cut(packed, structure=structure, fraction=0.5)
        b, _ = cut(dense, structure=structure, fraction=0.5)
        assert a.keys() == b.keys()
        assert all(np.array_equal(a[name], b[name]) for name in a)


def test_a_dry_run_knows_the_size_and_any_number_of_workers_writes_the_same(model: Path) -> None:
    options: dict[str, Any] = {"structure": "neurons", "fraction": 0.3}
    planned = compressor.prune(model, model.parent / "a", dry_run=True, **options)
    one = compressor.prune(model, model.parent / "a", workers=1, **options)
    four = compressor.prune(model, model.parent / "b", workers=4, **options)
    assert planned.plan.size_after == one.plan.size_after
    for file in (model.parent / "a").iterdir():
        assert file.read_bytes() == (model.parent / "b" / file.name).read_bytes()
    assert one.plan.size_after == sum(f.stat().st_size for f in (model.parent / "a").glob("*.safetensors"))
    assert planned.plan.fingerprint == one.plan.fingerprint == four.plan.fingerprint


def test_buffers_of_older_checkpoints_go_with_their_block(tmp_path: Path) -> None:
    """Masks, positions and frequencies that older libraries saved, scalars too, stop nothing and lose nothing."""
    more = {
        "model.position_ids": np.arange(9).reshape(1, 9),
        **{f"model.layers.{n}.self_attn.masked_bias": np.array(-n, np.float32) for n in range(LAYERS)},
        **{f"model.layers.{n}.self_attn.causal_mask": np.full((1, 1, 9, 9), n, bool) for n in range(LAYERS)},
        **{f"model.layers.{n}.self_attn.freq.inv_freq": np.full(4, n, np.float32) for n in range(LAYERS)},
    }
    path = folder(tmp_path / "model", llama() | more, CONFIG, shards=2)
    for structure in ("neurons", "heads", "hidden"):
        after, _ = cut(path, structure=structure, fraction=0.5)
        assert all(np.array_equal(after[name], value) for name, value in more.items())
    after, _ = cut(path, structure="layers", layers="1", importance="index")
    assert float(after["model.layers.1.self_attn.masked_bias"]) == -2
    assert f"model.layers.{LAYERS - 1}.self_attn.masked_bias" not in after
    assert np.array_equal(after["model.layers.1.self_attn.freq.inv_freq"], np.full(4, 2))


# ---- mixtures of experts -------------------------------------------------------------------------------

MOE = {
    "model_type": "qwen3_moe",
    "hidden_size": 8,
    "intermediate_size": 12,
    "moe_intermediate_size": 6,
    "num_experts": 5,
    "num_experts_per_tok": 2,
    "num_attention_heads": 2,
    "head_dim": 4,
    "num_hidden_layers": 3,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [1],
}


def experts(fused: bool = False, width: int = 8) -> dict[str, Array]:
    random = np.random.default_rng(3)
    shapes: dict[str, tuple[int, ...]] = {}
    for layer in range(3):
        base = f"model.layers.{layer}."
        shapes |= {f"{base}self_attn.{name}_proj.weight": (8, width) for name in "qkv"}
        shapes[f"{base}self_attn.o_proj.weight"] = (width, 8)
        if layer == 1:
            shapes |= {f"{base}mlp.{name}_proj.weight": (12, width) for name in ("gate", "up")}
            shapes[f"{base}mlp.down_proj.weight"] = (width, 12)
            continue
        shapes[f"{base}mlp.gate.weight"] = (5, width)
        if fused:
            shapes[f"{base}mlp.experts.gate_up_proj"] = (5, 12, width)
            shapes[f"{base}mlp.experts.down_proj"] = (5, width, 6)
            continue
        for expert in range(5):
            shapes |= {f"{base}mlp.experts.{expert}.{name}_proj.weight": (6, width) for name in ("gate", "up")}
            shapes[f"{base}mlp.experts.{expert}.down_proj.weight"] = (width, 6)
    return {name: random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def test_experts_go_with_their_row_of_the_router(tmp_path: Path) -> None:
    before = experts()
    path = folder(tmp_path / "model", before, MOE, shards=2)
    after, config = cut(path, structure="experts", count=2)
    assert config == {**MOE, "num_experts": 3}
    for layer in (0, 2):
        router = before[f"model.layers.{layer}.mlp.gate.weight"]
        kept = [
            int(np.flatnonzero((router == row).all(1))[0]) for row in after[f"model.layers.{layer}.mlp.gate.weight"]
        ]
        assert kept == sorted(kept)
        for new, old in enumerate(kept):
            for part in ("gate", "up", "down"):
                name = f"model.layers.{layer}.mlp.experts.{{}}.{part}_proj.weight"
                assert np.array_equal(after[name.format(new)], before[name.format(old)])
        assert f"model.layers.{layer}.mlp.experts.3.up_proj.weight" not in after


def test_fused_experts_are_cut_along_each_of_their_axes(tmp_path: Path) -> None:
    before = experts(fused=True)
    path = folder(tmp_path / "model", before, MOE, shards=2)
    after, config = cut(path, structure="experts", count=2, importance="index")
    assert config["num_experts"] == 3
    name = "model.layers.2.mlp.experts.gate_up_proj"
    assert np.array_equal(after[name], before[name][:3])
    after, config = cut(path, structure="neurons", count=1, importance="index")
    assert (config["moe_intermediate_size"], config["intermediate_size"]) == (5, 11)
    assert np.array_equal(after[name], before[name][:, [0, 1, 2, 3, 4, 6, 7, 8, 9, 10]])
    down = "model.layers.2.mlp.experts.down_proj"
    assert np.array_equal(after[down], before[down][:, :, :5])
    with pytest.raises(UsageError, match="nothing would be removed in multiples of 4"):  # 16 bytes of float32
        compressor.prune(path, tmp_path / "no", structure="hidden", count=2)


@pytest.mark.parametrize("half", [False, True])
def test_rows_of_experts_stay_multiples_of_16_bytes(tmp_path: Path, half: bool) -> None:
    before = {name: one.astype(np.float16 if half else np.float32) for name, one in experts(True, 24).items()}
    path = folder(tmp_path / "model", before, {**MOE, "hidden_size": 24}, shards=2)
    for count, left in ((10, 16), (6, 24 if half else 20)):
        if left == 24:
            with pytest.raises(UsageError, match="nothing would be removed in multiples of 8"):
                cut(path, structure="hidden", count=count, importance="index")
            continue
        after, config = cut(path, structure="hidden", count=count, importance="index")
        assert config["hidden_size"] == left
        name, down = (f"model.layers.2.mlp.experts.{part}_proj" for part in ("gate_up", "down"))
        assert np.array_equal(after[name], before[name][:, :, :left])
        assert np.array_equal(after[down], before[down][:, :left])


def test_fused_experts_that_are_quantized_are_cut_one_by_one(tmp_path: Path) -> None:
    path = folder(tmp_path / "model", experts(fused=True), MOE, shards=2)
    stages = [
        "prune:structure=experts,count=2,importance=index",
        "prune:structure=neurons,count=1,importance=index",
    ]
    compressor.pipeline(path, tmp_path / "dense", stages=stages)
    compressor.pipeline(path, tmp_path / "out", stages=[*stages, "quantize:bits=8,granularity=channel"])
    compressor.restore(tmp_path / "out", tmp_path / "restored")
    dense, restored = (
        {
            name: array
            for file in (tmp_path / where).glob("*.safetensors")
            for name, array in load_file(file).items()
        }
        for where in ("dense", "restored")
    )
    fused = dense["model.layers.0.mlp.experts.gate_up_proj"]
    assert fused.shape == (3, 10, 8)
    for expert in range(3):
        for name, rows in (("gate", fused[expert, :5]), ("up", fused[expert, 5:])):
            found = restored[f"model.layers.0.mlp.experts.{expert}.{name}_proj.weight"]
            np.testing.assert_allclose(found, rows, atol=0.02)
    assert "model.layers.0.mlp.experts.3.up_proj.weight" not in restored


def test_which_layers_have_experts_is_said_anew(tmp_path: Path) -> None:
    path = folder(tmp_path / "model", experts(), MOE, shards=2)
    assert cut(path, structure="layers", layers="0")[1]["mlp_only_layers"] == [0]
    (path / "config.json").write_text(json.dumps({**MOE, "mlp_only_layers": [1], "decoder_sparse_step": 2}))
    _, config = cut(path, structure="layers", layers="1")
    assert (config["mlp_only_layers"], config["decoder_sparse_step"]) == ([0, 1], 1)


# ---- plain chains and descriptions ---------------------------------------------------------------------


@pytest.mark.parametrize("names", [["fc1", "fc2", "fc10"], ["net.0", "net.2", "net.4"], ["l1", "l2", "head"]])
@pytest.mark.parametrize("transposed", [False, True])
def test_a_plain_chain_computes_what_the_masked_one_does(
    tmp_path: Path, names: list[str], transposed: bool
) -> None:
    before = chain(names, [6, 9, 7, 3], transposed)
    save_file(before, tmp_path / "a.safetensors")
    compressor.prune(tmp_path / "a.safetensors", tmp_path / "b.safetensors", structure="neurons", count=2)
    after = load_file(tmp_path / "b.safetensors")

    def forward(tensors: dict[str, Array], masks: list[Array] | None = None) -> Array:
        x = np.linspace(-2, 2, 24).reshape(4, 6)
        for number, name in enumerate(names):
            matrix = tensors[f"{name}.weight"]
            x = x @ (matrix if transposed else matrix.T) + tensors[f"{name}.bias"]
            if number < 2:
                x = np.maximum(x, 0) * (1 if masks is None else masks[number])
        return x

    masks = []
    for name, after_it in pairwise(names):
        makes, reads = before[f"{name}.weight"], before[f"{after_it}.weight"]
        rows = [makes.T, reads] if transposed else [makes, reads.T]
        mask = np.zeros(len(rows[0]))
        mask[largest(weight(rows, 2), len(mask) - 2)] = 1
        masks.append(mask)
    np.testing.assert_allclose(forward(after), forward(before, masks), rtol=1e-5)


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        (
            chain(["fc1", "fc2"], [4, 5, 6]) | {"fc2.weight": np.zeros((6, 7), np.float32)},
            "no chain of dense layers",
        ),
        (chain(["a", "b"], [4, 5, 6]), "config.json with model_type is missing"),
        (chain(["fc1", "fc2"], [4, 5, 6]) | {"bn.weight": np.zeros(5, np.float32)}, "model_type is missing"),
        (chain(["fc1"], [4, 5]), "model_type is missing"),
        (chain(["a1.b1", "a1.b2"], [4, 5, 6]), "model_type is missing"),
    ],
    ids=["breaks", "names", "norm", "one", "two numbers"],
)
def test_what_is_no_chain_is_refused(tmp_path: Path, tensors: dict[str, Array], said: str) -> None:
    save_file(tensors, tmp_path / "a.safetensors")
    with pytest.raises(InputError, match=said):
        compressor.prune(tmp_path / "a.safetensors", tmp_path / "b.safetensors", structure="neurons", count=1)


RECIPE = """
[[structure]]
axes = ["blocks.*.wide:0", "blocks.*.bias:0", "blocks.*.narrow:1"]
config = ["wide"]

[[structure]]
name = "pairs"
axes = ["blocks.*.wide:1:2"]

[[stage]]
kind = "prune"
structure = "{}"
count = 2
importance = "index"
"""


@pytest.fixture
def blocks(tmp_path: Path) -> Path:
    random = np.random.default_rng(1)
    tensors = {}
    for number in range(3):
        tensors[f"blocks.{number}.wide"] = random.normal(size=(8, 6)).astype(np.float32)
        tensors[f"blocks.{number}.narrow"] = random.normal(size=(6, 8)).astype(np.float32)
    tensors["blocks.1.bias"] = random.normal(size=8).astype(np.float32)
    return folder(tmp_path / "model", tensors, {"model_type": "mine", "wide": 8})


def test_a_described_structure(tmp_path: Path, blocks: Path) -> None:
    (tmp_path / "r.toml").write_text(RECIPE.format("neurons"))
    report = compressor.pipeline(blocks, tmp_path / "out", recipe=str(tmp_path / "r.toml"))
    before, after = (load_file(path / "model.safetensors") for path in (blocks, tmp_path / "out"))
    for number in range(3):
        assert np.array_equal(after[f"blocks.{number}.wide"], before[f"blocks.{number}.wide"][:6])
        assert np.array_equal(after[f"blocks.{number}.narrow"], before[f"blocks.{number}.narrow"][:, :6])
    assert np.array_equal(after["blocks.1.bias"], before["blocks.1.bias"][:6])
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == {"model_type": "mine", "wide": 6}
    assert [cut.name for cut in report.plan.cuts] == ["neurons.0", "neurons.1", "neurons.2"]
    assert report.plan.cuts[1].places == ("blocks.1.wide:0", "blocks.1.bias:0", "blocks.1.narrow:1")
    (tmp_path / "r.toml").write_text(RECIPE.format("pairs"))
    compressor.pipeline(blocks, tmp_path / "out", recipe=str(tmp_path / "r.toml"), force=True)
    after = load_file(tmp_path / "out" / "model.safetensors")
    assert np.array_equal(after["blocks.0.wide"], before["blocks.0.wide"][:, :2])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("blocks.*.wide:0", "blocks.*.none:0"), "no tensor is called 'blocks.\\*.none'"),
        (("blocks.*.wide:0", "blocks.*.wide:3"), "has no axis 3"),
        (("blocks.*.wide:0", "blocks.*.wide:1"), "has 6 units and .* has 8"),
        (("blocks.*.wide:0", "blocks.*.wide:0:3"), "no multiple of 3"),
        (("blocks.*.wide:0", "blocks.*.wide"), "is not NAME:AXIS"),
        (("blocks.*.wide:0", "blocks.*.wide:0:0"), "is not NAME:AXIS"),
        (("blocks.*.wide:0", "blocks.0.wide:0"), "same number of \\*"),
        (('config = ["wide"]', 'config = ["deep"]'), "no number deep"),
        (('config = ["wide"]', "config = 1"), "config: must be a list"),
        (('config = ["wide"]', "more = 1"), "more: is not known"),
        (('name = "pairs"', "name = 3"), "name: must be a text"),
        (('["blocks.*.wide:1:2"]', "[]"), "axes: is empty"),
        (('structure = "neurons"', 'structure = "neuron"'), "Did you mean neurons"),
        (("count = 2", "count = 2\nsparsity = 0.5"), "sparsity: is no option of a structured cut"),
        (("count = 2", 'count = "2"'), "count: must be an integer"),
        (("count = 2", 'count = 2\ninclude = ["*"]'), "include: has no meaning"),
        (("count = 2", "count = 2\nfraction = 0.5"), "needs one of fraction or count"),
        (("count = 2", 'count = 2\nlayers = "1"'), "layers are for structure layers"),
    ],
)
def test_a_wrong_description_is_refused(tmp_path: Path, blocks: Path, change: tuple[str, str], said: str) -> None:
    text = RECIPE.format("neurons")
    assert change[0] in text
    (tmp_path / "r.toml").write_text(text.replace(*change, 1))
    with pytest.raises(UsageError, match=said):
        compressor.pipeline(blocks, tmp_path / "out", recipe=str(tmp_path / "r.toml"))


def test_a_description_that_contradicts_the_config_is_refused(tmp_path: Path, blocks: Path) -> None:
    (blocks / "config.json").write_text('{"wide": 9}')
    (tmp_path / "r.toml").write_text(RECIPE.format("neurons"))
    with pytest.raises(InputError, match=r"says wide 9, and blocks\.0\.wide has 8"):
        compressor.pipeline(blocks, tmp_path / "out", recipe=str(tmp_path / "r.toml"))


def test_a_cut_comes_first(tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text(
        '[[stage]]\nkind = "prune"\nsparsity = 0.5\n[[stage]]\nkind = "prune"\nstructure = "heads"\ncount = 1\n'
    )
    with pytest.raises(UsageError, match=r"stage\[1\]: a structured cut must come before"):
        load_recipe(str(tmp_path / "r.toml"))
    assert isinstance(parse_stage("prune:structure=layers,layers=3|5-6"), StructuredCut)


# ---- refusals ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"structure": "layers", "layers": "2-4"}, r"has 4 \(0 to 3\), and layers asks for 4"),
        ({"structure": "layers", "layers": "0-3"}, "0 would be left"),
        ({"structure": "layers", "layers": "2-1"}, "numbers and ranges"),
        ({"structure": "layers", "layers": "١"}, "must be numbers"),
        ({"structure": "layers", "layers": "0-999999999"}, "numbers and ranges"),
        ({"structure": "layers", "count": 4}, "Remove at most 3"),
        ({"structure": "neurons", "fraction": 0.99}, "0 would be left"),
        ({"structure": "neurons", "fraction": 0.01}, "nothing would be removed"),
        (
            {"structure": "neurons", "fraction": 0.25, "multiple_of": 64},
            "nothing would be removed in multiples of 64",
        ),
        ({"structure": "neurons"}, "needs one of fraction or count"),
        ({"structure": "heads", "count": 2}, "Remove at most 1"),
        ({"structure": "experts", "count": 1}, "this llama model has no experts"),
        ({"structure": "hidden", "fraction": float("nan")}, "fraction: must be a number"),
        ({"structure": "neuron", "fraction": 0.1}, "Did you mean neurons"),
        ({"structure": "neurons", "fraction": 0.5, "exclude": ["x"]}, "exclude: is no option"),
    ],
)
def test_cuts_that_cannot_be(model: Path, options: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        compressor.prune(model, model.parent / "out", **options)
    assert not (model.parent / "out").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model_type": "unheard"}, "'unheard' is not known; known are llama"),
        ({"model_type": None}, "no model_type"),
        ({"model_type": ["llama"]}, "is not known"),
        ({"hidden_size": None}, "lacks hidden_size"),
        ({"hidden_size": "16"}, "says hidden_size '16', which is no size"),
        ({"hidden_size": -1}, "which is no size"),
        ({"hidden_size": True}, "which is no size"),
        ({"hidden_size": 10**30}, "which is no size"),
        ({"intermediate_size": 25}, r"and by config.json axis 1 \(neurons\) has 25"),
        ({"intermediate_size": None}, "lacks intermediate_size"),
        ({"num_hidden_layers": 5}, "says num_hidden_layers 5, and block 4 is missing"),
        ({"num_hidden_layers": 3}, "and there is a block 3"),
        ({"num_hidden_layers": 2**30}, "block 4 is missing"),
        ({"num_key_value_heads": 3}, "4 heads for 3 of keys"),
        ({"head_dim": None}, "by config.json axis"),
        ({"head_dim": 0}, "which is no size"),
        ({"num_attention_heads": 3, "head_dim": None, "num_key_value_heads": 3}, "width of 16 for 3 heads"),
    ],
)
@pytest.mark.parametrize("structure", ["neurons", "layers"])
def test_a_config_that_contradicts_the_weights(
    tmp_path: Path, change: dict[str, Any], said: str, structure: str
) -> None:
    config = {key: value for key, value in {**CONFIG, **change}.items() if value is not None}
    path = folder(tmp_path / "model", llama(), config)
    with pytest.raises(InputError, match=said):
        compressor.prune(path, tmp_path / "out", structure=structure, count=1)


def changed(tensors: dict[str, Array], **more: Any) -> dict[str, Array]:
    return {name: array for name, array in {**tensors, **more}.items() if array is not None}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"model.layers.1.mlp.lora_A.weight": np.zeros((4, HIDDEN), np.float32)},
            "llama model has no 'model.layers.1",
        ),
        ({MLP.format(2, "down"): None}, "block 2 has no mlp.down_proj.weight, which belongs to its mlp"),
        ({MLP.format(2, "down"): np.zeros(4, np.float32)}, "where 2 axes belong"),
        (
            {f"model.layers.4.{name}": np.zeros(HIDDEN, np.float32) for name in ("norm.weight",)},
            "has no 'model.layers",
        ),
        ({"model.layers.00.input_layernorm.weight": np.zeros(HIDDEN, np.float32)}, None),
        ({"layers.0.input_layernorm.weight": np.zeros(HIDDEN, np.float32)}, "is there under two names"),
    ],
)
def test_tensors_that_do_not_fit(tmp_path: Path, change: dict[str, Any], said: str | None) -> None:
    path = folder(tmp_path / "model", changed(llama(), **change), CONFIG)
    for structure in ("neurons", "layers", "hidden"):
        if said is None and structure != "hidden":  # what stands outside the blocks does no harm
            compressor.prune(path, tmp_path / structure, structure=structure, count=1)
            continue
        with pytest.raises(InputError, match=said or "has no 'model.layers.00"):
            compressor.prune(path, tmp_path / "out", structure=structure, count=1)


def test_what_is_not_finite_has_no_importance(tmp_path: Path) -> None:
    tensors = llama()
    tensors[MLP.format(1, "up")][3, 2] = np.nan
    path = folder(tmp_path / "model", tensors, CONFIG)
    with pytest.raises(InputError, match=r"layers\.1\.mlp\.up_proj\.weight.* holds 1 NaN") as caught:
        compressor.prune(path, tmp_path / "out", structure="neurons", count=1)
    assert 'non_finite="keep"' in str(caught.value)
    compressor.prune(path, tmp_path / "out", structure="neurons", count=1, non_finite="keep")
    assert load_file(tmp_path / "out" / "model.safetensors")[MLP.format(1, "up")].shape == (23, 16)


def test_experts_that_the_config_counts_otherwise(tmp_path: Path) -> None:
    for number, (change, said) in enumerate(
        [
            ({"num_experts": 6}, "gate.weight.*axis 0"),
            ({"num_experts_per_tok": None}, "num_experts_per_tok None of 5"),
            ({"num_experts_per_tok": 6}, "num_experts_per_tok 6 of 5"),
            ({"num_experts": None}, "lacks num_experts"),
        ]
    ):
        path = folder(tmp_path / str(number), experts(), {**MOE, **change})
        with pytest.raises(InputError, match=said):
            compressor.prune(path, tmp_path / "out", structure="experts", count=1)
    lacking = changed(
        experts(), **{f"model.layers.0.mlp.experts.4.{n}_proj.weight": None for n in ("up", "gate", "down")}
    )
    with pytest.raises(InputError, match="says 5 experts, and block 0 has 4"):
        compressor.prune(folder(tmp_path / "few", lacking, MOE), tmp_path / "out", structure="experts", count=1)
    whole = folder(tmp_path / "whole", experts(), MOE)
    with pytest.raises(UsageError, match=r"1 would be left, and each token uses 2.* Remove at most 3"):
        compressor.prune(whole, tmp_path / "out", structure="experts", count=4)


@pytest.mark.parametrize(
    "change",
    [
        {"layer_types": {"a": 1}},
        {"layer_types": "abcd"},
        {"layer_types": [[]] * 4},
        {"max_window_layers": "2"},
        {"max_window_layers": -5},
        {"mlp_only_layers": "x"},
        {"decoder_sparse_step": 0},
        {"decoder_sparse_step": [1]},
        {"architectures": 5},
        {"architectures": [None]},
        {"model_type": "gemma2", "layer_types": None},
        {"model_type": "gemma3_text", "layer_types": None, "sliding_window_pattern": "x"},
        {"model_type": "qwen2", "layer_types": None, "use_sliding_window": True, "max_window_layers": {}},
        {"pooler_output_size": "x", "num_local_experts": []},
    ],
)
def test_no_config_brings_it_down(tmp_path: Path, change: dict[str, Any]) -> None:
    path = folder(tmp_path / "model", llama(), {**CONFIG, **change})
    for structure in ("neurons", "heads", "layers", "hidden"):
        with suppress(UsageError, InputError):
            compressor.prune(path, tmp_path / structure, structure=structure, count=1)


# ---- what is reported ----------------------------------------------------------------------------------


def test_the_report_names_each_group_and_warns_from_what_was_measured(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(model.parent / "out")
    assert run(["prune", str(model), "-o", out, "--structure", "heads", "--fraction", "0.5", "--dry-run"]) == 0
    said = capsys.readouterr()
    assert "heads model.layers.3.self_attn" in said.out
    assert "2 → 1" in said.out or "2 -> 1" in said.out
    assert "relative error is 0.7" in said.err
    assert "perplexity 5.1 to 14.9" in said.err
    assert run(["prune", str(model), "-o", out, "--structure", "neurons", "--count", "1", "--format", "json"]) == 0
    said = capsys.readouterr()
    assert "warning" not in said.err
    groups = json.loads(said.out)["cuts"]
    assert [group["before"] for group in groups] == [24] * 4
    assert groups[0]["axes"] == [
        f"{MLP.format(0, name)}:{axis}" for name, axis in (("down", 1), ("gate", 0), ("up", 0))
    ]
    assert 0 < groups[0]["importance_removed"] < 1 / 24
    assert run(["prune", str(model), "-o", out, "--structure", "neurons", "--count", "1", "--sparsity", "0.1"]) == 2
    mask = str(model.parent / "mask.safetensors")
    assert run(["prune", str(model), "-o", out, "--structure", "heads", "--count", "1", "--save-mask", mask]) == 2
    assert run(["prune", str(model), "-o", out, "--fraction", "0.1"]) == 2
    assert "--fraction is for --structure" in capsys.readouterr().err


def test_zeros_in_a_language_model_are_warned_of(model: Path) -> None:
    report = compressor.prune(model, model.parent / "out", sparsity=0.5)
    assert any("Llama-2-7B" in sentence for sentence in report.warnings)
    report = compressor.prune(model, model.parent / "less", sparsity=0.1)
    assert not report.warnings


def test_the_error_of_a_cut_is_a_gate(model: Path) -> None:
    with pytest.raises(ReportedGateFailed, match="the cut's relative error"):
        compressor.prune(model, model.parent / "out", structure="heads", count=1, gates=Gates(max_error=0.5))
    assert not (model.parent / "out").exists()


def test_the_relative_error_is_that_of_the_tensor(tmp_path: Path) -> None:
    """fc2 loses rows and columns, which meet."""
    before = chain(["fc1", "fc2", "fc3"], [6, 9, 7, 3])
    save_file(before, tmp_path / "a.safetensors")
    report = compressor.prune(
        tmp_path / "a.safetensors",
        tmp_path / "b.safetensors",
        structure="neurons",
        fraction=0.5,
        importance="index",
    )
    after = load_file(tmp_path / "b.safetensors")
    errors = {}
    for name, whole in before.items():
        lost = whole.copy()
        lost[tuple(slice(0, size) for size in after[name].shape)] = 0
        errors[name] = np.linalg.norm(lost) / np.linalg.norm(whole)
    assert "fc2.weight" in {cut.worst for cut in report.plan.cuts}
    for cut in report.plan.cuts:
        assert cut.error == pytest.approx(errors[cut.worst], abs=1e-5)


def test_pooling_is_told_of_the_width(tmp_path: Path) -> None:
    path = folder(tmp_path / "model", llama(), CONFIG, shards=2)
    (path / "modules.json").write_text("[]")
    (path / "1_Pooling").mkdir()
    (path / "1_Pooling" / "config.json").write_text('{"word_embedding_dimension": 16, "pooling": true}')
    cut(path, structure="hidden", count=4)
    held = json.loads((tmp_path / "out" / "1_Pooling" / "config.json").read_text())
    assert held == {"word_embedding_dimension": 12, "pooling": True}
    (path / "2_Dense").mkdir()
    save_file({"linear.weight": np.zeros((4, 16), np.float32)}, path / "2_Dense" / "model.safetensors")
    with pytest.raises(UsageError, match=r"2_Dense/model\.safetensors holds weights"):
        compressor.prune(path, tmp_path / "no", structure="hidden", count=4)


# ---- reading through an index --------------------------------------------------------------------------


@given(data=st.data())
@settings(max_examples=80)
def test_what_is_gathered_is_what_numpy_takes(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    shape = tuple(data.draw(st.lists(st.integers(1, 7), min_size=1, max_size=4)))
    path = tmp_path_factory.mktemp("gather") / "a.safetensors"
    whole = np.arange(np.prod(shape), dtype=np.float16).reshape(shape)
    save_file({"w": whole}, path)
    tensor = open_checkpoint(path).tensors["w"]
    expected = whole
    for _ in range(data.draw(st.integers(1, 2))):  # a cut of what was cut
        keep = {}
        for axis, size in enumerate(expected.shape):
            if data.draw(st.booleans()):
                mask = np.array(data.draw(st.lists(st.booleans(), min_size=size, max_size=size)))
                mask[data.draw(st.integers(0, size - 1))] = True
                keep[axis] = mask
        tensor = gathered(tensor, "w", keep)
        for axis, mask in keep.items():
            expected = np.compress(mask, expected, axis=axis)
    assert tensor.spec.shape == expected.shape
    for columns in {tensor.spec.matrix[1], expected.shape[-1]}:
        rows = expected.size // columns
        start = data.draw(st.integers(0, rows - 1))
        stop = data.draw(st.integers(start + 1, rows))
        read = Rows(tensor, columns, start, stop, Workspace(), "test").block(start, stop)
        assert np.array_equal(read, expected.reshape(rows, columns)[start:stop].astype(np.float32))


def test_nothing_of_a_width_of_zero(tmp_path: Path) -> None:
    save_file({"w": np.zeros((3, 0), np.float32)}, tmp_path / "a.safetensors")
    tensor: Tensor = gathered(
        open_checkpoint(tmp_path / "a.safetensors").tensors["w"], "v", {0: np.array([1, 0, 1], bool)}
    )
    assert tensor.spec.shape == (2, 0)
    assert tensor.whole.read_rows(0, 0, 2, Workspace(), "test").shape == (2, 0)


def test_no_request_changes_nothing(model: Path) -> None:
    checkpoint = open_checkpoint(model)
    assert restructure(checkpoint, ()) is checkpoint


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.types[0])
def test_the_tables_are_sound(family: Any) -> None:
    known = {"hidden", "encoded", "embed", "neurons", "q", "kv", "cross", "moe", "shared", "experts", "heads", "-"}
    for line in (*lines(family.outer), *lines(family.block)):
        assert line.axes or line.module.endswith("masked_bias"), line.module
        assert {symbol.lstrip("23") for sections in line.axes for symbol in sections} <= known
    modules = [line.module for line in lines(family.block)]
    assert len(set(modules)) == len(modules)
    inside = {symbol for line in lines(family.block) for sections in line.axes for symbol in sections}
    for symbol in inside & {"neurons", "moe", "shared", "experts"}:
        assert family.keys[symbol]
