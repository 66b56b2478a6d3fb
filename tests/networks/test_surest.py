"""Of several descriptions that a model's tensors fit, that one is taken by which it is surest of the inputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from safetensors.numpy import save_file

import compressor
from compressor.calibration.statistics import open_statistics
from compressor.checkpoint.checkpoint import open_checkpoint
from compressor.core.errors import InputError, UsageError
from compressor.networks.matching import read_network
from compressor.networks.surest import confidence, surest

SHAPES = {"conv1": (4, 1, 5, 5), "conv2": (6, 4, 5, 5), "fc1": (12, 96), "fc2": (10, 12)}


@pytest.fixture
def images(tmp_path: Path) -> npt.NDArray[np.uint8]:
    made = np.random.default_rng(0).integers(0, 256, (40, 28, 28), np.uint8)
    np.save(tmp_path / "x.npy", made)
    return made


def lenet5(path: Path, seed: int) -> Path:
    random = np.random.default_rng(seed)
    tensors = {f"{name}.weight": random.normal(0, 0.2, shape) for name, shape in SHAPES.items()}
    tensors |= {f"{name}.bias": random.normal(0, 0.2, shape[0]) for name, shape in SHAPES.items()}
    save_file({name: array.astype(np.float32) for name, array in tensors.items()}, path)
    return path


def sure_of(path: Path, images: npt.NDArray[np.uint8]) -> tuple[dict[str, float], npt.NDArray[Any]]:
    samples = images.reshape(len(images), -1) / np.float32(255)
    checkpoint = open_checkpoint(path)
    return {
        name: confidence(read_network(checkpoint, name).network, samples) for name in ("lenet5", "lenet5-relu")
    }, samples


@pytest.mark.parametrize("seed", range(4))
def test_the_surest_is_taken_and_said(tmp_path: Path, images: npt.NDArray[np.uint8], seed: int) -> None:
    path = lenet5(tmp_path / "m.safetensors", seed)
    sure, samples = sure_of(path, images)
    best = max(sure, key=lambda name: sure[name])
    checkpoint = open_checkpoint(path)
    found = surest(checkpoint, read_network(checkpoint), samples)
    assert found.name == best
    assert found.description.startswith(f"{best} (of those that its tensors fit")
    assert f"{sure[best]:.3f}" in found.description
    named = read_network(checkpoint, "lenet5-relu")
    assert surest(checkpoint, named, samples) is named
    taken = found.network.forward(samples.reshape(-1, 1, 28, 28)).copy()
    assert np.array_equal(taken, read_network(checkpoint, best).network.forward(samples.reshape(-1, 1, 28, 28)))


def test_all_that_run_networks_take_it(tmp_path: Path, images: npt.NDArray[np.uint8]) -> None:
    seed = next(seed for seed in range(20) if _relu_is_surer(lenet5(tmp_path / "m.safetensors", seed), images))
    path, x = lenet5(tmp_path / "m.safetensors", seed), tmp_path / "x.npy"
    found, named = tmp_path / "found.safetensors", tmp_path / "named.safetensors"
    compressor.calibrate(path, found, inputs=x)
    compressor.calibrate(path, named, inputs=x, network="lenet5-relu")
    assert np.array_equal(open_statistics(found).read("fc1").square, open_statistics(named).read("fc1").square)
    pruned, trained = tmp_path / "p.safetensors", tmp_path / "t.safetensors"
    compressor.prune(path, pruned, sparsity=0.5)
    compared = compressor.compare(path, pruned, inputs=x)
    assert compared.loss is not None
    assert any(note.startswith("network: lenet5-relu") for note in compared.loss.notes)
    report = compressor.distill(pruned, trained, teacher=path, method="soft-targets", inputs=x, epochs=1, holdout=0)
    (note,) = (note for note in report.plan.notes if note.startswith("network:"))
    assert note.count("lenet5-relu (of those") == 2
    assert any("the teacher is sure of its answers by 0." in note for note in report.plan.notes)


def test_a_teacher_that_is_seldom_right_ends_a_training_before_it_begins(
    tmp_path: Path, images: npt.NDArray[np.uint8]
) -> None:
    path, out = lenet5(tmp_path / "m.safetensors", 0), tmp_path / "out.safetensors"
    network = read_network(open_checkpoint(path), "lenet5").network
    answers = network.forward(images.reshape(-1, 1, 28, 28) / np.float32(255)).argmax(axis=1)
    labels = answers.copy()
    labels[:10] = (labels[:10] + 1) % 10  # 30 of 40 are right
    np.save(tmp_path / "y.npy", labels)
    options: dict[str, Any] = {"teacher": path, "method": "soft-targets", "inputs": tmp_path / "x.npy"}
    options |= {"network": "lenet5", "epochs": 1, "holdout": 0}
    with pytest.raises(UsageError, match="min_accuracy goes by labels"):
        compressor.distill(path, out, **options, min_accuracy=0.7)
    options["labels"] = tmp_path / "y.npy"
    with pytest.raises(InputError, match=r"right on 75\.00 % of them; at least 76 % were asked for") as caught:
        compressor.distill(path, out, **options, min_accuracy=0.76)
    assert "(network)" in caught.value.remedy
    assert not out.exists()
    report = compressor.distill(path, out, **options, min_accuracy=0.75)
    assert any("right on 75.00 % of them" in note for note in report.plan.notes)


def _relu_is_surer(path: Path, images: npt.NDArray[np.uint8]) -> bool:
    sure, _ = sure_of(path, images)
    return sure["lenet5-relu"] > sure["lenet5"]
