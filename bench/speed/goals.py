"""CPU seconds of whole commands over those of a `cp` of the same checkpoint: `goals.py [--rounds N] [--check]`.

Every round runs `cp -r` of the checkpoint and every command once, and the least of all rounds counts on either
side. A command's start-up, which is that of the same command on a tiny model, is taken off; nothing else is.
`restore` and `compare` are of the checkpoint's int4, and are divided by the `cp` of the dense checkpoint too. CPU
seconds are those of user and kernel, of all processes of a command.

Wall-clock figures are shown beside: over a `cp` that is synced, as our output is; and what two workers gain over
one (0.9: they take 1/1.8 of the time). They say little on a machine that is busy.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from bench.speed.throughput import PYTHON, WORKERS, Run, gigabytes, made, measure, progress, warm

TINY = Path(__file__).resolve().parents[2] / "sample_weights" / "tiny-llama"


@dataclass(frozen=True)
class Goal:
    """A command, with {model} for the dense checkpoint, {codes} for its int4, and {output}; at most `limit` times
    the CPU seconds of `cp`."""

    command: str
    limit: float


GOALS: Mapping[str, Goal] = {
    "int4 absmax": Goal("quantize {model} -o {output} --bits 4 --method absmax -q", 2.5),
    "int8 absmax": Goal("quantize {model} -o {output} --bits 8 --granularity channel --method absmax -q", 2.5),
    "threshold pruning": Goal("prune {model} -o {output} --method threshold --threshold 0.01 -q", 2),
    "2:4": Goal("prune {model} -o {output} --method nm --pattern 2:4 -q", 3),
    "int4 search": Goal("quantize {model} -o {output} --bits 4 -q", 5),
    "mxfp4": Goal("quantize {model} -o {output} --scheme mxfp4 -q", 5),
    "fp8": Goal("quantize {model} -o {output} --scheme fp8 -q", 4),
    "nvfp4": Goal("quantize {model} -o {output} --scheme nvfp4 -q", 8),
    "nf4": Goal("quantize {model} -o {output} --scheme nf4 -q", 6),
    "restore of int4": Goal("restore {codes} -o {output} -q", 3),
    "compare with int4": Goal("compare {model} {codes}", 4),
}
SYNCED = {"int4 absmax": 1.2, "int8 absmax": 1.2}  # by the clock, times a cp that is synced, at most
EFFICIENCY = 0.9  # of two workers, at least


def command(goal: Goal, model: Path, codes: Path, output: Path, workers: str) -> list[str | Path]:
    """The command of a goal as it is run."""
    said = [part.format(model=model, codes=codes, output=output) for part in goal.command.split()]
    return [PYTHON, "-m", "compressor", *said, *(["--workers", workers] if said[0] != "compare" else [])]


def run(what: list[str | Path], output: Path, size: float) -> Run:
    """A command that begins with no output, nothing left to write, and memory that was touched."""
    shutil.rmtree(output, ignore_errors=True)
    os.sync()
    warm(int(1.5e9 * size))
    return measure(what)


def said(title: str, value: float, limit: float, *, least: bool = False) -> bool:
    """Print a figure beside its goal; whether it is reached."""
    good = value >= limit if least else value <= limit
    print(f"{title:<44}{value:>8.2f}   {'≥' if least else '≤'} {limit:<5g}{'PASS' if good else 'FAIL'}")
    return good


def main() -> int:
    """Measure, print, judge; exit code 1 only with --check."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--model", type=Path, help="a checkpoint of bf16; by default one of 2.4 GB is made")
    parser.add_argument("--only", nargs="*", default=list(GOALS), choices=list(GOALS), metavar="GOAL")
    parser.add_argument("--check", action="store_true", help="exit 1 when a goal is not reached")
    args = parser.parse_args()
    model = args.model or made(Path(__file__).resolve().parents[2] / "bench-data" / "layers-16", 16)
    size, place = gigabytes(model), Path("bench-data")
    place.mkdir(exist_ok=True)
    output, codes, tiny_codes = place / "goals.output", place / "goals.int4", place / "goals.tiny-int4"
    for source, made_of in ((model, codes), (TINY, tiny_codes)):
        shutil.rmtree(made_of, ignore_errors=True)
        measure([PYTHON, "-m", "compressor", "quantize", source, "-o", made_of, "--bits", "4", "-q"])
    plans: dict[str, list[str | Path]] = {
        "cp": ["cp", "-r", model, output],
        "cp, synced": ["sh", "-c", 'cp -r "$0" "$1" && sync -f "$1"', model, output],
    }
    for name in args.only:
        plans[name] = command(GOALS[name], model, codes, output, WORKERS)
        plans[f"start of {name}"] = command(GOALS[name], TINY, tiny_codes, output, WORKERS)
    for name in set(SYNCED) & set(args.only):
        plans[f"one worker of {name}"] = command(GOALS[name], model, codes, output, "1")
    found: dict[str, list[Run]] = {name: [] for name in plans}
    for number in range(args.rounds):
        for name, what in plans.items():
            progress(f"round {number + 1}/{args.rounds}: {name}")
            found[name].append(run(what, output, size))
    progress("")
    for folder in (output, codes, tiny_codes):
        shutil.rmtree(folder, ignore_errors=True)
    cpu = {name: min(one.cpu for one in runs) for name, runs in found.items()}
    wall = {name: min(one.wall for one in runs) for name, runs in found.items()}
    print(f"{size:.2f} GB of bf16, the least of {args.rounds} rounds; cp took {cpu['cp']:.2f} s of CPU")
    print("CPU seconds without start-up over those of cp")
    good = [said(name, (cpu[name] - cpu[f"start of {name}"]) / cpu["cp"], GOALS[name].limit) for name in args.only]
    print("by the clock")
    for name in [one for one in SYNCED if one in args.only]:
        good.append(said(f"{name}: over a cp that is synced", wall[name] / wall["cp, synced"], SYNCED[name]))
        gain = wall[f"one worker of {name}"] / wall[name] / int(WORKERS)
        good.append(said(f"{name}: efficiency of {WORKERS} workers", gain, EFFICIENCY, least=True))
    return int(args.check and not all(good))


if __name__ == "__main__":
    sys.exit(main())
