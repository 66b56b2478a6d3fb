"""Archives of bfloat16 weights: their size, the speed of whole commands both ways, memory: `archive.py [--check]`.

On the checkpoint of `bench.py`, each way in a process of its own with two workers; then what `--effort small` gains, on
the first numbers of a normal distribution.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
from pathlib import Path

from bench import MEMORY_BAR, PYTHON, WORKERS, gigabytes, made, measure

HERE = Path(__file__).resolve().parent
RATIO_BAR, SMALL_BAR = 0.675, 0.66  # of the size, at most
SPEED_BAR = 250.0  # MB/s of weights, at least


def said(what: str, value: float, bar: float, *, most: bool) -> bool:
    """Print a figure beside its bar."""
    good = value <= bar if most else value >= bar
    print(f"{what:<40}{value:>10.4g}   {'at most' if most else 'at least'} {bar:g}   {'PASS' if good else 'FAIL'}")
    return good


def whole_commands(model: Path) -> list[bool]:
    """Archive the checkpoint and restore it."""
    archive, back = model.parent / "archive", model.parent / "archive.restored"
    good = []
    megabytes = 1000 * gigabytes(model)
    for title, source, output, command in (
        ("archive", model, archive, ["pipeline", "--store", "archive"]),
        ("restore", archive, back, ["restore"]),
    ):
        shutil.rmtree(output, ignore_errors=True)
        os.sync()
        verb, *options = command
        run = measure(
            [PYTHON, "-m", "compressor", verb, source, "-o", output, *options, "-q", "--workers", WORKERS]
        )
        good.append(said(f"{title}, MB/s by the clock", megabytes / run.wall, SPEED_BAR, most=False))
        good.append(said(f"{title}, MB of memory at most", run.peak, MEMORY_BAR, most=True))
        if output is archive:
            good.append(said("size, of the weights'", 1000 * gigabytes(archive) / megabytes, RATIO_BAR, most=True))
    same = all(path.read_bytes() == (back / path.name).read_bytes() for path in sorted(model.glob("*.safetensors")))
    good.append(said("restored to the bit", float(same), 1, most=False))
    shutil.rmtree(archive)
    shutil.rmtree(back)
    return good


def chunks() -> list[bool]:
    """Chunks of normally distributed weights, one thread."""
    import numpy as np

    from compressor.entropy.chunk import decode_chunk, encode_chunk
    from compressor.entropy.elements import possible

    weights = (np.random.default_rng(0).standard_normal((4, 512, 2048)) * 0.02).astype(np.float32)
    data = (weights.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)
    (form,) = possible("BF16")
    good = []
    for effort, bar in (("fast", RATIO_BAR), ("small", SMALL_BAR)):
        start = time.perf_counter()
        coded = [encode_chunk(block, form, effort) for block in data]
        middle = time.perf_counter()
        for block, chunk in zip(data, coded, strict=True):
            assert np.array_equal(decode_chunk(memoryview(chunk), block.shape, form), block)
        end = time.perf_counter()
        good.append(said(f"{effort}: size, of the weights'", sum(map(len, coded)) / data.size, bar, most=True))
        print(f"{'':4}one thread: {data.size / 1e6 / (middle - start):.0f} MB/s in, "
              f"{data.size / 1e6 / (end - middle):.0f} MB/s out")  # fmt: skip
    return good


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=HERE.parent / "bench-data")
    parser.add_argument("--check", action="store_true", help="fail when a bar is not reached")
    options = parser.parse_args()
    good = chunks() + whole_commands(made(options.folder / "layers-16", 16))
    return int(options.check and not all(good))


if __name__ == "__main__":
    sys.exit(main())
