"""Fused experts: told apart by shapes and model, read where they lie, stored as the matrices that loaders know."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from support import archives
from support.console import compressor
from support.laws import Array, numbers, store

from compressor import api
from compressor.checkpoint.checkpoint import open_checkpoint
from compressor.checkpoint.experts import split_experts
from compressor.checkpoint.rows import Rows
from compressor.core.errors import UsageError
from compressor.core.tensor import TensorSpec
from compressor.core.workspace import Workspace
from compressor.files.input_file import InputFile
from compressor.files.layout import Placed
from compressor.files.source import StoredTensor
from compressor.recipe.selection import left_alone

EXPERTS, HIDDEN, INNER = 3, 64, 32
BITS = {"bits": 4, "group_size": 32}


def experts(seed: int) -> dict[str, Array]:
    """What the matrices of one layer are, [E, out, in], and biases [E, out]."""
    random = np.random.default_rng(seed)
    shapes = {"gate": (INNER, HIDDEN), "up": (INNER, HIDDEN), "down": (HIDDEN, INNER)}
    found = {name: random.standard_normal((EXPERTS, *shape)) for name, shape in shapes.items()}
    return found | {f"{name}_bias": random.standard_normal((EXPERTS, shape[0])) for name, shape in shapes.items()}


def straight(part: dict[str, Array]) -> dict[str, Array]:
    return {"gate_up_proj": np.concatenate([part["gate"], part["up"]], axis=1), "down_proj": part["down"]}


def transposed(part: dict[str, Array]) -> dict[str, Array]:
    return {name: fused.transpose(0, 2, 1) for name, fused in straight(part).items()}


def interleaved(part: dict[str, Array]) -> dict[str, Array]:
    both = np.stack([part["gate"], part["up"]], axis=2).reshape(EXPERTS, 2 * INNER, HIDDEN)
    biases = np.stack([part["gate_bias"], part["up_bias"]], axis=2).reshape(EXPERTS, 2 * INNER)
    return {
        "gate_up_proj": both.transpose(0, 2, 1),
        "gate_up_proj_bias": biases,
        "down_proj": part["down"].transpose(0, 2, 1),
        "down_proj_bias": part["down_bias"],
    }


QWEN = ("gate_proj", "up_proj", "down_proj")
MODELS: dict[str, Any] = {
    "qwen3_moe": (straight, "mlp.experts", "mlp.experts", QWEN, ("mlp.gate", "mlp.gate")),
    "qwen3_5_moe": (straight, "mlp.experts", "mlp.experts", QWEN, ("mlp.gate", "mlp.gate")),
    "jamba": (straight, "feed_forward.experts", "feed_forward.experts", QWEN, ("feed_forward.router",) * 2),
    "lfm2_moe": (
        straight,
        "feed_forward.experts",
        "feed_forward.experts",
        ("w1", "w3", "w2"),
        ("feed_forward.gate",) * 2,
    ),
    "llama4": (transposed, "feed_forward.experts", "feed_forward.experts", QWEN, ("feed_forward.router",) * 2),
    "qwen3_vl_moe": (transposed, "mlp.experts", "mlp.experts", QWEN, ("mlp.gate", "mlp.gate")),
    "gpt_oss": (interleaved, "mlp.experts", "mlp.experts", QWEN, ("mlp.router", "mlp.router")),
    "mixtral": (
        straight,
        "mlp.experts",
        "block_sparse_moe.experts",
        ("w1", "w3", "w2"),
        ("mlp.gate", "block_sparse_moe.gate"),
    ),
}


def write(folder: Path, shards: list[dict[str, Array]], config: Any, dtype: str = "BF16") -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    where = {}
    for number, tensors in enumerate(shards):
        name = f"model-{number + 1}.safetensors"
        archives.write(folder / name, {key: (dtype, store(value, dtype)) for key, value in tensors.items()})
        where |= dict.fromkeys(tensors, name)
    index = {"metadata": {"total_size": 0}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def both(tmp_path: Path, kind: str, dtype: str = "BF16") -> tuple[Path, Path]:
    """The same model with fused experts, and with a matrix for each."""
    fuse, inside, outside, (gate, up, down), (router, routed) = MODELS[kind]
    config = (
        {"model_type": "wrapper", "text_config": {"model_type": kind}} if kind == "llama4" else {"model_type": kind}
    )
    fused, split = [], []
    for layer in range(2):
        part, random = experts(layer), np.random.default_rng(90 + layer)
        beside = {
            "router": random.standard_normal((EXPERTS, HIDDEN)),
            "q": random.standard_normal((HIDDEN, HIDDEN)),
        }
        at = f"model.layers.{layer}"
        fused.append(
            {
                f"{at}.self_attn.q_proj.weight": beside["q"],
                **{f"{at}.{inside}.{name}": value for name, value in fuse(part).items()},
                f"{at}.{router}.weight": beside["router"],
            }
        )
        split.append({f"{at}.self_attn.q_proj.weight": beside["q"], f"{at}.{routed}.weight": beside["router"]})
        for expert in range(EXPERTS):
            for name, called in (("gate", gate), ("up", up), ("down", down)):
                split[-1][f"{at}.{outside}.{expert}.{called}.weight"] = part[name][expert]
                if fuse is interleaved:
                    split[-1][f"{at}.{outside}.{expert}.{called}.bias"] = part[f"{name}_bias"][expert]
    return write(tmp_path / "fused", fused, config, dtype), write(tmp_path / "split", split, config, dtype)


def contents(folder: Path) -> dict[str, Any]:
    return {path.name: archives.read(path) for path in sorted(folder.glob("*.safetensors"))}


@pytest.mark.parametrize("dtype", ["BF16", "F32"])
@pytest.mark.parametrize("kind", MODELS)
def test_fused_experts_are_stored_as_if_they_had_been_apart(tmp_path: Path, kind: str, dtype: str) -> None:
    fused, split = both(tmp_path, kind, dtype)
    report = api.quantize(fused, tmp_path / "a", **BITS)
    api.quantize(split, tmp_path / "b", **BITS)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    for name in ("config.json", "model.safetensors.index.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert sum("fused expert tensors are stored as" in note for note in report.plan.notes) == 1
    assert len([job for job, _ in report.rows if ".experts." in job.spec.name]) == 2 * 3 * EXPERTS
    assert not any("router" in job.spec.name or ".gate.w" in job.spec.name for job, _ in report.rows)
    api.restore(tmp_path / "a", tmp_path / "back")
    back = {name: value for shard in contents(tmp_path / "back").values() for name, value in shard.items()}
    model = fused if kind in ("llama4", "qwen3_vl_moe", "gpt_oss") else split  # as transformers looks for them
    assert back.keys() == {name for shard in contents(model).values() for name in shard}
    api.restore(tmp_path / "b", tmp_path / "again")
    assert contents(tmp_path / "again") == contents(tmp_path / "back")


@pytest.mark.parametrize("kind", ["llama4", "qwen3_vl_moe", "gpt_oss"])
def test_restored_experts_are_joined_as_they_were(tmp_path: Path, kind: str) -> None:
    """Every number stands where the model had it: half of a gate taken for the other would be far off."""
    fused, _ = both(tmp_path, kind, "F32")
    api.quantize(fused, tmp_path / "q", bits=8, group_size=32)
    report = api.restore(tmp_path / "q", tmp_path / "back")
    assert sum("written as their layers' own" in note for note in report.plan.notes) == 1
    before, after = (
        {name: value for path in sorted(place.glob("*.safetensors")) for name, value in load_file(path).items()}
        for place in (fused, tmp_path / "back")
    )
    assert before.keys() == after.keys()
    for name, value in before.items():
        assert after[name].shape == value.shape
        assert np.linalg.norm(after[name] - value) <= 0.01 * np.linalg.norm(value), name
    biases = [name for name in before if name.endswith("_bias")]
    assert bool(biases) == (kind == "gpt_oss")
    assert all(np.array_equal(before[name], after[name]) for name in biases)


@pytest.mark.parametrize("kind", ["llama4", "qwen3_vl_moe", "gpt_oss"])
def test_joining_decodes_each_weight_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """However many chunks the joined tensors are copied in; and these are the same bytes as those of one chunk."""
    fused, _ = both(tmp_path, kind, "F32")
    api.quantize(fused, tmp_path / "q", bits=8, group_size=32)
    decoded: list[int] = []

    class Counted(Rows):
        def block(self, start: int, stop: int) -> Array:
            found = super().block(start, stop)
            decoded.append(found.size)
            return found

    monkeypatch.setattr("compressor.checkpoint.joined_experts.Rows", Counted)
    api.restore(tmp_path / "q", tmp_path / "whole")
    monkeypatch.setattr("compressor.engine.execution.cut.CHUNK", 5 * HIDDEN)
    monkeypatch.setattr("compressor.checkpoint.joined_experts.BLOCK", 2 * HIDDEN)
    decoded.clear()
    api.restore(tmp_path / "q", tmp_path / "chunks")
    assert contents(tmp_path / "chunks") == contents(tmp_path / "whole")
    assert sum(decoded) == 2 * EXPERTS * 3 * HIDDEN * INNER
    assert len(decoded) > 2 * EXPERTS * 3


def test_experts_of_which_one_is_missing_stay_apart(tmp_path: Path) -> None:
    _, split = both(tmp_path, "gpt_oss", "F32")
    shard = load_file(split / "model-1.safetensors")
    gone = "model.layers.0.mlp.experts.1.up_proj.weight"
    del shard[gone]
    save_file(shard, split / "model-1.safetensors")
    index = json.loads((split / "model.safetensors.index.json").read_text())
    del index["weight_map"][gone]
    (split / "model.safetensors.index.json").write_text(json.dumps(index))
    api.quantize(split, tmp_path / "q", **BITS)
    api.restore(tmp_path / "q", tmp_path / "back")
    names = {name for shard in contents(tmp_path / "back").values() for name in shard}
    assert "model.layers.0.mlp.experts.2.up_proj.weight" in names
    assert "model.layers.1.mlp.experts.gate_up_proj" in names


def test_matrices_that_are_left_dense_are_the_right_parts(tmp_path: Path) -> None:
    fused, split = both(tmp_path, "gpt_oss")
    api.quantize(fused, tmp_path / "a", **BITS, exclude=["*layers.1.*"])
    found = {name: value for shard in contents(tmp_path / "a").values() for name, value in shard.items()}
    expected = {name: value for shard in contents(split).values() for name, value in shard.items()}
    dense = [name for name in found if name in expected]
    assert len(dense) > 20
    assert all(found[name] == expected[name] for name in dense)
    config = json.loads((tmp_path / "a" / "config.json").read_bytes())
    assert "model.layers.1.mlp.experts.0.gate_proj" in config["quantization_config"]["ignore"]


def test_the_dry_run_and_the_report_show_the_matrices(tmp_path: Path) -> None:
    fused, _ = both(tmp_path, "llama4")
    how = ("--bits", 4, "--group-size", 32, "--dry-run", "--wide")
    done = compressor("quantize", fused, "-o", tmp_path / "q", *how)
    assert done.code == 0
    assert "model.layers.1.feed_forward.experts.2.up_proj.weight" in done.out
    assert "transformers and vLLM look for these names" in done.out
    assert not (tmp_path / "q").exists()


def test_a_file_without_a_config(tmp_path: Path) -> None:
    """Biases, or the name of Llama 4's module, tell what the model is; else nothing does."""
    for kind, split in (("gpt_oss", True), ("llama4", True), ("qwen3_moe", False), ("mixtral", False)):
        (tmp_path / kind).mkdir()
        fused, _ = both(tmp_path / kind, kind)
        report = api.quantize(fused / "model-1.safetensors", tmp_path / f"{kind}.safetensors", **BITS)
        names = archives.read(tmp_path / f"{kind}.safetensors")
        assert any(".experts.0." in name for name in names) == split
        if not split:
            assert "experts stay fused: 'model.layers.0.mlp.experts' is of no model" in report.plan.notes[0]


