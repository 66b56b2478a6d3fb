"""Methods that go by statistics of layer inputs: what they do with them, and what is refused before the run."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, ClassVar

import hypothesis.strategies as st
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from safetensors.numpy import load_file, save_file
from support import archives
from support.console import LLAMA
from support.console import compressor as command
from support.laws import FLOATS, inputs_of, numbers, run, store

import compressor
from compressor import api
from compressor.calibration.fingerprint import fingerprint
from compressor.calibration.statistics import open_statistics, write_statistics
from compressor.checkpoint.checkpoint import open_checkpoint
from compressor.core.errors import CompressorError, InputError, Problems, UsageError
from compressor.core.layer_inputs import Gather, Layer
from compressor.core.tensor import TensorSpec
from compressor.core.workspace import Workspace
from compressor.engine.execution.runner import Runner
from compressor.methods.contract import Block, PlainSelection
from compressor.methods.prune.wanda import Wanda
from compressor.methods.registry import methods_of
from compressor.workflows import one_pass as execution

Array = npt.NDArray[Any]
WIDTHS = {"a": 12, "b.c": 6, "d": 20}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    random = np.random.default_rng(3)
    tensors = {
        f"{name}.weight": random.standard_normal((9, width)).astype(np.float32) for name, width in WIDTHS.items()
    }
    tensors["a.bias"] = np.ones(9, np.float32)
    save_file(tensors, tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


def layers(*, gram: bool = True, **widths: int) -> dict[str, Layer]:
    found = {}
    for name, width in (widths or WIDTHS).items():
        gather = Gather(width, gram)
        gather.add(np.random.default_rng(width).standard_normal((50, width)) * np.arange(width))
        found[name.replace("__", ".")] = gather.layer
    return found


def written(place: Path, made: dict[str, Layer] | None = None, **said: Any) -> Path:
    path = place.with_name("stats.safetensors")
    prints = dict(zip(("model", "weights"), fingerprint(open_checkpoint(place)), strict=True))
    write_statistics(path, (made or layers()).items(), **{**prints, **said}, force=True)
    return path


def plain(weights: Array, norms: Array, sparsity: float | None, pattern: tuple[int, int] | None = None) -> Array:
    """The paper's few lines, with stable sorts."""
    found = weights.copy()
    metric = np.abs(weights) * norms.astype(weights.dtype)
    if pattern is None:
        gone = np.argsort(metric, axis=1, kind="stable")[:, : round(sparsity * weights.shape[1])]
        np.put_along_axis(found, gone, 0, axis=1)
        return found
    n, m = pattern
    for start in range(0, weights.shape[1] // m * m, m):
        gone = np.argsort(-metric[:, start : start + m], axis=1, kind="stable")[:, n:] + start
        np.put_along_axis(found, gone, 0, axis=1)
    return found


# ---- what is computed ------------------------------------------------------------------------------------------


@given(data=st.data(), dtype=st.sampled_from(FLOATS))
@settings(max_examples=60)
def test_wanda_is_the_papers_rule(data: st.DataObject, dtype: str) -> None:
    random = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    raw = store(random.integers(-5, 6, (7, data.draw(st.integers(1, 40)))) * 0.25, dtype)
    spec = TensorSpec("w", dtype, raw.shape)
    # powers of two: no product is rounded, so that ties are ties in every precision
    norms = 2.0 ** random.integers(-3, 4, raw.shape[1]) * (random.random(raw.shape[1]) < 0.9)
    known = Layer(9, np.zeros_like(norms), norms**2)
    weights = numbers(raw, dtype)
    sparsity = data.draw(st.sampled_from([0.0, 0.3, 0.5, 0.9]))
    found = run(Wanda(sparsity=sparsity), spec, raw, inputs=known).restored
    assert np.array_equal(found, plain(weights, norms, sparsity))
    n, m = data.draw(st.sampled_from([(2, 4), (1, 3), (4, 20)]))
    found = run(Wanda(pattern=f"{n}:{m}"), spec, raw, inputs=known).restored
    assert np.array_equal(found, plain(weights, norms, None, (n, m)))


def test_real_products_are_those_of_float32() -> None:
    random = np.random.default_rng(0)
    raw = random.standard_normal((50, 256)).astype(np.float32)
    known = inputs_of(TensorSpec("w", "F32", raw.shape))
    found = run(Wanda(sparsity=0.5), TensorSpec("w", "F32", raw.shape), raw, inputs=known).restored
    assert np.array_equal(found, plain(raw, np.sqrt(known.square), 0.5))


@pytest.mark.parametrize("dtype", ["F32", "F64"])
def test_extreme_norms_and_weights_are_told_apart(dtype: str) -> None:
    top = 1e300 if dtype == "F64" else 3e38
    raw = store([[top, top / 2, top / 4, top / 8]], dtype)
    known = Layer(1, np.zeros(4), np.array([-0.0, 1e38, 1e36, 1e30]))
    found = run(Wanda(sparsity=0.5), TensorSpec("w", dtype, (1, 4)), raw, inputs=known).restored
    assert found.tolist() == [[0, numbers(raw, dtype)[0, 1], numbers(raw, dtype)[0, 2], 0]]


@pytest.mark.parametrize("options", [{"sparsity": 0.5}, {"pattern": "2:4"}])
def test_wanda_on_a_file(model: Path, options: dict[str, Any]) -> None:
    stats = written(model)
    report = compressor.prune(model, model.with_name("o.safetensors"), method="wanda", stats=stats, **options)
    before, after = load_file(model), load_file(model.with_name("o.safetensors"))
    known = open_statistics(stats)
    for name in WIDTHS:
        norms, weight = np.sqrt(known.read(name).square), f"{name}.weight"
        wanted = plain(before[weight], norms, 0.5, (2, 4) if "pattern" in options else None)
        assert np.array_equal(after[weight], wanted)
    assert np.array_equal(after["a.bias"], before["a.bias"])
    assert "a worker holds the statistics of one layer at a time, at most 320 B" in report.plan.notes
    (stage,) = report.plan.stages
    assert stage["stats"] == f"sha256:{known.identity()}"
    assert {step.inputs for job in report.plan.jobs for step in job.steps} == set(WIDTHS)
    assert not any("calibration" in text for text in report.warnings)
    said = archives.metadata_of(model.with_name("o.safetensors"))["compressor"]
    assert known.identity() in said
    assert str(model.parent) not in said


def test_less_error_of_the_outputs_than_by_magnitude(model: Path) -> None:
    stats, known = written(model), layers()
    before = load_file(model)

    def lost(**options: Any) -> float:
        out = model.with_name("o.safetensors")
        compressor.prune(model, out, force=True, **options)
        total = 0.0
        for name, weights in load_file(out).items():
            if name.endswith(".weight"):
                difference = (weights - before[name]).astype(np.float64)
                total += np.einsum("ij,jk,ik->", difference, known[name.removesuffix(".weight")].gram, difference)
        return total

    by_rows = lost(sparsity=0.5, granularity="row")
    assert lost(method="wanda", sparsity=0.5, stats=stats) < 0.7 * by_rows
    assert lost(sparsity=0.5, scores=stats) == lost(method="wanda", sparsity=0.5, stats=stats)


def test_scores_turn_magnitude_into_wanda(model: Path, tmp_path: Path) -> None:
    stats = open_statistics(written(model))
    norms = {name: np.sqrt(stats.read(name).square).astype(np.float32) for name in WIDTHS}
    save_file(
        {"a": norms["a"], "b.c.weight": norms["b.c"], "d.weight": norms["d"]}, tmp_path / "scores.safetensors"
    )
    report = compressor.prune(
        model, tmp_path / "o.safetensors", sparsity=0.5, scores=tmp_path / "scores.safetensors"
    )
    before, after = load_file(model), load_file(tmp_path / "o.safetensors")
    for name in WIDTHS:
        assert np.array_equal(after[f"{name}.weight"], plain(before[f"{name}.weight"], norms[name], 0.5))
    (stage,) = report.plan.stages
    assert stage["method"] == "magnitude"
    assert stage["scores"].startswith("sha256:")
    assert "stats" not in stage
    options = {"granularity": "block", "block_size": 2}
    compressor.prune(model, tmp_path / "b.safetensors", sparsity=0.5, scores=stats.path, **options)
    for name, weights in load_file(tmp_path / "b.safetensors").items():
        if name.endswith(".weight"):
            assert (np.count_nonzero(weights.reshape(-1, 2), axis=1) == 1).all()


def test_one_tensor_and_one_layer_pair_whatever_they_are_called(tmp_path: Path) -> None:
    np.save(tmp_path / "m.npy", np.random.default_rng(0).standard_normal((4, 6)).astype(np.float32))
    save_file({"norms": np.arange(6, dtype=np.float32)}, tmp_path / "s.safetensors")
    compressor.prune(tmp_path / "m.npy", tmp_path / "o.npy", sparsity=0.5, scores=tmp_path / "s.safetensors")
    assert (np.count_nonzero(np.load(tmp_path / "o.npy"), axis=1) == 3).all()


# ---- the run ---------------------------------------------------------------------------------------------------


def test_workers_and_processes_do_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(execution, "_LARGE", 0)
    random = np.random.default_rng(1)
    sizes = {"wide": (700, 1024), "tall": (3000, 64), "small": (5, 7)}
    model = tmp_path / "model.safetensors"
    save_file({f"{n}.weight": random.standard_normal(s).astype(np.float32) for n, s in sizes.items()}, model)
    stats = written(model, layers(gram=False, **{name: shape[1] for name, shape in sizes.items()}))
    found = set()
    for workers, processes in ((1, False), (3, False), (2, True)):
        out = tmp_path / f"{workers}.safetensors"
        options = {"method": "wanda", "sparsity": 0.6, "stats": stats, "store": "bitmask"}
        compressor.prune(model, out, workers=workers, processes=processes, **options)
        found.add(out.read_bytes())
    assert len(found) == 1


def test_a_layer_is_read_once_a_worker(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stats, reads = written(model), []
    read = type(open_statistics(stats)).read
    out = model.with_name("o.safetensors")

    def counting(self: Any, layer: str, gram: bool = False) -> Layer:
        reads.append((layer, gram))
        return read(self, layer, gram)

    monkeypatch.setattr("compressor.checkpoint.rows.BLOCK", 12)
    monkeypatch.setattr(type(open_statistics(stats)), "read", counting)
    compressor.prune(model, out, method="wanda", sparsity=0.5, stats=stats, workers=1)
    assert sorted(reads) == sorted([(name, False) for name in WIDTHS] * 2)  # before the run, and in it


def test_statistics_before_and_after_a_stage(model: Path) -> None:
    stats = written(model)
    stages = [f"prune:method=wanda,pattern=2:4,stats={stats}", "quantize:bits=8,method=absmax"]
    out = model.with_name("o.safetensors")
    report = compressor.pipeline(model, out, stages=stages)
    assert report.total.sparsity_after >= 0.45
    assert [stage.get("stats", "")[:7] for stage in report.plan.stages] == ["sha256:", ""]
    first = '[[stage]]\nkind = "prune"\nmethod = "wanda"\npattern = "2:4"\n'
    second = '[[stage]]\nkind = "quantize"\nbits = 8\nmethod = "absmax"\n'
    text = f'stats = "{stats}"\n{first}{second}'
    model.with_name("r.toml").write_text(text)
    compressor.pipeline(model, model.with_name("p.safetensors"), recipe=str(model.with_name("r.toml")))
    assert model.with_name("p.safetensors").read_bytes() == out.read_bytes()
    compressor.pipeline(
        model, model.with_name("q.safetensors"), stages=["prune:method=wanda,pattern=2:4", stages[1]], stats=stats
    )
    assert model.with_name("q.safetensors").read_bytes() == out.read_bytes()


def test_rules_may_need_statistics_too(model: Path) -> None:
    rule = [("a.*", {"method": "wanda", "sparsity": 0.5})]
    out = model.with_name("o.safetensors")
    with pytest.raises(UsageError, match="prune wanda goes by statistics"):
        compressor.prune(model, out, method="threshold", threshold=0.0, rules=rule)
    made = {"a": layers()["a"]}
    report = compressor.prune(model, out, method="threshold", threshold=0.0, rules=rule, stats=written(model, made))
    assert [step.inputs for job in report.plan.jobs for step in job.steps] == ["a", None, None]


class _Grams(PlainSelection):
    """Keeps all, and looks at what it is given."""

    verb, id, statistics, at_once = "prune", "grams", "gram", 1 << 10
    seen: ClassVar[list[tuple[Any, ...]]] = []

    def keep(self, block: Block, out: Array) -> None:
        assert block.inputs is not None
        assert block.inputs.gram is not None
        made = block.work.once("grams", block.spec.name, lambda: self.seen.append(("made", block.spec.name)))
        assert made is None
        self.seen.append((block.spec.name, block.values.shape, block.inputs.gram.shape))
        out[...] = True


def test_methods_get_whole_rows_and_grams(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from compressor.recipe.model import Recipe, Stage

    monkeypatch.setattr("compressor.checkpoint.rows.BLOCK", 4)
    monkeypatch.setattr("compressor.checkpoint.rows.CHUNK", 4)
    _Grams.seen = []
    stage = Stage(_Grams())
    api.run_recipe(
        "prune", model, model.with_name("o.safetensors"), Recipe((stage,)), stats=written(model), workers=1
    )
    assert _Grams.seen == [
        item
        for name, width in WIDTHS.items()
        for item in (("made", f"{name}.weight"), (f"{name}.weight", (9, width), (width, width)))
    ]
    with pytest.raises(Problems) as caught:
        api.run_recipe(
            "prune",
            model,
            model.with_name("p.safetensors"),
            Recipe((stage,)),
            stats=written(model, layers(gram=False)),
        )
    assert str(caught.value).count("the statistics have no gram of its inputs") == 3


def test_once_makes_again_only_what_is_another() -> None:
    work, made = Workspace(), []

    def make() -> int:
        made.append(1)
        return len(made)

    assert [work.once("k", which, make) for which in ("a", "a", "b", "a")] == [1, 1, 2, 3]
    assert work.once("other", "a", make) == 4
    assert work.once("k", "a", make) == 3


# ---- what is refused -------------------------------------------------------------------------------------------


def refused(model: Path, **options: Any) -> str:
    with pytest.raises(CompressorError) as caught:
        compressor.prune(model, model.with_name("o.safetensors"), **options)
    assert not model.with_name("o.safetensors").exists()
    return str(caught.value)


@pytest.mark.parametrize(
    ("args", "reason"),
    [
        (
            ["--method", "wanda", "--sparsity", "0.5"],
            "prune wanda goes by statistics of the layers' inputs. Give --stats FILE",
        ),
        (["--sparsity", "0.5", "--stats", "STATS"], "--stats: no stage takes it; what they go by is none"),
        (["--method", "wanda", "--stats", "STATS"], "wanda needs one of sparsity and pattern"),
        (["--method", "wanda", "--sparsity", "0.5", "--pattern", "2:4"], "wanda needs one of sparsity and pattern"),
        (["--method", "wanda", "--pattern", "4:2", "--stats", "STATS"], "pattern must be N:M"),
        (
            ["--sparsity", "0.5", "--scope", "global", "--scores", "STATS"],
            "--scores compares within a tensor, so scope",
        ),
        (["--sparsity", "0.5", "--granularity", "tensor", "--scores", "STATS"], "granularity cannot be tensor"),
        (
            ["--method", "random", "--sparsity", "0.5", "--scores", "STATS"],
            "--scores has no meaning for prune random",
        ),
        (["--sparsity", "0.5", "--scores", "STATS", "--stats", "STATS"], "what they go by is its own"),
        (
            ["--structure", "neurons", "--fraction", "0.5", "--stats", "STATS", "--importance", "l1"],
            "--stats: no stage takes it",
        ),
        (["--structure", "layers", "--layers", "1", "--stats", "STATS"], "--stats: no stage takes it"),
        (
            ["--structure", "neurons", "--fraction", "0.5", "--importance", "inputs"],
            "importance inputs goes by statistics of the layers' inputs. Give --stats FILE",
        ),
        (
            ["--structure", "neurons", "--fraction", "0.5", "--scores", "STATS"],
            "--scores: has no meaning for a structured",
        ),
    ],
)
def test_requests_that_make_no_sense(model: Path, args: list[str], reason: str) -> None:
    stats = written(model)
    done = command(
        "prune", model, "-o", model.with_name("o.safetensors"), *(stats if a == "STATS" else a for a in args)
    )
    assert done.code == 2
    assert reason in done.err
    assert not model.with_name("o.safetensors").exists()


@pytest.mark.parametrize(
    ("stage", "reason"),
    [
        ('kind = "quantize"\nscores = "x"', r"stage\[0\]..*scores has no meaning for quantize int"),
        ('kind = "prune"\nsparsity = 0.5\nstats = "x"', "prune magnitude goes by no statistics: drop stats"),
        (
            'kind = "prune"\nsparsity = 0.5\nstats = "x"\nscores = "y"',
            r"stage\[0\]\.give stats or scores, not both",
        ),
        (
            'kind = "prune"\nmethod = "wanda"\nsparsity = 0.5\nstats = 3',
            r"stats: Expected `str \| null`, got `int`",
        ),
    ],
)
def test_recipes_that_make_no_sense(model: Path, stage: str, reason: str) -> None:
    model.with_name("r.toml").write_text(f"[[stage]]\n{stage}\n")
    with pytest.raises(UsageError, match=reason):
        compressor.pipeline(model, model.with_name("o.safetensors"), recipe=str(model.with_name("r.toml")))


def test_statistics_that_do_not_fit_name_every_tensor(model: Path) -> None:
    options = {"method": "wanda", "sparsity": 0.5}
    made = layers(a=11, b__c=6)
    said = refused(model, stats=written(model, made), **options)
    assert "tensor 'a.weight': has shape [9, 12], so 12 inputs, and its statistics 11" in said
    assert "tensor 'd.weight': there are no statistics of its inputs. Exclude it, or calibrate with it" in said
    assert "b.c" not in said
    made = layers()
    made["d"] = Gather(20, True).layer
    assert "tensor 'd.weight': its layer saw no input at all" in refused(
        model, stats=written(model, made), **options
    )
    compressor.prune(
        model, model.with_name("p.safetensors"), stats=written(model, made), exclude=["d.*"], **options
    )


def test_statistics_of_another_model(model: Path) -> None:
    options = {"method": "wanda", "sparsity": 0.5}
    strange = {"x.y": layers()["a"], **layers()}
    said = refused(model, stats=written(model, strange, model="0" * 64), **options)
    assert "its statistics are of another model than" in said
    assert "it has no 'x.y'. Calibrate this model" in said
    said = refused(model, stats=written(model, layers(a=3, d=20), model="0" * 64), **options)
    assert "'a' has 12 inputs and not 3" in said
    assert "names or shapes of other weights differ" in refused(
        model, stats=written(model, model="0" * 64), **options
    )


def test_the_same_model_with_other_weights_is_a_note(model: Path) -> None:
    options = {"method": "wanda", "sparsity": 0.5, "dry_run": True}
    out = model.with_name("o.safetensors")
    report = compressor.prune(model, out, stats=written(model, weights="0" * 64), **options)
    assert any("with other weights" in note for note in report.plan.notes)
    for said in ({}, {"weights": ""}, {"model": "", "weights": ""}):
        report = compressor.prune(model, out, stats=written(model, **said), **options)
        assert not any("with other weights" in note for note in report.plan.notes)


def test_other_files_are_no_statistics(model: Path, tmp_path: Path) -> None:
    for path, reason in (
        (LLAMA, "not a regular file"),
        (tmp_path / "none", "cannot be opened"),
        (model, "input itself"),
    ):
        out = model if path == model else model.with_name("o.safetensors")
        with pytest.raises(CompressorError, match=reason):
            compressor.prune(LLAMA, out, method="wanda", sparsity=0.5, stats=path, force=True)
    assert "is no file of statistics" in refused(model, method="wanda", sparsity=0.5, stats=model)


def test_transposed_weights_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "gpt2"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "gpt2"}')
    save_file({"h.0.attn.c_proj.weight": np.eye(6, dtype=np.float32)}, folder / "model.safetensors")
    stats = tmp_path / "s.safetensors"
    write_statistics(stats, [("h.0.attn.c_proj", layers(x=6)["x"])])
    with pytest.raises(InputError, match="is stored transposed"):
        compressor.prune(folder, tmp_path / "out", method="wanda", sparsity=0.5, stats=stats)


@pytest.mark.parametrize(
    ("scores", "reason"),
    [
        ({"a": np.ones(12), "d": np.ones(20)}, "tensor 'b.c.weight': there are no scores of its inputs"),
        (
            {"a": np.ones(9), "b.c": np.ones(6), "d": np.ones(20)},
            "tensor 'a.weight': has shape [9, 12], so 12 inputs, and its scores 9",
        ),
        ({"a": np.ones((1, 12))}, "tensor 'a': is F64 [1, 12], not a vector of float scores"),
        ({"a": np.ones(12, np.int32)}, "tensor 'a': is I32 [12], not a vector"),
        ({"a": np.ones(12), "a.weight": np.ones(12)}, "is there with and without .weight"),
        (
            {"a": -np.ones(12), "b.c": np.ones(6), "d": np.ones(20)},
            "tensor 'a': holds 12 scores that are NaN, infinite or neg",
        ),
        (
            {"a": np.ones(12), "b.c": np.array([1, 2, np.nan, 3, 4, 5]), "d": np.ones(20)},
            "tensor 'b.c': holds 1 score that",
        ),
        ({}, "holds no scores"),
    ],
)
def test_scores_that_do_not_fit(model: Path, scores: dict[str, Array], reason: str) -> None:
    path = model.with_name("scores.safetensors")
    kinds = {"f8": "F64", "i4": "I32"}
    archives.write(path, {name: (kinds[array.dtype.str[1:]], array) for name, array in scores.items()})
    assert reason in refused(model, sparsity=0.5, scores=path)


def test_scores_of_every_size_and_dtype(model: Path) -> None:
    path = model.with_name("scores.safetensors")
    out = []
    for number, dtype in enumerate(("F64", "F32", "BF16", "F16")):
        made = {name: (dtype, store(2.0 ** (np.arange(width) % 5), dtype)) for name, width in WIDTHS.items()}
        if dtype == "F64":
            made = {name: (dtype, raw * 2.0**900) for name, (_, raw) in made.items()}
        archives.write(path, made)
        compressor.prune(model, model.with_name(f"{number}.safetensors"), sparsity=0.5, scores=path)
        out.append(load_file(model.with_name(f"{number}.safetensors")))
    for other in out[1:]:
        assert all(np.array_equal(other[name], out[0][name]) for name in other)


def test_a_changed_file_of_statistics_is_noticed(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stats = written(model)
    run_it = Runner.run

    def meddling(self: Any, *given: Any, **more: Any) -> Any:
        found = run_it(self, *given, **more)
        os.utime(stats, ns=(1, 1))
        return found

    monkeypatch.setattr(Runner, "run", meddling)
    assert "changed while it was read" in refused(model, method="wanda", sparsity=0.5, stats=stats)


def test_statistics_need_a_name_to_be_taken() -> None:
    """What needs statistics is never chosen for want of options."""
    from compressor.methods.registry import make_method

    assert make_method("prune", {"pattern": "2:4"}).id == "nm"
    assert make_method("prune", {"sparsity": 0.5}).id == "magnitude"
    assert methods_of("prune")["wanda"].statistics == "square"


def test_small_neighbours_each_go_by_their_own_layer(tmp_path: Path) -> None:
    """Tensors that would be joined, if they were treated alike."""
    random = np.random.default_rng(4)
    save_file(
        {f"w{n}.weight": random.standard_normal((4, 8)).astype(np.float32) for n in range(30)},
        tmp_path / "m.safetensors",
    )
    scores = {f"w{n}": (random.permutation(8) + 1.0) ** 4 for n in range(30)}
    save_file(scores, tmp_path / "s.safetensors")
    compressor.prune(
        tmp_path / "m.safetensors", tmp_path / "o.safetensors", sparsity=0.5, scores=tmp_path / "s.safetensors"
    )
    before, after = load_file(tmp_path / "m.safetensors"), load_file(tmp_path / "o.safetensors")
    for name, norms in scores.items():
        assert np.array_equal(after[f"{name}.weight"], plain(before[f"{name}.weight"], norms, 0.5))


def test_a_student_cut_out_of_its_teacher_goes_by_no_statistics(model: Path) -> None:
    stage = f"distill:method=depth,layers=0,stats={written(model)}"
    with pytest.raises(UsageError, match="method depth cuts whole models, so stats has no meaning"):
        compressor.pipeline(model, model.with_name("o.safetensors"), stages=[stage])
