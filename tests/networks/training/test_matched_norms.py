"""Batch norms and biases matched with a teacher's: what it gains, what stays, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from safetensors.numpy import load_file, save_file
from support.known_networks import tensors_of_known
from support.networks import NETWORKS, tensors_of

from compressor import api
from compressor.checkpoint.checkpoint import open_checkpoint
from compressor.core.errors import InputError, UsageError
from compressor.networks.matching import read_network
from compressor.recipe.toml_file import effective, parse_recipe

Array = npt.NDArray[np.float32]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network of residual blocks, the same at 4 bits, and inputs of 48 pictures and of 40 others."""
    place = tmp_path_factory.mktemp("pair")
    save_file(tensors_of_known("resnet18"), place / "teacher.safetensors")
    api.quantize(place / "teacher.safetensors", place / "student.safetensors", bits=3, granularity="channel")
    random = np.random.default_rng(3)
    for name, count in (("x", 48), ("others", 40)):
        waves = np.kron(random.normal(size=(count, 3, 7, 7)), np.ones((32, 32)))
        np.save(place / f"{name}.npy", (waves + random.normal(size=(count, 3, 224, 224))).astype(np.float32))
    return place


def outputs(path: Path, x: Array) -> Array:
    made = read_network(open_checkpoint(path)).network
    step = made.batch
    return np.concatenate([made.forward(x[at : at + step]).copy() for at in range(0, len(x), step)])


def missed(place: Path, student: Path) -> float:
    x = np.load(place / "others.npy")
    wanted = outputs(place / "teacher.safetensors", x)
    return float(np.linalg.norm(outputs(student, x) - wanted) / np.linalg.norm(wanted))


