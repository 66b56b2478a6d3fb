"""Budgets: the allocation against brute force, the survey and its table, sizes met, and what is refused."""

from __future__ import annotations

import json
import sys
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file
from support.clock import HANGS

import compressor
from compressor.calibration.fingerprint import fingerprint
from compressor.calibration.statistics import write_statistics
from compressor.checkpoint.checkpoint import open_checkpoint
from compressor.cli.main import run as main
from compressor.core.errors import UsageError
from compressor.core.layer_inputs import Gather
from compressor.recipe.budget import parse_budget
from compressor.recipe.gates import Gates
from compressor.recipe.toml_file import parse_recipe
from compressor.workflows.budget.allocate import Option, allocate, breakpoints, hull

TEACHER = Path(__file__).parent.parent.parent / "sample_weights" / "lenet300_teacher.safetensors"

TINY = Path(__file__).parents[2] / "sample_weights" / "tiny-llama"

# ---- the allocation ------------------------------------------------------------------------------------

options = st.lists(st.builds(Option, st.integers(1, 40), st.integers(0, 50).map(float)), min_size=1, max_size=5)
many = st.lists(options, min_size=1, max_size=4)


def total(units: list[list[Option]], chosen: Any) -> tuple[int, float]:
    picked = [unit[n] for unit, n in zip(units, chosen, strict=True)]
    return sum(one.size for one in picked), sum(one.loss for one in picked)


def least(units: list[list[Option]], budget: int) -> float:
    ways = (total(units, ways) for ways in product(*(range(len(unit)) for unit in units)))
    return min(loss for size, loss in ways if size <= budget)


@given(many)
@settings(max_examples=200)
def test_points_of_the_hull_are_optimal_for_their_size(units: list[list[Option]]) -> None:
    sizes = []
    for chosen in breakpoints(units):
        size, loss = total(units, chosen)
        assert loss == least(units, size)
        sizes.append(size)
        assert total(units, allocate(units, size))[1] == loss
    assert sizes == sorted(sizes)


@given(many, st.integers(0, 200))
@settings(max_examples=300)
def test_an_allocation_is_within_the_budget_and_near_the_best(units: list[list[Option]], budget: int) -> None:
    smallest = sum(min(one.size for one in unit) for unit in units)
    if budget < smallest:
        with pytest.raises(ValueError, match="more"):
            allocate(units, budget)
        return
    chosen = allocate(units, budget)
    size, loss = total(units, chosen)
    assert size <= budget
    assert chosen == allocate(units, budget)
    below = [total(units, point) for point in breakpoints(units)]
    on_hull = min(lost for taken, lost in below if taken <= budget)
    assert loss <= on_hull  # what is left over is never spent to the worse
    best = least(units, budget)
    gaps = [before - after for (_, before), (_, after) in pairwise(below)]
    assert loss - best <= max(gaps, default=0.0) + 1e-9  # the bound of Lagrange: less than a step
    better = [
        n
        for n, unit in enumerate(units)
        for one in unit
        if one.loss < unit[chosen[n]].loss and one.size - unit[chosen[n]].size <= budget - size
    ]
    assert not better  # nothing that fits is left undone


@given(options)
def test_a_hull_is_convex(unit: list[Option]) -> None:
    line = [unit[n] for n in hull(unit)]
    slopes = [(a.loss - b.loss) / (b.size - a.size) for a, b in pairwise(line)]
    assert all(slope > 0 for slope in slopes)
    assert slopes == sorted(slopes, reverse=True)
    assert line[-1].loss == min(one.loss for one in unit)


def test_an_exchange_finds_what_filling_cannot() -> None:
    units = [[Option(10, 10.0), Option(14, 9.0)], [Option(10, 10.0), Option(16, 8.6)]]
    assert allocate(units, 26) == [0, 1]


def test_of_exchanges_that_lose_as_little_the_one_that_frees_most_is_made_and_then_the_first() -> None:
    def made(*units: list[tuple[int, float]], budget: int) -> list[int]:
        return allocate([[Option(*option) for option in unit] for unit in units], budget)

    # Either of two units may become smaller, for a third that becomes better, and both lose as much by it
    assert made([(11, 5), (1, 9)], [(3, 4), (10, 1)], [(7, 6), (1, 9)], budget=22) == [0, 0, 0]
    assert made([(10, 6), (1, 9)], [(7, 0), (4, 2)], [(12, 0), (7, 2)], budget=27) == [0, 0, 1]
    assert made([(11, 4), (6, 9)], [(8, 9), (10, 6)], [(6, 5), (8, 2)], budget=27) == [0, 0, 1]
    # and free as much; here the first is the better one, for what is left is spent otherwise
    units = [(10, 7), (7, 9), (12, 4)], [(2, 5), (10, 3), (7, 0)], [(9, 0), (2, 6)], [(9, 6), (8, 7)]
    assert made(*units, budget=34) == [0, 2, 0, 1]