@pytest.mark.parametrize("verb", ["prune", "dense", "codes of attention"])
def test_experts_stay_fused_where_no_codes_of_them_are_stored(tmp_path: Path, verb: str) -> None:
    fused, _ = both(tmp_path, "qwen3_moe")
    if verb == "prune":
        report = api.prune(fused, tmp_path / "a", sparsity=0.5)
    elif verb == "dense":
        report = api.quantize(fused, tmp_path / "a", store="dense", **BITS)
    else:
        report = api.quantize(fused, tmp_path / "a", include=["*self_attn*"], **BITS)
    names = {name for shard in contents(tmp_path / "a").values() for name in shard}
    assert "model.layers.0.mlp.experts.gate_up_proj" in names
    assert not any("expert" in note for note in report.plan.notes)


@pytest.mark.parametrize(
    "options",
    [
        {"exclude": ["*.down_proj"]},
        {"include": ["re:.*gate_up_proj"]},
        {"rules": [("*experts.gate_up_proj", {"bits": 8})]},
    ],
    ids=["exclude", "include", "set"],
)
def test_patterns_for_fused_names_are_refused(tmp_path: Path, options: Any) -> None:
    fused, _ = both(tmp_path, "qwen3_moe")
    with pytest.raises(UsageError, match="names fused experts, and each expert is stored alone") as caught:
        api.quantize(fused, tmp_path / "a", **BITS, **options)
    assert ".experts.0." in caught.value.remedy
    api.quantize(fused, tmp_path / "a", **BITS, exclude=["*experts*"])


