"""A Dask cluster of two single-thread workers beside two local workers: `cluster.py [--rounds N] [--check]`.

The same command on the same checkpoint, in turns; the least time of each side counts. A whole command also starts
up: what that takes, with the way to the cluster, is shown by itself, on a small model, and taken off.
"""

from __future__ import annotations

import argparse
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.speed.throughput import PYTHON, WORKERS, made, measure

BAR = 1.15  # times as long as two local workers, at most
JOBS = {"int4": ["quantize", "--bits", "4"], "int8": ["quantize", "--bits", "8", "--method", "absmax"]}


@contextmanager
def cluster(place: Path) -> Iterator[str]:
    """The address of a scheduler on this machine with two workers of one thread."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    address = f"tcp://127.0.0.1:{port}"
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    dask = [PYTHON, "-m", "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", port, "--no-dashboard"]
    worker = [PYTHON, "-m", "distributed.cli.dask_worker", address, "--nthreads", "1", "--no-dashboard"]
    started = [subprocess.Popen(dask, **quiet)]
    without = {**os.environ, "DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED": "False"}  # as in docs/cluster.md
    started += [
        subprocess.Popen([*worker, "--local-directory", str(place)], **quiet, env=without) for _ in range(2)
    ]
    time.sleep(10)  # both are there before anything is measured
    try:
        yield address
    finally:
        for process in reversed(started):
            process.terminate()
            process.wait()


def seconds(model: Path, output: Path, job: str, more: list[str]) -> float:
    """How long a whole command takes."""
    shutil.rmtree(output, ignore_errors=True)
    os.sync()
    verb, *options = JOBS[job]
    return measure([PYTHON, "-m", "compressor", verb, model, "-o", output, *options, *more, "-q"]).wall


def compare(model: Path, place: Path, count: int, address: str) -> bool:
    """Measure both sides of all jobs; whether they are within the bar."""
    here, there, good = ["--workers", WORKERS], ["--scheduler", address], True
    small = Path(__file__).resolve().parents[2] / "sample_weights" / "tiny-llama"
    started = [min(seconds(small, place / "out", "int8", way) for _ in range(count)) for way in (here, there)]
    print(f"start-up: {started[0]:.2f} s here, {started[1]:.2f} s on the cluster")
    for job in JOBS:
        times = [[seconds(model, place / "out", job, way) for way in (here, there)] for _ in range(count)]
        one, other = map(min, zip(*times, strict=True))
        ratio, alone = other / one, (other - started[1]) / max(one - started[0], 1e-9)
        good &= alone <= BAR
        said = f"without start-up {alone:.2f}, at most {BAR}   {'PASS' if alone <= BAR else 'FAIL'}"
        print(f"{job}: {one:.2f} s here, {other:.2f} s there, {ratio:.2f} times as long; {said}")
    return good


def main() -> int:
    """Parse arguments and compare; 1 where the bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--data", type=Path, default=Path("bench-data"), help="where the checkpoint lies")
    parser.add_argument("--check", action="store_true", help="exit with 1 where the bar is missed")
    args = parser.parse_args()
    model = made(args.data / "layers-16", 16)
    with tempfile.TemporaryDirectory(dir=model.parent) as place, cluster(Path(place)) as address:
        good = compare(model, Path(place), args.rounds, address)
    return 0 if good or not args.check else 1


if __name__ == "__main__":
    sys.exit(main())