# ---- meeting a size ------------------------------------------------------------------------------------


@pytest.fixture
def model(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    tensors = {f"layer.{n}.weight": rng.standard_normal((96, 256)).astype(np.float32) * (n + 1) for n in range(8)}
    tensors["layer.3.weight"][:, 0] *= 30  # one is harder than the others
    tensors["norm.weight"] = np.ones(256, np.float32)
    save_file(tensors, tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


@pytest.mark.parametrize("target", [110_000, 130_000, 147_123, 175_000, 200_000])
def test_a_size_is_met_from_below(model: Path, tmp_path: Path, target: int) -> None:
    report = compressor.quantize(model, tmp_path / "o.safetensors", target_size=target)
    size = (tmp_path / "o.safetensors").stat().st_size
    assert 0.99 * target <= size <= target
    assert report.allocation is not None
    assert report.allocation.size_after == size == report.plan.size_after
    measured = {job.spec.name: change.error for job, change in report.rows if change is not None}
    for row in report.allocation.chosen:
        if row.choice != "dense":
            assert row.error == pytest.approx(measured[row.name], rel=1e-4)
    stage = report.plan.stages[-1]
    assert {rule["match"] for rule in stage.get("rule", [])} <= set(measured)  # an ordinary recipe, by exact names
    parsed = parse_recipe(_toml(stage), "back")
    again = compressor.pipeline(model, tmp_path / "again.safetensors", recipe=parsed)
    assert [job.steps for job, _ in again.rows] == [job.steps for job, _ in report.rows]


def _toml(stage: Any) -> str:
    lines = ["[[stage]]"]
    lines += [f"{key} = {json.dumps(value)}" for key, value in stage.items() if key != "rule"]
    for rule in stage.get("rule", ()):
        lines += ["[[stage.rule]]", *(f"{key} = {json.dumps(value)}" for key, value in rule.items())]
    return "\n".join(lines)


def test_bits_and_ratios_are_met(model: Path, tmp_path: Path) -> None:
    report = compressor.quantize(model, tmp_path / "a.safetensors", target_bits=4.5)
    assert 4.45 < report.bits_per_weight <= 4.5
    uniform = compressor.quantize(model, tmp_path / "u.safetensors", bits=4, group_size=64)
    assert report.total is not None
    assert uniform.total is not None
    assert report.allocation is not None
    assert uniform.bits_per_weight == pytest.approx(4.25, rel=0.002)
    same = next(point for point in report.allocation.uniform if point.name == "int4g64")
    assert report.allocation.point.error < same.error
    report = compressor.quantize(model, tmp_path / "r.safetensors", target_ratio=6)
    assert 6 <= report.ratio < 6.07


def test_many_names_are_one_rule(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = compressor.quantize(model, tmp_path / "a.safetensors", target_bits=5.3)
    monkeypatch.setattr("compressor.recipe.selection._MANY", 1)
    many = compressor.quantize(model, tmp_path / "b.safetensors", target_bits=5.3)
    assert [job.steps for job, _ in one.rows] == [job.steps for job, _ in many.rows]
    assert len(many.plan.stages[-1]["rule"]) <= len({job.steps[-1].method for job, _ in many.rows})


def test_the_same_bytes_with_any_workers(model: Path, tmp_path: Path) -> None:
    for count in (1, 3):
        compressor.quantize(model, tmp_path / f"{count}.safetensors", target_bits=4.2, workers=count)
    assert (tmp_path / "1.safetensors").read_bytes() == (tmp_path / "3.safetensors").read_bytes()


def test_limits_are_of_every_tensor(model: Path, tmp_path: Path) -> None:
    report = compressor.quantize(model, tmp_path / "o.safetensors", scheme="auto", max_error=0.06)
    assert all(change is not None and change.error <= 0.06 for _, change in report.rows)
    assert {job.dtype_after for job, _ in report.rows} <= {"int5", "int6"}
    report = compressor.quantize(model, tmp_path / "s.safetensors", min_sqnr=30, target_size=300_000)
    assert report.allocation is not None
    assert all(row.error <= 10**-1.5 for row in report.allocation.chosen)
    with pytest.raises(compressor.GateFailed, match="within 1e-05"):
        compressor.quantize(
            model, tmp_path / "n.safetensors", scheme="auto", max_error=1e-5, candidates=["int4g64"]
        )


def test_what_loaders_fuse_has_one_scheme(tmp_path: Path) -> None:
    report = compressor.quantize(TINY, tmp_path / "o", target_bits=5.5)
    assert report.allocation is not None
    by_name = {row.name: row.choice for row in report.allocation.chosen}
    for layer in (0, 1):
        attention = {by_name[f"model.layers.{layer}.self_attn.{part}_proj.weight"] for part in "qkv"}
        assert len(attention) == 1
    assert len(set(by_name.values())) > 1
    config = json.loads((tmp_path / "o" / "config.json").read_text())
    assert config["quantization_config"]["format"] == "mixed-precision"
    mlx = compressor.quantize(TINY, tmp_path / "m", target_bits=4.9, layout="mlx")
    assert {job.encoder.dialect(job.spec) for job, _ in mlx.rows if job.encoder is not None} == {"mlx"}


def test_rules_and_patterns_of_the_user_hold(model: Path, tmp_path: Path) -> None:
    report = compressor.quantize(
        model,
        tmp_path / "o.safetensors",
        target_size=180_000,
        rules=[("layer.0.*", {"bits": 8, "granularity": "channel"})],
        exclude=["layer.1.*"],
    )
    kinds = {job.spec.name: job.dtype_after for job, _ in report.rows}
    assert kinds["layer.0.weight"] == "int8"
    assert "layer.1.weight" not in kinds
    assert report.allocation is not None
    assert len(report.allocation.chosen) == 6
    assert report.plan.size_after <= 180_000


def test_only_what_a_stage_says_itself_holds_for_candidates(model: Path, tmp_path: Path) -> None:
    """int's own defaults are not those of ternary, which has a layout of its own; what is said is for both."""
    asked = {"target_bits": 4, "candidates": ["ternary", "int8g64"]}
    report = compressor.quantize(model, tmp_path / "a.safetensors", **asked)
    assert report.allocation is not None
    assert {row.choice for row in report.allocation.chosen} == {"ternary", "int8g64"}
    with pytest.raises(UsageError, match=r"candidate ternary: .*mlx"):
        compressor.quantize(model, tmp_path / "b.safetensors", **asked, layout="mlx")


def test_in_a_pipeline_what_came_before_counts(model: Path, tmp_path: Path) -> None:
    recipe = parse_recipe(
        '[budget]\ntarget_size = "150kB"\n[[stage]]\nkind = "prune"\nsparsity = 0.5\nscope = "global"\n'
        '[[stage]]\nkind = "quantize"\nscheme = "int"\n',
        "r",
    )
    report = compressor.pipeline(model, tmp_path / "o.safetensors", recipe=recipe)
    assert 148_500 <= report.plan.size_after <= 150_000
    assert report.total is not None
    assert report.total.sparsity_after > 0.49


# ---- the survey ----------------------------------------------------------------------------------------


def test_a_table_is_used_again(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = tmp_path / "t.json"
    first = compressor.quantize(model, tmp_path / "a.safetensors", target_bits=4.5, survey=str(table))
    content = table.read_bytes()

    def refuse(*_: Any) -> None:
        raise AssertionError("the weights were measured again")

    monkeypatch.setattr("compressor.workflows.budget.survey.Measure.observe", refuse)
    second = compressor.quantize(model, tmp_path / "b.safetensors", target_bits=4.5, survey=str(table))
    compressor.quantize(model, tmp_path / "c.safetensors", target_size=200_000, survey=str(table))
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    assert first.allocation == second.allocation
    assert table.read_bytes() == content
    monkeypatch.undo()
    compressor.quantize(
        model, tmp_path / "d.safetensors", target_bits=4.5, survey=str(table), candidates=["nf4", "int3c"]
    )
    assert len(json.loads(table.read_text())["tensors"]["layer.0.weight"]) == 40  # 39, and what was missing


def test_a_table_of_something_else_is_refused(model: Path, tmp_path: Path) -> None:
    table = tmp_path / "t.json"
    compressor.quantize(model, tmp_path / "a.safetensors", target_bits=4.5, survey=str(table))
    out = tmp_path / "o.safetensors"
    with pytest.raises(compressor.InputError, match="otherwise"):
        compressor.quantize(model, out, target_bits=4.5, survey=str(table), sample=0)
    save_file({"other.weight": np.ones((64, 128), np.float32)}, tmp_path / "other.safetensors")
    with pytest.raises(compressor.InputError, match="another model"):
        compressor.quantize(tmp_path / "other.safetensors", out, target_bits=4.5, survey=str(table))
    good = json.loads(table.read_text())
    for wrong, said in (
        ({**good, "format": "x"}, "no survey"),
        ({**good, "version": 2}, "newer"),
        ({**good, "tensors": []}, "damaged"),
        ({**good, "tensors": {"layer.0.weight": {"int": [1, 2]}}}, "damaged"),
        ({**good, "tensors": {"layer.0.weight": {"int": [-1, 2, 3]}}}, "damaged"),
        ({**good, "tensors": {"layer.0.weight": {"int": [True, 2, 3]}}}, "damaged"),
    ):
        table.write_text(json.dumps(wrong))
        with pytest.raises(compressor.InputError, match=said):
            compressor.quantize(model, out, target_bits=4.5, survey=str(table))
    assert not out.exists()


def test_usual_candidates_without_the_method_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    values = np.random.default_rng(1).standard_normal((64, 128)).astype(np.float32)
    save_file({"a.weight": values}, tmp_path / "in" / "model.safetensors")
    (tmp_path / "in" / "config.json").write_text("{}")
    asked: dict[str, Any] = {"target_bits": 5, "method": "hqq"}
    report = compressor.quantize(tmp_path / "in", tmp_path / "out", **asked)
    assert report.allocation is not None
    assert {row.choice for row in report.allocation.chosen} <= {"int4g128", "int4g64", "int4g32", "int8g128"}
    with pytest.raises(UsageError, match="candidate mxfp4"):
        compressor.quantize(tmp_path / "in", tmp_path / "o", **asked, candidates=["mxfp4", "int4g64"])


def test_gptq_holds_for_all_usual_candidates(tmp_path: Path) -> None:
    gather, stats = Gather(128, gram=True), tmp_path / "stats.safetensors"
    gather.add(np.random.default_rng(0).standard_normal((200, 128)).astype(np.float32))
    write_statistics(stats, [("a", gather.layer)])
    (tmp_path / "in").mkdir()
    values = np.random.default_rng(1).standard_normal((64, 128)).astype(np.float32)
    save_file({"a.weight": values}, tmp_path / "in" / "model.safetensors")
    (tmp_path / "in" / "config.json").write_text("{}")
    report = compressor.quantize(tmp_path / "in", tmp_path / "out", target_bits=4.6, stats=stats, method="gptq")
    assert report.allocation is not None
    assert [row.choice for row in report.allocation.chosen] == ["nvfp4"]


def test_statistics_weigh_the_error(model: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    inputs = rng.standard_normal((2000, 256)).astype(np.float32)
    inputs[:, 0] *= 100
    for gram in (False, True):
        layers = []
        for n in range(8):
            gather = Gather(256, gram=gram)
            gather.add(inputs)
            layers.append((f"layer.{n}", gather.layer))
        stats = tmp_path / f"stats{gram}.safetensors"
        write_statistics(stats, layers)
        report = compressor.quantize(model, tmp_path / f"{gram}.safetensors", target_bits=4.5, stats=stats)
        assert report.allocation is not None
        assert report.allocation.weighted == ("gram" if gram else "square")
        compressor.restore(tmp_path / f"{gram}.safetensors", tmp_path / f"r{gram}.safetensors")
        row = report.allocation.chosen[0]
        weights, restored = (_tensor(tmp_path / name) for name in ("model.safetensors", f"r{gram}.safetensors"))
        moved = (
            (weights - restored) @ inputs.T if gram else (weights - restored) * np.sqrt(np.square(inputs).mean(0))
        )
        whole = weights @ inputs.T if gram else weights * np.sqrt(np.square(inputs).mean(0))
        lost, energy = np.square(moved).sum(axis=1), np.square(whole).sum(axis=1)
        share = 1 / (energy + 0.01 * energy.mean())  # every output counts about the same
        assert row.weighted == pytest.approx(np.sqrt((lost * share).sum() / (energy * share).sum()), rel=1e-3)


def _tensor(path: Path) -> Any:

    return load_file(path)["layer.0.weight"]


def test_a_sample_tells_how_sure_it_is(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    big = (rng.standard_normal((4096, 512)) * np.exp(rng.standard_normal((4096, 1)))).astype(np.float32)
    save_file({"a.weight": big}, tmp_path / "m.safetensors")
    found = [
        compressor.quantize(
            tmp_path / "m.safetensors",
            tmp_path / "o",
            target_bits=5,
            sample=sample,
            candidates=["int4g64"],
            dry_run=True,
        ).allocation
        for sample in (0, 1 << 19)
    ]
    whole, part = (one.chosen[0] for one in found if one is not None)
    assert whole.spread == 0
    assert 0 < part.spread < 0.2
    assert part.error**2 == pytest.approx(whole.error**2, rel=2 * part.spread)


def test_nvfp4_is_measured_nearly_as_it_will_be(model: Path, tmp_path: Path) -> None:
    report = compressor.quantize(model, tmp_path / "o.safetensors", target_bits=4.6, candidates=["nvfp4"])
    assert report.allocation is not None
    for row, (_, change) in zip(report.allocation.chosen, report.rows, strict=True):
        assert change is not None
        assert row.error == pytest.approx(change.error, rel=0.01)


# ---- what is refused -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"target_size": 1000}, "smallest that the candidates allow is"),
        ({"target_bits": 1.5}, "bits a weight"),
        ({"target_ratio": 100}, "times smaller"),
        ({"target_bits": 4.5, "candidates": ["int9g1"]}, "no candidate 'int9g1'"),
        ({"target_bits": 4.5, "candidates": ["int:bits"]}, "no candidate"),
        ({"target_bits": 4.5, "candidates": ["int:bits=4,nonsense=1"]}, "not known"),
        ({"target_bits": 4.5, "candidates": ["dense"]}, "smaller than dense"),
        ({"target_bits": 4.5, "candidates": ["int:bits=8,granularity=tensor"]}, "reads each tensor once"),
        ({"target_bits": 4.5, "candidates": ["int4g60"]}, "int4g60 fits none .* is 96×256.*fallback=True"),
        ({"target_bits": 4.5, "bits": 4}, "chooses bits itself"),
        ({"target_bits": 4.5, "scheme": "nf4"}, "chooses scheme itself"),
        ({"target_bits": 4.5, "target_size": 100}, "two targets"),
        ({"target_bits": -1}, "above 0"),
        ({"target_bits": float("nan")}, "above 0"),
        ({"scheme": "auto"}, "nothing to meet"),
        ({"target_bits": 4.5, "preset": "q4_mixed"}, "preset"),
        ({"target_bits": 4.5, "store": "dense"}, "stored codes"),
        ({"target_bits": 4.5, "sample": -1}, "sample"),
        ({"scheme": "auto", "min_sqnr": float("inf")}, "decibels"),
    ],
)
def test_wrong_requests(model: Path, tmp_path: Path, options: dict[str, Any], said: str) -> None:
    with pytest.raises(compressor.CompressorError, match=said):
        compressor.quantize(model, tmp_path / "o.safetensors", **options)
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


def test_an_output_that_exists_is_refused_before_the_survey(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "o.safetensors").touch()
    command = ["quantize", str(model), "-o", str(tmp_path / "o.safetensors"), "--target-bits", "5"]
    assert main([*command, "--survey", str(tmp_path / "s.json")]) == 4
    assert "Use --force" in capsys.readouterr().err
    assert not (tmp_path / "s.json").exists()


def test_wrong_tables_of_recipes() -> None:
    for table, said in (
        ({"target_size": "many"}, "target_size: 'many' is not a size"),
        ({"target": 3}, "unknown field"),
        ({"target_bits": "4"}, "target_bits: Expected"),
        ({"target_bits": -4.0}, "above 0"),
        ({}, "neither a target nor a limit"),
    ):
        with pytest.raises(compressor.UsageError, match=f"b: .*{said}"):
            parse_budget(table, "b: ")
    with pytest.raises(compressor.UsageError, match="budget"):
        parse_recipe('budget = 3\n[[stage]]\nkind = "prune"\nsparsity = 0.5\n', "r")


def test_max_error_keeps_its_meaning_as_a_gate(model: Path, tmp_path: Path) -> None:
    with pytest.raises(compressor.GateFailed, match="max_error"):
        compressor.quantize(model, tmp_path / "o.safetensors", bits=4, gates=Gates(max_error=0.01))


# ---- the command line ----------------------------------------------------------------------------------


def test_the_choice_is_told_before_the_run(model: Path, tmp_path: Path, capsys: Any) -> None:
    out, curve = tmp_path / "o.safetensors", tmp_path / "c.svg"
    run = ["quantize", str(model), "-o", str(out), "--target-size", "150kB", "--survey", str(tmp_path / "t.json")]
    assert main([*run, "--dry-run", "--curve", str(curve)]) == 0
    told = capsys.readouterr().out
    assert "gain/MB" in told
    assert "budget --target-size 150 kB" in told
    assert "would write" in told
    assert not out.exists()
    svg = curve.read_text()
    assert svg.startswith("<svg")
    assert "polyline" in svg
    assert main([*run, "--format", "json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["budget"]["size_after"] == report["size_after"] == out.stat().st_size
    assert len(report["budget"]["tensors"]) == 8
    assert main([*run, "--force", "--curve", str(curve), "--quiet"]) == 0
    assert main([*run, "--curve", str(curve), "--dry-run"]) == 4
    assert "--force" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["quantize", "--min-sqnr", "20"], "--min-sqnr is for a budget"),
        (["quantize", "--bits", "4", "--candidate", "nf4"], "--candidate is for a budget"),
        (["quantize", "--curve", "c.svg"], "--curve is for a budget"),
        (["quantize", "--target-bits", "4", "--curve", "c.png"], "SVG"),
        (["quantize", "--target-bits", "4", "--scheme", "int"], "chooses scheme itself"),
        (["quantize", "--scheme", "auto"], "nothing to meet"),
        (["pipeline", "--stage", "prune:sparsity=0.5", "--target-bits", "4"], "last stage quantizes"),
        (["pipeline", "--stage", "quantize:bits=4", "--survey", "t"], "--survey is for a budget"),
    ],
)
def test_wrong_command_lines(model: Path, tmp_path: Path, capsys: Any, arguments: list[str], said: str) -> None:
    verb, *rest = arguments
    assert main([verb, str(model), "-o", str(tmp_path / "o.safetensors"), *rest]) in (1, 2)
    assert said in capsys.readouterr().err


# ---- tune ----------------------------------------------------------------------------------------------

SCORE = "import os, sys; open(sys.argv[2], 'a').write('x'); print('said'); print(os.path.getsize(sys.argv[1]))"


def tune(model: Path, folder: Path, code: str = SCORE, **more: Any) -> Any:
    command = f'{sys.executable} -c "{code}" {{path}} {folder / "count"}'
    options = {"candidates": ["int3g64", "int4g64", "int5g64", "int8g64"], "min_metric": 150_000, **more}
    return compressor.tune(model, folder / "o.safetensors", evaluate=command, **options)


def test_tune_finds_the_smallest_that_holds(model: Path, tmp_path: Path) -> None:
    report = tune(model, tmp_path)
    size = (tmp_path / "o.safetensors").stat().st_size
    assert 150_000 <= size <= 158_000
    tried = report.allocation.tried
    assert len(tried) == (tmp_path / "count").stat().st_size <= 10
    assert max(one.size for one in tried if one.metric < 150_000) < size
    # everything is in the log: nothing is measured again, also for another limit near by
    again = tune(model, tmp_path, force=True, gates=Gates(min_ratio=2))
    assert again.allocation.tried == tried
    assert (tmp_path / "count").stat().st_size == len(tried)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_tune_is_bounded_and_goes_on(model: Path, tmp_path: Path) -> None:
    few = tune(model, tmp_path, evaluations=3)
    assert len(few.allocation.tried) == 3
    log = tmp_path / "o.safetensors.tune.jsonl"
    with log.open("ab") as file:
        file.write(b'{"point": 1, "si')  # killed while it was writing
    more = tune(model, tmp_path, force=True)
    assert more.allocation.tried[:3] == few.allocation.tried
    assert more.plan.size_after <= few.plan.size_after
    with pytest.raises(compressor.InputError, match="another search"):
        tune(model, tmp_path, force=True, candidates=["int4g64", "int8g64"])
    log.write_text("nonsense\n")
    with pytest.raises(compressor.InputError, match="no log of tune"):
        tune(model, tmp_path, force=True)


@pytest.mark.parametrize(
    ("code", "more", "said"),
    [
        ("import sys; sys.exit(3)", {}, "exit code 3"),
        ("import os; os.kill(os.getpid(), 9)", {}, "signal 9"),
        ("print('nothing to see')", {}, "no number .* nothing to see"),
        ("print('nan')", {}, "no number"),
        ("pass", {}, "the last it said is: nothing"),
        ("import time; time.sleep(60)", {"timeout": 0.3}, "did not end within 0.3 seconds"),
        ("print(1)", {}, "even the best"),
    ],
)
def test_commands_that_do_not_do(model: Path, tmp_path: Path, code: str, more: dict[str, Any], said: str) -> None:
    with pytest.raises(compressor.CompressorError, match=said):
        tune(model, tmp_path, code, **more)
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"model.safetensors", "o.safetensors.tune.jsonl"}


def test_what_a_command_leaves_running_is_ended(model: Path, tmp_path: Path) -> None:
    import os
    import time

    code = (
        "import subprocess, sys; p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(99)']); "
        "open(sys.argv[2], 'w').write(str(p.pid)); print(1e9)"
    )
    tune(model, tmp_path, code, evaluations=1)
    pid = int((tmp_path / "count").read_text())
    for _ in range(20 * int(HANGS)):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            break
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        if state == "Z":
            break
        time.sleep(0.05)
    else:
        pytest.fail("it lives on")


def test_wrong_searches(model: Path, tmp_path: Path, capsys: Any) -> None:
    for command, said in (
        ("score", "has no {path}"),
        ("score '{path}", "No closing quotation"),
        ("no-such-program {path}", "cannot be started"),
    ):
        with pytest.raises(compressor.UsageError, match=said):
            compressor.tune(model, tmp_path / "o.safetensors", evaluate=command, min_metric=1)
    with pytest.raises(compressor.UsageError, match="no target"):
        compressor.tune(model, tmp_path / "o.safetensors", evaluate="a {path}", min_metric=1, target_bits=4)
    with pytest.raises(compressor.UsageError, match="no dry run"):
        compressor.tune(model, tmp_path / "o.safetensors", evaluate="a {path}", min_metric=1, dry_run=True)
    line = ["tune", str(model), "-o", str(tmp_path / "t.safetensors"), "--min-metric", "0.5", "--metric", "f1"]
    code = "print(dict()); print(chr(123) + chr(34) + 'f1' + chr(34) + ': 0.75}')"
    assert (
        main([*line, "--evaluate", f'{sys.executable} -c "{code}" {{path}}', "--evaluations", "2", "--quiet"]) == 0
    )
    said = capsys.readouterr()
    assert "f1 0.75" in said.err
    assert (tmp_path / "t.safetensors").exists()


def test_tune_measures_what_outputs_lost_itself(tmp_path: Path) -> None:
    """The smallest within the limit, judged by a comparison of the output; the log goes by the input's bytes."""
    random = np.random.default_rng(0)
    np.save(tmp_path / "x.npy", random.random((300, 784), np.float32))
    how: dict[str, Any] = {"inputs": tmp_path / "x.npy", "candidates": ["int3c", "int4c", "int6c", "int8c"]}
    report = compressor.tune(TEACHER, tmp_path / "o.safetensors", max_kld=0.01, **how)
    tried = report.allocation.tried
    loss = compressor.compare(TEACHER, tmp_path / "o.safetensors", inputs=tmp_path / "x.npy").loss
    assert loss is not None
    kept = [one for one in tried if one.metric <= 0.01]
    assert loss.outputs.kld == min(kept, key=lambda one: one.point).metric <= 0.01
    assert any(one.metric > 0.01 for one in tried)
    assert kept[0].values["min_agreement"] <= 1
    assert report.allocation.asked.startswith("--max-kld 0.01, ")
    again = compressor.tune(TEACHER, tmp_path / "o.safetensors", max_kld=0.01, min_agreement=0, force=True, **how)
    assert again.allocation.tried == tried  # out of the log
    np.save(tmp_path / "x.npy", random.random((300, 784), np.float32))
    with pytest.raises(compressor.InputError, match="the log of another search"):
        compressor.tune(TEACHER, tmp_path / "o.safetensors", max_kld=0.01, force=True, **how)
    (tmp_path / "o.safetensors.tune.jsonl").unlink()
    with pytest.raises(compressor.CompressorError, match="max_kld=1e-30: even the best"):
        compressor.tune(TEACHER, tmp_path / "o.safetensors", max_kld=1e-30, force=True, **how)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "o.safetensors",
        "o.safetensors.tune.jsonl",
        "x.npy",
    ]


def test_a_command_gets_a_dense_copy(tmp_path: Path) -> None:
    """The script that ships with the sample weights scores what it is handed."""
    score = TEACHER.parent / "score.py"
    command = f"{sys.executable} {score} --json {{restored}}"
    out = tmp_path / "o.safetensors"
    options: dict[str, Any] = {"metric": "accuracy", "min_metric": 97.5, "evaluations": 4}
    report = compressor.tune(
        TEACHER, out, evaluate=command, candidates=["int2c", "int3c", "int4c", "int8c"], **options
    )
    assert report.allocation.tried[0].metric > 98
    with pytest.raises(compressor.UsageError, match="exit code 2"):
        compressor.tune(
            TEACHER, tmp_path / "p.safetensors", evaluate=command.replace("restored", "path"), **options
        )
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_small_networks_with_odd_rows_meet_a_budget(tmp_path: Path) -> None:
    report = compressor.quantize(TEACHER, tmp_path / "o.safetensors", target_bits=4.5)
    assert 4 < report.allocation.point.bits <= 4.5
    assert len(report.allocation.chosen) == 3


@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_candidates_that_go_by_inputs_need_statistics_of_them(method: str, tmp_path: Path) -> None:
    candidates = [f"int:bits=4,granularity=channel,method={method}", "dense"]
    with pytest.raises(UsageError, match="goes by statistics of layer inputs, and none are given"):
        compressor.quantize(TEACHER, tmp_path / "o.safetensors", target_bits=9, candidates=candidates)
    rows = np.random.default_rng(0).standard_normal((50, 300)).astype(np.float32)
    gather = Gather(300, gram=True)
    gather.add(rows)
    stats = tmp_path / "stats.safetensors"
    model, weights = fingerprint(open_checkpoint(TEACHER))
    write_statistics(stats, [("fc2", gather.layer)], model=model, weights=weights, source="rows")
    with pytest.raises(UsageError, match=r"fc1\.weight.*goes by statistics of layer inputs, and .* of its layer"):
        compressor.quantize(TEACHER, tmp_path / "o.safetensors", target_bits=9, candidates=candidates, stats=stats)


def test_a_log_in_the_place_of_the_output_is_refused(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "o.safetensors"
    with pytest.raises(UsageError, match=r"log .* is the output itself"):
        compressor.tune(model, out, evaluate="a {path}", min_metric=1, log=str(out))
    assert not out.exists()


def test_what_no_candidate_fits_takes_the_nearest(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    odd = random.standard_normal((64, 100)).astype(np.float32)
    source, out = tmp_path / "in.safetensors", tmp_path / "out.safetensors"
    save_file({"a.weight": random.standard_normal((64, 256)).astype(np.float32), "b.weight": odd}, source)
    for candidates in (["int4g128"], ["int4g128", "dense"]):
        report = compressor.quantize(source, out, target_bits=4.5, candidates=candidates, force=True)
        assert {one.name: one.choice for one in report.allocation.chosen} == {
            "a.weight": "int4g128",
            "b.weight": "int4g128 with granularity=channel",
        }
        assert not _kept(report)
    alone = compressor.quantize(  # where none fits any tensor too
        TEACHER, out, target_bits=9, candidates=["int4g128"], force=True, fallback=True
    )
    assert {one.choice for one in alone.allocation.chosen} == {
        "int4g128 with group_size=112",
        "int4g128 with group_size=100",
    }
    with pytest.raises(UsageError, match="candidate int4g96 fits none of the tensors"):
        compressor.quantize(source, out, target_bits=9, candidates=["int4g96", "int4g128"], force=True)
    report = compressor.quantize(
        source, out, target_bits=9, candidates=["int4g96"], force=True, allow_unmatched=True
    )
    assert {one.choice for one in report.allocation.chosen} == {
        "int4g96 with group_size=64",
        "int4g96 with group_size=50",
    }
    with pytest.raises(UsageError, match="fits none of the tensors"):  # MLX has no group that fits, nor any rows
        compressor.quantize(TEACHER, out, target_bits=9, candidates=["int4g32"], layout="mlx", force=True)


def _kept(report: compressor.Report) -> dict[str, str]:
    return {job.spec.name: why for why, jobs in report.kept for job in jobs}


def test_what_the_budget_chose_to_leave_is_not_called_excluded(model: Path, tmp_path: Path) -> None:
    report = compressor.quantize(
        model, tmp_path / "o.safetensors", target_bits=9, candidates=["int2g64", "dense"], exclude=["layer.0.*"]
    )
    kept = _kept(report)
    assert kept["layer.0.weight"] == "excluded by layer.0.*"
    dense = [row.name for row in report.allocation.chosen if row.choice == "dense"]
    assert {kept[name] for name in dense} == {"the budget chose to leave it as it is"}
    assert report.plan.stages[-1]["exclude"] == ["layer.0.*", *dense]


def test_the_way_on_that_a_message_names_makes_the_target_possible(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "o.safetensors"

    def tried(source: Path, said: str, asked: dict[str, Any], change: dict[str, Any], out: Path = out) -> None:
        with pytest.raises(compressor.GateFailed, match=f"cannot be met.*{said}"):
            compressor.quantize(source, out, **asked)
        assert compressor.quantize(source, out, **{**asked, **change}, dry_run=True).allocation is not None

    tried(model, "leave out max_error=0.1", {"target_bits": 4, "max_error": 0.1}, {"max_error": None})
    tried(model, "leave out candidates", {"target_bits": 4, "candidates": ["int8c"]}, {"candidates": []})
    folder = tmp_path / "folder"
    tried(TINY, "leave out loader", {"target_bits": 3, "loader": "vllm"}, {"loader": None}, folder)
    tried(model, 'give store="archive"', {"target_bits": 1}, {"store": "archive"})


def test_a_target_above_the_input_says_so(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for asked, said in (("--target-size 2MB", "of 788 kB"), ("--target-bits 40", "of 32 bits a weight")):
        command = ["quantize", str(model), "-o", str(tmp_path / "o.safetensors"), *asked.split(), "--dry-run"]
        assert main(command) == 0
        assert f"note: the input, {said}, is within {asked.split()[0]}" in capsys.readouterr().out
    assert compressor.quantize(model, tmp_path / "o.safetensors", target_ratio=4).allocation.note == ""


def test_what_is_fused_takes_what_is_nearest_for_all_of_it(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    source, out = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    shapes = {"l.self_attn.q_proj": 256, "l.self_attn.k_proj": 192, "l.mlp.down_proj": 256}
    tensors = {
        f"{name}.weight": random.standard_normal((64, columns)).astype(np.float32)
        for name, columns in shapes.items()
    }
    save_file(tensors, source / "model.safetensors")
    (source / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    report = compressor.quantize(source, out, target_bits=9, candidates=["int4g128", "int8g96"])
    chosen = {one.name: one.choice for one in report.allocation.chosen}
    assert (
        chosen["l.self_attn.q_proj.weight"] == chosen["l.self_attn.k_proj.weight"] == "int8g96 with group_size=64"
    )
    assert not _kept(report)


def test_layers_of_few_weights_count_as_much_as_others_in_a_network_of_convolutions(tmp_path: Path) -> None:
    shapes = {"stem.weight": (16, 3, 3, 3), "deep.weight": (64, 1, 3, 3), "wide.weight": (256, 64, 1, 1)}
    shapes["fc.weight"] = (128, 256)
    random = np.random.default_rng(0)
    path = tmp_path / "conv.safetensors"
    save_file({name: random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}, path)
    report = compressor.quantize(path, tmp_path / "out.safetensors", target_ratio=6, layout="compressor")
    bits = {job.spec.name: int(job.dtype_after.removeprefix("int")) for job, _ in report.rows}
    assert min(bits["stem.weight"], bits["deep.weight"]) > max(bits["wide.weight"], bits["fc.weight"])