UNKNOWN: dict[str, Any] = {
    "another model": ({"model_type": "new_moe"}, {}),
    "no model": ({}, {}),
    "a model_type of numbers": ({"model_type": 7}, {}),
    "no down": ({"model_type": "qwen3_moe"}, {"down_proj": None}),
    "experts differ": ({"model_type": "qwen3_moe"}, {"down_proj": (2, 64, 32)}),
    "sizes differ": ({"model_type": "qwen3_moe"}, {"down_proj": (3, 64, 48)}),
    "odd": ({"model_type": "qwen3_moe"}, {"gate_up_proj": (3, 65, 64)}),
    "bias of another size": ({"model_type": "qwen3_moe"}, {"down_proj_bias": (3, 65)}),
    "too many": ({"model_type": "qwen3_moe"}, {"gate_up_proj": (5000, 2, 1), "down_proj": (5000, 1, 1)}),
    "names taken": ({"model_type": "qwen3_moe"}, {"0.up_proj.weight": (2, 32)}),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_what_is_not_known_stays_fused(tmp_path: Path, name: str) -> None:
    config, changed = UNKNOWN[name]
    shapes = {"gate_up_proj": (3, 64, 64), "down_proj": (3, 64, 32)} | changed
    tensors = {f"l.0.mlp.experts.{key}": np.ones(shape) for key, shape in shapes.items() if shape is not None}
    source = write(tmp_path / "in", [tensors | {"a.weight": np.ones((8, 32))}], config)
    report = api.quantize(source, tmp_path / "out", **BITS)
    assert any("experts stay fused" in note for note in report.plan.notes)
    job = next(job for job in report.plan.jobs if job.spec.name.endswith("gate_up_proj"))
    assert "no matrix" in job.left_alone[0].reason


def test_a_pipeline_with_a_teacher(tmp_path: Path) -> None:
    fused, split = both(tmp_path, "qwen3_moe")
    stages = ["distill:method=blend,alpha=0.5", "quantize:bits=4,group_size=32"]
    api.pipeline(fused, tmp_path / "a", stages=stages, teacher=fused)
    api.pipeline(split, tmp_path / "b", stages=stages, teacher=split)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_an_output_is_compared_with_its_fused_source(tmp_path: Path) -> None:
    fused, _ = both(tmp_path, "gpt_oss")
    api.quantize(fused, tmp_path / "q", **BITS)
    report = api.compare(fused, tmp_path / "q")
    assert not [row.name for row in report.rows if row.problem]
    assert 0.05 < report.total.error < 0.15


@pytest.mark.parametrize("strides", [(1, 20), (2, 40), (60, 1), (120, 2), (7, 3)])
@pytest.mark.parametrize("big_endian", [False, True])
def test_parts_of_a_matrix_are_read_by_rows(tmp_path: Path, strides: tuple[int, int], big_endian: bool) -> None:
    whole = np.arange(4000, dtype=">i4" if big_endian else "<i4")
    (tmp_path / "data").write_bytes(b"head" + whole.tobytes())
    placed = Placed(TensorSpec("a", "I32", (9, 16)), 4 + 11 * 4, big_endian=big_endian, strides=strides)
    tensor = StoredTensor(InputFile.open(tmp_path / "data"), placed)
    by_row, by_column = strides
    expected = whole[11 + np.arange(9)[:, None] * by_row + np.arange(16) * by_column]
    for start, stop in ((0, 9), (2, 5), (8, 9), (3, 3)):
        found = tensor.read_rows(16, start, stop, Workspace(), "test")
        assert np.array_equal(found, expected[start:stop])
    assert not tensor.contiguous


def test_split_experts_leaves_other_checkpoints_alone(tmp_path: Path) -> None:
    source = write(tmp_path / "in", [{"a.weight": np.ones((8, 32))}], {"model_type": "qwen3_moe"})
    checkpoint = open_checkpoint(source)
    assert split_experts(checkpoint) is checkpoint
    fused, _ = both(tmp_path, "llama4")
    found = split_experts(open_checkpoint(fused))
    part = found.tensors["model.layers.1.feed_forward.experts.2.up_proj.weight"]
    expected = store(experts(1)["up"][2], "BF16")
    assert np.array_equal(part.whole.read_rows(HIDDEN, 0, INNER, Workspace(), "x"), expected)
    assert np.isfinite(numbers(expected, "BF16")).all()


@pytest.mark.parametrize(
    "name",
    [
        "mlp.gate",
        "block_sparse_moe.gate",
        "mlp.router",
        "feed_forward.router",
        "mlp.gate.wg",
        "mlp.shared_expert_gate",
    ],
)
def test_routers_stay_dense(name: str) -> None:
    why = left_alone(TensorSpec(f"model.layers.0.{name}.weight", "BF16", (4, 64)), "quantize", (), ())
    assert why is not None
    assert why.reason.startswith("router")
