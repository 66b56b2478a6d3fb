"""Runs that a limit of the system ends: a line, and nothing left."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save
from support.fault_injection import Server, is_one_line


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    serving = Server()
    yield serving
    serving.close()


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of tiny tensors, which take seconds."""
    values = np.random.default_rng(0).standard_normal((40_000, 8), np.float32)
    path = tmp_path_factory.mktemp("many") / "in.safetensors"
    path.write_bytes(save({f"layers.{n:06}.weight": values[2 * n : 2 * n + 2] for n in range(20_000)}))
    return path


@pytest.mark.parametrize(
    ("limit", "amount", "code", "says"),
    [
        ("RLIMIT_CPU", 2, 128 + 24, "error: stopped by SIGXCPU; nothing was written"),
        ("RLIMIT_FSIZE", 100_000, 4, "File too large"),
    ],
)
def test_a_limit_ends_a_run(
    many: Path, tmp_path: Path, server: Server, limit: str, amount: int, code: int, says: str
) -> None:
    arguments = [
        "prune",
        "--sparsity",
        "0.5",
        "--scope",
        "global",
        str(many),
        "-o",
        str(tmp_path / "out.safetensors"),
    ]
    run = server.run([*arguments, "-q", "--workers", "1"], limits={limit: amount})
    assert run.code == code, run
    assert is_one_line(run.lines)
    assert says in run.lines[0]
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "megabytes", [128, *(pytest.param(size, marks=pytest.mark.faults) for size in range(160, 260, 10))]
)
def test_a_limit_of_memory_ends_a_run_wherever_it_is_reached(
    many: Path, tmp_path: Path, server: Server, megabytes: int
) -> None:
    out = tmp_path / "out.safetensors"
    arguments = ["prune", "--sparsity", "0.5", "--scope", "global", str(many), "-o", str(out)]
    run = server.run([*arguments, "-q", "--workers", "1"], limits={"RLIMIT_AS": megabytes << 20})
    if run.code == 0:
        out.unlink()
    else:
        assert run.code in (3, 4), run
        assert is_one_line(run.lines)
        assert "memory" in run.lines[0]
    assert run.code or megabytes > 128
    assert os.listdir(tmp_path) == []
