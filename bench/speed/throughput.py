"""Speed and memory beside `cp` and plain NumPy, in one run: `bench.py [--rounds N] [--large] [--check]`.

Whole processes, interleaved, their order rotated from round to round, the disk synced before each. Ratios are
taken within a round and their median is judged, so what slows a whole round slows both sides of a ratio.
Only the standard library is imported here: on Linux a child's peak memory counts what its parent held.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median

HERE = Path(__file__).resolve().parents[1]
PYTHON = sys.executable
WORKERS = "2"
JOBS: dict[str, list[str]] = {  # the options of each job; `naive.py` knows them by the same names
    "int8": ["quantize", "--bits", "8", "--granularity", "channel", "--method", "absmax"],
    "int4": ["quantize", "--bits", "4", "--group-size", "128", "--method", "absmax"],
    "prune": ["prune", "--method", "threshold", "--threshold", "0.01"],
}
TITLES = {"int8": "int8 per channel", "int4": "int4, groups of 128", "prune": "threshold pruning"}

CP_BAR = 0.35  # of the throughput of cp, at least
NAIVE_BAR = 4.0  # times the naive script, at least
MEMORY_BAR = 400.0  # MB, less than
START_BAR = 0.2  # seconds of CPU time for --help above an empty Python, less than
LARGE = 4  # times the checkpoint


@dataclass(frozen=True)
class Run:
    """One whole process: seconds by the clock, seconds of CPU, peak resident megabytes of it and its children."""

    wall: float
    cpu: float
    peak: float


Round = Mapping[str, Run]


def measure(command: Sequence[str | Path]) -> Run:
    """Run a process to its end; SystemExit with what it said when it failed."""
    start = time.perf_counter()
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    process = subprocess.Popen(
        list(map(str, command)),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,  # users have compiled modules
    )
    peaks: dict[int, float] = {}
    watch = threading.Thread(target=_watch, args=(process.pid, peaks))
    watch.start()
    assert process.stderr is not None
    said = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - start
    watch.join()
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(map(str, command))}\nended with {process.returncode}: {said}")
    unit = 1 if platform.system() == "Darwin" else 1024
    own = usage.ru_maxrss * unit / 1e6
    return Run(wall, usage.ru_utime + usage.ru_stime, max(own, sum(peaks.values())))


def _watch(pid: int, peaks: dict[int, float]) -> None:
    """Keep the peak of a process and of each of its children, as long as it runs (Linux). Pages that they share
    are counted in each: the sum is an upper bound."""
    while True:
        try:
            children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        except OSError:
            return
        for member in (str(pid), *children):
            try:
                status = Path(f"/proc/{member}/status").read_text()
            except OSError:
                continue
            for line in status.splitlines():
                if line.startswith("VmHWM:"):
                    peaks[int(member)] = int(line.split()[1]) * 1024 / 1e6
        time.sleep(0.05)


def warm(nbytes: int) -> None:
    """Touch and free memory, so that every run finds the same pages.

    A virtual machine gives pages that were free for some seconds back to its host, and the first touch of such a
    page costs several times the write of it (seen here: 2.4 GB to the page cache in 0.6 s or in 5). In a process of
    its own, because a child's peak memory counts its parent's.
    """
    code = "import mmap, sys; n = int(sys.argv[1]); m = mmap.mmap(-1, n << 20); b = bytes(1 << 20)"
    code += "; [m.write(b) for _ in range(n)]"
    subprocess.run([PYTHON, "-c", code, str(nbytes >> 20)], check=True)


def commands(model: Path, output: Path, *, naive: bool) -> dict[str, list[str | Path]]:
    """What a round runs, by name."""
    found: dict[str, list[str | Path]] = {
        "cp": ["cp", "-r", model, output],
        "cp+sync": ["sh", "-c", 'cp -r "$0" "$1" && sync -f "$1"', model, output],
    }
    for job, options in JOBS.items():
        verb, *rest = options
        found[job] = [PYTHON, "-m", "compressor", verb, model, "-o", output, *rest, "--workers", WORKERS, "--quiet"]
        if naive:
            found[f"naive {job}"] = [PYTHON, HERE / "speed" / "naive.py", job, model, output]
    return found


def rounds(model: Path, count: int, *, naive: bool) -> list[Round]:
    """Measure every command once a round; each starts with a clean disk cache of writes and no output."""
    output = model.parent / f"{model.name}.output"
    listed = list(commands(model, output, naive=naive).items())
    found: list[Round] = []
    for number in range(-1, count):  # round -1 is one cp, which brings the files into the cache
        turn = number * 3 % len(listed)  # a job is not always followed by its rival
        order = listed[:1] if number < 0 else listed[turn:] + listed[:turn]
        measured: dict[str, Run] = {}
        for name, command in order:
            shutil.rmtree(output, ignore_errors=True)
            os.sync()
            warm(int(1.5e9 * gigabytes(model)))
            progress(f"round {number + 1}/{count}: {name}" if number >= 0 else "warming up")
            measured[name] = measure(command)
        if number >= 0:
            found.append(measured)
    shutil.rmtree(output, ignore_errors=True)
    progress("")
    return found


def progress(text: str) -> None:
    """A line on a terminal that the next one replaces."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


