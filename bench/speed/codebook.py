"""A codebook of 16 beside scikit-learn's KMeans on the same float32 tensor, in one run: `codebook.py [--check]`.

Ours is the whole of `compressor.quantize`: reading the `.npy`, both passes, writing codes and codebook.
scikit-learn's is `fit` alone, of one start (`n_init=1`). Both have the processors that there are. The weights are
normally distributed and none is zero: a zero would claim a centroid of its own here, and not there.
Needs scikit-learn (`pip install scikit-learn`).
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

import compressor

ENTRIES = 16
SPEED_BAR = 20.0  # times faster than scikit-learn, at least


def ours(weights: np.ndarray, folder: Path) -> tuple[float, float]:
    """Seconds, and the relative error that the report tells."""
    np.save(folder / "weights.npy", weights)
    start = time.perf_counter()
    report = compressor.quantize(
        folder / "weights.npy", folder / "out.safetensors", scheme="codebook", entries=ENTRIES, force=True
    )
    seconds = time.perf_counter() - start
    return seconds, report.changes[0].error


def theirs(weights: np.ndarray, start_from: str) -> tuple[float, float]:
    """The same of scikit-learn."""
    from sklearn.cluster import KMeans

    points = weights.reshape(-1, 1)
    begin: object = "k-means++"
    if start_from == "linear":
        begin = np.linspace(points.min(), points.max(), ENTRIES, dtype=np.float32)[:, None]
    start = time.perf_counter()
    found = KMeans(ENTRIES, init=begin, n_init=1, random_state=0).fit(points)
    seconds = time.perf_counter() - start
    restored = found.cluster_centers_[found.labels_, 0]
    lost = np.subtract(weights.reshape(-1), restored, dtype=np.float64)
    return seconds, float(np.sqrt(lost @ lost) / np.linalg.norm(weights.reshape(-1).astype(np.float64)))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--check", action="store_true", help=f"fail unless {SPEED_BAR:g} times faster at no larger error"
    )
    parser.add_argument("--rows", type=int, default=2048)
    parser.add_argument("--columns", type=int, default=8192)
    given = parser.parse_args()
    weights = np.random.default_rng(0).standard_normal((given.rows, given.columns)).astype(np.float32)
    assert weights.all()
    with tempfile.TemporaryDirectory() as folder:
        ours(weights[:64], Path(folder))  # imports and first calls
        seconds, error = min(ours(weights, Path(folder)) for _ in range(3))
    print(f"{given.rows} × {given.columns} float32, {ENTRIES} centroids{'':<6}{'s':>8}{'error':>12}")
    print(f"{'compressor, files included':<40}{seconds:>8.2f}{error:>12.6f}")
    good = True
    for start_from in ("k-means++", "linear"):
        took, lost = theirs(weights, start_from)
        ratio = took / seconds
        print(
            f"{f'scikit-learn KMeans, {start_from} start':<40}{took:>8.2f}{lost:>12.6f}   {ratio:.0f} times as long"
        )
        good &= ratio >= SPEED_BAR and error <= lost
    return 0 if good or not given.check else 1


if __name__ == "__main__":
    sys.exit(main())
