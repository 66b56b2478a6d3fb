"""Forked workers: the same results as threads, errors that arrive whole, and nobody left behind."""

from __future__ import annotations

import json
import os
import signal
import struct
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
from support.clock import HANGS

from compressor import api
from compressor.core import cleanup
from compressor.core.errors import InputError, OutputError, Problems
from compressor.core.parallel import forked
from compressor.core.parallel.threads import in_order
from compressor.workflows import one_pass as execution

pytestmark = [
    pytest.mark.skipif(not forked.available, reason="no fork here"),
    pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning"),  # the test runner has threads of its own
]
SAMPLES = Path(__file__).parents[2] / "sample_weights"


class Thing:
    """Something that tasks are about, and that no pickle could carry."""

    def __init__(self) -> None:
        self.unsendable = lambda: 7

    def times(self, number: int) -> int:
        return int(self.unsendable()) * number

    def refuse(self) -> None:
        raise InputError("is bad", file="a file", tensor="a tensor", remedy="Mend it")

    def refuse_twice(self) -> None:
        raise Problems([InputError("is bad"), OutputError("is full")])

    def die(self) -> None:
        os._exit(1)


def test_results_come_in_order() -> None:
    thing = Thing()
    with forked.forked(2, [thing]) as executor:
        found = in_order(executor, (partial(thing.times, number) for number in range(50)), 4)
        assert list(found) == [7 * number for number in range(50)]
    assert not cleanup._entries


def test_an_error_arrives_whole() -> None:
    thing = Thing()
    with forked.forked(1, [thing]) as executor:
        with pytest.raises(InputError) as caught:
            executor.submit(thing.refuse).result()
        assert str(caught.value) == "a file: tensor 'a tensor': is bad. Mend it"
        assert executor.submit(thing.times, 2).result() == 14
        with pytest.raises(Problems) as several:
            executor.submit(thing.refuse_twice).result()
        assert str(several.value) == "is bad\nis full"
        assert several.value.exit_code == 4


def test_a_worker_that_is_ended_from_outside_is_an_error() -> None:
    thing = Thing()
    with forked.forked(1, [thing]) as executor, pytest.raises(OutputError, match="ended from outside"):
        executor.submit(thing.die).result()
    assert not cleanup._entries


def test_fewer_workers_will_do(monkeypatch: pytest.MonkeyPatch) -> None:
    real, left = os.fork, [1]

    def fork() -> int:
        if not left:
            raise BlockingIOError("no more processes")
        left.pop()
        return real()

    monkeypatch.setattr(os, "fork", fork)
    thing = Thing()
    with forked.forked(4, [thing]) as executor:
        assert executor.submit(thing.times, 3).result() == 21
    with forked.forked(4, [thing]) as executor, pytest.raises(OutputError, match="no more processes"):
        executor.submit(thing.times, 3)


@pytest.mark.parametrize(
    "stages",
    [
        ["prune:sparsity=0.5,scope=global", "quantize:bits=4,group_size=32"],
        ["quantize:bits=8,granularity=tensor"],
        ["prune:threshold=0.01"],
    ],
)
def test_the_same_bytes_and_figures_as_threads(
    stages: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("compressor.engine.execution.units.BATCH", 1 << 12)  # small tensors become tasks too
    threads = api.pipeline(SAMPLES / "tiny-llama", tmp_path / "threads", stages=stages, workers=2)
    monkeypatch.setattr(execution, "_LARGE", 0)
    processes = api.pipeline(
        SAMPLES / "tiny-llama", tmp_path / "processes", stages=stages, workers=2, processes=True
    )
    assert processes.changes == threads.changes
    for file in sorted((tmp_path / "threads").iterdir()):
        assert file.read_bytes() == (tmp_path / "processes" / file.name).read_bytes(), file.name


def large(path: Path, megabytes: int) -> Path:
    """A sparse file of zeros."""
    columns = 4096
    rows = (megabytes << 20) // (2 * columns)
    header = {"w": {"dtype": "BF16", "shape": [rows, columns], "data_offsets": [0, 2 * rows * columns]}}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + 2 * rows * columns)
    return path


def children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_no_worker_outlives_a_signal(number: int, tmp_path: Path) -> None:
    source = large(tmp_path / "in.safetensors", 600)
    command = [sys.executable, "-m", "compressor", "prune", source, "-o", tmp_path / "out.safetensors"]
    run = subprocess.Popen(
        [*map(str, command), "--sparsity", "0.5", "--workers", "2"],
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # the tests may run where it is ignored
    )
    workers: list[int] = []
    deadline = time.monotonic() + HANGS
    while not workers and time.monotonic() < deadline:
        workers = children(run.pid)
        assert run.poll() is None, "it ended before it was signalled"
        time.sleep(0.01)
    assert workers
    run.send_signal(number)
    run.communicate(timeout=HANGS)
    assert run.returncode == (-number if number == signal.SIGKILL else 128 + number)
    while any(running(pid) for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(running(pid) for pid in workers)
    assert not (tmp_path / "out.safetensors").exists()
    if number != signal.SIGKILL:
        assert [file.name for file in tmp_path.iterdir()] == ["in.safetensors"]