def made(folder: Path, layers: int) -> Path:
    """The model of so many layers, made unless it is there."""
    config, marker = folder / "config.json", folder / "model.safetensors.index.json"
    if config.exists() and marker.exists():
        if json.loads(config.read_text()).get("num_hidden_layers") != layers:
            raise SystemExit(f"{folder} holds a model of another size: delete it, or give another --data")
        return folder
    print(f"making {folder.name} …", file=sys.stderr)
    folder.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run([PYTHON, HERE / "speed" / "make_model.py", folder, "--layers", str(layers)], check=True)
    return folder


def gigabytes(folder: Path) -> float:
    return sum(file.stat().st_size for file in folder.iterdir()) / 1e9


def enough_room(at: Path, needed: float) -> None:
    """SystemExit unless the file system takes so many gigabytes."""
    at.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(at).free / 1e9
    if free < needed:
        raise SystemExit(f"{at} has {free:.1f} GB free, and this needs {needed:.1f} GB")


# ---- what is printed -----------------------------------------------------------------------------------


def table(found: Sequence[Round], size: float) -> None:
    """Medians of every command."""
    print(f"{'':<14}{'wall s':>9}{'CPU s':>9}{'GB/s':>8}{'peak MB':>10}")
    for name in found[0]:
        runs = [measured[name] for measured in found]
        wall = median(run.wall for run in runs)
        cpu, peak = median(run.cpu for run in runs), max(run.peak for run in runs)
        print(f"{name:<14}{wall:>9.2f}{cpu:>9.2f}{size / wall:>8.2f}{peak:>10.0f}")


def ratios(found: Sequence[Round], rival: str, job: str) -> list[float]:
    """How many times as fast as the rival the job was, round by round."""
    return [measured[rival].wall / measured[job].wall for measured in found]


@dataclass(frozen=True)
class Bar:
    """A figure with what it must reach; `low` is the least, otherwise the limit it must stay under."""

    title: str
    values: Sequence[float]
    limit: float | None
    unit: str = ""
    low: bool = True

    @property
    def value(self) -> float:
        return median(self.values) if self.low else max(self.values)

    @property
    def passed(self) -> bool:
        return self.limit is None or (self.value >= self.limit if self.low else self.value < self.limit)

    def line(self) -> str:
        figure = f"{self.value:.3g}{self.unit}"
        spread = f"{min(self.values):.3g} … {max(self.values):.3g}"
        wanted = "" if self.limit is None else f"{'≥' if self.low else '<'} {self.limit:g}{self.unit}"
        verdict = "" if self.limit is None else "PASS" if self.passed else "FAIL"
        return f"{self.title:<42}{figure:>10}  {spread:<18}{wanted:>10}  {verdict}".rstrip()


