"""Archives against a base: what an update takes, beside zstd of the XOR, and the speed: `deltas.py [--check]`.

Of bfloat16 weights of N(0, 0.02) and updates of N(0, s · 0.02). The speed is that of two threads on chunks in
memory, as for other archives.
"""

from __future__ import annotations

import argparse
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from bench.speed.archive import said
from bench.speed.throughput import WORKERS

ROWS, COLUMNS, BLOCKS = 1024, 4096, 8
BITS = {0.0003: 0.305, 0.001: 0.965, 0.003: 2.22}  # a weight, at most
SHARE_BAR, SPEED_BAR = 0.5, 1000.0  # of zstd's bytes up to a tenth of a percent; MB/s of weights


def main() -> int:
    import numpy as np
    import zstandard

    from compressor.files.entropy.deltas import decode_delta, encode_delta
    from compressor.files.entropy.elements import delta_form, possible

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="fail when a bar is not reached")
    options = parser.parse_args()
    form, whole = delta_form("BF16"), possible("BF16")[0]
    chance, good = np.random.default_rng(0), []

    def bfloat16(values: Any) -> Any:
        bits = values.astype(np.float32).view(np.uint32)
        return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)

    base = bfloat16(chance.normal(0, 0.02, (BLOCKS, ROWS, COLUMNS)))
    before = (base.astype(np.uint32) << 16).view(np.float32)
    for share, most in BITS.items():
        now = bfloat16(before + chance.normal(0, 0.02 * share, before.shape))
        sides = list(zip(now.view(np.uint8), base.view(np.uint8), strict=True))
        with ThreadPoolExecutor(int(WORKERS)) as pool:
            start, cpu = time.perf_counter(), time.process_time()
            chunks = list(pool.map(lambda pair: encode_delta(*pair, form, whole, "fast"), sides))
            middle, middle_cpu = time.perf_counter(), time.process_time()
            back = list(
                pool.map(
                    lambda one: decode_delta(memoryview(one[0]), one[1][1], form, whole),
                    zip(chunks, sides, strict=True),
                )
            )
            end, end_cpu = time.perf_counter(), time.process_time()
        assert all(np.array_equal(one, now_) for one, (now_, _) in zip(back, sides, strict=True))
        size, megabytes = sum(map(len, chunks)), now.nbytes / 1e6
        good.append(said(f"{share:.2%}: bits a weight", 8 * size / now.size, most, most=True))
        coder = zstandard.ZstdCompressor(3)
        zstd = sum(len(coder.compress((a ^ b).tobytes())) for a, b in sides)
        print(f"{share:.2%}: zstd-3 of the XOR, bits a weight {8 * zstd / now.size:.3g}")
        if share <= 0.001:
            good.append(said(f"{share:.2%}: of zstd's bytes", size / zstd, SHARE_BAR, most=True))
        for way, clock, seconds in (
            ("encode", middle - start, middle_cpu - cpu),
            ("decode", end - middle, end_cpu - middle_cpu),
        ):
            good.append(said(f"{share:.2%}: {way}, MB/s", megabytes / clock, SPEED_BAR, most=False))
            print(f"{share:.2%}: {way}, MB of weights a CPU second {megabytes / seconds:.0f}")
    return int(options.check and not all(good))


if __name__ == "__main__":
    sys.exit(main())
