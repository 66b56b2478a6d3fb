"""Deep Compression's networks by the recipes that ship, beside the bars: `deep_compression.py [NAME]`.

The data lie in a folder of their own, beside the repository or `--data`; without it nothing is done. Labels serve
for scoring alone, and to train LeNet-5's teacher, of which there is none in the data. NAME is one of the rows.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
from safetensors.numpy import save_file
from soft_targets import score, verdict

from compressor import api
from compressor.recipe_file import parse_recipe

SMALLER = """extends = "lenet300"
[[stage]]
name = "train"
sparsity = 0.973
epochs = 110
learning_rate = 0.003
"""
ROWS = {  # network, recipe, at least so many times smaller, at most so many points lost
    "lenet300": ("lenet300", 'extends = "lenet300"', 64, 0.0),
    "lenet300, smaller": ("lenet300", SMALLER, 100, 0.3),
    "lenet5": ("lenet5", 'extends = "lenet5"', 64, 0.0),
}
SLOWEST = 600  # seconds
LENET5 = {"conv1": (20, 1, 5, 5), "conv2": (50, 20, 5, 5), "fc1": (500, 800), "fc2": (10, 500)}


def lenet5_teacher(place: Path, images: Path, labels: Path) -> Path:
    """A LeNet-5 trained on labels from a random start."""
    shapes, made = place / "shapes.safetensors", place / "lenet5.safetensors"
    tensors = {f"{name}.weight": np.ones(shape, np.float32) for name, shape in LENET5.items()}
    tensors |= {f"{name}.bias": np.zeros(shape[0], np.float32) for name, shape in LENET5.items()}
    save_file(tensors, shapes)
    api.distill(
        shapes,
        made,
        teacher=shapes,
        method="soft-targets",
        network="lenet5",
        init="random",
        inputs=images,
        labels=labels,
        label_weight=1.0,
        holdout=0.0,
        epochs=10,
        shift=1,
        learning_rate=0.002,
    )
    return made


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("name", nargs="?", choices=ROWS)
    here = Path(__file__).resolve().parent
    parser.add_argument("--data", type=Path, default=here.parent.parent / "shared" / "data")
    asked = parser.parse_args()
    if not (asked.data / "mnist" / "mnist_train.npz").exists():
        print(f"no data at {asked.data}: nothing measured")
        return 0
    reached = True
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        train = np.load(asked.data / "mnist" / "mnist_train.npz")
        np.save(place / "x.npy", train["x"])
        np.save(place / "y.npy", train["y"].astype(np.int64))
        for name, (network, recipe, ratio, points) in ROWS.items():
            if asked.name in (None, name):
                teacher = asked.data / "lenet300" / "teacher.safetensors"
                if network == "lenet5":
                    teacher = lenet5_teacher(place, place / "x.npy", place / "y.npy")
                reached &= row(name, teacher, recipe, ratio, points, asked.data, place)
    return 0 if reached else 1


def row(name: str, teacher: Path, recipe: str, ratio: float, points: float, data: Path, place: Path) -> bool:
    """Run a recipe, print what came of it, and tell whether its bars are reached."""
    small, dense, start = place / "small.safetensors", place / "dense.safetensors", time.perf_counter()
    api.pipeline(teacher, small, recipe=parse_recipe(recipe, name), inputs=place / "x.npy", force=True)
    seconds = time.perf_counter() - start
    api.restore(small, dense, force=True)
    (before, _), (after, zeros) = score(teacher, data), score(dense, data)
    smaller = teacher.stat().st_size / small.stat().st_size
    held = smaller >= ratio and before - after <= points + 1e-9 and seconds <= SLOWEST
    print(
        f"{name}: {teacher.stat().st_size} to {small.stat().st_size} bytes, {smaller:.1f} times smaller (at least "
        f"{ratio}), {before:.2f} to {after:.2f} % right (at most {points} points less), {zeros:.1f} % zeros, "
        f"{seconds:.0f} s (at most {SLOWEST}) {verdict(held)}",
        flush=True,
    )
    return held


if __name__ == "__main__":
    sys.exit(main())
