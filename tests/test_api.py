"""The verbs as Python functions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import compressor
from compressor.workflows.results import ReportedGateFailed


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
    with pytest.raises(ReportedGateFailed, match=r"--max-error 0\.5: the relative error of '.*' is nan"):
        compressor.prune(
            tmp_path / "w.npy", tmp_path / "o.npy", sparsity=0.5, gates=compressor.Gates(max_error=0.5)
        )
    assert not (tmp_path / "o.npy").exists()


def test_rules_reach_single_tensors(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

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
    with pytest.raises(ReportedGateFailed, match="max-error") as failed:
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
