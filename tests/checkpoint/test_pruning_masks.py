"""An original beside its mask is the weight; what comes of it, and what is no such pair."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import compressor
from compressor import InputError

Array = Any


def pair(dtype: Any = np.float32, mask: Any = np.float32, shape: tuple[int, ...] = (32, 64)) -> dict[str, Array]:
    random = np.random.default_rng(3)
    kept = random.random(shape) > 0.4
    return {
        "fc1.weight_orig": random.standard_normal(shape).astype(dtype),
        "fc1.weight_mask": kept.astype(mask),
        "fc1.bias": np.ones(shape[0], dtype),
    }


@pytest.mark.parametrize("mask", [np.float32, np.float16, np.bool_, np.uint8, np.int64])
@pytest.mark.parametrize("shape", [(32, 64), (8, 4, 3, 3)])
def test_a_mask_is_folded_into_its_weight(tmp_path: Path, mask: Any, shape: tuple[int, ...]) -> None:
    content = pair(mask=mask, shape=shape)
    save_file(content, tmp_path / "in.safetensors")
    weight = np.where(content["fc1.weight_mask"] != 0, content["fc1.weight_orig"], 0)
    report = compressor.prune(
        tmp_path / "in.safetensors", tmp_path / "p.safetensors", method="threshold", threshold=0
    )
    found = load_file(tmp_path / "p.safetensors")
    assert set(found) == {"fc1.weight", "fc1.bias"}
    np.testing.assert_array_equal(found["fc1.weight"], weight)
    assert "1 pruning mask is folded" in " ".join(report.plan.notes)

    compressor.prune(tmp_path / "in.safetensors", tmp_path / "q.safetensors", sparsity=0.5)
    found = load_file(tmp_path / "q.safetensors")
    assert (found["fc1.weight"] == 0).mean() == pytest.approx(0.5, abs=0.01)
    assert not found["fc1.weight"][weight == 0].any()

    compressor.quantize(tmp_path / "in.safetensors", tmp_path / "codes.safetensors", bits=8, granularity="channel")
    compressor.restore(tmp_path / "codes.safetensors", tmp_path / "dense.safetensors")
    restored = load_file(tmp_path / "dense.safetensors")["fc1.weight"]
    np.testing.assert_allclose(restored, weight, atol=np.abs(weight).max() / 100)
    assert not restored[weight == 0].any()


def test_masks_that_are_parametrizations(tmp_path: Path) -> None:
    """As torch.ao.pruning's FakeSparsity has them; spectral norm's original stands alone and stays."""
    content = pair(mask=np.bool_)
    named = {
        "net.fc1.parametrizations.weight.original": content["fc1.weight_orig"],
        "net.fc1.parametrizations.weight.0.mask": content["fc1.weight_mask"],
        "net.fc2.parametrizations.weight.original": content["fc1.weight_orig"].copy(),
        "net.fc2.parametrizations.weight.0._u": content["fc1.bias"],
    }
    save_file(named, tmp_path / "in.safetensors")
    compressor.prune(tmp_path / "in.safetensors", tmp_path / "o.safetensors", sparsity=0.1)
    found = load_file(tmp_path / "o.safetensors")
    assert set(found) == {"net.fc1.weight", *(name for name in named if "fc2" in name)}
    assert not found["net.fc1.weight"][~content["fc1.weight_mask"]].any()


def test_masks_of_a_folder_and_of_a_teacher(tmp_path: Path) -> None:
    for name in ("student", "teacher"):
        (tmp_path / name).mkdir()
        save_file(pair(), tmp_path / name / "model.safetensors")
        (tmp_path / name / "config.json").write_text("{}")
    compressor.distill(
        tmp_path / "student", tmp_path / "o", teacher=tmp_path / "teacher", method="blend", alpha=0.5
    )
    content = pair()
    found = load_file(tmp_path / "o" / "model.safetensors")["fc1.weight"]
    np.testing.assert_allclose(found, content["fc1.weight_orig"] * content["fc1.weight_mask"], rtol=1e-6)


def test_what_is_no_pair(tmp_path: Path) -> None:
    """A vector of another shape, an original alone (spectral norm), a mask alone, one with its weight."""
    content = pair()
    alone = {
        "a.weight_orig": content["fc1.weight_orig"],
        "b.weight_mask": content["fc1.weight_mask"],
        "c.weight_orig": content["fc1.weight_orig"],
        "c.weight_mask": content["fc1.bias"],
        **{f"d.{name[4:]}": array.copy() for name, array in content.items()},
        "d.weight": content["fc1.weight_orig"].copy(),
    }
    save_file(alone, tmp_path / "in.safetensors")
    report = compressor.prune(tmp_path / "in.safetensors", tmp_path / "o.safetensors", sparsity=0.5)
    assert set(load_file(tmp_path / "o.safetensors")) == set(alone)
    assert {job.spec.name for job in report.plan.jobs if job.steps} == {"d.weight"}
    assert not any("folded" in note for note in report.plan.notes)


def test_a_mask_of_other_numbers_is_refused(tmp_path: Path) -> None:
    content = pair()
    content["fc1.weight_mask"][3, 4] = 0.5
    save_file(content, tmp_path / "in.safetensors")
    with pytest.raises(InputError, match="other numbers than 0 and 1") as caught:
        compressor.prune(tmp_path / "in.safetensors", tmp_path / "o.safetensors", sparsity=0.5)
    assert "fc1.weight" in str(caught.value)
    assert not (tmp_path / "o.safetensors").exists()


def test_who_only_looks_sees_both(tmp_path: Path) -> None:
    """`restore` and `inspect` take a file as it is."""
    save_file(pair(), tmp_path / "in.safetensors")
    compressor.restore(tmp_path / "in.safetensors", tmp_path / "o.safetensors")
    assert set(load_file(tmp_path / "o.safetensors")) == set(pair())
