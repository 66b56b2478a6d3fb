"""Layers refit in their order: the least squares, what it gains over statistics, what stays, what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from safetensors.numpy import load_file, save_file
from support.console import TEACHER, compressor
from support.networks import NETWORKS, tensors_of

from compressor import api
from compressor.checkpoint.checkpoint import open_checkpoint
from compressor.core.errors import CompressorError
from compressor.networks.matching import read_network
from compressor.recipe.toml_file import effective, parse_recipe

Array = npt.NDArray[Any]
MNIST = Path(__file__).parents[4] / "shared" / "data" / "mnist" / "mnist_train.npz"
CHAIN = {"fc1.weight": (9, 6), "fc1.bias": (9,), "fc2.weight": (7, 9), "fc3.weight": (3, 7), "fc3.bias": (3,)}


def pruned(tensors: dict[str, Array], share: float, seed: int = 7) -> dict[str, Array]:
    """With so many weights of its matrices zero, but for the last one."""
    random = np.random.default_rng(seed)
    matrices = [name for name, array in tensors.items() if array.ndim > 1][:-1]
    return {
        name: np.where(random.random(array.shape) < share, 0, array).astype(array.dtype)
        if name in matrices
        else array
        for name, array in tensors.items()
    }


@pytest.fixture
def pair(tmp_path: Path) -> dict[str, Any]:
    """A teacher, its student with half of two matrices zero, and inputs that go together."""
    random = np.random.default_rng(0)
    teacher = tensors_of(CHAIN)
    save_file(teacher, tmp_path / "teacher.safetensors")
    save_file(pruned(teacher, 0.5), tmp_path / "student.safetensors")
    inputs = random.normal(size=(400, 3)) @ random.normal(size=(3, 6)) + 0.3 * random.normal(size=(400, 6)) + 0.5
    np.save(tmp_path / "x.npy", inputs.astype(np.float32))
    return {
        "source": tmp_path / "student.safetensors",
        "output": tmp_path / "out.safetensors",
        "teacher": tmp_path / "teacher.safetensors",
        "method": "refit",
        "sequential": True,
        "inputs": tmp_path / "x.npy",
    }


def outputs(path: Path, x: Array, network: str | None = None) -> Array:
    made = read_network(open_checkpoint(path), network, "<f8").network
    return np.concatenate([made.forward(part.reshape(-1, *made.input)).copy() for part in np.array_split(x, 8)])


def missed(teacher: Path, student: Path, x: Array, network: str | None = None) -> float:
    wanted = outputs(teacher, x, network)
    return float(np.linalg.norm(outputs(student, x, network) - wanted) / np.linalg.norm(wanted))


def plain(pair: dict[str, Any], output: Path, network: str | None = None) -> Path:
    """The student refit by statistics of its teacher."""
    stats = output.with_name("stats.safetensors")
    api.calibrate(pair["teacher"], stats, inputs=pair["inputs"], network=network, force=True)
    api.distill(pair["source"], output, teacher=pair["teacher"], method="refit", stats=stats)
    return output


# ---- what is solved ------------------------------------------------------------------------------------


@pytest.mark.parametrize("damp", [0.01, 1e-3])
def test_each_layer_is_the_least_squares_of_what_enters_it(pair: dict[str, Any], damp: float) -> None:
    api.distill(**pair, damp=damp)
    teacher, student, found = (load_file(pair[key]) for key in ("teacher", "source", "output"))
    x = y = np.load(pair["inputs"]).astype(np.float64)
    for layer in ("fc1", "fc2", "fc3"):
        weight, start, best = (tensors[f"{layer}.weight"] for tensors in (teacher, student, found))
        has_bias = f"{layer}.bias" in teacher
        inner = y - y.mean(axis=0) if has_bias else y
        wanted = (x - x.mean(axis=0) if has_bias else x) @ weight.T
        extra = np.sqrt(damp * np.mean(inner**2) * len(inner)) * np.eye(inner.shape[1])
        for row, keep in enumerate(start != 0):
            left = np.concatenate([inner, extra])[:, keep]
            right = np.concatenate([wanted[:, row], extra @ weight[row]])
            np.testing.assert_allclose(best[row, keep], np.linalg.lstsq(left, right)[0], rtol=1e-4, atol=5e-5)
            assert not best[row, ~keep].any()
        x, y = x @ weight.T, y @ best.T
        if has_bias:
            bias = found[f"{layer}.bias"]
            np.testing.assert_allclose(bias, teacher[f"{layer}.bias"] + (x - y).mean(axis=0), rtol=1e-5, atol=1e-6)
            x, y = x + teacher[f"{layer}.bias"], y + bias
        x, y = np.maximum(x, 0), np.maximum(y, 0)


def test_the_first_layer_is_what_statistics_make_of_it(pair: dict[str, Any], tmp_path: Path) -> None:
    api.distill(**pair)
    found, other = load_file(pair["output"]), load_file(plain(pair, tmp_path / "plain.safetensors"))
    np.testing.assert_allclose(found["fc1.weight"], other["fc1.weight"], rtol=1e-5, atol=1e-6)
    assert np.abs(found["fc2.weight"] - other["fc2.weight"]).max() > 1e-3
    assert (
        np.abs(found["fc3.weight"] - other["fc3.weight"]).max() > 1e-3
    )  # no zeros, and yet it makes up for others


def images(count: int, seed: int) -> Array:
    """Smooth grey images, uint8 [count, 28, 28]."""
    random = np.random.default_rng(seed)
    coarse = np.kron(random.normal(size=(count, 7, 7)), np.ones((4, 4)))
    for axis in (1, 2):
        coarse = coarse + np.roll(coarse, 1, axis) + np.roll(coarse, 2, axis)
    return np.clip(coarse * 60, 0, 255).astype(np.uint8)


def lenet(folder: Path, sparsity: float, inputs: Array) -> dict[str, Any]:
    np.save(folder / "x.npy", inputs)
    student = folder / "pruned.safetensors"
    api.prune(TEACHER, student, method="magnitude", sparsity=sparsity, scope="global")
    found = {"source": student, "output": folder / "out.safetensors", "teacher": TEACHER, "method": "refit"}
    return found | {"sequential": True, "inputs": folder / "x.npy"}


@pytest.mark.parametrize("sparsity", [0.8, 0.9])
def test_outputs_of_other_inputs_come_nearer_than_by_statistics(tmp_path: Path, sparsity: float) -> None:
    pair = lenet(tmp_path, sparsity, images(1500, 0))
    api.distill(**pair)
    other = plain(pair, tmp_path / "plain.safetensors")
    x = images(1000, 1) / 255
    assert missed(TEACHER, pair["output"], x) < 0.95 * missed(TEACHER, other, x)
    assert missed(TEACHER, other, x) < missed(TEACHER, pair["source"], x)


@pytest.mark.skipif(not MNIST.exists(), reason="MNIST is not here")
def test_digits_come_nearer_than_by_statistics(tmp_path: Path) -> None:
    digits = np.load(MNIST)["x"]
    pair = lenet(tmp_path, 0.9, digits[:2000])
    api.distill(**pair)
    other = plain(pair, tmp_path / "plain.safetensors")
    x = digits[2000:4000] / 255
    assert missed(TEACHER, pair["output"], x) < 0.85 * missed(TEACHER, other, x)


@pytest.mark.parametrize("name", ["planes", "tiles", "norms"])
def test_convolutions_come_nearer(tmp_path: Path, name: str) -> None:
    text, shapes = NETWORKS[name]
    network = tmp_path / "network.toml"
    network.write_text(text)
    teacher = {key: array.astype(np.float32) for key, array in tensors_of(shapes).items()}
    save_file(teacher, tmp_path / "teacher.safetensors")
    save_file(pruned(teacher, 0.4), tmp_path / "student.safetensors")
    made = read_network(open_checkpoint(tmp_path / "teacher.safetensors"), str(network)).network
    x = np.random.default_rng(1).normal(size=(500, *made.input)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    pair = {"source": tmp_path / "student.safetensors", "teacher": tmp_path / "teacher.safetensors"}
    pair["inputs"] = tmp_path / "x.npy"
    api.distill(**pair, output=tmp_path / "o.safetensors", method="refit", sequential=True, network=network)
    other = plain(pair, tmp_path / "plain.safetensors", str(network))
    found = missed(pair["teacher"], tmp_path / "o.safetensors", x, str(network))
    assert found < missed(pair["teacher"], other, x, str(network))
    assert found < missed(pair["teacher"], pair["source"], x, str(network))
    held = load_file(tmp_path / "o.safetensors")
    for key, start in load_file(pair["source"]).items():
        assert np.array_equal(held[key] == 0, start == 0) or start.ndim == 1, key
        assert held[key].shape == start.shape


# ---- what stays ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [2, 5])
def test_workers_do_not_show(tmp_path: Path, workers: int) -> None:
    pair = lenet(tmp_path, 0.9, images(700, 2))
    api.distill(**pair, workers=1)
    alone = pair["output"].read_bytes()
    api.distill(**pair, workers=workers, force=True)
    assert pair["output"].read_bytes() == alone


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_types_and_zeros_stay(pair: dict[str, Any], dtype: Any) -> None:
    student = {name: array.astype(dtype) for name, array in load_file(pair["source"]).items()}
    save_file(student, pair["source"])
    before = missed(pair["teacher"], pair["source"], np.load(pair["inputs"]))
    report = api.distill(**pair)
    for name, array in load_file(pair["output"]).items():
        assert array.dtype == dtype
        assert array.ndim == 1 or np.array_equal(array == 0, student[name] == 0)
    after = missed(pair["teacher"], pair["output"], np.load(pair["inputs"]))
    assert after < before / 1.5
    assert any(f"are {after:.3g}"[:8] in note and f"{before:.3g}" in note for note in report.plan.notes)


@pytest.mark.parametrize(
    "options",
    [
        {"bits": 2, "granularity": "channel"},
        {"scheme": "codebook", "entries": 4},
        {"bits": 3, "symmetric": False, "granularity": "channel"},
    ],
)
def test_codes_stay_and_what_they_stand_for_is_solved(tmp_path: Path, options: dict[str, Any]) -> None:
    pair = lenet(tmp_path, 0.5, images(1500, 3))
    api.quantize(TEACHER, pair["source"], **options, force=True)
    report = api.distill(**pair)
    before, after = load_file(pair["source"]), load_file(pair["output"])
    assert {name: (a.dtype, a.shape) for name, a in before.items()} == {
        n: (a.dtype, a.shape) for n, a in after.items()
    }
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    numbers, codes = (".scale", ".codes") if "bits" in options else (".codebook", "")  # a book is kept in order
    for layer in ("fc1", "fc2", "fc3"):
        assert {f"{layer}.weight{numbers}", f"{layer}.bias"} <= changed
        assert not {f"{layer}.weight{codes}", f"{layer}.weight.zero_point"} & changed
    assert report.plan.size_after == pair["output"].stat().st_size
    other, x = plain(pair, tmp_path / "plain.safetensors"), images(800, 4) / 255
    assert missed(TEACHER, pair["output"], x) < missed(TEACHER, other, x)


def test_a_sparse_student_becomes_dense_and_a_dry_run_knows(pair: dict[str, Any], tmp_path: Path) -> None:
    plainly = tmp_path / "plainly.safetensors"
    api.distill(**{**pair, "output": plainly})
    sparse = tmp_path / "sparse.safetensors"
    api.prune(pair["source"], sparse, method="threshold", threshold=1e-9, store="bitmask")
    dry = api.distill(**{**pair, "source": sparse}, dry_run=True)
    assert not pair["output"].exists()
    api.distill(**{**pair, "source": sparse})
    assert dry.plan.size_after == pair["output"].stat().st_size
    found, wanted = load_file(pair["output"]), load_file(plainly)
    for name, array in wanted.items():
        np.testing.assert_array_equal(found[name], array)


def test_a_student_without_zeros_becomes_its_teacher(pair: dict[str, Any]) -> None:
    random = np.random.default_rng(1)
    teacher = load_file(pair["teacher"])
    save_file({name: array + random.normal(size=array.shape) for name, array in teacher.items()}, pair["source"])
    report = api.distill(**pair)
    for name, array in load_file(pair["output"]).items():
        np.testing.assert_allclose(array, teacher[name], rtol=1e-5, atol=1e-5)
    assert any("all are free" in note for note in report.plan.notes)


def test_an_input_that_never_is_active_leaves_the_teachers_weight(pair: dict[str, Any]) -> None:
    x = np.load(pair["inputs"])
    x[:, 2] = 0
    np.save(pair["inputs"], x)
    api.distill(**pair)
    teacher, found = load_file(pair["teacher"])["fc1.weight"], load_file(pair["output"])["fc1.weight"]
    kept = found[:, 2] != 0
    assert kept.any()
    np.testing.assert_allclose(found[kept, 2], teacher[kept, 2], rtol=1e-5)


# ---- recipes and the command line ----------------------------------------------------------------------

RECIPE = """
[[stage]]
kind = "prune"
sparsity = 0.6

