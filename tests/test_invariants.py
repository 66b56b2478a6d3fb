"""What holds for every run, whatever the recipe: exact sizes, equal bytes, faithful return, nothing left unsaid.

The numbers in the test names are those of the invariants in docs/architecture.md.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import archives
from support.console import LLAMA, MATRIX, TEACHER, compressor
from support.laws import FLOATS, Array, numbers, store

from compressor import api
from compressor.cli.report import render
from compressor.core.errors import InputError, Problems, UsageError
from compressor.core.tensor import DTYPES
from compressor.engine.execution import cut as cutting
from compressor.engine.execution import runner, units
from compressor.methods.prune import magnitude
from compressor.recipe.stages import parse_stage
from compressor.recipe.toml_file import ready_recipes
from compressor.workflows.results import Report

NAMES = {
    "int8": "quantize:bits=8",
    "int8 tensor": "quantize:bits=8,granularity=tensor",
    "int8 group": "quantize:bits=8,group_size=4",
    "int4 group": "quantize:bits=4,group_size=4",
    "int4 channel": "quantize:bits=4,granularity=channel",
    "int4 asymmetric": "quantize:bits=4,granularity=channel,symmetric=false",
    "int4 asymmetric tensor": "quantize:bits=4,granularity=tensor,symmetric=false",
    "int3": "quantize:bits=3,granularity=channel",
    "int5 asymmetric group": "quantize:bits=5,group_size=2,symmetric=false",
    "codebook": "quantize:scheme=codebook,entries=6",
    "codebook rows": "quantize:scheme=codebook,entries=3,rows=5",
    "ternary": "quantize:scheme=ternary",
    "factor": "quantize:factor=16,code_bits=32",
    "step": "quantize:scheme=step,bits=1",
}


def weights(shape: tuple[int, ...], dtype: str, seed: int = 0) -> tuple[str, Array]:
    """Usual weights with a few exact zeros."""
    random = np.random.default_rng(seed)
    values = random.standard_normal(shape) * (random.random(shape) > 0.1)
    return dtype, store(values, dtype)


def zoo() -> dict[str, tuple[str, Array]]:
    """Tensors of every dtype and rank."""
    random = np.random.default_rng(1)
    found = {f"{dtype.lower()}.weight": weights((12, 8), dtype, 3) for dtype in FLOATS}
    found |= {
        "many.rows.weight": weights((70, 4), "BF16"),
        "three.weight": weights((5, 2, 4), "F32"),
        "conv.weight": weights((6, 2, 2, 2), "F16"),
        "vector": weights((8,), "F32"),
        "scalar": weights((), "F32"),
        "no rows": ("F32", np.zeros((0, 4), "<f4")),
        "no columns": ("BF16", np.zeros((4, 0), "<u2")),
        "nothing": ("F64", np.zeros((0,), "<f8")),
        "model.embed_tokens.weight": weights((16, 8), "BF16"),
        "lm_head.weight": weights((16, 8), "BF16"),
        "i64": ("I64", np.array([[2**53 + 1, -(2**63)]], "<i8")),
        "bool": ("BOOL", np.array([0, 1, 2, 255], np.uint8)),
        "f8_e8m0": ("F8_E8M0", np.array([[0, 127, 255]], np.uint8)),
        "f8_fnuz": ("F8_E4M3FNUZ", np.arange(8, dtype=np.uint8)),
        "f8_fnuz2": ("F8_E5M2FNUZ", np.arange(8, dtype=np.uint8)[None]),
        "f4": ("F4", np.arange(8, dtype=np.uint8)),
        "f6": ("F6_E2M3", np.arange(9, dtype=np.uint8)),
        "f6b": ("F6_E3M2", np.arange(9, dtype=np.uint8)),
        "c64": ("C64", np.array([[1 + 2j, np.nan]], "<c8")),
        "a name with ünï¢øde\x1b[31m": weights((4, 4), "F32"),
    }
    for kind in ("I32", "I16", "I8", "U64", "U32", "U16", "U8"):
        raw = np.frombuffer(random.bytes(24), DTYPES[kind].storage)
        found[kind.lower()] = (kind, raw)
    return found


METADATA = {"format": "pt", "escapes": 'ä\\"\n\x1b[2J', "": "empty key"}
FILES = {
    "config.json": b'{"model_type": "zoo",\r\n "torch_dtype": "float32"}',
    "tokenizer.json": b'{"b": 1, "a": [1.0]}',
    "tokenizer.model": bytes(range(256)),
    "vocab/merges.txt": b"a b\n",
    "vocab/deep/er/x.py": b"print()",
    "README.md": b"",
}


@pytest.fixture(scope="module")
def animals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The zoo as one file."""
    return archives.write(tmp_path_factory.mktemp("zoo") / "zoo.safetensors", zoo(), METADATA)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The zoo as a folder of two shards with other files beside them."""
    root = tmp_path_factory.mktemp("zoo") / "model"
    (root / "vocab" / "deep" / "er").mkdir(parents=True)
    for name, content in FILES.items():
        (root / name).write_bytes(content)
    names, tensors = sorted(zoo()), zoo()
    shards = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for shard, held in shards.items():
        archives.write(root / shard, {name: tensors[name] for name in held}, METADATA)
    index = {"metadata": {"total_size": 1}, "weight_map": {name: s for s, held in shards.items() for name in held}}
    (root / "model.safetensors.index.json").write_text(json.dumps(index))
    return root


def contents(path: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """The tensors of a file or folder."""
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    return {name: tensor for file in files for name, tensor in archives.read(file).items()}


def tree(path: Path) -> dict[str, bytes]:
    """Every file of an output by its path within it."""
    if path.is_file():
        return {"": path.read_bytes()}
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


# ---- 1: a pruned zero stays zero -----------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_1_pruned_zeros_stay_zero_through_quantization(name: str, animals: Path, tmp_path: Path) -> None:
    pruned, both, back = (tmp_path / f"{stem}.safetensors" for stem in ("pruned", "both", "back"))
    stages = ["prune:sparsity=0.5", NAMES[name]]
    api.pipeline(animals, pruned, stages=stages[:1])
    report = api.pipeline(animals, both, stages=stages)
    api.restore(both, back)
    found, count = contents(back), 0
    for job, change in report.rows:
        dtype, shape, data = contents(pruned)[job.spec.name]
        zero = numbers(np.frombuffer(data, DTYPES[dtype].storage).reshape(shape), dtype) == 0
        after = numbers(np.frombuffer(found[job.spec.name][2], DTYPES[dtype].storage).reshape(shape), dtype)
        assert np.all(after[zero] == 0)
        assert change is not None
        assert change.zeros_after == np.count_nonzero(after == 0)
        assert change.zeros_after >= zero.sum() >= zero.size // 2
        count += 1
    assert count == 10


def test_1_what_would_fill_pruned_zeros_is_refused(animals: Path, tmp_path: Path) -> None:
    for late in ("distill:alpha=0.5", "distill:method=reweight"):
        stages = ["prune:sparsity=0.5", late]
        arguments = {"stages": stages, "teacher": animals, "dry_run": True}
        if "alpha" in late:
            with pytest.raises((UsageError, Problems), match="stage 1 \\(distill blend\\) would fill what stage 0"):
                api.pipeline(animals, tmp_path / "out.safetensors", **arguments)
        else:
            api.pipeline(animals, tmp_path / "out.safetensors", **arguments)
        api.pipeline(animals, tmp_path / "out.safetensors", **{**arguments, "stages": stages[::-1]})


# ---- 2: declared is written ----------------------------------------------------------------------------


def planned_is_written(source: Path, output: Path, **request: Any) -> Report:
    """Dry run, run, and compare every size, part and offset."""
    dry = api.pipeline(source, output, dry_run=True, **request)
    assert not output.exists()
    assert dry.changes is None
    report = api.pipeline(source, output, **request)
    assert report.plan.fingerprint == dry.plan.fingerprint
    declared = dry.plan.to_dict()
    sizes = {file["name"]: file["bytes"] for file in declared["files"]}
    if output.is_file():
        assert sizes == {output.name: output.stat().st_size}
        assert declared["size_after"] == output.stat().st_size
    else:
        written = {name: len(content) for name, content in tree(output).items()}
        assert {name: written[name] for name in sizes} == sizes
        assert set(written) == set(sizes) | set(declared["carried"])
    for tensor in declared["tensors"]:
        for part in tensor["parts"]:
            file = output / part["file"] if output.is_dir() else output
            if file.suffix == ".safetensors":
                dtype, shape, data = archives.read(file)[part["name"]]
                assert (dtype, list(shape), len(data)) == (part["dtype"], part["shape"], part["bytes"])
                raw = file.read_bytes()
                assert raw[part["offset"] : part["offset"] + part["bytes"]] == data
    return report


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("saved", ["packed", "dense"])
def test_2_planned_sizes_of_files(name: str, saved: str, animals: Path, tmp_path: Path) -> None:
    planned_is_written(animals, tmp_path / "out.safetensors", stages=[f"{NAMES[name]},store={saved}"])


@pytest.mark.parametrize("name", ["int8", "int4 group", "int4 asymmetric", "int3", "factor"])
def test_2_planned_sizes_of_folders(name: str, folder: Path, tmp_path: Path) -> None:
    report = planned_is_written(folder, tmp_path / "out", stages=[NAMES[name]])
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_bytes())
    found = contents(tmp_path / "out")
    assert index["metadata"]["total_size"] == sum(len(data) for _, _, data in found.values())
    assert set(index["weight_map"]) == set(found)
    for tensor, shard in index["weight_map"].items():
        assert tensor in archives.read(tmp_path / "out" / shard)
    assert report.plan.size_after == sum(p.stat().st_size for p in (tmp_path / "out").glob("*.safetensors"))


@pytest.mark.parametrize("stage", ["prune:threshold=0.01", "quantize:bits=4", "quantize:factor=64"])
def test_2_planned_sizes_of_npy(stage: str, tmp_path: Path) -> None:
    planned_is_written(MATRIX, tmp_path / "out.npy", stages=[stage])
    assert np.load(tmp_path / "out.npy").shape == (256, 1024)


@pytest.mark.parametrize("stage", ["quantize:bits=4,symmetric=false", "quantize:bits=8", "quantize:factor=64"])
def test_2_planned_sizes_of_npz(stage: str, tmp_path: Path) -> None:
    planned_is_written(MATRIX, tmp_path / "out.npz", stages=[f"{stage},store=codes"])
    with np.load(tmp_path / "out.npz") as found:
        assert found["codes"].shape == (256, 1024)


@pytest.mark.parametrize(("source", "name"), [(MATRIX, "out.safetensors"), (MATRIX, "out"), (TEACHER, "out")])
def test_2_planned_sizes_where_the_container_changes(source: Path, name: str, tmp_path: Path) -> None:
    planned_is_written(source, tmp_path / name, stages=["quantize:bits=8"])


# ---- 3: equal bytes ------------------------------------------------------------------------------------

RUNS = {
    "int4": ["quantize:bits=4,group_size=4"],
    "asymmetric": ["quantize:bits=4,granularity=channel,symmetric=false"],
    "tensor": ["quantize:bits=8,granularity=tensor"],
    "codebook": ["prune:sparsity=0.3", "quantize:scheme=codebook,entries=5"],
    "codebook rows": ["quantize:scheme=codebook,entries=5,rows=4,init=kmeans++"],
    "binary": ["quantize:scheme=binary"],
    "ternary": ["quantize:scheme=ternary,group_size=4"],
    "global": ["prune:sparsity=0.6,scope=global", "quantize:bits=8"],
    "distilled": ["distill:alpha=0.4", "prune:sparsity=0.5", "quantize:bits=6,group_size=8"],
    "reweighted": ["distill:method=reweight", "quantize:factor=4096,code_bits=32"],
}


@pytest.mark.parametrize("name", RUNS)
def test_3_the_same_bytes_with_any_number_of_workers(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where tensors are cut into many chunks; a teacher of other weights and another dtype stands by."""
    monkeypatch.setattr(cutting, "BLOCK", 64)
    monkeypatch.setattr(magnitude, "SMALL", 0)  # no tensor is sure to be a single block
    monkeypatch.setattr(cutting, "CHUNK", 128)
    monkeypatch.setattr(units, "BATCH", 256)
    source = archives.write(tmp_path / "in.safetensors", {f"t{n}": weights((90, 8), "BF16", n) for n in range(4)})
    mentor = {f"t{n}": ("F32", np.abs(weights((90, 8), "F32", 9 + n)[1]) + 1) for n in range(4)}
    teacher = archives.write(tmp_path / "teacher.safetensors", mentor)
    seen, said = set(), set()
    for attempt, workers in enumerate((1, 2, 4, 4)):
        output = tmp_path / f"{attempt}" / "out.safetensors"
        output.parent.mkdir()
        needed = {"teacher": teacher} if "distill" in RUNS[name][0] else {}
        report = api.pipeline(source, output, stages=RUNS[name], workers=workers, **needed)
        seen.add(output.read_bytes())
        said.add(render(report, "json").replace(str(output), ""))
    assert len(seen) == 1
    assert len(said) == 1


