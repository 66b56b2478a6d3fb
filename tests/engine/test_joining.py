"""Small neighbours that are treated as one matrix come out as when each is treated alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.archives import write
from support.laws import store

from compressor import api
from compressor.engine.execution import runner
from compressor.engine.plan.plan import Job


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Hundreds of small matrices of two row lengths, in two dtypes, with many equal weights and zeros."""
    random = np.random.default_rng(4)
    tensors = {}
    for number in range(300):
        rows, columns = 1 + number % 5, 8 if number % 50 < 40 else 13
        weights = np.round(random.standard_normal((rows, columns)) * (1 + number % 3), 1)
        weights[random.random(weights.shape) < 0.2] = 0
        dtype = "BF16" if number >= 200 else "F32"
        tensors[f"t{number:03}.weight"] = (dtype, store(weights, dtype))
    return write(tmp_path_factory.mktemp("many") / "many.safetensors", tensors, {})


def alone(jobs: Iterable[Job], *rest: Any) -> Iterator[Job]:
    yield from jobs


@pytest.mark.parametrize(
    "stages",
    [
        ["prune:sparsity=0.5"],
        ["prune:sparsity=0"],
        ["prune:sparsity=0.99"],
        ["prune:method=random,sparsity=0.3,seed=5"],
        ["prune:method=random,sparsity=0.6,respect_zeros=true"],
        ["prune:method=layer-adaptive,sparsity=0.7"],
        ["prune:sparsity=0.8,scope=global,min_keep=0.1"],
        ["prune:sparsity=0.8,scope=global"],
        ["prune:sparsity=0.5", "quantize:bits=8"],
        ["prune:threshold=0.4", "prune:method=random,sparsity=0.5"],
    ],
    ids=" ".join,
)
def test_joined_and_alone_are_the_same_bytes(
    stages: list[str], many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    joint = api.pipeline(many, tmp_path / "joined.safetensors", stages=stages)
    monkeypatch.setattr(runner, "join", alone)
    single = api.pipeline(many, tmp_path / "alone.safetensors", stages=stages)
    assert (tmp_path / "joined.safetensors").read_bytes() == (tmp_path / "alone.safetensors").read_bytes()
    for (job, ours), (other, theirs) in zip(joint.rows, single.rows, strict=True):
        assert job.spec == other.spec
        assert (ours.size, ours.zeros_before, ours.zeros_after) == (
            theirs.size,
            theirs.zeros_before,
            theirs.zeros_after,
        )
        assert ours.error == pytest.approx(theirs.error, rel=1e-6)


def test_neighbours_are_joined_at_all(many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the comparison above compares nothing."""
    joined = []
    real = runner.Runner._joined
    monkeypatch.setattr(
        runner.Runner, "_joined", lambda self, item: joined.append(len(item.members)) or real(self, item)
    )
    for stage in (
        "prune:sparsity=0.5,scope=global",
        "prune:sparsity=0.5,granularity=row",
        "quantize:bits=8,layout=int-quantized",
    ):
        joined.clear()
        api.pipeline(many, tmp_path / "out.safetensors", stages=[stage], force=True)
        assert max(joined) >= 30, stage