def bars(found: Sequence[Round], label: str = "", *, naive: bool) -> list[Bar]:
    """The bars of the three jobs, and without a bar the ratio to a cp that is synced as our output is."""
    judged = []
    for job, title in TITLES.items():
        judged.append(Bar(f"{title}{label}: × cp", ratios(found, "cp", job), CP_BAR))
        judged.append(Bar(f"{title}{label}: × cp + sync -f", ratios(found, "cp+sync", job), None))
        if naive:
            judged.append(Bar(f"{title}{label}: × naive", ratios(found, f"naive {job}", job), NAIVE_BAR))
        peaks = [measured[job].peak for measured in found]
        judged.append(Bar(f"{title}{label}: peak memory", peaks, MEMORY_BAR, " MB", low=False))
    return judged


def start_bar(count: int) -> Bar:
    """CPU seconds of `compressor --help` above those of an empty Python, in pairs; the median is judged."""
    pairs = []
    for _ in range(count):
        empty = measure([PYTHON, "-c", "pass"]).cpu
        pairs.append(measure([PYTHON, "-m", "compressor", "--help"]).cpu - empty)
    return Bar("--help: CPU seconds above python -c pass", [median(pairs)], START_BAR, " s", low=False)


def pipeline_bar(model: Path) -> Bar:
    """Megabytes that the ready recipe w4a16 takes for the model, in one run."""
    with tempfile.TemporaryDirectory(dir=model.parent) as place:
        command = [PYTHON, "-m", "compressor", "pipeline", model, "-o", Path(place) / "out", "--recipe", "w4a16"]
        peak = measure([*command, "--workers", WORKERS, "--quiet"]).peak
    return Bar("pipeline w4a16: peak memory", [peak], MEMORY_BAR, " MB", low=False)


def main() -> int:
    """Measure, print, judge; exit code 1 only with --check."""
    parser = argparse.ArgumentParser(description="Speed and memory beside cp and plain NumPy.")
    parser.add_argument("--rounds", type=int, default=5, help="default 5")
    parser.add_argument("--layers", type=int, default=16, help="of the model; 16 are 2.4 GB")
    parser.add_argument("--data", type=Path, help="folder of the model, made if it is not there")
    parser.add_argument("--large", action="store_true", help=f"also a model {LARGE} times as large, without naive")
    parser.add_argument("--large-rounds", type=int, default=2, help="default 2")
    parser.add_argument("--check", action="store_true", help="exit 1 when a bar is not reached")
    args = parser.parse_args()
    data = args.data or HERE.parent / "bench-data" / f"layers-{args.layers}"
    # The embeddings do not grow with the layers: as many layers as make all of it four times as large
    grown = args.layers * LARGE + 6
    gb = 0.27 + 0.135 * (args.layers if not args.large else grown + args.layers)
    enough_room(data.parent, 2 * gb)

    model = made(data, args.layers)
    size = gigabytes(model)
    print(
        f"{size:.2f} GB of bf16 in shards, {args.rounds} rounds, {WORKERS} threads of {os.cpu_count()} processors,"
    )
    print(
        f"Python {platform.python_version()}, NumPy {version('numpy')}, load {os.getloadavg()[0]:.2f} at the start"
    )
    print("\nMedians of whole processes, peaks the largest; cp+sync is a cp followed by sync -f of what it wrote:")
    found = rounds(model, args.rounds, naive=True)
    table(found, size)
    judged = [*bars(found, naive=True), start_bar(5 * args.rounds), pipeline_bar(model)]
    if args.large:
        model = made(data.with_name(f"{data.name}-large"), grown)
        print(
            f"\n{gigabytes(model):.2f} GB, {gigabytes(model) / size:.2f} times as much, {args.large_rounds} rounds:"
        )
        found = rounds(model, args.large_rounds, naive=False)
        table(found, gigabytes(model))
        judged += bars(found, ", large", naive=False)
    print(f"\n{'Times as fast, paired in a round':<42}{'median':>10}  {'least … most':<18}{'bar':>10}")
    for bar in judged:
        print(bar.line())
    failed = sum(not bar.passed for bar in judged)
    print(f"\n{failed} bars not reached" if failed else "\nall bars reached")
    return int(bool(failed) and args.check)


if __name__ == "__main__":
    sys.exit(main())