@pytest.mark.parametrize("name", NAMES)
def test_3_cuts_change_nothing(name: str, animals: Path, tmp_path: Path) -> None:
    for stem, block in (("few", 1 << 18), ("many", 8)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(cutting, "BLOCK", block)
            patch.setattr(magnitude, "SMALL", 0)
            patch.setattr(cutting, "CHUNK", 2 * block)
            patch.setattr(units, "BATCH", 4 if block == 8 else 1 << 19)
            api.pipeline(animals, tmp_path / f"{stem}.safetensors", stages=[NAMES[name]])
            api.restore(tmp_path / f"{stem}.safetensors", tmp_path / f"{stem}-back.safetensors")
    for end in (".safetensors", "-back.safetensors"):
        assert (tmp_path / f"few{end}").read_bytes() == (tmp_path / f"many{end}").read_bytes()


@pytest.mark.parametrize(
    "stages",
    [
        *([stage] for stage in NAMES.values()),
        ["prune:threshold=0.3"],
        ["prune:sparsity=0.5"],
        ["prune:sparsity=0.5,scope=global"],
        ["prune:threshold=0.3", "quantize:bits=4,granularity=channel"],
    ],
    ids=str,
)
def test_3_tensors_treated_together_are_treated_as_alone(
    stages: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Small neighbours are joined where they are alike; that is for speed and changes nothing."""
    random = np.random.default_rng(4)
    shapes = [(int(random.integers(1, 12)), 8) for _ in range(30)] + [(3, 4), (8,), (2, 2, 2)]
    held = {f"t{n:02}": weights(shape, "BF16" if n < 20 else "F16", n) for n, shape in enumerate(shapes)}
    source = archives.write(tmp_path / "in.safetensors", held)
    figures = []
    for stem in ("together", "alone"):
        if stem == "alone":
            monkeypatch.setattr(runner, "join", lambda jobs, *_: iter(jobs))
        report = api.pipeline(source, tmp_path / f"{stem}.safetensors", stages=stages)
        figures.append([(c.size, c.zeros_before, c.zeros_after, c.energy, c.lost) for c in report.changes or ()])
    assert (tmp_path / "together.safetensors").read_bytes() == (tmp_path / "alone.safetensors").read_bytes()
    np.testing.assert_allclose(*figures, rtol=1e-4, atol=1e-12)


def test_3_one_bad_tensor_among_those_treated_together_is_named(tmp_path: Path) -> None:
    held = {f"t{n:02}": weights((4, 8), "F32", n) for n in range(20)}
    held["t13"][1][2, 5] = np.nan
    source = archives.write(tmp_path / "in.safetensors", held)
    with pytest.raises(InputError, match="holds 1 NaN") as caught:
        api.quantize(source, tmp_path / "out.safetensors", bits=8)
    assert caught.value.tensor == "t13"
    report = api.quantize(source, tmp_path / "out.safetensors", bits=8, non_finite="keep")
    assert [job.spec.name for job in report.plan.jobs if not job.steps] == ["t13"]


def test_3_folders_are_equal_too(folder: Path, tmp_path: Path) -> None:
    for workers in (1, 3):
        api.quantize(folder, tmp_path / str(workers), bits=4, granularity="channel", workers=workers)
    assert tree(tmp_path / "1") == tree(tmp_path / "3")


def test_3_a_packed_teacher_is_read_rightly_in_many_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A teacher whose zero points are packed eight rows to a word may only be cut at every eighth row."""
    source = archives.write(tmp_path / "in.safetensors", {"w": weights((40, 8), "F32", 1)})
    teacher = archives.write(tmp_path / "teacher.safetensors", {"w": weights((40, 8), "F32", 2)})
    packed, dense = tmp_path / "packed.safetensors", tmp_path / "dense.safetensors"
    api.quantize(teacher, packed, bits=4, symmetric=False, granularity="channel")
    api.restore(packed, dense)
    monkeypatch.setattr(cutting, "BLOCK", 24)
    monkeypatch.setattr(magnitude, "SMALL", 0)
    monkeypatch.setattr(cutting, "CHUNK", 48)
    monkeypatch.setattr(units, "BATCH", 4)
    for stem, mentor in (("a", packed), ("b", dense)):
        api.distill(source, tmp_path / f"{stem}.safetensors", teacher=mentor, alpha=0.5)
    assert contents(tmp_path / "a.safetensors") == contents(tmp_path / "b.safetensors")


# ---- 5: restoring --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("everything", [False, True], ids=["default", "everything"])
def test_5_what_is_restored_is_what_dense_storage_holds(
    name: str, everything: bool, animals: Path, tmp_path: Path
) -> None:
    """Names, shapes, dtypes, and every bit; within the bound of the method."""
    if everything and "group" in name:
        pytest.skip("a scalar has no groups")
    stage = NAMES[name] + ",include=*" * everything
    packed, back, dense = (tmp_path / f"{stem}.safetensors" for stem in ("packed", "back", "dense"))
    report = api.pipeline(animals, packed, stages=[f"{stage},store=packed"])
    api.restore(packed, back)
    api.pipeline(animals, dense, stages=[f"{stage},store=dense"])
    before, after = contents(animals), contents(back)
    assert after == contents(dense)
    assert {n: t[:2] for n, t in after.items()} == {n: t[:2] for n, t in before.items()}
    treated = {job.spec.name: job for job, _ in report.rows}
    assert len(treated) == (14 if everything else 10)
    for tensor, (dtype, shape, data) in before.items():
        if tensor not in treated:
            assert after[tensor][2] == data
            continue
        storage = DTYPES[dtype].storage
        a, b = (numbers(np.frombuffer(d, storage).reshape(shape), dtype) for d in (data, after[tensor][2]))
        error = float(np.max(np.abs(a.astype(np.longdouble) - b)))
        encoder = treated[tensor].encoder
        assert encoder is not None
        assert error <= encoder.bound(float(np.max(np.abs(a))), treated[tensor].spec)


@pytest.mark.parametrize("name", ["int8", "int4 asymmetric", "int4 group", "int3", "factor"])
def test_5_folders_are_restored_as_folders_and_as_files(name: str, folder: Path, tmp_path: Path) -> None:
    # in a folder only matrices called .weight are packed, unless others are asked for in our own layout
    own = ",layout=compressor" if name.startswith("int") else ""
    stage = f"{NAMES[name]}{own},exclude=a name*,include=*.weight"
    api.pipeline(folder, tmp_path / "packed", stages=[stage])
    api.restore(tmp_path / "packed", tmp_path / "back")
    api.restore(tmp_path / "packed", tmp_path / "back.safetensors")
    api.pipeline(folder, tmp_path / "dense", stages=[f"{stage},store=dense"])
    assert contents(tmp_path / "back") == contents(tmp_path / "dense") == contents(tmp_path / "back.safetensors")
    assert sorted(tree(tmp_path / "back")) == sorted(tree(folder))
    assert json.loads((tmp_path / "back" / "config.json").read_bytes()) == json.loads(FILES["config.json"])


@pytest.mark.parametrize("stage", ["quantize:bits=5,symmetric=false", "quantize:bits=8", "quantize:factor=64"])
def test_5_archives_of_codes_are_restored(stage: str, tmp_path: Path) -> None:
    api.pipeline(MATRIX, tmp_path / "codes.npz", stages=[f"{stage},store=codes"])
    api.restore(tmp_path / "codes.npz", tmp_path / "back.npy")
    wide = ",scale_bits=32" if "bits=" in stage and "factor" not in stage else ""  # as NumPy's archives have them
    api.pipeline(MATRIX, tmp_path / "dense.npy", stages=[f"{stage}{wide},store=dense"])
    assert (tmp_path / "back.npy").read_bytes() == (tmp_path / "dense.npy").read_bytes()


@pytest.mark.parametrize("recipe", [name for name in ready_recipes() if not name.startswith("lenet")])
def test_5_ready_recipes_run_and_are_restored(recipe: str, tmp_path: Path) -> None:
    source = TEACHER if recipe == "mlp-edge" else LLAMA
    name = "out.safetensors" if recipe == "mlp-edge" else "out"
    if recipe == "adapter":
        report = api.pipeline(source, tmp_path / "adapter", recipe=recipe, save_base=tmp_path / name)
        assert report.total is not None
        alone = next(note for note in report.plan.notes if note.startswith("without the adapter"))
        assert report.total.error < 0.9 * float(alone.split()[-1])
        api.restore(tmp_path / name, tmp_path / "back")
        return
    report = api.pipeline(source, tmp_path / name, recipe=recipe)
    assert report.ratio > 1.5 or recipe == "sparse-2of4"
    api.restore(tmp_path / name, tmp_path / f"back-{name}")
    treated = {job.spec.name for job, _ in report.rows}
    reported = max(change.error for _, change in report.rows if change)
    measured = api.compare(source, tmp_path / name)
    assert not any(row.problem for row in measured.rows)
    worst = max(row.measured.error for row in measured.rows if row.name in treated)
    # what is reported is the loss of the codes; who compares sees their numbers in the tensor's dtype
    assert worst == pytest.approx(reported, rel=1e-5 if recipe == "mlp-edge" else 0.06)
    assert api.compare(tmp_path / name, tmp_path / f"back-{name}").total.error == 0


def test_5_a_restored_file_needs_no_restoring(animals: Path, tmp_path: Path) -> None:
    api.restore(animals, tmp_path / "out.safetensors")
    assert contents(tmp_path / "out.safetensors") == contents(animals)


def test_5_what_is_packed_is_not_packed_again(animals: Path, tmp_path: Path) -> None:
    api.quantize(animals, tmp_path / "a.safetensors", bits=8)
    with pytest.raises(InputError, match="is already packed by compressor") as caught:
        api.quantize(tmp_path / "a.safetensors", tmp_path / "b.safetensors", bits=4, granularity="channel")
    assert "--requantize" in caught.value.remedy


def test_5_what_is_packed_is_packed_again_when_asked(animals: Path, tmp_path: Path) -> None:
    """As if it had been restored in between; and pruning needs no asking, since nothing is rounded twice."""
    api.quantize(animals, tmp_path / "a.safetensors", bits=8)
    options = {"bits": 4, "granularity": "channel"}
    report = api.quantize(tmp_path / "a.safetensors", tmp_path / "b.safetensors", requantize=True, **options)
    assert any("packed by compressor" in note for note in report.plan.notes)
    api.restore(tmp_path / "a.safetensors", tmp_path / "dense.safetensors")
    api.quantize(tmp_path / "dense.safetensors", tmp_path / "c.safetensors", **options)
    api.restore(tmp_path / "b.safetensors", tmp_path / "b-dense.safetensors")
    api.restore(tmp_path / "c.safetensors", tmp_path / "c-dense.safetensors")
    assert contents(tmp_path / "b-dense.safetensors") == contents(tmp_path / "c-dense.safetensors")
    api.prune(tmp_path / "a.safetensors", tmp_path / "p.safetensors", threshold=0.01)
    api.prune(tmp_path / "dense.safetensors", tmp_path / "q.safetensors", threshold=0.01)
    assert contents(tmp_path / "p.safetensors") == contents(tmp_path / "q.safetensors")


# ---- 7: nothing unsaid ---------------------------------------------------------------------------------


def spoken(report: Report) -> Iterator[str]:
    """The reasons that the plan gives for tensors that no stage treats."""
    for job in report.plan.jobs:
        if not job.steps:
            assert job.left_alone, job.spec.name
            for why in job.left_alone:
                assert why.reason
                yield why.reason


@pytest.mark.parametrize("stage", ["prune:threshold=0.1", "quantize:bits=8", "distill:alpha=0.5"])
def test_7_every_untreated_tensor_has_its_reason_in_plan_and_report(
    stage: str, animals: Path, tmp_path: Path
) -> None:
    stages = [f"{stage},exclude=three*", "prune:sparsity=0.1,include=f*|i*|*embed*"]
    if stage.startswith("quantize"):
        stages = stages[:1]
    more = {"teacher": animals} if "distill" in stage else {}
    report = api.pipeline(animals, tmp_path / "out.safetensors", stages=stages, **more)
    table, whole = render(report, "table"), json.loads(render(report, "json"))
    reasons = set(spoken(report))
    for reason in reasons:
        assert reason in table
    untreated = [job for job in report.plan.jobs if not job.steps]
    counts = [int(line.split()[1]) for line in table.splitlines() if line.startswith("kept ")]
    assert sum(counts) == len(untreated)
    said = {tensor["name"]: tensor["kept"] for tensor in whole["tensors"]}
    assert all(said[job.spec.name] for job in untreated)
    assert "excluded by three*" in str(said["three.weight"])
    assert len(report.rows) + len(untreated) == len(zoo())


def test_7_a_tensor_that_only_some_stages_treat_is_reported(animals: Path, tmp_path: Path) -> None:
    report = api.pipeline(
        animals, tmp_path / "out.safetensors", stages=["prune:sparsity=0.5", "quantize:bits=8,exclude=conv*"]
    )
    assert "left out of a stage 1: excluded by conv*: conv.weight\n" in render(report, "table")


def test_7_strict_refuses_what_was_not_asked_for(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(Problems) as caught:
        api.quantize(folder, tmp_path / "out", bits=8, strict=True)
    found = {problem.tensor: str(problem) for problem in caught.value.problems}
    kept_by_default = {"model.embed_tokens.weight", "lm_head.weight", "conv.weight", "three.weight"}
    assert set(found) == kept_by_default | {"a name with ünï¢øde\x1b[31m"}
    assert "embedding" in found["model.embed_tokens.weight"]
    assert "no matrix" in found["conv.weight"]
    assert not (tmp_path / "out").exists()
    asked = ["model.embed*", "lm_head*", "a name*", "conv*", "three*"]
    api.quantize(folder, tmp_path / "out", bits=8, strict=True, exclude=asked)


def test_7_files_that_stay_behind_are_named(folder: Path, tmp_path: Path) -> None:
    report = api.quantize(folder, tmp_path / "out.safetensors", bits=8)
    text = render(report, "table")
    for name in FILES:
        assert f"left behind: {name}: a single .safetensors holds tensors only" in text
    assert set(json.loads(render(report, "json"))["left"]) == set(FILES)


def test_7_a_note_when_no_tensor_was_selected(animals: Path, tmp_path: Path) -> None:
    report = api.prune(animals, tmp_path / "out.safetensors", threshold=1, include=["none*"], allow_unmatched=True)
    assert "note: no tensor was selected: the output's tensors are those of the input" in render(report, "table")
    assert contents(tmp_path / "out.safetensors") == contents(animals)


# ---- 8: what is not transformed is carried over --------------------------------------------------------


@pytest.mark.parametrize("stage", ["prune:threshold=0", "quantize:bits=8", "quantize:factor=16,code_bits=32"])
def test_8_the_rest_is_carried_over_byte_for_byte(stage: str, folder: Path, tmp_path: Path) -> None:
    report = api.pipeline(folder, tmp_path / "out", stages=[stage], card=False)
    treated = {job.spec.name for job, _ in report.rows}
    before, after = contents(folder), contents(tmp_path / "out")
    for name, tensor in before.items():
        if name not in treated:
            assert after[name] == tensor
    assert {"bool", "i64", "f4", "f6", "c64", "f8_e8m0", "vector", "no rows"} <= set(before) - treated
    files = tree(tmp_path / "out")
    for name, content in FILES.items():
        if name != "config.json":
            assert files[name] == content
    if not stage.startswith("quantize"):
        assert files["config.json"] == FILES["config.json"]
    else:
        config = json.loads(files["config.json"])
        assert {key: config[key] for key in ("model_type", "torch_dtype")} == json.loads(FILES["config.json"])
    for shard in (tmp_path / "out").glob("*.safetensors"):
        found = archives.metadata_of(shard)
        assert {key: found[key] for key in METADATA} == METADATA
        assert set(found) == {*METADATA, "compressor"}


def test_8_long_metadata_survives_and_is_not_printed(tmp_path: Path) -> None:
    metadata = {"format": "pt", "long": METADATA["escapes"] * 140_000}
    source = archives.write(tmp_path / "in.safetensors", {"w": weights((4, 4), "F32")}, metadata)
    api.prune(source, tmp_path / "out.safetensors", threshold=0.1)
    found = archives.metadata_of(tmp_path / "out.safetensors")
    assert found["long"] == metadata["long"]
    for style in ("table", "json"):
        done = compressor("inspect", tmp_path / "out.safetensors", "--format", style)
        assert done.code == 0
        assert len(done.out) < 8000


def test_8_pruning_by_nothing_changes_no_bit(animals: Path, tmp_path: Path) -> None:
    api.prune(animals, tmp_path / "out.safetensors", sparsity=0.0, include=["*"])
    assert contents(tmp_path / "out.safetensors") == contents(animals)


def test_8_earlier_stages_are_remembered(animals: Path, tmp_path: Path) -> None:
    api.prune(animals, tmp_path / "a.safetensors", sparsity=0.5)
    api.quantize(tmp_path / "a.safetensors", tmp_path / "b.safetensors", bits=8)
    stages = json.loads(archives.metadata_of(tmp_path / "b.safetensors")["compressor"])["stages"]
    assert [stage["kind"] for stage in stages] == ["prune", "quantize"]
    assert "1" not in json.dumps(stages[0]["method"])


def test_8_no_path_clock_or_host_is_written(animals: Path, tmp_path: Path) -> None:
    api.distill(animals, tmp_path / "out.safetensors", teacher=animals, alpha=0.25)
    record = archives.metadata_of(tmp_path / "out.safetensors")["compressor"]
    assert str(tmp_path) not in record
    assert "zoo" not in record


def test_8_the_input_is_never_changed(folder: Path, tmp_path: Path) -> None:
    before = tree(folder)
    api.quantize(folder, tmp_path / "out", bits=8)
    assert compressor("prune", folder, "-o", tmp_path / "out", "--sparsity", "0.5", "--force").code == 0
    assert tree(folder) == before


def test_stage_texts_mean_what_they_say() -> None:
    assert [parse_stage(text).method.verb for text in NAMES.values()] == ["quantize"] * len(NAMES)