[[stage]]
kind = "distill"
method = "refit"
sequential = true
damp = 0.02
"""


def test_in_a_recipe_its_teacher_is_what_came_in(pair: dict[str, Any], tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(RECIPE)
    report = api.pipeline(pair["teacher"], pair["output"], recipe=str(recipe), inputs=pair["inputs"])
    assert [stage.get("sequential") for stage in report.plan.stages] == [None, True]
    api.prune(pair["teacher"], pair["source"], sparsity=0.6, force=True)
    api.distill(**{**pair, "output": tmp_path / "two.safetensors"}, damp=0.02)
    found, wanted = load_file(pair["output"]), load_file(tmp_path / "two.safetensors")
    assert all(np.array_equal(array, found[name]) for name, array in wanted.items())
    texts = ["prune:sparsity=0.6", "distill:method=refit,sequential=true,damp=0.02"]
    api.pipeline(pair["teacher"], tmp_path / "3.safetensors", stages=texts, inputs=pair["inputs"])
    assert all(np.array_equal(array, found[name]) for name, array in load_file(tmp_path / "3.safetensors").items())


def test_a_recipe_is_shown_as_it_is_read() -> None:
    recipe = parse_recipe(RECIPE + 'inputs = "x.npy"\nnetwork = "lenet300"\n', "r.toml")
    assert parse_recipe(effective(recipe), "again") == recipe


def test_the_command(pair: dict[str, Any]) -> None:
    given = ["distill", pair["source"], "--teacher", pair["teacher"], "--method", "refit", "-o", pair["output"]]
    done = compressor(*given, "--sequential", "--inputs", pair["inputs"], "--damp", "0.05")
    assert done.code == 0, done.err
    assert "outputs on the inputs are" in done.out
    first = load_file(pair["output"])
    api.distill(**pair, damp=0.05, force=True)
    assert all(np.array_equal(array, first[name]) for name, array in load_file(pair["output"]).items())


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--method", "refit", "--sequential"], "method refit with --sequential needs a file of inputs"),
        (["--method", "refit", "--sequential", "--inputs", "x.npy", "--stats", "s"], "takes no --stats"),
        (["--method", "refit", "--sequential", "--inputs", "x.npy", "--labels", "y"], "--labels: is no option of"),
        (["--method", "refit", "--sequential", "--inputs", "x.npy", "--epochs", "2"], "--epochs: is no option of"),
        (["--method", "refit", "--sequential", "--inputs", "x.npy", "--include", "*"], "--include has no meaning"),
        (["--method", "refit", "--sequential", "--inputs", "x.npy", "--damp", "-1"], "--damp: must be"),
        (["--method", "refit", "--inputs", "x.npy"], "with --sequential by --inputs"),
        (["--method", "reweight", "--sequential"], "--sequential is for --method refit"),
        (["--sequential"], "--sequential is for --method refit"),
    ],
)
def test_options_that_do_not_go_together(pair: dict[str, Any], more: list[str], said: str) -> None:
    done = compressor("distill", pair["source"], "--teacher", pair["teacher"], "-o", pair["output"], *more)
    assert done.code == 2
    assert said in " ".join(done.err.split())
    assert not pair["output"].exists()


def refused(pair: dict[str, Any], **changed: Any) -> str:
    with pytest.raises(CompressorError) as caught:
        api.distill(**{**pair, **changed})
    assert not pair["output"].exists()
    return str(caught.value)


def test_no_teacher_is_refused(pair: dict[str, Any]) -> None:
    assert "needs a teacher" in refused(pair, teacher=None)


def test_statistics_are_refused(pair: dict[str, Any]) -> None:
    assert "stats" in refused(pair, stats=pair["inputs"])


def test_another_teacher_is_refused(pair: dict[str, Any], tmp_path: Path) -> None:
    save_file(
        tensors_of({**CHAIN, "fc1.weight": (8, 6), "fc1.bias": (8,), "fc2.weight": (7, 8)}),
        tmp_path / "t.safetensors",
    )
    said = refused(pair, teacher=tmp_path / "t.safetensors")
    assert "'fc1.bias': is [9], and in the teacher [8]" in said
    more = tensors_of(CHAIN | {"fc2.bias": (7,)})
    save_file(more, pair["source"])
    assert "fc2.bias" in refused(pair)


def test_what_is_no_network_is_refused(pair: dict[str, Any]) -> None:
    save_file({"a": np.ones((2, 2), np.float32)}, pair["source"])
    assert "--network" in refused(pair)


def test_inputs_that_do_not_fit_are_refused(pair: dict[str, Any]) -> None:
    np.save(pair["inputs"], np.ones((4, 5), np.float32))
    assert "[5]" in refused(pair)


def test_inputs_that_are_no_numbers_are_refused(pair: dict[str, Any]) -> None:
    np.save(pair["inputs"], np.full((4, 6), np.nan, np.float32))
    assert "NaN" in refused(pair)


def test_numbers_beyond_all_bounds_are_refused(pair: dict[str, Any]) -> None:
    for key in ("teacher", "source"):
        save_file(
            {name: (array * 1e20).astype(np.float32) for name, array in load_file(pair[key]).items()}, pair[key]
        )
    assert "fc3" in refused(pair)


def test_codes_that_cannot_be_refit_are_refused(pair: dict[str, Any]) -> None:
    api.quantize(TEACHER, pair["source"], scheme="nf4", force=True)
    np.save(pair["inputs"], images(10, 0))
    said = refused(pair, teacher=TEACHER)
    assert "whose parts cannot be refit" in said
    assert "fc1.weight" in said


def test_a_gram_that_stays_singular_is_told(pair: dict[str, Any]) -> None:
    np.save(pair["inputs"], np.load(pair["inputs"])[:4])
    report = api.distill(**pair)
    assert any("fc2" in note and "singular" in note for note in report.plan.notes)
    assert "singular at damp 0" in refused({**pair, "output": pair["output"].with_name("o.safetensors")}, damp=0.0)


def test_in_a_recipe_false_is_refused() -> None:
    with pytest.raises(CompressorError, match="must be true"):
        parse_recipe(RECIPE.replace("true", "false"), "r.toml")
