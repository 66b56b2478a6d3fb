"""Runs that a limit of the system ends: a line, and nothing left."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save
from support.clock import HANGS
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


@pytest.mark.parametrize("verb", ["archive", "low-rank", "restore"])
@pytest.mark.parametrize(
    "megabytes", [170, 260, *(pytest.param(size, marks=pytest.mark.faults) for size in range(100, 480, 20))]
)
def test_libraries_that_find_no_address_space(tmp_path: Path, verb: str, megabytes: int) -> None:
    """From the start of the process on: shared libraries that are not mapped, heaps and tables of each thread, and
    OpenBLAS, which says so itself and ends the process."""
    values = np.random.default_rng(0).standard_normal((512, 4096), np.float32)
    (tmp_path / "in.safetensors").write_bytes(save({f"l.{n}.weight": values + n for n in range(4)}))
    out = tmp_path / "out"
    out.mkdir()
    arguments = {
        "archive": ["quantize", "--bits", "4", "--granularity", "channel", "--store", "archive"],
        "low-rank": ["distill", "--method", "low-rank", "--rank", "64"],
        "restore": ["restore"],
    }[verb]
    limit = megabytes << 20
    run = subprocess.run(
        [
            sys.executable,
            "-m",
            "compressor",
            *arguments,
            "-q",
            str(tmp_path / "in.safetensors"),
            "-o",
            str(out / "o.safetensors"),
        ],
        capture_output=True,
        text=True,
        timeout=HANGS,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
        check=False,
    )
    assert run.returncode in (0, 3, 4), run.stderr
    assert os.listdir(out) == ([] if run.returncode else ["o.safetensors"])
    said = [line for line in run.stderr.splitlines() if not line.startswith("OpenBLAS")]
    if run.returncode:
        assert is_one_line(said)
        assert "memory" in said[0] or "threads" in said[0]


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
