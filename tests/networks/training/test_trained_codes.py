"""Training a student whose weights are codes: the codes stay, scales and entries learn, or nothing but the rest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from support.console import compressor
from support.networks import tensors_of

from compressor import api
from compressor.checkpoint.checkpoint import open_checkpoint
from compressor.checkpoint.rows import read_whole
from compressor.core.errors import InputError, UsageError
from compressor.networks.matching import read_network
from compressor.networks.training.loss import loss, soften
from compressor.networks.training.trained_codes import Held

SHAPES = {"fc1.weight": (12, 20), "fc1.bias": (12,), "fc2.weight": (5, 12), "fc2.bias": (5,)}
FORMS: list[dict[str, Any]] = [
    {"bits": 3, "granularity": "channel"},
    {"bits": 3, "group_size": 4},
    {"bits": 3, "group_size": 4, "symmetric": False},
    {"bits": 4, "granularity": "tensor"},
    {"bits": 4, "granularity": "channel"},
    {"bits": 8, "granularity": "channel"},
    {"bits": 3, "granularity": "channel", "signed_scales": True},
    {"bits": 3, "granularity": "channel", "layout": "plain"},
    {"scheme": "codebook", "entries": 5},
    {"scheme": "codebook", "entries": 4, "rows": 3},
]
forms = pytest.mark.parametrize("form", FORMS, ids=str)


@pytest.fixture
def given(tmp_path: Path) -> dict[str, Any]:
    """A teacher and inputs; the student is the teacher quantized, pruned before so that codes of zero are there."""
    tensors = {name: array.astype(np.float32) for name, array in tensors_of(SHAPES, 1).items()}
    save_file(tensors, tmp_path / "teacher.safetensors")
    pruned = {
        name: np.where((np.abs(array) < 0.1) & (array.ndim > 1), 0, array).astype(np.float32)
        for name, array in tensors.items()
    }
    save_file(pruned, tmp_path / "pruned.safetensors")
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(400, 20)).astype(np.float32))
    return {
        "source": tmp_path / "student.safetensors",
        "output": tmp_path / "out.safetensors",
        "teacher": tmp_path / "teacher.safetensors",
        "method": "soft-targets",
        "inputs": tmp_path / "x.npy",
        "batch_size": 40,
        "epochs": 8,
        "learning_rate": 0.01,
        "holdout": 0,
    }


def quantized(given: dict[str, Any], form: dict[str, Any]) -> dict[str, Any]:
    api.quantize(given["source"].parent / "pruned.safetensors", given["source"], **form, force=True)
    return given


def numbers(path: Path) -> dict[str, np.ndarray]:
    return {name: read_whole(tensor) for name, tensor in open_checkpoint(path).tensors.items()}


def divergence(given: dict[str, Any], path: Path) -> float:
    x = np.load(given["inputs"])
    both = [
        read_network(open_checkpoint(one), dtype="<f8").network.forward(x).copy()
        for one in (given["teacher"], path)
    ]
    return loss(both[1], soften(both[0], 4.0, both[0]), 4.0)


@forms
def test_scales_learn_and_codes_stay(given: dict[str, Any], form: dict[str, Any]) -> None:
    quantized(given, form)
    for how in ("fixed", "scales"):
        api.distill(**given, codes=how, force=True)
        before, after = load_file(given["source"]), load_file(given["output"])
        assert before.keys() == after.keys()
        assert {n: (a.dtype, a.shape) for n, a in before.items()} == {
            n: (a.dtype, a.shape) for n, a in after.items()
        }
        same = {name for name in before if np.array_equal(before[name], after[name])}
        scales = {name for name in before if name.endswith(("scale", "codebook"))}
        assert scales
        moved = {"fc1.bias", "fc2.bias"} | (scales if how == "scales" else set())
        # a codebook stays in order, and the codes follow it
        assert before.keys() - same == moved or (form.get("scheme") and moved <= before.keys() - same)
    fixed = divergence(given, given["output"])
    assert fixed < divergence(given, given["source"])
    was, now = numbers(given["source"]), numbers(given["output"])
    for name in ("fc1.weight", "fc2.weight"):
        assert ((was[name] == 0) == (now[name] == 0)).all()


@forms
def test_what_is_restored_is_what_was_trained(given: dict[str, Any], form: dict[str, Any]) -> None:
    """The loss that the run tells is that of its output, as a reader sees it; and equal weights stay equal."""
    report = api.distill(**quantized(given, form), codes="scales")
    (said,) = [note for note in report.plan.notes if "choose alike" in note]
    assert float(said.split("loss ")[1].split(",")[0]) == pytest.approx(
        divergence(given, given["output"]), rel=1e-3
    )
    was, now = numbers(given["source"]), numbers(given["output"])
    if form.get("scheme"):
        size = form.get("rows", 99)
        for first in range(0, 12, size):
            old, new = (one["fc1.weight"][first : first + size].ravel() for one in (was, now))
            for value in np.unique(old):
                assert len(np.unique(new[old == value])) == 1
    else:
        size = form.get("group_size", 20)
        old, new = (one["fc1.weight"].reshape(-1, size) for one in (was, now))
        with np.errstate(all="ignore"):
            ratio = new / old
        spread = np.nanmax(ratio, axis=1) / np.nanmin(ratio, axis=1)
        assert np.nanmax(spread) < 1 + 1e-5
        assert np.nanmin(ratio) > 0


@forms
def test_slopes_of_numbers_are_the_losses(given: dict[str, Any], form: dict[str, Any]) -> None:
    """Against differences of any linear function of the weights, which is what a slope by weights stands for. With
    scales as they are: slopes go past the rounding of those with 16 bits."""
    quantized(given, {**form, "scale_bits": 32} if "bits" in form and form.get("layout") != "plain" else form)
    checkpoint = open_checkpoint(given["source"])
    student = read_network(checkpoint).network
    before = {name: array.copy() for name, array in student.tensors.items()}
    held = Held(student, checkpoint.tensors, "scales")
    for name, array in before.items():
        np.testing.assert_allclose(student.tensors[name], array, rtol=1e-6)
    chance = np.random.default_rng(0)
    gradients = {name: chance.standard_normal(a.shape).astype(np.float32) for name, a in student.parameters.items()}
    slopes = held.slopes(gradients)
    held.gather(gradients, slopes)
    for name, found in held.numbers.items():
        start = np.vdot(gradients[name].astype(np.float64), student.tensors[name])
        for place in range(0, len(found), 3):
            old = found[place]
            found[place] += np.float32(0.5)
            held.spread()
            moved = np.vdot(gradients[name].astype(np.float64), student.tensors[name])
            found[place] = old
            assert slopes[name][place] == pytest.approx((moved - start) / 0.5, rel=1e-3, abs=1e-5)
        held.spread()


@pytest.mark.parametrize("form", [FORMS[0], FORMS[2], FORMS[8], FORMS[9]], ids=str)
@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_other_dtypes(given: dict[str, Any], form: dict[str, Any], dtype: Any) -> None:
    pruned = given["source"].parent / "pruned.safetensors"
    save_file({name: array.astype(dtype) for name, array in load_file(pruned).items()}, pruned)
    api.distill(**quantized(given, form), codes="scales")
    before, after = load_file(given["source"]), load_file(given["output"])
    assert {n: (a.dtype, a.shape) for n, a in before.items()} == {n: (a.dtype, a.shape) for n, a in after.items()}
    assert divergence(given, given["output"]) < divergence(given, given["source"])


def test_workers_change_no_byte(given: dict[str, Any]) -> None:
    quantized(given, FORMS[0])
    found = set()
    for workers in (1, 2):
        api.distill(**given, codes="scales", workers=workers, force=True)
        found.add(given["output"].read_bytes())
    assert len(found) == 1


def test_a_scale_keeps_its_sign(given: dict[str, Any]) -> None:
    """However far it is driven: a row that should be turned round keeps a trace of itself."""
    tensors = load_file(given["teacher"])
    quantized(given, {"bits": 4, "granularity": "tensor"})
    save_file(
        {name: -array if name == "fc2.weight" else array for name, array in tensors.items()}, given["teacher"]
    )
    api.distill(**{**given, "learning_rate": 0.5}, codes="scales")
    after = load_file(given["output"])
    (scale,) = [array for name, array in after.items() if name.startswith("fc2") and name.endswith("scale")]
    assert 0 < scale[0] < 0.01 * np.abs(tensors["fc2.weight"]).max()


def test_the_best_state_has_its_numbers(given: dict[str, Any]) -> None:
    """Training that only gets worse, judged by held-out inputs: what is kept is all of one epoch."""
    quantized(given, FORMS[0])
    report = api.distill(**{**given, "holdout": 0.5, "learning_rate": 0.3}, codes="scales")
    (said,) = [note for note in report.plan.notes if "choose alike" in note]
    rows = np.sort(np.random.default_rng(0).permutation(400)[:200])
    np.save(given["inputs"], np.load(given["inputs"])[rows])
    assert float(said.split("loss ")[1].split(",")[0]) == pytest.approx(
        divergence(given, given["output"]), rel=1e-3
    )


def test_biases_that_are_codes_stay_too(given: dict[str, Any]) -> None:
    quantized(given, {"bits": 8, "granularity": "tensor", "include": ["*.bias"]})
    api.distill(**given, codes="scales")
    before, after = load_file(given["source"]), load_file(given["output"])
    assert np.array_equal(before["fc1.bias.codes"], after["fc1.bias.codes"])
    assert not np.array_equal(before["fc1.bias.scale"], after["fc1.bias.scale"])
    assert not np.array_equal(before["fc1.weight"], after["fc1.weight"])


def test_a_folder_that_loaders_take_stays_one(given: dict[str, Any], tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    save_file(load_file(given["teacher"]), folder / "model.safetensors")
    (folder / "config.json").write_text("{}")
    api.quantize(folder, tmp_path / "packed", bits=8, granularity="channel")
    api.distill(**{**given, "source": tmp_path / "packed", "output": tmp_path / "out"}, codes="scales")
    one, other = (json.loads((tmp_path / name / "config.json").read_text()) for name in ("packed", "out"))
    assert one["quantization_config"] == other["quantization_config"]
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("packed", "out"))
    assert np.array_equal(before["fc1.weight"], after["fc1.weight"])
    assert after["fc1.weight"].dtype == np.int8
    assert not np.array_equal(before["fc1.weight_scale"], after["fc1.weight_scale"])


def test_a_dry_run_tells_the_size(given: dict[str, Any]) -> None:
    quantized(given, FORMS[1])
    size = api.distill(**given, codes="scales", dry_run=True).plan.size_after
    api.distill(**given, codes="scales")
    assert given["output"].stat().st_size == size


def test_other_codes_can_only_be_fixed(given: dict[str, Any]) -> None:
    quantized(given, {"scheme": "binary"})
    with pytest.raises(UsageError, match="cannot be trained"):
        api.distill(**given, codes="scales")
    assert not given["output"].exists()
    api.distill(**given, codes="fixed")
    assert np.array_equal(
        load_file(given["source"])["fc1.weight.codes"], load_file(given["output"])["fc1.weight.codes"]
    )


@pytest.mark.parametrize("options", [{"tie": "shared"}, {"init": "random"}, {"sparsity": 0.5}], ids=str)
def test_what_would_part_weights_from_codes_is_refused(given: dict[str, Any], options: dict[str, Any]) -> None:
    quantized(given, FORMS[0])
    with pytest.raises(UsageError, match="codes"):
        api.distill(**given, codes="fixed", **options)


def test_a_student_without_codes_is_refused(given: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="no weights of the network as codes"):
        api.distill(**{**given, "source": given["teacher"].with_name("pruned.safetensors")}, codes="fixed")


def test_the_command(given: dict[str, Any]) -> None:
    quantized(given, FORMS[0])
    arguments = ["--teacher", given["teacher"], "--method", "soft-targets", "--inputs", given["inputs"]]
    done = compressor("distill", given["source"], "-o", given["output"], *arguments, "--codes", "scales")
    assert done.code == 0, done.err
    assert "int3" in done.out
