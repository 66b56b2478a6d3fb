"""Searched int4 beside what others search with, in one run on the same tensors: `schemes.py [--check]`.

Rivals are llm-compressor's `memoryless_mse` observer and HQQ, both on the CPU with as many threads; one that is not
installed is named and left out (`pip install llmcompressor hqq`). What is timed is the work on a tensor in memory,
not imports and files; ours includes packing the codes. Rounds are interleaved, ratios taken within a round, and
their median is judged.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from statistics import median
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from compressor.core.tensor import DTYPES, TensorSpec
from compressor.core.workspace import Workspace
from compressor.methods.contract import Block
from compressor.methods.registry import methods_of

BAR = 5.0  # times as fast as each rival, at least
THREADS = 2
SHAPE = (2048, 2048)
ROWS = 128  # of a block

Job = Callable[[np.ndarray], Any]


def ours(values: np.ndarray) -> None:
    """Codes and scales as they are stored, on so many threads."""
    method: Any = methods_of("quantize")["int"](bits=4, group_size=128)
    spec = TensorSpec("w", "F32", values.shape)
    encoder = method.prepare([spec])
    parts = {part.suffix: np.empty(part.shape, DTYPES[part.dtype].storage) for part in method.parts(spec)}
    every = {part.suffix: part.every for part in method.parts(spec)}

    def encode(start: int) -> None:
        rows = slice(start, start + ROWS)
        views = {suffix: part[rows] if every[suffix] else part.copy() for suffix, part in parts.items()}
        with np.errstate(all="ignore"):
            encoder.measured(Block(values[rows], start, spec, Workspace(), {}), views)

    with threadpool_limits(1), ThreadPoolExecutor(THREADS) as executor:
        list(executor.map(encode, range(0, len(values), ROWS)))


def mse_observer() -> Job:
    import torch
    from compressed_tensors.quantization import QuantizationArgs
    from llmcompressor.observers import Observer

    torch.set_num_threads(THREADS)
    args = QuantizationArgs(
        num_bits=4, type="int", symmetric=True, strategy="group", group_size=128, observer="memoryless_mse"
    )

    def run(values: np.ndarray) -> Any:
        observer = Observer.load_from_registry("memoryless_mse", base_name="weight", args=args)
        observer(torch.from_numpy(values))
        return observer.get_qparams()

    return run


def hqq() -> Job:
    import torch
    from hqq.core.quantize import Quantizer

    torch.set_num_threads(THREADS)

    def run(values: np.ndarray) -> Any:
        return Quantizer.quantize(
            torch.from_numpy(values), nbits=4, group_size=128, device="cpu", compute_dtype=torch.float32
        )

    return run


RIVALS: dict[str, Callable[[], Job]] = {"llm-compressor memoryless_mse": mse_observer, "HQQ": hqq}


def main() -> int:
    parser = argparse.ArgumentParser(description="Speed of searched int4 beside other searches.")
    parser.add_argument("--rounds", type=int, default=3, help="default 3")
    parser.add_argument("--check", action="store_true", help="exit 1 when a bar is not reached")
    args = parser.parse_args()
    jobs: dict[str, Job] = {"compressor": ours}
    for rival, prepare in RIVALS.items():
        try:
            jobs[rival] = prepare()
        except ImportError as error:
            print(f"{rival}: left out, because it is not installed ({error})")
    values = (np.random.default_rng(0).standard_normal(SHAPE) * 0.02).astype(np.float32)
    for job in jobs.values():
        job(values[:ROWS])
    taken: dict[str, list[float]] = {name: [] for name in jobs}
    for number in range(args.rounds):
        listed = list(jobs)
        for name in listed[number % len(listed) :] + listed[: number % len(listed)]:
            start = time.perf_counter()
            jobs[name](values)
            taken[name].append(time.perf_counter() - start)
    failed = 0
    print(f"int4, groups of 128, {SHAPE[0]}×{SHAPE[1]} float32, {THREADS} threads, medians of {args.rounds} rounds")
    for name, times in taken.items():
        line = f"{name:<32}{median(times) / values.size * 1e9:>9.1f} ns a weight"
        if name != "compressor":
            ratio = median(theirs / mine for theirs, mine in zip(times, taken["compressor"], strict=True))
            failed += ratio < BAR
            line += f"{ratio:>9.1f} times as long   ≥ {BAR:g}  {'PASS' if ratio >= BAR else 'FAIL'}"
        print(line)
    return int(bool(failed) and args.check)


if __name__ == "__main__":
    sys.exit(main())
