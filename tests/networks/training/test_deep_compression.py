"""The recipes that train, on networks of their shapes with few inputs: what they write restores and is small."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from compressor import api
from compressor.recipe.toml_file import load_recipe, parse_recipe

SHAPES = {
    "lenet300": {"fc1": (300, 784), "fc2": (100, 300), "fc3": (10, 100)},
    "lenet5": {"conv1": (20, 1, 5, 5), "conv2": (50, 20, 5, 5), "fc1": (500, 800), "fc2": (10, 500)},
}
FAST = "".join(f'[[stage]]\nname = "{name}"\nepochs = 1\nholdout = 0\n' for name in ("train", "tune"))


@pytest.mark.parametrize("network", SHAPES)
def test_the_whole_recipe_runs(network: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    tensors = {}
    for name, shape in SHAPES[network].items():
        tensors[f"{name}.weight"] = rng.normal(0, 0.05, shape).astype(np.float32)
        tensors[f"{name}.bias"] = rng.normal(0, 0.05, shape[0]).astype(np.float32)
    save_file(tensors, tmp_path / "teacher.safetensors")
    images = rng.integers(0, 256, (64, 28, 28), np.uint8)
    np.save(tmp_path / "x.npy", images)
    recipe = parse_recipe(f'extends = "{network}"\n{FAST}', "fast")
    small = tmp_path / "small.safetensors"
    report = api.pipeline(tmp_path / "teacher.safetensors", small, recipe=recipe, inputs=tmp_path / "x.npy")
    assert report.plan.size_after == small.stat().st_size
    assert small.stat().st_size * 40 < (tmp_path / "teacher.safetensors").stat().st_size
    api.restore(small, tmp_path / "restored.safetensors")
    restored = load_file(tmp_path / "restored.safetensors")
    assert {name: tensor.shape for name, tensor in restored.items()} == {n: t.shape for n, t in tensors.items()}
    matrices = [tensor for name, tensor in restored.items() if name.endswith("weight")]
    zeros = sum((tensor == 0).sum() for tensor in matrices) / sum(tensor.size for tensor in matrices)
    assert zeros == pytest.approx({"lenet300": 0.9515, "lenet5": 0.955}[network], abs=0.003)
    assert max(len(np.unique(tensor)) for tensor in matrices) <= 8


def test_lenet5_is_lenet300_but_for_the_network_zeros_epochs_and_moved_images() -> None:
    one, other = ([leg.training.describe() for leg in load_recipe(name).legs if leg.training] for name in SHAPES)
    for key, here, there in (
        ("sparsity", [0.9515, None], [0.955, None]),
        ("epochs", [160, 60], [20, 6]),
        ("shift", [1, 1], [0, 0]),
    ):
        assert [stage.pop(key, None) for stage in one] == here
        assert [stage.pop(key, None) for stage in other] == there
    assert one == other
