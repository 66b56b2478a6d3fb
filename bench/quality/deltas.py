"""What deltas leave of a fine-tune, beside quantizing the fine-tune itself: `deltas.py --data FOLDER`.

The base is the LeNet-300-100 of `sample_weights`. Two fine-tunes are made here of it, small networks both
and no language models: by plain stochastic gradient descent in NumPy, all weights, over MNIST's training
pictures; a near one, one pass with the pictures moved by two pixels each way, and a far one, two passes
with them turned by a quarter, a task of which the base knows nothing. FOLDER has `mnist/mnist_train.npz`,
and `mnist_test.npz` for the accuracy that is told: on test pictures changed alike, with the share of
pictures whose answer is the fine-tune's. Sizes are those of whole files, three seeds, means.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file, save_file

import compressor

Array = npt.NDArray[Any]
BASE = Path(__file__).parents[2] / "sample_weights" / "lenet300_teacher.safetensors"
LAYERS, BATCH, SEEDS = ("fc1", "fc2", "fc3"), 50, 3
# By name: how pictures [pictures, 28, 28] are changed, passes over them, and the rate of learning
TASKS: dict[str, tuple[Callable[[Array], Array], int, float]] = {
    "near": (lambda seen: np.roll(seen, (2, 2), axis=(1, 2)), 1, 0.02),
    "far": (lambda seen: np.rot90(seen, axes=(1, 2)), 2, 0.05),
}
DELTAS: tuple[dict[str, Any], ...] = (
    {"bits": 1},
    {"bits": 2},
    *({"form": "mixed", "bits": bits} for bits in (0.5, 1, 2, 3)),
)
QUANTIZED: tuple[dict[str, Any], ...] = (
    *({"scheme": "uniform", "bits": bits, "store": "archive"} for bits in (1.0, 2.0, 3.0)),
    {"bits": 2, "granularity": "channel"},
    {"bits": 3, "granularity": "channel"},
)


def pictures(path: Path, task: str) -> tuple[Array, Array]:
    """Changed as a task has them, float32 [pictures, 784], and what they show."""
    held = np.load(path)
    return TASKS[task][0](held["x"]).reshape(-1, 784).astype(np.float32) / 255, held["y"].astype(np.int64)


def outputs(net: dict[str, Array], inputs: Array) -> list[Array]:
    """What enters each layer, and at last the logits."""
    found = [inputs]
    for layer in LAYERS:
        sums = found[-1] @ net[f"{layer}.weight"].T + net[f"{layer}.bias"]
        found.append(sums if layer == LAYERS[-1] else np.maximum(sums, 0))
    return found


def tuned(inputs: Array, labels: Array, task: str, seed: int) -> dict[str, Array]:
    """The base after a training on these pictures."""
    net, random = load_file(BASE), np.random.default_rng(seed)
    _, passes, rate = TASKS[task]
    for _ in range(passes):
        for places in np.split(random.permutation(len(inputs)), len(inputs) // BATCH):
            seen = outputs(net, inputs[places])
            share = np.exp(seen[-1] - seen[-1].max(axis=1, keepdims=True))
            slope = share / share.sum(axis=1, keepdims=True)
            slope[np.arange(BATCH), labels[places]] -= 1
            for layer, entering in zip(reversed(LAYERS), reversed(seen[:-1]), strict=True):
                weight = net[f"{layer}.weight"]
                below = (slope @ weight) * (entering > 0)
                weight -= rate / BATCH * (slope.T @ entering)
                net[f"{layer}.bias"] -= rate / BATCH * slope.sum(axis=0)
                slope = below
    return net


def measured(data: Path, task: str, seed: int) -> dict[str, tuple[float, ...]]:
    """Bytes, accuracy and agreement of everything that is tried, by its name."""
    (inputs, labels), test = (pictures(data / f"mnist_{part}.npz", task) for part in ("train", "test"))
    with tempfile.TemporaryDirectory() as folder:
        fine, small, back = (Path(folder) / f"{name}.safetensors" for name in ("fine", "small", "back"))
        save_file(tuned(inputs, labels, task, seed), fine)

        def score(path: Path) -> Array:
            return np.argmax(outputs(load_file(path), test[0])[-1], axis=1)

        true = score(fine)

        def told(path: Path, size: int) -> tuple[float, ...]:
            found = score(path)
            return size, 100 * float(np.mean(found == test[1])), 100 * float(np.mean(found == true))

        rows = {"the fine-tune": told(fine, fine.stat().st_size), "its base": told(BASE, 0)}
        for options in DELTAS:
            compressor.distill(fine, small, method="delta", base=BASE, force=True, **options)
            compressor.restore(small, back, base=BASE, force=True)
            rows[f"`distill --method delta {_said(options)}`"] = told(back, small.stat().st_size)
        for options in QUANTIZED:
            compressor.quantize(fine, small, force=True, **options)
            compressor.restore(small, back, force=True)
            rows[f"`quantize {_said(options)}`"] = told(back, small.stat().st_size)
    return rows


def _said(options: dict[str, Any]) -> str:
    return " ".join(f"--{key.replace('_', '-')} {value}" for key, value in options.items())


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("data"))
    data = parser.parse_args().data / "mnist"
    if not data.is_dir():
        print(f"deltas: skipped, there is no {data} (--data FOLDER)", file=sys.stderr)
        return 0
    for task in TASKS:
        runs = [measured(data, task, seed) for seed in range(SEEDS)]
        print(f"| {task} | kB | accuracy, % | answers of the fine-tune, % |\n|---|---|---|---|")
        for name in runs[0]:
            size, accuracy, same = np.mean([run[name] for run in runs], axis=0)
            print(f"| {name} | {size / 1e3:.1f} | {accuracy:.2f} | {same:.2f} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
