"""A student with tensors that its teacher lacks: refused where they would be treated, else said; every method."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import compressor
from compressor.core.errors import InputError

TEACHER = Path(__file__).parents[3] / "sample_weights" / "lenet300_teacher.safetensors"
METHODS: dict[str, dict[str, Any]] = {
    "blend": {},
    "reweight": {},
    "residual": {"rank": 2},
    "refit": {"stats": True},
    "soft-targets": {"inputs": True, "epochs": 1},
    "refit in order": {"inputs": True, "sequential": True},
}


@pytest.fixture
def given(tmp_path: Path) -> dict[str, Any]:
    inputs, stats = tmp_path / "inputs.npy", tmp_path / "stats.safetensors"
    np.save(inputs, np.random.default_rng(0).random((40, 784), np.float32))
    compressor.calibrate(TEACHER, stats, inputs=inputs)
    return {"inputs": inputs, "stats": stats}


def distilled(method: str, student: Path, teacher: Path, given: dict[str, Any]) -> compressor.Report:
    asked = {key: given[key] if value is True and key in given else value for key, value in METHODS[method].items()}
    output = student.parent / ("adapter" if method == "residual" else "out.safetensors")
    return compressor.distill(student, output, teacher=teacher, method=method.split()[0], dry_run=True, **asked)


@pytest.mark.parametrize("method", METHODS)
def test_a_matrix_that_the_teacher_lacks_is_refused(method: str, given: dict[str, Any], tmp_path: Path) -> None:
    student = tmp_path / "student.safetensors"
    save_file({**load_file(TEACHER), "extra.weight": np.ones((10, 10), np.float32)}, student)
    with pytest.raises(InputError, match=r"extra|no network|another model"):
        distilled(method, student, TEACHER, given)


@pytest.mark.parametrize("method", METHODS)
def test_a_vector_that_the_teacher_lacks_is_said(method: str, given: dict[str, Any], tmp_path: Path) -> None:
    teacher = tmp_path / "teacher.safetensors"
    tensors = load_file(TEACHER)
    save_file({name: values for name, values in tensors.items() if name != "fc2.bias"}, teacher)
    student = tmp_path / "student.safetensors"
    save_file({name: values * np.float32(0.9) for name, values in tensors.items()}, student)
    if method.startswith("refit"):  # which treats biases
        with pytest.raises(InputError, match=r"fc2\.bias"):
            distilled(method, student, teacher, given)
        return
    said = {
        "soft-targets": "network: lenet300 .*; the teacher's: lenet300",  # trained as a whole, of any structure
    }.get(
        method, r"teacher is of another structure: it has no fc2\.bias of that shape, which stays as in the student"
    )
    notes = "\n".join(distilled(method, student, teacher, given).plan.notes)
    assert re.search(said, notes)
    both = "\n".join(distilled(method, student, TEACHER, given).plan.notes)
    assert "of another structure" not in both
