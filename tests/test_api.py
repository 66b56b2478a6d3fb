"""The verbs as Python functions."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

import compressor
from compressor import api
from compressor.calibration.run import Calibration
from compressor.methods.options import SELECTOR, options_of
from compressor.methods.registry import methods_of
from compressor.methods.structured_cut import cut_options
from compressor.recipe.budget import Budget
from compressor.recipe.model import Recipe
from compressor.recipe.sequential_refit import Sequential
from compressor.recipe.training import FILES, training_options
from compressor.workflows import keywords
from compressor.workflows.budget.choice import Allocation
from compressor.workflows.in_python import in_python
from compressor.workflows.results import ReportedGateFailed
from compressor.workflows.run_options import RunOptions


@pytest.fixture
def matrix(tmp_path: Path) -> Path:
    np.save(tmp_path / "w.npy", np.random.default_rng(0).standard_normal((32, 128)).astype(np.float32))
    return tmp_path / "w.npy"


def test_every_verb_works_as_a_function(matrix: Path, tmp_path: Path) -> None:
    report = compressor.quantize(matrix, tmp_path / "q.safetensors", bits=4, granularity="channel")
    assert report.ratio > 1
    assert report.total is not None
    assert 0 < report.total.error < 0.2
    compressor.restore(tmp_path / "q.safetensors", tmp_path / "r.npy")
    found = compressor.compare(matrix, tmp_path / "r.npy")
    assert found.total.error == pytest.approx(report.total.error, rel=1e-5)
    compressor.prune(matrix, tmp_path / "p.npy", threshold=0.5)
    assert (np.load(tmp_path / "p.npy") == 0).any()
    compressor.distill(matrix, tmp_path / "d.npy", teacher=tmp_path / "p.npy", alpha=1.0)
    assert np.array_equal(np.load(tmp_path / "d.npy"), np.load(tmp_path / "p.npy"))
    compressor.pipeline(matrix, tmp_path / "s.npy", stages=["prune:sparsity=0.5"])
    assert (np.load(tmp_path / "s.npy") == 0).sum() == 2048
    assert len(compressor.inspect(matrix, stats=True).rows) == 1


def test_a_gate_is_not_passed_by_an_error_that_is_not_known(tmp_path: Path) -> None:
    np.save(tmp_path / "w.npy", np.linspace(1e200, 2e200, 32).reshape(4, 8))  # whose squares no float holds
    with pytest.raises(ReportedGateFailed, match=r"max_error=0\.5: the relative error of '.*' is nan"):
        compressor.prune(
            tmp_path / "w.npy", tmp_path / "o.npy", sparsity=0.5, gates=compressor.Gates(max_error=0.5)
        )
    assert not (tmp_path / "o.npy").exists()


def test_rules_reach_single_tensors(tmp_path: Path) -> None:
    save_file({"a": np.ones((4, 8), np.float32), "b": np.ones((4, 8), np.float32)}, tmp_path / "m.safetensors")
    report = compressor.quantize(
        tmp_path / "m.safetensors",
        tmp_path / "o.safetensors",
        bits=4,
        granularity="channel",
        rules=[("b", {"bits": 8})],
    )
    assert [job.dtype_after for job, _ in report.rows] == ["int4", "int8"]


def test_errors_are_typed_and_leave_nothing(matrix: Path, tmp_path: Path) -> None:
    with pytest.raises(compressor.UsageError, match="from 2 to 8"):
        compressor.quantize(matrix, tmp_path / "o.npy", bits=33)
    with pytest.raises(compressor.UsageError, match="needs"):
        compressor.prune(matrix, tmp_path / "o.npy")
    with pytest.raises(compressor.UsageError, match="either a recipe or stages"):
        compressor.pipeline(matrix, tmp_path / "o.npy")
    with pytest.raises(compressor.InputError):
        compressor.inspect(tmp_path / "absent.npy")
    with pytest.raises(ReportedGateFailed, match="max_error") as failed:
        compressor.prune(matrix, tmp_path / "o.npy", sparsity=0.9, gates=compressor.Gates(max_error=0.1))
    assert failed.value.report.total is not None
    assert [path.name for path in tmp_path.iterdir()] == ["w.npy"]
    with pytest.raises(AttributeError):
        _ = compressor.no_such_verb


def test_progress_reaches_the_total(matrix: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    compressor.prune(
        matrix, tmp_path / "o.npy", sparsity=0.5, progress=lambda done, total: seen.append((done, total))
    )
    assert seen[-1] == (16384, 16384)


def folder_of_two(path: Path) -> Path:
    """A model of two shards, so that there is something to keep on the way."""
    path.mkdir()
    names = {}
    for number in range(2):
        weight = np.random.default_rng(number).standard_normal((16, 128)).astype(np.float32)
        name = f"model-{number + 1:05d}-of-00002.safetensors"
        save_file({f"layers.{number}.weight": weight}, path / name)
        names[f"layers.{number}.weight"] = name
    index = {"metadata": {"total_size": 16384}, "weight_map": names}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    return path


UNKNOWN: dict[str, tuple[Callable[..., object], tuple[str, ...], dict[str, object], str, str]] = {
    "prune": (compressor.prune, ("a", "b"), {"sparsity": 0.5}, "forse", "--force"),
    "distill": (compressor.distill, ("a", "b"), {"teacher": "t"}, "teachr", "--teacher"),
    "quantize": (compressor.quantize, ("a", "b"), {"bits": 4}, "wrok", "--work"),
    "pipeline": (compressor.pipeline, ("a", "b"), {"recipe": "w4a16"}, "stage", "--stages"),
    "restore": (compressor.restore, ("a", "b"), {}, "dryrun", "--dry-run"),
    "tune": (compressor.tune, ("a", "b"), {"evaluate": "x", "min_metric": 1.0}, "time_out", "--timeout"),
    "calibrate": (compressor.calibrate, ("a", "b"), {"inputs": "x.npy"}, "sample", "--samples"),
    "inspect": (compressor.inspect, ("a",), {}, "stat", "--stats"),
    "compare": (compressor.compare, ("a", "b"), {}, "max_err", "--max-error"),
    "report": (compressor.report, ("a",), {}, "sourc", "--source"),
    "merge_statistics": (compressor.merge_statistics, (["a", "b"], "c"), {}, "forced", "--force"),
    "merge": (compressor.merge, (["a"], "c"), {}, "copied", "--copies"),
    "run_recipe": (api.run_recipe, ("prune", "a", "b", Recipe(())), {}, "onyl", "--only"),
}


@pytest.mark.parametrize("verb", UNKNOWN)
def test_an_unknown_keyword_is_refused_with_what_it_may_have_meant(verb: str) -> None:
    call, places, given, wrong, meant = UNKNOWN[verb]
    with pytest.raises(compressor.UsageError) as caught:
        call(*places, **given, **{wrong: 1})
    told = wrong if verb != "run_recipe" else "--onyl"  # which is no function of the package's
    assert caught.value.reason == f"{told}: is no option of {verb}"
    assert caught.value.remedy == f"Did you mean {in_python(meant) if verb != 'run_recipe' else meant}?"
    with pytest.raises(compressor.UsageError) as far:
        call(*places, **given, zzzzqqq=1)
    assert far.value.remedy == ""


def test_every_verb_of_the_package_is_tried() -> None:
    verbs = {name for name in compressor.__all__ if name.islower()}
    assert verbs | {"run_recipe"} == UNKNOWN.keys() | {"survey"}  # which starts another verb
    assert set(api.__all__) == UNKNOWN.keys() | {"survey"}


def test_what_tune_needs_and_takes_with_a_recipe(tmp_path: Path) -> None:
    with pytest.raises(compressor.UsageError) as caught:
        compressor.tune("a", "b", evaluat="x", min_metric=1.0)  # type: ignore[call-arg]
    assert "evaluat: is no option of tune. Did you mean evaluate?" in str(caught.value)
    with pytest.raises(compressor.UsageError, match=r"tune needs evaluate\. Or text FILE"):
        compressor.tune("a", "b", min_metric=1.0)
    with pytest.raises(compressor.UsageError, match="evaluate is of a command, and max_kld measures without one"):
        compressor.tune("a", "b", evaluate="x {path}", min_metric=1.0, max_kld=0.1)
    with pytest.raises(compressor.UsageError, match="nothing is given to measure by"):
        compressor.tune("a", "b", max_kld=0.1)
    with pytest.raises(compressor.UsageError, match="inputs measures what is lost, and no limit is given"):
        compressor.tune("a", "b", inputs="x.npy")
    with pytest.raises(compressor.UsageError, match="bits: is no option of tune with a recipe"):
        compressor.tune("a", "b", evaluate="x {path}", min_metric=1.0, recipe=Recipe(()), bits=4)


TABLES = {
    "prune": (keywords.PruneKeywords, cut_options()),
    "distill": (keywords.DistillKeywords, {**training_options(), **options_of(Sequential)}),
    "quantize": (keywords.QuantizeKeywords, {one.name: None for one in fields(Budget) if one.name != "max_error"}),
}


@pytest.mark.parametrize("verb", TABLES)
def test_keywords_are_typed_as_methods_declare_them(verb: str) -> None:
    table, more = TABLES[verb]
    options = {key for method in methods_of(verb).values() for key in options_of(method)} | set(more)
    stage = {"include", "exclude", "rules", "store", "mask", "scores", "teacher", "fallback", "preset", "tell"}
    run = keywords.RunKeywords.__annotations__.keys()
    own = table.__annotations__.keys() - stage - run - {SELECTOR[verb], *FILES}
    assert own == options - run - {SELECTOR[verb]}


def test_options_of_a_run_are_keywords_and_the_other_way_round() -> None:
    limits = {one.name for one in fields(compressor.Gates)}
    assert {one.name for one in fields(RunOptions)} | limits == keywords.RestoreKeywords.__annotations__.keys()
    assert {one.name for one in fields(Calibration)} == keywords.CalibrateKeywords.__annotations__.keys()


def test_settings_that_are_no_choice_are_refused(matrix: Path, tmp_path: Path) -> None:
    for verb, given in (
        (compressor.prune, {"sparsity": 0.5, "non_finite": "kep"}),
        (compressor.quantize, {"bits": 4, "effort": "smal"}),
        (compressor.restore, {"store": "archiv"}),
    ):
        with pytest.raises(compressor.UsageError, match=r"must be one of .*, not '"):
            verb(matrix, tmp_path / "o.safetensors", **given)  # type: ignore[operator]


@pytest.mark.parametrize("verb", ["prune", "quantize", "pipeline", "restore"])
def test_work_is_kept_by_every_verb(verb: str, tmp_path: Path) -> None:
    model, work = folder_of_two(tmp_path / "in"), tmp_path / "work"
    given: dict[str, Any] = {
        "prune": {"sparsity": 0.5},
        "quantize": {"bits": 4},
        "pipeline": {"stages": ["prune:sparsity=0.5"]},
        "restore": {},
    }[verb]
    call = getattr(compressor, verb)
    call(model, tmp_path / "a", **given)
    call(model, tmp_path / "b", work=work, keep_work=True, workers=1, **given)
    assert (work / "work.json").exists()
    assert [path.read_bytes() for path in sorted((tmp_path / "a").iterdir())] == [
        path.read_bytes() for path in sorted((tmp_path / "b").iterdir())
    ]
    call(model, tmp_path / "c", work=work, **given)
    assert not work.exists()
    with pytest.raises(compressor.UsageError, match="keep_work=True is for the folder that work names"):
        call(model, tmp_path / "d", keep_work=True, **given)
    with pytest.raises(compressor.UsageError, match=r"work .*: is the input itself"):
        call(model, tmp_path / "d", work=model, **given)


def test_a_choice_is_told_before_it_is_carried_out(tmp_path: Path) -> None:
    model, told = folder_of_two(tmp_path / "in"), []

    def tell(choice: Allocation) -> None:
        assert not (tmp_path / "out").exists()
        told.append(choice)

    report = compressor.quantize(model, tmp_path / "out", target_bits=4.5, tell=tell)
    assert told == [report.allocation]


def test_a_gate_is_a_keyword_of_every_verb_and_means_what_it_does_on_the_command_line(
    matrix: Path, tmp_path: Path
) -> None:
    out = tmp_path / "o.safetensors"
    with pytest.raises(ReportedGateFailed, match=r"max_error=0\.01: the relative error of"):
        compressor.quantize(matrix, out, bits=4, granularity="channel", max_error=0.01)
    with pytest.raises(ReportedGateFailed, match=r"max_size=1\.00 kB"):
        compressor.prune(matrix, out, sparsity=0.5, max_size="1kB")
    with pytest.raises(ReportedGateFailed, match="min_ratio=2"):
        compressor.restore(matrix, out, min_ratio=2)
    with pytest.raises(ReportedGateFailed, match=r"min_sparsity=0\.9"):
        compressor.pipeline(matrix, out, stages=["prune:sparsity=0.5"], min_sparsity=0.9)
    assert not out.exists()
    # with a budget it limits the choice as well, so that the gate holds
    report = compressor.quantize(matrix, out, scheme="auto", max_error=0.05)
    assert report.total is not None
    assert 0.001 < report.total.error <= 0.05
    assert report.allocation is not None


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"bits": 4, "max_error": 0.1, "gates": compressor.Gates(min_ratio=1)}, "max_error is a gate, and gates"),
        ({"bits": 4, "max_error": float("nan")}, "max_error must be at least 0, not nan"),
        ({"bits": 4, "min_sparsity": 2}, "min_sparsity must be from 0 to 1, not 2"),
        ({"bits": 4, "max_size": "much"}, "max_size: 'much' is not a size"),
        ({"bits": 4, "max_shard_size": "5 apples"}, "max_shard_size: '5 apples' is not a size"),
        ({"target_size": "small"}, "target_size: 'small' is not a size"),
        ({"min_sqnr": 30}, "min_sqnr is for a budget. Ask for one with scheme='auto'"),
    ],
)
def test_limits_that_cannot_be(given: dict[str, Any], said: str, matrix: Path, tmp_path: Path) -> None:
    with pytest.raises(compressor.UsageError) as caught:
        compressor.quantize(matrix, tmp_path / "o.safetensors", **given)
    assert said in str(caught.value)


def test_sizes_may_be_texts(tmp_path: Path) -> None:
    model = folder_of_two(tmp_path / "in")
    report = compressor.quantize(model, tmp_path / "a", target_size="6kB")
    assert report.plan.size_after <= 6000
    compressor.restore(model, tmp_path / "b", max_shard_size="9kB")
    assert len(list((tmp_path / "b").glob("*.safetensors"))) == 2


def test_a_function_measures_outputs(matrix: Path, tmp_path: Path) -> None:
    seen: list[str] = []

    def kept(path: str) -> dict[str, Any]:
        seen.append(path)
        return {"kept": 1 - np.abs(np.load(path) - np.load(matrix)).max()}

    given: dict[str, Any] = {
        "metric": "kept",
        "min_metric": 0.9,
        "candidates": ["int4c", "int8c"],
        "evaluations": 3,
    }
    out = tmp_path / "o.safetensors"
    with pytest.raises(ValueError, match="pickle"):  # its own error: it was not given a dense copy
        compressor.tune(matrix, out, evaluate=kept, **given)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["w.npy"]
    report = compressor.tune(
        matrix, out, evaluate=lambda path: {"kept": 1.0 if "restored" in path else 0.0}, restored=True, **given
    )
    assert report.allocation is not None
    assert [one.metric for one in report.allocation.tried] == [1.0] * len(report.allocation.tried)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["o.safetensors", "w.npy"]
    for answer in (None, "0.9", float("nan"), {"other": 1}):
        with pytest.raises(compressor.UsageError, match="evaluate returned no number"):
            compressor.tune(matrix, out, evaluate=lambda _, said=answer: said, force=True, **given)
    with pytest.raises(compressor.GateFailed, match="even the best"):
        compressor.tune(matrix, out, evaluate=lambda _: np.float32(0.5), force=True, log=tmp_path / "log", **given)
    assert (tmp_path / "log").read_text().count("metric") == 1
    with pytest.raises(compressor.UsageError, match="timeout is for a command"):
        compressor.tune(matrix, out, evaluate=kept, timeout=3, force=True, **given)
    with pytest.raises(compressor.UsageError, match="restored is for a function"):
        compressor.tune(matrix, out, evaluate="x {path}", restored=True, force=True, **given)
