"""A student solved for its teacher's outputs: the least squares, biases, codes, what is reported and refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from safetensors.numpy import load_file, save_file
from support import archives
from support.laws import inputs_of, run
from support.layer_inputs import correlated, weights

import compressor
from compressor.calibration.statistics import open_statistics, write_statistics
from compressor.core.errors import CompressorError, InputError, UsageError
from compressor.core.layer_inputs import Gather, Layer
from compressor.core.tensor import TensorSpec
from compressor.methods.distill import refit
from compressor.methods.distill.refit import Refit
from compressor.methods.numerics import masked_least_squares
from compressor.methods.quantize.codebook import Codebook
from compressor.methods.quantize.int import Int

Array = npt.NDArray[Any]
DATA = Path(__file__).parents[4] / "shared" / "data"


def damped(layer: Layer, damp: float = 0.01) -> Array:
    assert layer.gram is not None
    gram = layer.gram.copy()
    dead = np.diagonal(gram) == 0
    gram += (damp + 1e-6 * dead) * np.mean(np.diagonal(layer.gram)) * np.eye(layer.width)
    return gram


def lost(apart: Array, gram: Array) -> float:
    return float(np.sum((apart @ gram) * apart))


@pytest.fixture
def pair() -> tuple[Array, Array, Layer]:
    """A teacher, its student with two of three weights zero, and a layer's statistics."""
    random = np.random.default_rng(3)
    teacher = random.standard_normal((150, 40)).astype(np.float32)
    student = np.where(random.random(teacher.shape) < 0.66, 0, teacher).astype(np.float32)
    student[3], student[4] = 0, teacher[4]
    return teacher, student, inputs_of(TensorSpec("w", "F32", teacher.shape))


def by_gradients(monkeypatch: pytest.MonkeyPatch, gain: float) -> None:
    """Solve nothing exactly, and stop at rounds that gain so little."""
    for name, value in (("_FEW", -1), ("_EXACT", 0), ("_GAIN", gain)):
        monkeypatch.setattr(masked_least_squares, name, value)


