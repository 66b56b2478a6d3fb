"""2:4 and exact global pruning beside a torch script that does the same, in one run: `pruning.py [--rounds N]`.

Whole processes on the checkpoint of `bench.py`, one after the other, medians of ratios within a round. The results
are compared: the same zeros for global pruning, as many of them for 2:4 (which of equal weights go differs).
Needs torch.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from pathlib import Path
from statistics import median

from bench.speed.throughput import PYTHON, WORKERS, gigabytes, made, measure, progress, warm

HERE = Path(__file__).resolve().parents[1]
BAR = 3.0  # times as fast as the torch script, at least
JOBS = {"2:4": ["--method", "nm", "--pattern", "2:4"], "global": ["--sparsity", "0.5", "--scope", "global"]}


def agree(job: str, ours: Path, theirs: Path) -> None:
    """AssertionError when the two results differ."""
    import ml_dtypes  # noqa: F401 - lets safetensors read bfloat16
    import numpy as np
    from safetensors.numpy import load_file

    for shard in sorted(theirs.glob("*.safetensors")):
        expected, found = load_file(shard), load_file(ours / shard.name)
        assert expected.keys() == found.keys()
        for name, weight in expected.items():
            a, b = weight.view(np.uint16), found[name].view(np.uint16)
            assert np.array_equal(a, b) if job == "global" else np.count_nonzero(a) == np.count_nonzero(b), name


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=HERE.parent / "bench-data")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--check", action="store_true", help="fail when a bar is not reached")
    options = parser.parse_args()
    model = made(options.folder / "layers-16", 16)
    ours, theirs = model.parent / "pruned.ours", model.parent / "pruned.theirs"
    reached = True
    print(f"seconds on {gigabytes(model):.2f} GB of bfloat16{'':6}ours     torch   times as fast, bar {BAR:g}")
    for job, options_of_job in JOBS.items():
        figures = []
        for number in range(options.rounds):
            pair = []
            for output, command in (
                (ours, [PYTHON, "-m", "compressor", "prune", model, "-o", ours, *options_of_job]),
                (theirs, [PYTHON, HERE / "speed" / "torch_prune.py", job, model, theirs]),
            ):
                shutil.rmtree(output, ignore_errors=True)
                os.sync()
                warm(int(1.5e9 * gigabytes(model)))
                progress(f"{job}: round {number + 1}/{options.rounds}")
                extra = ["--workers", WORKERS, "--quiet"] if output is ours else []
                pair.append(measure([*command, *extra]))
            figures.append(pair)
        agree(job, ours, theirs)
        progress("")
        ratio = median(b.wall / a.wall for a, b in figures)
        reached &= ratio >= BAR
        walls = [median(run.wall for run in side) for side in zip(*figures, strict=True)]
        print(f"{job:<40} {walls[0]:<8.2f} {walls[1]:<7.2f} {ratio:.2f}  {'PASS' if ratio >= BAR else 'FAIL'}")
    for output in (ours, theirs):
        shutil.rmtree(output, ignore_errors=True)
    return 0 if reached or not options.check else 1


if __name__ == "__main__":
    sys.exit(main())
