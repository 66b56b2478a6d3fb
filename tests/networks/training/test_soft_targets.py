"""Training a student on its teacher's softened outputs: the loss, what is kept, what is refused."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from support.console import STUDENT, TEACHER, compressor
from support.networks import tensors_of, toml

from compressor import api
from compressor.checkpoint.checkpoint import open_checkpoint
from compressor.core import kernels
from compressor.core.errors import CompressorError, InputError, UsageError
from compressor.core.workspace import Workspace
from compressor.networks.matching import read_network
from compressor.networks.training.adam import Adam
from compressor.networks.training.batches import Batches, bordered
from compressor.networks.training.best_state import BestState
from compressor.networks.training.gradual_pruning import Gradual, lamp_scores
from compressor.networks.training.loss import add_labels, cross, loss, slope, soften
from compressor.recipe.toml_file import parse_recipe

BIG = {"fc1.weight": (16, 6), "fc1.bias": (16,), "fc2.weight": (4, 16), "fc2.bias": (4,)}
SMALL = {"fc1.weight": (7, 6), "fc1.bias": (7,), "fc2.weight": (4, 7), "fc2.bias": (4,)}


def save(path: Path, shapes: dict[str, tuple[int, ...]], seed: int = 0, dtype: Any = np.float32) -> Path:
    save_file({name: array.astype(dtype) for name, array in tensors_of(shapes, seed).items()}, path)
    return path


@pytest.fixture
def pair(tmp_path: Path) -> dict[str, Any]:
    """A small student, a larger teacher and inputs."""
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(300, 6)).astype(np.float32))
    return {
        "source": save(tmp_path / "student.safetensors", SMALL, 1),
        "output": tmp_path / "out.safetensors",
        "teacher": save(tmp_path / "teacher.safetensors", BIG, 2),
        "method": "soft-targets",
        "inputs": tmp_path / "x.npy",
        "batch_size": 32,
        "epochs": 12,
        "learning_rate": 0.01,
    }


def outputs(path: Path, x: np.ndarray) -> np.ndarray:
    return read_network(open_checkpoint(path), dtype="<f8").network.forward(x.reshape(len(x), -1)).copy()


def divergence(pair: dict[str, Any], path: Path) -> float:
    x = np.load(pair["inputs"])
    wanted = outputs(pair["teacher"], x)
    return loss(outputs(path, x), soften(wanted, 4.0, wanted), 4.0)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0, 50.0])
def test_the_slope_is_the_losses(temperature: float) -> None:
    rng = np.random.default_rng(3)
    student, teacher = rng.normal(size=(5, 7)) * 3, rng.normal(size=(5, 7)) * 3
    wanted = soften(teacher, temperature, np.empty_like(teacher))
    found = slope(student, wanted, temperature, len(student), np.empty_like(student))
    for place in np.ndindex(student.shape):
        moved = []
        for step in (1e-5, -1e-5):
            other = student.copy()
            other[place] += step
            moved.append(loss(other, wanted, temperature))
        assert found[place] == pytest.approx((moved[0] - moved[1]) / 2e-5, rel=1e-4, abs=1e-7)
    assert loss(teacher, wanted, temperature) == pytest.approx(0, abs=1e-9)
    assert np.isnan(loss(np.full_like(student, np.inf), wanted, temperature))
    assert loss(student, wanted, temperature) > 0


def test_the_loss_is_that_of_the_formula() -> None:
    rng = np.random.default_rng(4)
    student, teacher, tau = rng.normal(size=(6, 3)), rng.normal(size=(6, 3)), 2.5

    def softmax(z: np.ndarray) -> np.ndarray:
        return np.exp(z) / np.exp(z).sum(1, keepdims=True)

    p, q = softmax(teacher / tau), softmax(student / tau)
    wanted = soften(teacher, tau, np.empty_like(teacher))
    np.testing.assert_allclose(wanted, p)
    assert loss(student, wanted, tau) == pytest.approx(tau**2 * (p * np.log(p / q)).sum() / 6)


def test_large_outputs_do_not_overflow() -> None:
    student = np.array([[3e38, -3e38, 0]], np.float32)
    found = soften(student.astype(np.float64), 1.0, np.empty((1, 3)))
    np.testing.assert_array_equal(found, [[1, 0, 0]])


def test_adam_is_the_papers() -> None:
    rng = np.random.default_rng(5)
    weight = rng.normal(size=(3, 4)).astype(np.float32)
    plain, first, second = weight.astype(np.float64), np.zeros((3, 4)), np.zeros((3, 4))
    gradients = {"w": np.empty_like(weight)}
    adam = Adam({"w": weight}, [gradients], {})
    for step in range(1, 20):
        g = rng.normal(size=(3, 4))
        gradients["w"][...] = g
        adam.begin(0.01)
        adam.update(0)
        first, second = 0.9 * first + 0.1 * g, 0.999 * second + 0.001 * g * g
        plain -= 0.01 * (first / (1 - 0.9**step)) / (np.sqrt(second / (1 - 0.999**step)) + 1e-8)
    np.testing.assert_allclose(weight, plain, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("init", ["student", "random"])
def test_the_student_comes_nearer(pair: dict[str, Any], init: str) -> None:
    before = divergence(pair, pair["source"])
    report = api.distill(**pair, init=init)
    assert divergence(pair, pair["output"]) < before / 2
    assert {name: array.shape for name, array in load_file(pair["output"]).items()} == SMALL
    assert any("held out" in note for note in report.plan.notes)
    stage = report.plan.stages[0]
    assert (stage["kind"], stage["method"], stage["temperature"]) == ("distill", "soft-targets", 4.0)
    assert str(pair["teacher"].parent) not in pair["output"].read_bytes().decode("latin1")


def test_a_student_that_is_its_teacher_stays(pair: dict[str, Any]) -> None:
    api.distill(**{**pair, "source": pair["teacher"], "learning_rate": 1e-6, "epochs": 1})
    assert divergence(pair, pair["output"]) < 1e-6


@pytest.mark.parametrize("init", ["student", "random"])
def test_zeros_stay_unless_they_may_be_filled(pair: dict[str, Any], init: str, tmp_path: Path) -> None:
    pruned = tmp_path / "pruned.safetensors"
    api.prune(pair["source"], pruned, method="magnitude", sparsity=0.6, include=["*.weight"])
    pair |= {"source": pruned, "init": init}
    before = load_file(pruned)
    api.distill(**pair)
    after = load_file(pair["output"])
    for name in ("fc1.weight", "fc2.weight"):
        assert (before[name] == 0).any()
        np.testing.assert_array_equal(after[name] == 0, before[name] == 0)
    assert not np.array_equal(after["fc1.bias"], before["fc1.bias"])
    api.distill(**pair, respect_zeros=False, force=True)
    filled = load_file(pair["output"])["fc1.weight"]  # but for neurons that never fire
    assert (filled == 0).sum() < (before["fc1.weight"] == 0).sum() / 2


def test_the_same_seed_gives_the_same_bytes(pair: dict[str, Any]) -> None:
    found = set()
    for seed in (0, 0, 1):
        api.distill(**pair, seed=seed, init="random", force=True)
        array = load_file(pair["output"])["fc1.weight"]
        found.add(array.tobytes())
    assert len(found) == 2


@pytest.mark.parametrize("options", [{"holdout": 0}, {"batch_size": 1000}, {"epochs": 1, "batch_size": 7}])
def test_odd_sizes(pair: dict[str, Any], options: dict[str, Any]) -> None:
    before = divergence(pair, pair["source"])
    api.distill(**{**pair, **options})
    assert divergence(pair, pair["output"]) < before


def test_one_sample(pair: dict[str, Any]) -> None:
    np.save(pair["inputs"], np.ones((1, 6), np.float32))
    api.distill(**pair)
    assert pair["output"].exists()


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_dtypes_stay(pair: dict[str, Any], dtype: Any) -> None:
    save(pair["source"], SMALL, 1, dtype)
    before = divergence(pair, pair["source"])
    api.distill(**pair)
    assert {array.dtype for array in load_file(pair["output"]).values()} == {np.dtype(dtype)}
    assert divergence(pair, pair["output"]) < before / 2


def test_a_packed_student_becomes_floats(pair: dict[str, Any], tmp_path: Path) -> None:
    packed = tmp_path / "packed.safetensors"
    api.quantize(pair["source"], packed, bits=8, granularity="channel")
    api.distill(**{**pair, "source": packed})
    assert {name: array.shape for name, array in load_file(pair["output"]).items()} == SMALL
    assert divergence(pair, pair["output"]) < divergence(pair, pair["source"]) / 2


def test_convolutions_norms_and_a_softmax_at_the_end(pair: dict[str, Any], tmp_path: Path) -> None:
    text = toml(
        "[1, 6, 6]",
        'conv2d name="a"',
        'batch-norm name="n"',
        "relu",
        "max-pool size=2",
        "flatten",
        'dense name="b"',
        "softmax",
    )
    norm = {"n.weight": (3,), "n.bias": (3,), "n.running_mean": (3,), "n.running_var": (3,)}
    shapes = {"a.weight": (3, 1, 3, 3), **norm, "b.weight": (4, 12), "b.bias": (4,)}
    (tmp_path / "net.toml").write_text(text)
    save(pair["source"], shapes, 3)
    save(pair["teacher"], shapes, 4)
    np.save(pair["inputs"], np.random.default_rng(1).normal(size=(200, 6, 6)))
    for init in ("student", "random"):
        api.distill(**pair, network=str(tmp_path / "net.toml"), init=init, force=True)
        after = load_file(pair["output"])
        assert not np.array_equal(after["n.running_mean"], load_file(pair["source"])["n.running_mean"])
        assert all(np.isfinite(array).all() for array in after.values())


def test_bytes_are_divided_as_the_network_says(tmp_path: Path) -> None:
    x = np.random.default_rng(0).integers(0, 256, (100, 28, 28)).astype(np.uint8)
    found = []
    for name, array in (("u8", x), ("f32", (x * np.float32(1 / np.float32(255))).astype(np.float32))):
        np.save(tmp_path / "x.npy", array)
        out = tmp_path / f"{name}.safetensors"
        arguments = [
            "--teacher",
            TEACHER,
            "--method",
            "soft-targets",
            "--inputs",
            tmp_path / "x.npy",
            "--epochs",
            1,
        ]
        done = compressor("distill", STUDENT, "-o", out, *arguments)
        assert done.code == 0, done.err
        found.append(load_file(out))
    for name in found[0]:
        np.testing.assert_allclose(found[0][name], found[1][name], atol=1e-6)


def test_a_dry_run_writes_nothing_and_says_what_is_needed(pair: dict[str, Any]) -> None:
    report = api.distill(**pair, dry_run=True)
    assert not pair["output"].exists()
    assert any("in memory: about" in note for note in report.plan.notes)
    assert not any("choose alike" in note for note in report.plan.notes)


def test_one_worker_or_more_give_the_same_bytes(pair: dict[str, Any]) -> None:
    found = set()
    for workers in (1, 2, 3):
        api.distill(**pair, workers=workers, force=True)
        found.add(load_file(pair["output"])["fc1.weight"].tobytes())
    assert len(found) == 1


@pytest.mark.parametrize("keep", [False, True])
def test_adams_kernel_and_numpy_give_the_same_bits(keep: bool) -> None:
    rng = np.random.default_rng(6)
    shapes = {"w": (130, 151), "b": (7,)}
    found = []
    masks = {"w": (rng.random((130, 151)) > 0.5).astype(np.float32)} if keep else {}
    starts = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    slopes = [[{n: rng.normal(size=s) * 10.0**-k for n, s in shapes.items()} for _ in range(2)] for k in range(12)]
    for switch in ("0", "1"):
        with mock.patch.dict("os.environ", {"COMPRESSOR_KERNELS": switch}):
            kernels.library.cache_clear()
            weights = {name: array.copy() for name, array in starts.items()}
            gradients = [{name: np.empty(shape, np.float32) for name, shape in shapes.items()} for _ in range(2)]
            adam = Adam(weights, gradients, masks)
            for step in slopes:
                for held, given in zip(gradients, step, strict=True):
                    for name, array in given.items():
                        held[name][...] = array
                adam.begin(0.01)
                adam.update(1)
                adam.update(0)
            found.append(b"".join(array.tobytes() for array in weights.values()))
    kernels.library.cache_clear()
    assert found[0] == found[1]


def test_images_are_moved(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, 2 * 4 * 3)).astype(np.uint8)
    batches = Batches(bordered(images, (2, 4, 3), 2), 255.0, 2)
    work, rows = Workspace(), np.array([3, 0])
    np.testing.assert_array_equal(batches.take(rows, work), images[rows] * np.float32(1 / 255))
    moved = batches.take(rows, work, np.array([[2, 2], [4, 1]])).reshape(2, 2, 4, 3).copy()
    np.testing.assert_array_equal(moved[0].reshape(-1), images[3] * np.float32(1 / 255))
    first = images[0].reshape(2, 4, 3) * np.float32(1 / 255)  # up by 2 rows, right by 1 column, borders repeated
    np.testing.assert_array_equal(moved[1], first[:, [2, 3, 3, 3]][:, :, [0, 0, 1]])


def test_shifts_need_images(pair: dict[str, Any]) -> None:
    refused(pair, InputError, "holds no images that could be shifted", shift=1)


def test_a_network_of_images_is_trained_on_moved_ones(pair: dict[str, Any], tmp_path: Path) -> None:
    np.save(pair["inputs"], np.random.default_rng(0).normal(size=(300, 2, 3)).astype(np.float32))
    before = divergence(pair, pair["source"])
    api.distill(**pair, shift=1)
    assert divergence(pair, pair["output"]) < before / 2


@pytest.mark.parametrize("sparsity", [0.0, 0.6, 0.9])
def test_pruning_while_training(pair: dict[str, Any], sparsity: float) -> None:
    pair |= {"source": pair["teacher"]}
    api.distill(**pair, sparsity=sparsity)
    weights = {name: array for name, array in load_file(pair["output"]).items() if array.ndim > 1}
    size = sum(array.size for array in weights.values())
    assert sum(int((array == 0).sum()) for array in weights.values()) == round(sparsity * size)
    trained = divergence(pair, pair["output"])
    if sparsity == 0.6:
        api.prune(pair["source"], pair["output"], method="magnitude", scope="global", sparsity=sparsity, force=True)
        assert trained < divergence(pair, pair["output"]) / 2


def test_pruning_goes_by_magnitude_of_all_matrices() -> None:
    weights = {"a": np.array([[5.0, -1, 0]], np.float32), "b": np.array([[2.0], [-0.5]], np.float32)}
    masks = {"a": np.array([[1, 1, 0]], np.float32), "b": np.ones((2, 1), np.float32)}
    gradual = Gradual(weights, masks, 0.6, 0.75, 4)
    assert gradual.prune(0)  # 0.6 · (1 − 8/27) of 5 numbers, of which one is zero
    np.testing.assert_array_equal(weights["a"], [[5, -1, 0]])
    np.testing.assert_array_equal(weights["b"], [[2], [0]])
    assert not gradual.done(0)
    assert gradual.prune(1)
    np.testing.assert_array_equal(masks["a"], [[1, 0, 0]])
    np.testing.assert_array_equal(masks["b"], [[1], [0]])
    assert gradual.prune(2)
    assert gradual.done(2)
    assert not gradual.prune(3)
    np.testing.assert_array_equal(weights["a"], [[5, 0, 0]])


def test_pruning_by_lamp_compares_weights_with_those_of_their_matrix() -> None:
    weights = {"a": np.array([[3.0, -2, 1]], np.float32), "b": np.array([[0.3], [-0.2]], np.float32)}
    for name, squares in {"a": [9 / 9, 4 / 13, 1 / 14], "b": [1, 0.04 / 0.13]}.items():
        np.testing.assert_allclose(lamp_scores(weights[name]).reshape(-1), squares, rtol=1e-6)
    assert not lamp_scores(np.zeros((2, 2), np.float32)).any()
    masks = {name: np.ones_like(array) for name, array in weights.items()}
    assert Gradual(weights, masks, 0.6, 1.0, 1, "lamp").prune(0)
    np.testing.assert_array_equal(masks["a"], [[1, 0, 0]])
    np.testing.assert_array_equal(masks["b"], [[1], [0]])


def test_weights_that_are_equal_move_as_one(pair: dict[str, Any], tmp_path: Path) -> None:
    pruned, shared = tmp_path / "pruned.safetensors", tmp_path / "shared.safetensors"
    api.prune(pair["source"], pruned, method="magnitude", sparsity=0.3, include=["*.weight"])
    api.quantize(pruned, shared, scheme="codebook", entries=5)
    before = divergence(pair, pruned)
    api.distill(**{**pair, "source": shared}, tie="shared")
    assert divergence(pair, pair["output"]) < before
    held, after = read_network(open_checkpoint(shared)).network.tensors, load_file(pair["output"])
    for name in ("fc1.weight", "fc2.weight"):
        assert len(np.unique(after[name])) == len(np.unique(held[name])) == 5
        for number in np.unique(held[name]):
            assert len(np.unique(after[name][held[name] == number])) == 1
        assert not np.array_equal(after[name], held[name])
        np.testing.assert_array_equal(after[name] == 0, held[name] == 0)


def test_early_stop_and_the_best_state(pair: dict[str, Any]) -> None:
    report = api.distill(**{**pair, "source": pair["teacher"], "epochs": 50}, patience=3, holdout=0.3)
    note = next(note for note in report.plan.notes if "choose alike" in note)
    kept, ran = (int(number) for number in re.findall(r"epoch (\d+) of (\d+) is kept", note)[0])
    assert kept + 3 == ran < 50


def test_the_best_state_is_that_of_least_loss_among_those_that_agree_as_often() -> None:
    tensors = {"w": np.zeros(1)}
    best = BestState(tensors, 100)  # a standard error at 90 % is 3 %
    for epoch, loss_, agreed in ((1, 0.5, 0.80), (2, 0.6, 0.90), (3, 0.3, 0.88), (4, 0.2, 0.86), (5, 0.4, 0.9)):
        tensors["w"][0] = epoch
        best.offer(epoch, (loss_, agreed))
    tensors["w"][0] = 9
    best.restore()
    assert (best.epoch, best.since, tensors["w"][0]) == (3, 2, 3)


def test_labels_help_where_the_teacher_errs(pair: dict[str, Any], tmp_path: Path) -> None:
    x = np.load(pair["inputs"])
    labels = (x[:, 0] > 0).astype(np.int64)
    np.save(tmp_path / "y.npy", labels)
    right = []
    for more in ({}, {"labels": tmp_path / "y.npy", "label_weight": 0.9}):
        api.distill(**pair, **more, force=True)
        right.append((outputs(pair["output"], x).argmax(1) == labels).mean())
    assert right[1] > right[0] + 0.1
    for bad, match in ((labels[:9], "no labels of 300 inputs"), (labels + 3, "labels from 3 to 4")):
        np.save(tmp_path / "y.npy", bad)
        with pytest.raises(InputError, match=match):
            api.distill(**pair, labels=tmp_path / "y.npy", force=True)


def test_the_slope_of_labels_is_the_losses() -> None:
    rng = np.random.default_rng(3)
    student, teacher, labels = rng.normal(size=(5, 4)), rng.normal(size=(5, 4)), np.array([0, 3, 1, 1, 2])
    wanted = soften(teacher, 2.0, np.empty_like(teacher))

    def both(z: np.ndarray) -> float:
        return 0.7 * loss(z, wanted, 2.0) + 0.3 * cross(z, labels)

    plain = -np.log(soften(student, 1.0, np.empty_like(student)))[np.arange(5), labels].mean()
    assert cross(student, labels) == pytest.approx(plain)
    found = slope(student, wanted, 2.0, 5, np.empty_like(student))
    add_labels(student, labels, 0.3, 5, np.empty_like(student), found)
    for place in np.ndindex(student.shape):
        moved = []
        for step in (1e-5, -1e-5):
            other = student.copy()
            other[place] += step
            moved.append(both(other))
        assert found[place] == pytest.approx((moved[0] - moved[1]) / 2e-5, rel=1e-4, abs=1e-7)


RECIPE = """
[[stage]]
kind = "prune"
method = "magnitude"
sparsity = 0.5
include = ["*.weight"]

