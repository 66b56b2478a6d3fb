"""Archives of bfloat16 weights: their size, the speed of whole commands both ways, memory: `archive.py [--check]`.

The speed that is judged is that of two threads on chunks in memory, of normally distributed weights: each coded
chunk is given up when it is there, as it is when it is written, and chunks are decoded into memory that is there,
as a reader's buffers are. Whole commands, shown beside it on the checkpoint of `bench.py`, also wait for the disk.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from bench.speed.throughput import MEMORY_BAR, PYTHON, WORKERS, gigabytes, made, measure

HERE = Path(__file__).resolve().parents[1]
RATIO_BAR, SMALL_BAR = 0.66, 0.655  # of the size, at most
ROUNDS = {"fast": 20, "small": 2}
SPEED_BARS = {"encode": 2000.0, "decode": 4000.0}  # MB/s of weights, at least, with AVX-512


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
        print(f"{title}, whole command: {megabytes / run.wall:.0f} MB/s by the clock, {run.cpu:.1f} s of CPU")
        good.append(said(f"{title}, MB of memory at most", run.peak, MEMORY_BAR, most=True))
        if output is archive:
            good.append(said("size, of the weights'", 1000 * gigabytes(archive) / megabytes, RATIO_BAR, most=True))
    measure([PYTHON, "-m", "compressor", "compare", model, back, "--max-error", "0"])  # ends where they differ
    shutil.rmtree(archive)
    shutil.rmtree(back)
    return good


def chunks() -> list[bool]:
    """Chunks of normally distributed weights, the fastest of some rounds."""
    import numpy as np

    from compressor.files.entropy.chunk import decode_chunk, encode_chunk
    from compressor.files.entropy.elements import possible

    weights = (np.random.default_rng(0).standard_normal((16, 512, 2048)) * 0.02).astype(np.float32)
    data = (weights.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)
    (form,) = possible("BF16")
    good = []
    for effort, bar in (("fast", RATIO_BAR), ("small", SMALL_BAR)):
        coded = [encode_chunk(block, form, effort) for block in data]
        back = np.zeros_like(data)

        def encode(block: Any, how: Any = effort) -> int:
            return len(encode_chunk(block, form, how))

        def decode(number: int, coded: list[bytes] = coded, back: Any = back) -> None:
            decode_chunk(memoryview(coded[number]), back[number].shape, form, out=back[number])

        times: dict[str, list[float]] = {"encode": [], "decode": []}
        with ThreadPoolExecutor(int(WORKERS)) as pool:
            for _ in range(ROUNDS[effort]):
                start = time.perf_counter()
                sizes = list(pool.map(encode, data))
                middle = time.perf_counter()
                list(pool.map(decode, range(len(coded))))
                times["encode"].append(middle - start)
                times["decode"].append(time.perf_counter() - middle)
        assert np.array_equal(data, back)
        good.append(said(f"{effort}: size, of the weights'", sum(sizes) / data.size, bar, most=True))
        speeds = {way: data.size / 1e6 / min(taken) for way, taken in times.items()}
        for way, speed in speeds.items():
            if effort == "fast":
                good.append(said(f"{effort}: {way}, MB/s", speed, SPEED_BARS[way], most=False))
            else:
                print(f"{effort}: {way}, MB/s {speed:.0f}")
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
