"""How near Q3_K comes to the most that its format has: `q3_k_optimum.py --ggml LIBRARY [--rows N]`.

The least error of each block of 256 weights is found by trying everything: each float16 number from a 256th to a
48th of the block's largest magnitude as its d, of either sign, and with each d all 64 integers for each of the 16
sub-blocks, codes by rounding. How often the best d lies within a 50th of an end of what was tried is printed too.
Data and errors are those of ggml_types.py, and LIBRARY is as there. The search is C, built by `cc`.
"""

from __future__ import annotations

import argparse
import ctypes
import subprocess
import tempfile
from pathlib import Path

import numpy as np

from bench.quality.ggml_types import error, ours, theirs, weights

LEAST, MOST = 1 / 256, 1 / 48  # of a block's largest magnitude, as d

SEARCH = """
#include <math.h>
#include <stddef.h>

/* The least squared error of a block, of `count` numbers d; `at` is the place of the best. */
static double block(const float *restrict x, const float *restrict d, int count, int *at) {
    double best = 1e300;
    for (int k = 0; k < count; k++) {
        double low = 0, high = 0; /* integers from -32 to 31, and, with -d, from -31 to 32 */
        for (int j = 0; j < 16 && (low < best || high < best); j++) {
            float inner = 1e30f, end[2] = {0, 0};
            for (int s = -32; s <= 32; s++) {
                const float scale = d[k] * (float)s, inverse = s ? 1.0f / scale : 0.0f;
                float lost = 0;
                for (int i = 0; i < 16; i++) {
                    const float value = x[16 * j + i];
                    const float code = fminf(fmaxf(rintf(value * inverse), -4.0f), 3.0f);
                    const float off = value - scale * code;
                    lost += off * off;
                }
                if (s == -32 || s == 32) end[s > 0] = lost;
                else inner = lost < inner ? lost : inner;
            }
            low += fminf(inner, end[0]);
            high += fminf(inner, end[1]);
        }
        const double lost = low < high ? low : high;
        if (lost < best) {
            best = lost;
            *at = k;
        }
    }
    return best;
}

void search(const float *x, size_t blocks, const float *halves, size_t all, float least, float most, double *lost,
            float *best) {
    for (size_t b = 0; b < blocks; b++) {
        float top = 0;
        for (int i = 0; i < 256; i++) top = fmaxf(top, fabsf(x[256 * b + i]));
        size_t from = 0, past;
        while (from < all && halves[from] < top * least) from++;
        for (past = from; past < all && halves[past] <= top * most; past++);
        int at = 0;
        lost[b] = block(x + 256 * b, halves + from, (int)(past - from), &at);
        best[b] = halves[from + at] / top;
    }
}
"""


def built(folder: Path) -> ctypes.CDLL:
    (folder / "search.c").write_text(SEARCH)
    flags = ["-O3", "-march=native", "-ffast-math", "-shared", "-fPIC"]
    subprocess.run(["cc", *flags, "-o", folder / "search.so", folder / "search.c", "-lm"], check=True)
    return ctypes.CDLL(str(folder / "search.so"))


def optimum(library: ctypes.CDLL, values: np.ndarray) -> tuple[float, float]:
    """The least relative error, and the part of blocks whose best d lies at an end of what is tried."""
    halves = np.arange(1, 0x7C00, dtype=np.uint16).view(np.float16).astype(np.float32)
    blocks = values.size // 256
    lost, best = np.empty(blocks), np.empty(blocks, np.float32)
    library.search(
        *(ctypes.c_void_p(values.ctypes.data), ctypes.c_size_t(blocks)),
        *(ctypes.c_void_p(halves.ctypes.data), ctypes.c_size_t(halves.size)),
        *(ctypes.c_float(LEAST), ctypes.c_float(MOST)),
        *(ctypes.c_void_p(lost.ctypes.data), ctypes.c_void_p(best.ctypes.data)),
    )
    ends = (best < LEAST * 1.02) | (best > MOST / 1.02)
    return float(np.sqrt(lost.sum() / (values.astype(np.float64) ** 2).sum())), float(ends.mean())


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure Q3_K beside the least error of its format.")
    parser.add_argument("--ggml", metavar="LIBRARY", required=True, help="exports ggml_quantize_chunk")
    parser.add_argument("--rows", type=int, default=256, help="rows of 4096 weights of each kind [256]")
    given = parser.parse_args()
    ggml = theirs(given.ggml)
    with tempfile.TemporaryDirectory() as folder:
        library = built(Path(folder))
        for title, values in weights().items():
            x = np.ascontiguousarray(values[: given.rows])
            own, other = (error(quantize, "Q3_K", x, None) for quantize in (ours(), ggml))
            least, ends = optimum(library, x)
            print(
                f"{title}: ggml {other:.5f}, ours {own:.5f} ({1 - own / other:.2%} less), "
                f"least {least:.5f} ({1 - least / other:.2%} less), best d at an end: {ends:.2%}",
                flush=True,
            )


if __name__ == "__main__":
    main()