def test_other_inputs_come_nearer_to_the_teacher_and_codes_stay(pair: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    report = api.distill(
        pair / "student.safetensors",
        out,
        teacher=pair / "teacher.safetensors",
        method="batch-norm",
        inputs=pair / "x.npy",
    )
    assert missed(pair, out) < 0.7 * missed(pair, pair / "student.safetensors")
    assert any("inputs held out" in note for note in report.plan.notes)
    before, after = load_file(pair / "student.safetensors"), load_file(out)
    assert before.keys() == after.keys()
    moved = {name for name in before if not np.array_equal(before[name], after[name])}
    assert moved == {name for name in before if "running_" in name or name == "fc.bias"}


def test_a_recipe_quantizes_and_matches_with_what_it_began_with(pair: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "r.toml"
    recipe.write_text(
        '[[stage]]\nkind = "quantize"\nbits = 3\ngranularity = "channel"\n'
        '[[stage]]\nkind = "distill"\nmethod = "batch-norm"\n'
    )
    out = tmp_path / "out.safetensors"
    api.pipeline(pair / "teacher.safetensors", out, recipe=recipe, inputs=pair / "x.npy")
    once = tmp_path / "once.safetensors"
    api.distill(
        pair / "student.safetensors",
        once,
        teacher=pair / "teacher.safetensors",
        method="batch-norm",
        inputs=pair / "x.npy",
    )
    for name, array in load_file(once).items():
        np.testing.assert_array_equal(load_file(out)[name], array)


def test_without_a_change_there_is_nothing_to_gain(pair: Path, tmp_path: Path) -> None:
    teacher, out = pair / "teacher.safetensors", tmp_path / "o.safetensors"
    with pytest.raises(InputError, match="no better with its norms matched"):
        api.distill(teacher, out, teacher=teacher, method="batch-norm", inputs=pair / "x.npy")
    assert not out.exists()


def test_layers_with_a_bias_are_corrected_where_there_are_no_norms(tmp_path: Path) -> None:
    text, shapes = NETWORKS["dense"]
    tensors = tensors_of(shapes)
    (tmp_path / "n.toml").write_text(text)
    save_file(tensors, tmp_path / "t.safetensors")
    save_file({name: np.where(array > 0, array, 0) for name, array in tensors.items()}, tmp_path / "s.safetensors")
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(1, 1, (50, 7)).astype(np.float32))
    options = {"teacher": tmp_path / "t.safetensors", "method": "batch-norm", "network": tmp_path / "n.toml"}
    api.distill(tmp_path / "s.safetensors", tmp_path / "o.safetensors", inputs=tmp_path / "x.npy", **options)
    before, after = load_file(tmp_path / "s.safetensors"), load_file(tmp_path / "o.safetensors")
    assert {name for name in before if not np.array_equal(before[name], after[name])} == {"a.bias", "c.bias"}


NORMAL = np.random.default_rng(1).normal(size=(1000, 2, 24, 24)).astype(np.float32)
BETWEEN = """input = [2, 24, 24]
[[layer]]
kind = "batch-norm"
name = "first"
[[layer]]
kind = "relu6"
output = "stream"
[[layer]]
kind = "conv2d"
name = "wide"
padding = "same"
bias = false
[[layer]]
kind = "batch-norm"
name = "second"
[[layer]]
kind = "add"
other = "stream"
[[layer]]
kind = "average-pool"
[[layer]]
kind = "flatten"
[[layer]]
kind = "dense"
name = "last"
"""


def between_norms(place: Path) -> tuple[Path, Path]:
    """A network of which every layer with weights follows a norm, and one of other weights."""
    random = np.random.default_rng(7)
    (place / "n.toml").write_text(BETWEEN)
    tensors = {
        "first.running_mean": np.zeros(2),
        "first.running_var": np.ones(2),
        "first.weight": np.array([1.5, 3.0]),
        "first.bias": np.array([0.5, 3.0]),
        "wide.weight": random.normal(size=(2, 2, 3, 3)),
        "second.running_mean": random.normal(size=2),
        "second.running_var": np.array([4.0, 9.0]),
        "second.weight": np.array([1.0, 2.0]),
        "second.bias": np.array([0.1, -0.2]),
        "last.weight": random.normal(size=(3, 2)),
        "last.bias": random.normal(size=3),
    }
    path = place / "t.safetensors"
    save_file({name: np.asarray(array, np.float32) for name, array in tensors.items()}, path)
    made = read_network(open_checkpoint(path), str(place / "n.toml")).network
    for number, layer, given, give in made.in_order(NORMAL[:500]):
        if number == 3:  # the second norm, which knows what it is given
            tensors |= {"second.running_mean": given.mean(axis=(0, 1, 2))}
            tensors |= {"second.running_var": given.var(axis=(0, 1, 2))}
            break
        give(layer.forward(given))
    others = {
        name: array + 0.3 * random.normal(size=array.shape) if array.ndim > 1 else array
        for name, array in tensors.items()
    }
    (place / "n.toml").write_text(BETWEEN)
    for name, made in (("t", tensors), ("s", others)):
        save_file(
            {key: np.asarray(array, np.float32) for key, array in made.items()}, place / f"{name}.safetensors"
        )
    return place / "t.safetensors", place / "s.safetensors"


def test_without_inputs_the_means_are_those_that_normal_inputs_give(tmp_path: Path) -> None:
    teacher, student = between_norms(tmp_path)
    out = tmp_path / "o.safetensors"
    report = api.distill(
        student, out, teacher=teacher, method="batch-norm", network=tmp_path / "n.toml", force=True
    )
    assert any("2 of 3 norms and biases" in note for note in report.plan.notes)
    before, after = load_file(student), load_file(out)
    moved = {name for name in before if not np.array_equal(before[name], after[name])}
    assert moved == {"second.running_mean", "last.bias"}
    answers = []
    for path in (teacher, student, out):
        made = read_network(open_checkpoint(path), str(tmp_path / "n.toml")).network
        answers.append(np.concatenate([made.forward(NORMAL[at : at + 100]).copy() for at in range(0, 1000, 100)]))
    wanted, was, found = (given.mean(axis=0) for given in answers)
    assert np.abs(found - wanted).max() < 0.02 * np.abs(was - wanted).max()


def test_without_inputs_a_recipe_needs_none_either(pair: Path, tmp_path: Path) -> None:
    recipe, out = tmp_path / "r.toml", tmp_path / "out.safetensors"
    recipe.write_text(
        '[[stage]]\nkind = "quantize"\nbits = 3\ngranularity = "channel"\n'
        '[[stage]]\nkind = "distill"\nmethod = "batch-norm"\n'
    )
    api.pipeline(pair / "teacher.safetensors", out, recipe=recipe)
    assert missed(pair, out) < missed(pair, pair / "student.safetensors")
    before, after = load_file(pair / "student.safetensors"), load_file(out)
    moved = {name for name in before if not np.array_equal(before[name], after[name])}
    assert moved <= {name for name in before if "running_mean" in name or name == "fc.bias"}
    assert "bn1.running_mean" not in moved  # no norm is before it


def test_what_comes_of_an_archive_is_coded_again(pair: Path, tmp_path: Path) -> None:
    coded, better, again = (tmp_path / f"{name}.safetensors" for name in ("coded", "better", "again"))
    teacher = pair / "teacher.safetensors"
    api.quantize(teacher, coded, target_bits=4, store="archive")
    api.distill(coded, better, teacher=teacher, method="batch-norm")
    api.pipeline(better, again, store="archive")
    assert again.stat().st_size < better.stat().st_size
    assert missed(pair, again) == missed(pair, better) < missed(pair, coded)


def test_what_no_norm_is_before_cannot_be_corrected_without_inputs(tmp_path: Path) -> None:
    text, shapes = NETWORKS["dense"]
    (tmp_path / "n.toml").write_text(text)
    save_file(tensors_of(shapes), tmp_path / "t.safetensors")
    options = {"teacher": tmp_path / "t.safetensors", "method": "batch-norm", "network": tmp_path / "n.toml"}
    with pytest.raises(InputError, match="without any given"):
        api.distill(tmp_path / "t.safetensors", tmp_path / "o.safetensors", **options)


def test_wrong_options_are_refused(pair: Path, tmp_path: Path) -> None:
    student, out = pair / "student.safetensors", tmp_path / "o.safetensors"
    with pytest.raises(UsageError, match="needs a teacher"):
        api.distill(student, out, method="batch-norm", inputs=pair / "x.npy")
    with pytest.raises(UsageError, match="epochs"):
        api.distill(student, out, method="batch-norm", teacher=student, inputs=pair / "x.npy", epochs=3)
    save_file({**tensors_of_known("resnet18"), "fc.bias": np.zeros(4, np.float32)}, tmp_path / "t.safetensors")
    with pytest.raises(InputError, match=r"fc\.bias"):
        api.distill(student, out, method="batch-norm", teacher=tmp_path / "t.safetensors", inputs=pair / "x.npy")
    assert not out.exists()


def test_its_stage_is_written_as_it_is_read() -> None:
    text = '[[stage]]\nkind = "distill"\nmethod = "batch-norm"\ninputs = "x.npy"\ndivide = 255.0\n'
    recipe = parse_recipe(text, "here")
    assert parse_recipe(effective(recipe), "there") == recipe