[[stage]]
kind = "distill"
method = "soft-targets"
inputs = "{inputs}"
epochs = 3

[[stage]]
kind = "quantize"
scheme = "codebook"
entries = 8

[[stage]]
kind = "distill"
method = "soft-targets"
inputs = "{inputs}"
epochs = 3
tie = "shared"

[[stage]]
kind = "quantize"
scheme = "codebook"
entries = 8
"""


def test_training_is_a_stage_of_recipes(pair: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text(RECIPE.format(inputs=pair["inputs"]))
    teacher, out = pair["teacher"], pair["output"]
    dry = api.pipeline(teacher, out, recipe=str(tmp_path / "r.toml"), dry_run=True)
    assert not out.exists()
    report = api.pipeline(teacher, out, recipe=str(tmp_path / "r.toml"))
    assert [stage.get("method", stage.get("scheme")) for stage in report.plan.stages] == [
        *("magnitude", "soft-targets", "codebook", "soft-targets", "codebook")
    ]
    assert (report.input, report.plan.size_before) == (str(teacher), dry.plan.size_before)
    assert report.plan.size_before == teacher.stat().st_size
    assert report.plan.size_after == dry.plan.size_after == out.stat().st_size
    for array in read_network(open_checkpoint(out)).network.parameters.values():
        if array.ndim > 1:
            assert (array == 0).sum() >= array.size // 2
            assert len(np.unique(array)) <= 8
    recorded = open_checkpoint(out).records[0].stages
    assert len(recorded) == 5
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_a_recipe_that_fails_leaves_nothing_behind(pair: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text(RECIPE.format(inputs=pair["inputs"]))
    np.save(pair["inputs"], np.full((3, 6), np.nan))
    with pytest.raises(InputError, match="NaN"):
        api.pipeline(pair["teacher"], pair["output"], recipe=str(tmp_path / "r.toml"))
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
    assert not pair["output"].exists()


def test_stages_on_the_command_line(pair: dict[str, Any], tmp_path: Path) -> None:
    stage = f"distill:method=soft-targets,inputs={pair['inputs']},epochs=2"
    arguments = ["--stage", "prune:sparsity=0.5", "--stage", stage, "--teacher", pair["teacher"]]
    done = compressor("pipeline", pair["source"], "-o", pair["output"], *arguments)
    assert done.code == 0, done.err
    assert (load_file(pair["output"])["fc1.weight"] == 0).sum() == 21


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("epoch = 3", "stage[0].epoch: is no option of method soft-targets. Did you mean epochs?"),
        ("inputs = 3", "stage[0].inputs: must be a path"),
        ('include = ["*"]', "stage[0].include: is no option"),
    ],
)
def test_wrong_stages_are_refused(line: str, said: str) -> None:
    with pytest.raises(CompressorError) as caught:
        parse_recipe(f'[[stage]]\nkind = "distill"\nmethod = "soft-targets"\n{line}', "r")
    assert said in str(caught.value)


def refused(pair: dict[str, Any], error: type[CompressorError], match: str, **changed: Any) -> None:
    with pytest.raises(error, match=match):
        api.distill(**{**pair, **changed})
    assert not pair["output"].exists()


def test_what_does_not_pair_is_refused(pair: dict[str, Any], tmp_path: Path) -> None:
    other = tmp_path / "other.safetensors"
    save(other, {**BIG, "fc2.weight": (5, 16), "fc2.bias": (5,)})
    refused(pair, InputError, r"gives \[4\] outputs, and the teacher \[5\]", teacher=other)
    save(other, {**BIG, "fc1.weight": (16, 9)})
    refused(pair, InputError, r"samples of the shape \[6\], and the network takes \[9\]", teacher=other)
    save(other, {"weight": (4, 6)})
    refused(pair, InputError, "is no network that is recognised", teacher=other)
    refused(pair, InputError, "is no network that is recognised", source=other)


def test_bad_inputs_are_refused(pair: dict[str, Any]) -> None:
    x = np.load(pair["inputs"])
    for bad, match in (
        (x[:, :5], r"samples of the shape \[5\]"),
        (x[:0], "holds no samples"),
        (np.where(np.arange(300)[:, None] == 7, np.nan, x), "NaN or infinite values: 6 in samples"),
        (x[:, 0], r"where \[samples, features\] belongs"),
    ):
        np.save(pair["inputs"], bad)
        refused(pair, InputError, match)


def test_training_that_runs_away_is_refused(pair: dict[str, Any]) -> None:
    np.save(pair["inputs"], np.clip(np.load(pair["inputs"]), -3, 3) * np.float32(1e38))
    refused(pair, InputError, "beyond all numbers|not finite")


def test_wrong_options_are_refused(pair: dict[str, Any]) -> None:
    refused(pair, UsageError, "--temperature: must be", temperature=0.0)
    refused(pair, UsageError, "--init: must be", init="zeros")
    refused(pair, UsageError, "Did you mean --epochs", epoch=3)
    refused(pair, UsageError, "needs a file of inputs", inputs=None)
    refused(pair, UsageError, "would part weights", sparsity=0.5, tie="shared")
    refused(pair, UsageError, "has no equal weights", init="random", tie="shared")
    refused(pair, UsageError, "goes by inputs held out", patience=2, holdout=0)
    refused(pair, UsageError, "is the input itself", output=pair["inputs"].with_name("teacher.safetensors"))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--method", "soft-targets"], "needs a teacher"),
        (["--method", "soft-targets", "--teacher", TEACHER], "needs a file of inputs. Give --inputs FILE.npy"),
        (["--teacher", TEACHER, "--epochs", 3], "--epochs is for --method soft-targets"),
        (["--teacher", TEACHER, "--inputs", "x.npy"], "--inputs is for --method soft-targets"),
        (
            ["--method", "soft-targets", "--teacher", TEACHER, "--inputs", "x.npy", "--alpha", 1],
            "--alpha: is no option",
        ),
        (
            ["--method", "soft-targets", "--teacher", TEACHER, "--inputs", "x.npy", "--include", "*"],
            "takes a whole STUDENT",
        ),
    ],
)
def test_the_command_line_refuses(arguments: list[object], said: str, tmp_path: Path) -> None:
    done = compressor("distill", STUDENT, "-o", tmp_path / "o.safetensors", *arguments)
    assert done.code == 2
    assert said in done.err
