"""Soft targets on MNIST: accuracies that are asked for, and an epoch against torch's. Prints what it finds.

    python bench/soft_targets.py DATA [--seed N] [--only small|sparse|speed]

DATA has lenet300/ and mnist/. Training sees images without labels; the labelled test set is for scoring alone.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np

from compressor import api
from compressor.checkpoint import open_checkpoint
from compressor.networks.matching import read_network

SPARSITIES = (0.5, 0.7, 0.8, 0.87, 0.91, 0.94, 0.95)


def accuracy(path: Path, data: Path) -> tuple[float, float]:
    """Per cent right on the test set, and the share of zeros in the matrices."""
    held = np.load(data / "mnist" / "mnist_test.npz")
    network = read_network(open_checkpoint(path)).network
    outputs = network.forward(held["x"].reshape(-1, 784) / np.float32(255))
    weights = [array for array in network.parameters.values() if array.ndim > 1]
    zeros = sum(int((array == 0).sum()) for array in weights) / sum(array.size for array in weights)
    return 100 * float((outputs.argmax(1) == held["y"]).mean()), zeros


def small(data: Path, inputs: Path, place: Path, seed: int, epochs: int) -> None:
    """784-100-50-10 from a random start."""
    out = place / "small.safetensors"
    api.distill(
        data / "lenet300" / "student.safetensors",
        out,
        teacher=data / "lenet300" / "teacher.safetensors",
        method="soft-targets",
        inputs=inputs,
        init="random",
        epochs=epochs,
        seed=seed,
    )
    print(f"small, from scratch, {epochs} epochs, seed {seed}: {accuracy(out, data)[0]:.2f} %", flush=True)


def sparse(data: Path, inputs: Path, place: Path, seed: int, epochs: int) -> None:
    """The teacher pruned in steps to 95 %, trained after each."""
    teacher = data / "lenet300" / "teacher.safetensors"
    before = teacher
    for sparsity in SPARSITIES:
        pruned, after = place / f"pruned{sparsity}.safetensors", place / f"trained{sparsity}.safetensors"
        api.prune(before, pruned, method="magnitude", scope="global", sparsity=sparsity, include=["*.weight"])
        last = sparsity == SPARSITIES[-1]
        api.distill(
            pruned,
            after,
            teacher=teacher,
            method="soft-targets",
            inputs=inputs,
            epochs=epochs if last else max(1, epochs // 8),
            seed=seed,
        )
        before = after
    right, zeros = accuracy(before, data)
    print(f"sparse, {100 * zeros:.2f} % zeros, seed {seed}: {right:.2f} %", flush=True)


def speed(data: Path, inputs: Path, place: Path, epochs: int) -> None:
    """Epochs of LeNet-300-100 here and in torch, in turns: the same batches, loss and Adam."""
    import torch

    teacher = data / "lenet300" / "teacher.safetensors"
    held = {
        name: torch.tensor(array) for name, array in read_network(open_checkpoint(teacher)).network.tensors.items()
    }
    x = torch.tensor(np.load(inputs).reshape(-1, 784))

    def ours() -> float:
        start = time.perf_counter()
        api.distill(
            teacher, place / "s.safetensors", teacher=teacher, method="soft-targets", inputs=inputs, epochs=epochs,
            force=True, holdout=0,
        )  # fmt: skip
        return (time.perf_counter() - start) / epochs

    def theirs() -> float:
        start = time.perf_counter()
        parameters = {name: array.clone().requires_grad_() for name, array in held.items()}

        def forward(tensors: dict[str, torch.Tensor], rows: torch.Tensor) -> torch.Tensor:
            for number in (1, 2, 3):
                rows = rows @ tensors[f"fc{number}.weight"].T + tensors[f"fc{number}.bias"]
                rows = torch.relu(rows) if number < 3 else rows
            return rows

        with torch.no_grad():
            targets = torch.softmax(torch.cat([forward(held, rows.float() / 255) for rows in x.split(1024)]) / 4, 1)
        adam = torch.optim.Adam(parameters.values(), 1e-3)
        for _ in range(epochs):
            order = torch.randperm(len(x))
            for rows in order.split(128):
                adam.zero_grad()
                outputs = torch.log_softmax(forward(parameters, x[rows].float() / 255) / 4, 1)
                (16 * torch.nn.functional.kl_div(outputs, targets[rows], reduction="batchmean")).backward()
                adam.step()
        return (time.perf_counter() - start) / epochs

    ours(), theirs()
    pairs = [(ours(), theirs()) for _ in range(3)]
    mine, torches = (sorted(times)[1] for times in zip(*pairs, strict=True))
    print(
        f"an epoch: here {mine:.2f} s (one thread), torch {torches:.2f} s ({torch.get_num_threads()} threads), "
        f"ratio {mine / torches:.2f}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--only", choices=["small", "sparse", "speed"])
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        inputs = place / "inputs.npy"
        np.save(inputs, np.load(asked.data / "mnist" / "mnist_train.npz")["x"])
        if asked.only in (None, "small"):
            small(asked.data, inputs, place, asked.seed, asked.epochs)
        if asked.only in (None, "sparse"):
            sparse(asked.data, inputs, place, asked.seed, asked.epochs)
        if asked.only in (None, "speed"):
            speed(asked.data, inputs, place, 2)


if __name__ == "__main__":
    main()
