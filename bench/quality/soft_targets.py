"""Soft targets on MNIST beside the bars that were set, and an epoch beside torch's: `soft_targets.py [--write]`.

The data (LeNet-300-100 and MNIST) lie in a folder of their own, beside the repository or `--data`; without it
nothing is done. Training sees images without labels, and keeps the state that held-out images choose; the labelled
test set is for scoring alone. Every seed is shown, and the least accurate is judged. Torch does the same epochs on
as many processors, in turns; without it that part is left out.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from bench.page import put
from compressor import api
from compressor.checkpoint.checkpoint import open_checkpoint
from compressor.networks.matching import read_network

HERE = Path(__file__).resolve().parents[1]
SLOWEST = 1.0  # times torch's epoch, at most
STUDENTS: dict[str, tuple[str, float, dict[str, Any]]] = {
    "784-100-50-10 from a random start": (
        "student",
        98.2,
        {"init": "random", "epochs": 40, "learning_rate": 8e-3, "shift": 1},
    ),
    "LeNet-300-100 with 95 % zeros": (
        "teacher",
        98.3,
        {"sparsity": 0.95, "epochs": 80, "learning_rate": 2e-3, "shift": 1},
    ),
}


def verdict(held: bool) -> str:
    return "PASS" if held else "FAIL"


def score(path: Path, data: Path, name: str | None = None) -> tuple[float, float]:
    """Per cent right on the 10,000 test images, and per cent of zeros in the matrices, of the network of this name
    or that its tensors tell."""
    held = np.load(data / "mnist" / "mnist_test.npz")
    network = read_network(open_checkpoint(path), name).network
    outputs = network.forward(held["x"].reshape(-1, *network.input) / np.float32(255))
    weights = [array for array in network.parameters.values() if array.ndim > 1]
    zeros = sum(int((array == 0).sum()) for array in weights) / sum(array.size for array in weights)
    return 100 * float((outputs.argmax(1) == held["y"]).mean()), 100 * zeros


def students(data: Path, inputs: Path, place: Path, seeds: int) -> tuple[list[str], bool]:
    """A row for each student, and whether all reach their bars."""
    reached, teacher = True, data / "lenet300" / "teacher.safetensors"
    rows = [
        f"| student | options | right on the test set, seeds 0 to {seeds - 1} | zeros | bar | | seconds |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, (begun, bar, options) in STUDENTS.items():
        found, zeros, seconds = [], 0.0, []
        for seed in range(seeds):
            out, start = place / "student.safetensors", time.perf_counter()
            source = data / "lenet300" / f"{begun}.safetensors"
            given = {**options, "inputs": inputs, "seed": seed, "force": True}
            api.distill(source, out, teacher=teacher, method="soft-targets", **given)
            seconds.append(time.perf_counter() - start)
            right, zeros = score(out, data)
            found.append(right)
            print(f"{name}, seed {seed}: {right:.2f} %, {seconds[-1]:.0f} s", file=sys.stderr, flush=True)
        held = min(found) >= bar
        reached &= held
        said = " ".join(f"--{key.replace('_', '-')} {value}" for key, value in options.items())
        shown = ", ".join(f"{one:.2f}" for one in found)
        rows.append(
            f"| {name} | `{said}` | {shown} % | {zeros:.1f} % | {bar} % | {verdict(held)} | {median(seconds):.0f} |"
        )
    return rows, reached


def speed(data: Path, inputs: Path, place: Path, epochs: int) -> tuple[str, bool]:
    """Epochs of LeNet-300-100 here and in torch: the same batches, loss and Adam; files and imports left out."""
    import torch

    teacher = data / "lenet300" / "teacher.safetensors"
    held = {
        name: torch.tensor(array) for name, array in read_network(open_checkpoint(teacher)).network.tensors.items()
    }
    x = torch.tensor(np.load(inputs).reshape(-1, 784))

    def ours() -> float:
        start = time.perf_counter()
        given: dict[str, Any] = {"inputs": inputs, "epochs": epochs, "force": True, "holdout": 0}
        api.distill(teacher, place / "student.safetensors", teacher=teacher, method="soft-targets", **given)
        return (time.perf_counter() - start) / epochs

    def forward(tensors: dict[str, torch.Tensor], rows: torch.Tensor) -> torch.Tensor:
        for number in (1, 2, 3):
            rows = torch.nn.functional.linear(rows, tensors[f"fc{number}.weight"], tensors[f"fc{number}.bias"])
            rows = torch.relu(rows) if number < 3 else rows
        return rows

    def theirs() -> float:
        start = time.perf_counter()
        parameters = {name: array.clone().requires_grad_() for name, array in held.items()}
        with torch.no_grad():
            targets = torch.softmax(torch.cat([forward(held, rows.float() / 255) for rows in x.split(1024)]) / 4, 1)
        adam = torch.optim.Adam(parameters.values(), 1e-3)
        for _ in range(epochs):
            for rows in torch.randperm(len(x)).split(128):
                adam.zero_grad()
                outputs = torch.log_softmax(forward(parameters, x[rows].float() / 255) / 4, 1)
                (16 * torch.nn.functional.kl_div(outputs, targets[rows], reduction="batchmean")).backward()
                adam.step()
        return (time.perf_counter() - start) / epochs

    ours(), theirs()
    pairs = [(ours(), theirs()) for _ in range(3)]
    mine, torches = (median(times) for times in zip(*pairs, strict=True))
    ratio = median(a / b for a, b in pairs)
    said = (
        f"An epoch of LeNet-300-100 takes {mine:.2f} s, torch's {torches:.2f} s on as many processors "
        f"({torch.get_num_threads()}): {ratio:.2f} times torch's, bar {SLOWEST:g}: {verdict(ratio <= SLOWEST)}."
    )
    return said, ratio <= SLOWEST


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, default=HERE.parent.parent / "shared" / "data")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", choices=["students", "speed"])
    parser.add_argument("--write", action="store_true", help="put the figures into docs/methods.md")
    parser.add_argument("--check", action="store_true", help="fail when a bar is not reached")
    asked = parser.parse_args()
    if not (asked.data / "mnist").is_dir():
        print(f"soft targets: skipped, there is no mnist/ in {asked.data} (--data FOLDER)", file=sys.stderr)
        return 0
    parts: list[str] = []
    reached = True
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        inputs = place / "inputs.npy"
        np.save(inputs, np.load(asked.data / "mnist" / "mnist_train.npz")["x"])
        if asked.only != "speed":
            rows, reached = students(asked.data, inputs, place, asked.seeds)
            parts.append("\n".join(rows))
        if asked.only != "students":
            try:
                said, held = speed(asked.data, inputs, place, 2)
            except ImportError:
                said, held = "torch is not installed: epochs are not compared.", True
            parts.append(said)
            reached &= held
    made = "\n\n".join(parts)
    print(made)
    if asked.write:
        put("soft-targets", "quality/soft_targets.py", made)
    return int(asked.check and not reached)


if __name__ == "__main__":
    sys.exit(main())
