"""`compare --inputs`: what networks that run in NumPy lost, against a plain computation; and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from support.console import STUDENT, TEACHER, compressor

from compressor import api
from compressor.core.errors import InputError, UsageError
from compressor.recipe.loss_gates import LossGates


@pytest.fixture
def files(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    np.save(tmp_path / "x.npy", random.integers(0, 256, (1500, 28, 28)).astype(np.uint8))
    np.save(tmp_path / "y.npy", random.integers(0, 10, 1500))
    return tmp_path


def outputs(x: np.ndarray, path: Path) -> np.ndarray:
    """A LeNet-300-100's, in float64."""
    tensors = {name: array.astype(np.float64) for name, array in load_file(path).items()}
    rows = x.reshape(len(x), -1) / 255
    for name in ("fc1", "fc2", "fc3"):
        rows = (np.maximum(rows, 0) if name != "fc1" else rows) @ tensors[f"{name}.weight"].T + tensors[
            f"{name}.bias"
        ]
    return rows


def test_the_figures_are_those_of_a_plain_computation(files: Path) -> None:
    x, labels = np.load(files / "x.npy"), np.load(files / "y.npy")
    loss = api.compare(TEACHER, STUDENT, inputs=files / "x.npy", labels=files / "y.npy").loss
    assert loss is not None
    found = loss.outputs
    a, b = outputs(x, TEACHER), outputs(x, STUDENT)
    p, q = (np.exp(rows) / np.exp(rows).sum(1, keepdims=True) for rows in (a, b))
    values = np.sort((p * np.log(p / q)).sum(1))
    assert found.kld == pytest.approx(values.mean(), rel=1e-4)
    assert found.kld_999 == pytest.approx(values[1498], rel=1e-4)  # 1499 of 1500 do not exceed it
    assert found.agreement == pytest.approx((a.argmax(1) == b.argmax(1)).mean(), abs=0.002)
    assert found.accuracy == pytest.approx([(rows.argmax(1) == labels).mean() for rows in (a, b)], abs=0.002)
    assert found.error == pytest.approx(np.linalg.norm(b - a) / np.linalg.norm(a), rel=1e-4)
    same = api.compare(TEACHER, TEACHER, inputs=files / "x.npy").loss
    assert same is not None
    assert (same.outputs.kld, same.outputs.agreement, same.outputs.error) == (0, 1, 0)


def test_gates_and_the_report(files: Path) -> None:
    how = ("compare", TEACHER, STUDENT, "--inputs", files / "x.npy")
    done = compressor(*how, "--max-kld", "1e-6", "--format", "json")
    assert done.code == 1
    assert "--max-kld 1e-06: it is" in done.err
    said = json.loads(done.out)
    assert said["loss"]["count"] == 1500
    assert said["failed_gates"][0].startswith("--max-kld")
    assert compressor(*how, "--max-kld", "100", "--min-agreement", "0").code == 0
    done = compressor(*how, "--max-perplexity-ratio", "1.1")
    assert (done.code, "such a model has no perplexity" in done.err) == (2, True)


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"tokens": "x.npy"}, "two inputs"),
    ({"samples": 3}, "--samples is for --text and --tokens, not for --inputs"),
    ({"max_error": 0.1}, "--max-error is of tensors"),
    ({"labels": "x.npy"}, "whole numbers \\[1500\\] belong"),
    ({"labels": "few.npy"}, "whole numbers \\[1500\\] belong"),
    ({"labels": "high.npy"}, "labels from 10 to 10, where the networks tell 10 classes"),
    ({"inputs": "few.npy"}, "belongs"),
    ({"inputs": "wide.npy"}, "the network takes \\[784\\]"),
]


@pytest.mark.parametrize(("more", "said"), REFUSED)
def test_what_is_refused(more: dict[str, Any], said: str, files: Path) -> None:
    np.save(files / "few.npy", np.zeros(3, np.int64))
    np.save(files / "high.npy", np.full(1500, 10))
    np.save(files / "wide.npy", np.zeros((3, 30, 30), np.float32))
    more = {key: files / value if isinstance(value, str) else value for key, value in more.items()}
    with pytest.raises((InputError, UsageError), match=said):
        api.compare(TEACHER, STUDENT, **{"inputs": files / "x.npy", **more})


def test_outputs_that_are_none(files: Path) -> None:
    tensors = load_file(TEACHER)
    save_file({name: array * np.float32(1e30) for name, array in tensors.items()}, files / "huge.safetensors")
    with pytest.raises(InputError, match=r"huge\.safetensors: computes NaN or infinite outputs"):
        api.compare(TEACHER, files / "huge.safetensors", inputs=files / "x.npy")


def test_gates_of_outputs_need_something_to_run() -> None:
    with pytest.raises(UsageError, match=r"--max-kld is of outputs\. Give --text"):
        api.compare(TEACHER, STUDENT, max_kld=0.1)
    with pytest.raises(UsageError, match="--labels is for --inputs, and none is given"):
        api.compare(TEACHER, STUDENT, labels=TEACHER)


def test_a_search_that_could_measure_nothing_writes_nothing(files: Path, tmp_path: Path) -> None:
    """Also no log, which would stand in the way of the next search."""
    before = set(tmp_path.iterdir())
    done = compressor(
        *("tune", TEACHER, "-o", tmp_path / "o.safetensors", "--inputs", files / "x.npy", "--min-cosine", "0.5")
    )
    assert done.code == 2
    assert "--min-cosine: such a model has no embedding" in done.err
    assert set(tmp_path.iterdir()) == before


def test_a_gate_that_is_missed_by_little_says_by_how_much() -> None:
    assert LossGates(min_cosine=0.9999999).failures({"min_cosine": 0.99999985}) == [
        "--min-cosine 0.9999999: it is 0.99999985"
    ]
    assert LossGates(max_kld=0.01).failures({"max_kld": 1 / 3}) == ["--max-kld 0.01: it is 0.3333"]