@pytest.mark.parametrize("exact", [False, True])
def test_kept_weights_are_the_least_squares(
    pair: tuple[Array, Array, Layer], exact: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not exact:
        by_gradients(monkeypatch, 0)
    teacher, student, layer = pair
    gram = damped(layer)
    found = run(Refit(), TensorSpec("w", "F32", teacher.shape), student, teacher=teacher, inputs=layer).restored
    for row, (wanted, held) in enumerate(zip(teacher, student, strict=True)):
        places = np.flatnonzero(held)
        best = np.zeros(40)
        if len(places):
            best[places] = np.linalg.solve(gram[np.ix_(places, places)], (wanted @ gram)[places])
        assert np.allclose(found[row], best, atol=2e-5 * max(np.abs(best).max(), 1)), row
    assert not found[student == 0].any()
    assert np.array_equal(found[4], teacher[4])


def test_rounds_end_where_little_is_left_to_gain(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(4)
    teacher, layer = weights(300, 256), correlated(256)
    keep = random.random(teacher.shape) < 0.5
    spec, gram = TensorSpec("w", "F32", teacher.shape), damped(layer)

    def solved() -> Array:
        return run(Refit(), spec, np.where(keep, teacher, 0), teacher=teacher, inputs=layer).restored

    exact, calls = solved(), list[int]()
    by_gradients(monkeypatch, masked_least_squares._GAIN)
    product = masked_least_squares._product

    def counted(rows: Array, gram: Array) -> Array:
        calls.append(len(rows))
        return product(rows, gram)

    monkeypatch.setattr(masked_least_squares, "_product", counted)
    soon = solved()
    few = len(calls)
    by_gradients(monkeypatch, 0)
    calls.clear()
    best = solved()
    assert np.allclose(best, exact, atol=1e-4)
    assert 2 * few < len(calls)
    for row, (one, other) in enumerate(zip(soon, best, strict=True)):
        reached = lost(one - teacher[row], gram)
        assert reached <= 1.1 * lost(other - teacher[row], gram), row
        assert reached < lost(np.where(keep[row], 0, teacher[row]), gram), row
    assert lost(soon - teacher, gram) < 1.03 * lost(best - teacher, gram)
    assert not soon[~keep].any()


def coded(encoder: Any, **options: Any) -> tuple[float, float]:
    """What outputs lose before and after."""
    random = np.random.default_rng(5)
    teacher = random.standard_normal((20, 32)).astype(np.float32)
    spec = TensorSpec("w", "F32", teacher.shape)
    layer = inputs_of(spec)
    gram = damped(layer)
    before = run(encoder, spec, teacher).restored
    after = run(Refit(stored=encoder, **options), spec, teacher, teacher=teacher, inputs=layer).restored
    return lost(before - teacher, gram), lost(after - teacher, gram)


@pytest.mark.parametrize(
    "encoder",
    [
        Int(bits=3, group_size=8),
        Int(bits=4, granularity="channel"),
        Int(bits=3, granularity="tensor"),
        Int(bits=3, symmetric=False, group_size=16),
        Codebook(entries=4),
        Codebook(entries=8, rows=5),
    ],
)
def test_scales_and_books_lose_less(encoder: Any) -> None:
    before, after = coded(encoder)
    assert after < 0.999 * before


def test_zero_points_lose_no_more() -> None:
    encoder = Int(bits=3, symmetric=False, granularity="channel")
    assert coded(encoder, zero_points=True)[1] <= coded(encoder)[1] * (1 + 1e-9)


def test_scales_are_the_least_squares() -> None:
    random = np.random.default_rng(6)
    teacher = random.standard_normal((6, 32)).astype(np.float32)
    spec, encoder = TensorSpec("w", "F32", teacher.shape), Int(bits=4, group_size=8)
    layer = inputs_of(spec)
    gram = damped(layer)
    before = run(encoder, spec, teacher)
    assert before.parts is not None
    codes = np.rint(before.restored.reshape(6, 4, 8) / before.parts["_scale"][..., None])
    found = run(Refit(stored=encoder), spec, teacher, teacher=teacher, inputs=layer)
    assert found.parts is not None
    assert np.array_equal(found.parts["_packed"], before.parts["_packed"])
    for row in range(6):
        basis = np.zeros((4, 32))
        for group in range(4):
            basis[group, group * 8 : group * 8 + 8] = codes[row, group]
        best = np.linalg.solve(basis @ gram @ basis.T, basis @ gram @ teacher[row])
        assert np.allclose(found.parts["_scale"][row], best, rtol=1e-4)


# ---- files ---------------------------------------------------------------------------------------------


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A teacher of two layers, one with a bias, and its statistics beside it."""
    random = np.random.default_rng(8)
    tensors = {"a.weight": random.standard_normal((30, 24)), "a.bias": random.standard_normal(30)}
    tensors |= {"b.weight": random.standard_normal((10, 30)), "norm.weight": np.ones(24), "norm.bias": np.ones(24)}
    save_file({name: value.astype(np.float32) for name, value in tensors.items()}, tmp_path / "teacher.safetensors")
    layers = []
    for name, width in (("a", 24), ("b", 30)):
        gather = Gather(width, gram=True)
        gather.add(random.standard_normal((500, width)) @ random.standard_normal((width, width)) + 1)
        layers.append((name, gather.layer))
    write_statistics(tmp_path / "stats.safetensors", layers)
    return tmp_path


def distilled(folder: Path, student: str, out: str, **options: Any) -> Any:
    options = {"method": "refit", "stats": folder / "stats.safetensors", **options}
    return compressor.distill(folder / student, folder / out, teacher=folder / "teacher.safetensors", **options)


def test_weights_and_biases_of_a_file_are_the_joint_least_squares(model: Path) -> None:
    compressor.prune(model / "teacher.safetensors", model / "student.safetensors", sparsity=0.6)
    distilled(model, "student.safetensors", "out.safetensors", damp=1e-9)
    teacher, student, out = (load_file(model / f"{name}.safetensors") for name in ("teacher", "student", "out"))
    layer = open_statistics(model / "stats.safetensors").read("a", gram=True)
    assert layer.gram is not None
    whole = np.block([[layer.gram, layer.mean[:, None]], [layer.mean[None], np.ones((1, 1))]])
    for row in range(30):
        wanted = np.append(teacher["a.weight"][row], teacher["a.bias"][row]).astype(np.float64)
        places = np.append(np.flatnonzero(student["a.weight"][row]), 24)
        best = np.linalg.solve(whole[np.ix_(places, places)], (wanted @ whole)[places])
        found = np.append(out["a.weight"][row], out["a.bias"][row])[places]
        assert np.allclose(found, best, atol=1e-3)
    assert np.array_equal(out["norm.bias"], teacher["norm.bias"])
    assert np.array_equal(out["b.weight"] == 0, student["b.weight"] == 0)


def test_a_bias_that_is_excluded_stays(model: Path) -> None:
    compressor.prune(model / "teacher.safetensors", model / "student.safetensors", sparsity=0.6)
    distilled(model, "student.safetensors", "out.safetensors", exclude=["*.bias"])
    teacher, out = (load_file(model / f"{name}.safetensors") for name in ("teacher", "out"))
    assert np.array_equal(out["a.bias"], teacher["a.bias"])


@pytest.mark.parametrize("options", [{"bits": 4, "group_size": 6}, {"scheme": "codebook", "entries": 8}])
def test_a_quantized_student_keeps_its_form(model: Path, options: dict[str, Any]) -> None:
    compressor.quantize(model / "teacher.safetensors", model / "student.safetensors", **options)
    distilled(model, "student.safetensors", "out.safetensors")
    student, out = (load_file(model / f"{name}.safetensors") for name in ("student", "out"))
    assert {name: array.shape for name, array in out.items()} == {name: a.shape for name, a in student.items()}
    statistics = open_statistics(model / "stats.safetensors")
    teacher = load_file(model / "teacher.safetensors")
    losses = []
    for name in ("student", "out"):
        compressor.restore(model / f"{name}.safetensors", model / f"{name}-back.safetensors")
        back = load_file(model / f"{name}-back.safetensors")
        gram = statistics.read("b", gram=True).gram
        losses.append(lost(back["b.weight"].astype(np.float64) - teacher["b.weight"], gram))
    assert losses[1] < losses[0]


def test_too_few_inputs_are_said(model: Path) -> None:
    gathers = {name: Gather(width, gram=True) for name, width in (("a", 24), ("b", 30))}
    for gather in gathers.values():
        gather.add(np.random.default_rng(0).standard_normal((5, gather.width)))
    write_statistics(model / "few.safetensors", [(name, gather.layer) for name, gather in gathers.items()])
    compressor.prune(model / "teacher.safetensors", model / "student.safetensors", sparsity=0.6)
    report = distilled(model, "student.safetensors", "out.safetensors", stats=model / "few.safetensors")
    assert any("5 rows of 24 inputs leave their gram singular: 0.01" in said for said in report.warnings)
    options: dict[str, Any] = {"bits": 4, "group_size": 6, "method": "gptq", "scheme": "int"}
    report = compressor.quantize(
        model / "teacher.safetensors", model / "q.safetensors", **options, stats=model / "few.safetensors"
    )
    assert any("leave their gram singular" in said for said in report.warnings)


@pytest.mark.parametrize("store", ["bitmask", "csr", "archive"])
def test_a_student_stored_sparsely_is_refit_as_numbers(model: Path, store: str) -> None:
    given = []
    for name, how in (("dense.safetensors", "dense"), ("sparse.safetensors", store)):
        compressor.prune(model / "teacher.safetensors", model / name, sparsity=0.5, store=how)
        distilled(model, name, f"out-{name}")
        given.append(archives.read(model / f"out-{name}"))
    assert given[0] == given[1]


def test_what_cannot_be_refit_is_refused(model: Path) -> None:
    compressor.quantize(model / "teacher.safetensors", model / "student.safetensors", scheme="ternary")
    with pytest.raises(CompressorError, match="whose parts cannot be refit"):
        distilled(model, "student.safetensors", "out.safetensors")
    with pytest.raises(UsageError, match="goes by statistics of the layers' inputs"):
        distilled(model, "teacher.safetensors", "out.safetensors", stats=None)
    write_statistics(model / "one.safetensors", [("a", Layer(3, np.ones(24), np.ones(24), np.ones((24, 24))))])
    with pytest.raises(InputError, match="there are no statistics of its inputs"):
        distilled(model, "teacher.safetensors", "out.safetensors", stats=model / "one.safetensors")


def test_the_identity_of_statistics_covers_their_grams(model: Path) -> None:
    layer = open_statistics(model / "stats.safetensors").read("a", gram=True)
    assert layer.gram is not None
    found = set()
    for number, change in enumerate((0.0, 1e-3)):
        layer.gram[0, 1] += change
        layer.gram[1, 0] += change
        write_statistics(model / f"{number}.safetensors", [("a", layer)])
        statistics = open_statistics(model / f"{number}.safetensors")
        found |= {statistics.identity(), statistics.identity(grams=True)}
    assert len(found) == 3


@pytest.mark.skipif(not (DATA / "mnist").exists(), reason="needs MNIST and LeNet-300-100 in ../shared/data")
def test_half_of_what_one_shot_pruning_lost_comes_back(tmp_path: Path) -> None:
    teacher = DATA / "lenet300" / "teacher.safetensors"
    images = np.load(DATA / "mnist" / "mnist_train.npz")["x"][:2000]
    np.save(tmp_path / "inputs.npy", images.reshape(2000, -1))
    compressor.calibrate(teacher, tmp_path / "stats.safetensors", inputs=tmp_path / "inputs.npy")
    compressor.prune(teacher, tmp_path / "pruned.safetensors", sparsity=0.8, scope="global")
    options: dict[str, Any] = {"method": "refit", "teacher": teacher, "stats": tmp_path / "stats.safetensors"}
    compressor.distill(tmp_path / "pruned.safetensors", tmp_path / "refit.safetensors", **options)
    scored = np.load(DATA / "mnist" / "mnist_test.npz")

    def accuracy(path: Path) -> float:
        tensors, x = load_file(path), scored["x"].reshape(10000, -1) / np.float32(255)
        for layer in (1, 2, 3):
            x = x @ tensors[f"fc{layer}.weight"].T + tensors[f"fc{layer}.bias"]
            x = np.maximum(x, 0) if layer < 3 else x
        return float((x.argmax(axis=1) == scored["y"]).mean())

    whole, cut, back = (
        accuracy(path) for path in (teacher, tmp_path / "pruned.safetensors", tmp_path / "refit.safetensors")
    )
    assert back - cut >= (whole - cut) / 2


def test_weights_are_the_same_whether_kept_or_solved_again(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compressor.prune(model / "teacher.safetensors", model / "student.safetensors", sparsity=0.6)
    distilled(model, "student.safetensors", "kept.safetensors")
    monkeypatch.setattr(refit, "_HELD", 0)
    distilled(model, "student.safetensors", "again.safetensors")
    assert (model / "kept.safetensors").read_bytes() == (model / "again.safetensors").read_bytes()
