"""Budgets whose output is an archive: even steps get the bits that meet them, whatever coding makes of the rest."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import compressor
from compressor.cli.main import run as main
from compressor.core.errors import GateFailed, UsageError


@pytest.fixture
def model(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    tensors = {
        f"layer.{n}.weight": (random.standard_normal((192, 512)) * 0.01 * (n + 1)).astype(np.float32)
        for n in range(4)
    }
    tensors["tails.weight"] = random.standard_t(3, (256, 512)).astype(np.float32)
    tensors["few.weight"] = random.choice([-0.1, 0, 0.1], (128, 512)).astype(np.float32)
    tensors["norm.weight"] = random.standard_normal(512).astype(np.float32)
    tensors["embed_tokens.weight"] = random.standard_normal((100, 64)).astype(np.float32)
    save_file(tensors, tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


def decided(report: Any) -> float:
    names = {row.name for row in report.allocation.chosen}
    jobs = [job for job in report.plan.jobs if job.spec.name in names]
    return sum(job.size_after for job in jobs) * 8 / sum(job.spec.size for job in jobs)


@pytest.mark.parametrize("bits", [2.0, 3.3, 4.5, 7.77])
def test_bits_are_met_from_below(model: Path, tmp_path: Path, bits: float) -> None:
    out = tmp_path / "o.safetensors"
    report = compressor.quantize(model, out, target_bits=bits, store="archive")
    assert 0.99 * bits <= decided(report) <= bits
    assert report.allocation is not None
    assert report.allocation.size_after == report.plan.size_after == out.stat().st_size
    assert not list(tmp_path.glob("*trial*"))
    assert not list(tmp_path.glob(".*"))
    measured = {job.spec.name: change.error for job, change in report.rows if change is not None}
    for row in report.allocation.chosen:
        if row.choice.startswith("uniform") and row.name != "few.weight":
            assert row.error == pytest.approx(measured[row.name], rel=0.03)


@pytest.mark.parametrize("target", [150_000, 300_000])
def test_a_size_is_met_from_below(model: Path, tmp_path: Path, target: int) -> None:
    out = tmp_path / "o.safetensors"
    compressor.quantize(model, out, target_size=target, store="archive")
    assert 0.99 * target <= out.stat().st_size <= target
    before, after = load_file(model), tmp_path / "back.safetensors"
    compressor.restore(out, after)
    restored = load_file(after)
    for name in ("norm.weight", "embed_tokens.weight"):
        assert np.array_equal(restored[name], before[name])


def test_a_folder_and_a_pipeline_meet_a_ratio(model: Path, tmp_path: Path) -> None:
    source = tmp_path / "folder"
    source.mkdir()
    model.rename(source / "model.safetensors")
    (source / "config.json").write_text("{}")
    recipe = tmp_path / "r.toml"
    recipe.write_text(
        '[budget]\ntarget_ratio = 8\n[[stage]]\nkind = "prune"\nsparsity = 0.3\n'
        '[[stage]]\nkind = "quantize"\nstore = "archive"\n'
    )
    report = compressor.pipeline(source, tmp_path / "out", recipe=str(recipe))
    before, after = ((place / "model.safetensors").stat().st_size for place in (source, tmp_path / "out"))
    assert 8 <= before / after <= 8 * 1.01
    assert report.total.zeros_after > 0.25 * report.total.size


def test_it_loses_less_than_integers_of_the_same_size(model: Path, tmp_path: Path) -> None:
    mine = compressor.quantize(model, tmp_path / "a.safetensors", target_bits=4.5, store="archive")
    other = compressor.quantize(model, tmp_path / "b.safetensors", target_bits=4.5)
    assert mine.total.error < 0.7 * other.total.error


def test_bits_go_where_they_gain(model: Path, tmp_path: Path) -> None:
    # a budget that does not end among layers that are alike
    report = compressor.quantize(model, tmp_path / "o.safetensors", target_bits=3.2, store="archive")
    assert report.allocation is not None
    bits = {row.name: row.bits for row in report.allocation.chosen}
    assert bits["few.weight"] < 2  # three values: little more than the entropy of that
    errors = [change.error for job, change in report.rows if change is not None and "layer" in job.spec.name]
    assert max(errors) < 1.1 * min(errors)


def test_a_limit_alone_is_met(model: Path, tmp_path: Path) -> None:
    report = compressor.quantize(model, tmp_path / "o.safetensors", scheme="auto", max_error=0.05, store="archive")
    assert all(change.error <= 0.05 for _, change in report.rows if change is not None)
    assert report.plan.size_after < model.stat().st_size / 6


def test_a_dry_run_and_the_table(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options: dict[str, Any] = {"target_bits": 4.5, "store": "archive", "survey": str(tmp_path / "t.json")}
    dry = compressor.quantize(model, tmp_path / "o.safetensors", dry_run=True, **options)
    assert not (tmp_path / "o.safetensors").exists()
    assert dry.allocation is not None
    real = compressor.quantize(model, tmp_path / "o.safetensors", **options)
    assert real.allocation is not None
    assert dry.allocation.size_after == pytest.approx(real.allocation.size_after, rel=0.05)
    again = compressor.quantize(model, tmp_path / "p.safetensors", **options)
    assert (tmp_path / "p.safetensors").read_bytes() == (tmp_path / "o.safetensors").read_bytes()
    assert again.allocation == real.allocation


def test_shares_of_zeros_are_candidates_too(model: Path, tmp_path: Path) -> None:
    names = [f"uniform{bits}s{share}" for bits in (1, 1.5, 2, 2.5, 3, 4) for share in (50, 80)]
    report = compressor.quantize(
        model, tmp_path / "o.safetensors", target_bits=2.2, store="archive", candidates=names, exclude=["few*"]
    )
    assert 0.99 * 2.2 <= decided(report) <= 2.2
    assert report.allocation is not None
    chosen = {row.name: row.choice for row in report.allocation.chosen}
    for job, change in report.rows:
        if change is not None:
            share = float(chosen[job.spec.name].partition("s")[2]) / 100
            assert change.zeros_after >= share * change.size


def test_what_cannot_be_met_says_what_can(model: Path, tmp_path: Path) -> None:
    with pytest.raises(GateFailed, match="the smallest that the candidates allow is 0"):
        compressor.quantize(model, tmp_path / "o.safetensors", target_bits=0.1, store="archive")
    with pytest.raises(GateFailed, match=r"the smallest that the candidates allow is .* bytes"):
        compressor.quantize(model, tmp_path / "o.safetensors", target_size=20_000, store="archive")
    assert not (tmp_path / "o.safetensors").exists()
    with pytest.raises(UsageError, match=r"uniform4.*byte or two.*store=.archive."):
        compressor.quantize(model, tmp_path / "o.safetensors", target_bits=4, candidates=["uniform4"])
    options: dict[str, Any] = {"target_bits": 4, "store": "archive", "candidates": ["uniform:step_rows=1"]}
    with pytest.raises(UsageError, match="one step for each tensor"):
        compressor.quantize(model, tmp_path / "o.safetensors", **options)


def test_the_command_line_tells_it(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(
        ["quantize", str(model), "-o", str(tmp_path / "o.safetensors"), "--target-bits", "4", "--store", "archive"]
    )
    out = capsys.readouterr().out
    assert code == 0
    assert "budget --target-bits 4" in out
    assert "uniform" in out


def test_tune_searches_over_archives(model: Path, tmp_path: Path) -> None:
    program = tmp_path / "score.py"
    program.write_text(
        f"import sys, compressor\nprint(1 - compressor.compare({str(model)!r}, sys.argv[1]).total.error)\n"
    )
    command = f"{sys.executable} {program} {{path}}"
    out = tmp_path / "o.safetensors"
    report = compressor.tune(model, out, evaluate=command, min_metric=0.9, store="archive", evaluations=5)
    assert report.total.error <= 0.1
    assert out.stat().st_size == report.plan.size_after < model.stat().st_size / 7
    other, limits = tmp_path / "by-command.safetensors", ["--min-metric", "0.9", "--evaluations", "5"]
    done = main(["tune", str(model), "-o", str(other), "--evaluate", command, "--store", "archive", *limits])
    assert done == 0
    assert other.read_bytes() == out.read_bytes()
