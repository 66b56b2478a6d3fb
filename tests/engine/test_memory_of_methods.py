"""What methods take in memory: what the plan says is what is measured, and `memory` bounds the workers by it."""

from __future__ import annotations

import re
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

import compressor
from compressor.calibration.fingerprint import fingerprint
from compressor.calibration.statistics import open_statistics, write_statistics
from compressor.checkpoint.checkpoint import open_checkpoint
from compressor.core.errors import UsageError
from compressor.core.layer_inputs import Gather
from compressor.engine.plan.memory import PROGRAM, beside_blocks, workers_within
from compressor.workflows import awq

ROWS, COLUMNS = 640, 1024
METHODS: dict[str, tuple[str, bool, dict[str, Any]]] = {  # the verb, whether statistics are given, and options
    "gptq": ("quantize", True, {"bits": 4, "method": "gptq"}),
    "sparsegpt": ("prune", True, {"method": "sparsegpt", "pattern": "2:4"}),
    "low-rank": ("distill", False, {"method": "low-rank", "rank": 64}),
    "informed low-rank": ("distill", True, {"method": "low-rank", "rank": 64}),
}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    weights = np.random.default_rng(0).standard_normal((ROWS, COLUMNS)).astype(np.float32)
    save_file({"a.weight": weights}, tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


@pytest.fixture
def stats(model: Path) -> Path:
    gather = Gather(COLUMNS, True)
    gather.add(np.random.default_rng(1).standard_normal((2 * COLUMNS, COLUMNS)))
    prints = dict(zip(("model", "weights"), fingerprint(open_checkpoint(model)), strict=True))
    write_statistics(model.with_name("stats.safetensors"), [("a", gather.layer)], **prints, force=True)
    return model.with_name("stats.safetensors")


def peak(verb: str, model: Path, **options: Any) -> tuple[int, Any]:
    """Bytes that Python and NumPy hold at most during a run, and its report."""
    tracemalloc.start()
    try:
        report = getattr(compressor, verb)(
            model, model.with_name("out.safetensors"), workers=1, force=True, **options
        )
        return tracemalloc.get_traced_memory()[1], report
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", list(METHODS))
def test_what_is_said_is_no_less_than_what_is_taken_and_at_most_twice(name: str, model: Path, stats: Path) -> None:
    verb, informed, options = METHODS[name]
    given = {"stats": stats} if informed else {}
    getattr(compressor, verb)(model, model.with_name("out.safetensors"), **options, **given)  # all is imported
    blocks, _ = peak("quantize", model, bits=8, method="absmax")
    taken, report = peak(verb, model, **options, **given)
    known = {step.stage: open_statistics(stats) for job in report.plan.jobs for step in job.steps if informed}
    said = max(beside_blocks(job, known) for job in report.plan.jobs)
    assert taken - blocks <= said <= 2 * taken


def test_a_search_for_scales_takes_what_is_said(model: Path, stats: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {"bits": 4, "method": "awq", "stats": stats}
    (job,) = compressor.quantize(model, model.with_name("o"), dry_run=True, **given).plan.jobs
    known, (step,) = open_statistics(stats), job.steps
    judged = awq._Judged(open_checkpoint(model).tensors["a.weight"], step, known)
    scales = [np.full(COLUMNS, 1 + number / 50) for number in range(3)]
    awq._losses(judged, scales, str(model))  # all is imported
    tracemalloc.start()
    try:
        awq._losses(judged, scales, str(model))
        taken = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    plan = compressor.quantize(model, model.with_name("o"), dry_run=True, **given).plan
    said = awq.searching_memory(plan, {0: known})["a.weight"]
    assert taken <= said <= 2 * taken
    seen = []
    monkeypatch.setattr(awq, "searching_memory", lambda *_: {"a.weight": 100 << 20})
    monkeypatch.setattr(awq, "balanced", lambda one, _, two, workers, **__: (seen.append(workers), (one, two))[1])
    for memory in ("700MB", "500MB"):
        compressor.quantize(model, model.with_name("o"), memory=memory, workers=8, dry_run=True, **given)
    assert seen == [4, 2]
    with pytest.raises(UsageError, match=r"one worker, which needs \d+MB"):
        compressor.quantize(model, model.with_name("o"), memory="300MB", dry_run=True, **given)


def test_workers_are_as_many_as_there_is_room_for(model: Path, stats: Path) -> None:
    report = compressor.quantize(model, model.with_name("o"), bits=4, method="gptq", stats=stats, dry_run=True)
    (job,), known = report.plan.jobs, {0: open_statistics(stats)}
    each = beside_blocks(job, known)
    for count in (1, 2, 5):
        assert workers_within(PROGRAM + count * each, [job], known, 8) == count
        assert workers_within(PROGRAM + count * each, [job], known, 8, more=1) == max(count - 1, 1)
    assert workers_within(PROGRAM + 50 * each, [job], known, 8) == 8


def test_memory_that_does_not_do_for_one(model: Path, stats: Path) -> None:
    given: dict[str, Any] = {"bits": 4, "method": "gptq", "stats": stats}
    with pytest.raises(UsageError, match=r"one worker, which needs \d+MB") as caught:
        compressor.quantize(model, model.with_name("o"), memory="100MB", **given)
    enough = re.search(r"Allow (\d+MB)", str(caught.value.remedy))
    assert enough is not None
    assert not model.with_name("o").exists()
    compressor.quantize(model, model.with_name("o.safetensors"), memory=enough[1], **given)
    with pytest.raises(UsageError, match="those of a scheduler are others"):
        compressor.quantize(model, model.with_name("p"), memory="8GB", scheduler="tcp://127.0.0.1:1", **given)
