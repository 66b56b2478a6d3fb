"""`compressor calibrate` without torch: networks in NumPy, recorded activations, merging; and what is refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from support.clock import HANGS
from support.console import LLAMA, STUDENT, TEACHER, compressor, environment
from support.networks import NETWORKS, tensors_of, toml

from compressor import api
from compressor.calibration.fingerprint import fingerprint
from compressor.calibration.statistics import open_statistics
from compressor.checkpoint.checkpoint import open_checkpoint
from compressor.core.errors import InputError, OutputError, UsageError
from compressor.networks.samples import choose


def images(count: int, dtype: Any = np.uint8, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 28, 28)).astype(dtype)


def dense_rows(x: np.ndarray, path: Path = TEACHER) -> dict[str, np.ndarray]:
    """The inputs of the layers of a LeNet-300-100, in float64."""
    tensors = {name: array.astype(np.float64) for name, array in load_file(path).items()}
    found = {"fc1": x.reshape(len(x), -1).astype(np.float64)}
    for one, after in (("fc1", "fc2"), ("fc2", "fc3")):
        found[after] = np.maximum(found[one] @ tensors[f"{one}.weight"].T + tensors[f"{one}.bias"], 0)
    return found


def check(path: Path, rows: dict[str, np.ndarray], rtol: float = 1e-5) -> None:
    """The file holds the statistics of these rows."""
    found = open_statistics(path)
    assert set(found.layers) == set(rows)
    for layer, x in rows.items():
        mine = found.read(layer, gram=True)
        gram = x.T @ x / len(x)
        root = np.sqrt(np.diag(gram))
        root = np.maximum(
            root, root.max() / 20
        )  # what ReLU seldom lets through is a small difference of large sums
        assert mine.count == len(x)
        np.testing.assert_allclose(mine.mean, x.mean(0), rtol=rtol, atol=rtol * root.max())
        np.testing.assert_allclose(mine.gram / np.outer(root, root), gram / np.outer(root, root), atol=rtol)


@pytest.mark.parametrize("path", [TEACHER, STUDENT])
def test_statistics_are_those_of_a_plain_computation(path: Path, tmp_path: Path) -> None:
    x, out = images(1500), tmp_path / "s.safetensors"
    np.save(tmp_path / "x.npy", x)
    report = api.calibrate(path, out, inputs=tmp_path / "x.npy")
    check(out, dense_rows(x / 255, path))
    found = open_statistics(out)
    assert (found.model, found.weights) == fingerprint(open_checkpoint(path))
    assert found.source == "1500 inputs of x.npy"
    assert [layer.name for layer in report.layers] == ["fc1", "fc2", "fc3"]
    assert report.size == out.stat().st_size


def test_a_convolutions_inputs_are_its_windows(tmp_path: Path) -> None:
    shapes = {
        "conv1.weight": (20, 1, 5, 5),
        "conv1.bias": (20,),
        "conv2.weight": (50, 20, 5, 5),
        "conv2.bias": (50,),
        "fc1.weight": (500, 800),
        "fc1.bias": (500,),
        "fc2.weight": (10, 500),
        "fc2.bias": (10,),
    }
    tensors = {name: (0.1 * array).astype(np.float32) for name, array in tensors_of(shapes).items()}
    save_file(tensors, tmp_path / "m.safetensors")
    x = images(150)
    np.save(tmp_path / "x.npy", x)
    out = tmp_path / "s.safetensors"
    api.calibrate(tmp_path / "m.safetensors", out, inputs=tmp_path / "x.npy", network="lenet5-relu")

    def windows(planes: np.ndarray) -> np.ndarray:
        seen = np.lib.stride_tricks.sliding_window_view(planes, (5, 5), axis=(2, 3))
        return seen.transpose(0, 2, 3, 1, 4, 5).reshape(-1, planes.shape[1] * 25)

    def conv(rows: np.ndarray, name: str, edge: int) -> np.ndarray:
        weight = tensors[f"{name}.weight"].astype(np.float64)
        y = np.maximum(rows @ weight.reshape(len(weight), -1).T + tensors[f"{name}.bias"], 0)
        y = y.reshape(len(x), edge, edge, -1).transpose(0, 3, 1, 2)
        return y.reshape(*y.shape[:2], edge // 2, 2, edge // 2, 2).max((3, 5))

    rows = {"conv1": windows(x[:, None] / 255)}
    rows["conv2"] = windows(conv(rows["conv1"], "conv1", 24))
    rows["fc1"] = conv(rows["conv2"], "conv2", 8).reshape(len(x), -1)
    rows["fc2"] = np.maximum(rows["fc1"] @ tensors["fc1.weight"].T.astype(np.float64) + tensors["fc1.bias"], 0)
    check(out, rows)


def test_whole_numbers_are_divided_as_described_and_floats_are_not(tmp_path: Path) -> None:
    x, out = images(40), tmp_path / "s.safetensors"

    def notes(array: np.ndarray, **options: Any) -> str:
        np.save(tmp_path / "x.npy", array)
        return " ".join(api.calibrate(TEACHER, out, inputs=tmp_path / "x.npy", force=True, **options).notes)

    assert "U8, divided by 255 as the network's description says" in notes(x)
    check(out, dense_rows(x / 255))
    assert "F64, taken as they are; only whole numbers are divided by 255" in notes(x / 255)
    check(out, dense_rows(x / 255))
    assert "I32, divided by 100 as asked" in notes(x.astype(np.int32), divide=100)
    check(out, dense_rows(x / 100))
    assert "F32, divided by 2 as asked" in notes(x.astype(np.float32).reshape(40, 784), divide=2)
    check(out, dense_rows(x / 2))
    save_file({"fc1.weight": load_file(TEACHER)["fc1.weight"]}, tmp_path / "chain.safetensors")
    said = " ".join(api.calibrate(tmp_path / "chain.safetensors", out, inputs=tmp_path / "x.npy", force=True).notes)
    assert "F32, taken as they are" in said
    np.save(tmp_path / "x.npy", x)
    said = " ".join(api.calibrate(tmp_path / "chain.safetensors", out, inputs=tmp_path / "x.npy", force=True).notes)
    assert "U8, taken as they are (--divide 255" in said
    check(out, {"fc1": x.reshape(40, -1).astype(np.float64)})


def test_orders_and_types_of_inputs_do_not_matter(tmp_path: Path) -> None:
    x = images(30) / np.float64(255)
    content = set()
    for number, array in enumerate(
        (x, np.asfortranarray(x), x.astype(">f8"), x.reshape(30, 1, 28, 28), x[..., None])
    ):
        np.save(tmp_path / "x.npy", array)
        out = tmp_path / f"{number}.safetensors"
        api.calibrate(TEACHER, out, inputs=tmp_path / "x.npy")
        content.add(out.read_bytes())
    assert len(content) == 1


def test_some_of_the_inputs_by_the_seed(tmp_path: Path) -> None:
    x = images(500)
    np.save(tmp_path / "x.npy", x)
    content = []
    for number, seed in enumerate((0, 7, 7)):
        out = tmp_path / f"{number}.safetensors"
        report = api.calibrate(TEACHER, out, inputs=tmp_path / "x.npy", samples=90, seed=seed)
        check(out, dense_rows(x[choose(500, 90, seed)] / 255))
        assert report.source == f"90 of 500 inputs of x.npy (seed {seed})"
        content.append(out.read_bytes())
    assert content[1] == content[2]
    assert choose(500, 90, 0) != choose(500, 90, 7)
    assert choose(3, 9, 0) == choose(3, None, 0) == [0, 1, 2]
    assert choose(10, 4, 0) == [3, 4, 7, 9]  # never another choice: files are made again by it


@pytest.mark.parametrize("name", NETWORKS)
def test_any_described_network(name: str, tmp_path: Path) -> None:
    text, shapes = NETWORKS[name]
    (tmp_path / "n.toml").write_text(text)
    save_file(
        {key: array.astype(np.float32) for key, array in tensors_of(shapes).items()}, tmp_path / "m.safetensors"
    )
    size = json.loads(text.partition("input = ")[2].partition("\n")[0])
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(20, *size)))
    out = tmp_path / "s.safetensors"
    done = compressor(
        "calibrate",
        tmp_path / "m.safetensors",
        "--inputs",
        tmp_path / "x.npy",
        "--network",
        tmp_path / "n.toml",
        "-o",
        out,
    )
    assert done.code == 0, done.err
    assert open_statistics(out).layers


def test_too_few_and_too_wide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.save(tmp_path / "x.npy", images(200))
    out = tmp_path / "s.safetensors"
    notes = api.calibrate(TEACHER, out, inputs=tmp_path / "x.npy").notes
    assert any(
        "fc1 and 1 more layers (200 rows for 784 features at worst): XᵀX is singular" in note for note in notes
    )
    monkeypatch.setattr("compressor.calibration.result.WIDEST", 300)
    report = api.calibrate(TEACHER, out, inputs=tmp_path / "x.npy", force=True)
    assert [layer.gram for layer in report.layers] == [False, True, True]
    assert open_statistics(out).grams == {"fc2", "fc3"}
    assert any("wider than 300 (--gram asks for it): fc1" in note for note in report.notes)
    assert all(
        layer.gram for layer in api.calibrate(TEACHER, out, inputs=tmp_path / "x.npy", gram=True, force=True).layers
    )
    report = api.calibrate(TEACHER, out, inputs=tmp_path / "x.npy", gram=False, force=True)
    assert not any(layer.gram for layer in report.layers)
    assert not any("singular" in note for note in report.notes)


# ---- recorded activations ------------------------------------------------------------------------------


def test_recorded_activations(tmp_path: Path) -> None:
    rng, folder, out = np.random.default_rng(0), tmp_path / "recorded", tmp_path / "s.safetensors"
    folder.mkdir()
    a, b, c = rng.normal(size=(900, 784)), rng.normal(size=(3, 100, 300)), rng.normal(size=(70, 300))
    np.save(folder / "fc1.npy", a)
    save_file({"fc2.weight": b.astype(np.float32)}, folder / "part1.safetensors")
    save_file({"fc2": c.astype(np.float16)}, folder / "part2.safetensors")
    (folder / ".hidden").write_text("")
    rows = {
        "fc1": a,
        "fc2": np.concatenate([b.astype(np.float32).reshape(-1, 300), c.astype(np.float16)]).astype(np.float64),
    }
    report = api.calibrate(TEACHER, out, activations=folder)
    check(out, rows)
    assert report.source == "activations recorded in recorded"
    assert open_statistics(out).model
    api.calibrate(None, out, activations=folder, force=True)
    check(out, rows)
    assert (open_statistics(out).model, open_statistics(out).weights) == ("", "")
    api.calibrate(None, out, activations=folder / "part1.safetensors", force=True)
    check(out, {"fc2": b.astype(np.float32).reshape(-1, 300).astype(np.float64)})
    np.save(folder / "fc1.npy", np.asfortranarray(a.reshape(9, 100, 784)))
    api.calibrate(TEACHER, out, activations=folder, force=True)
    check(out, rows)


def test_recorded_activations_that_do_not_fit(tmp_path: Path) -> None:
    folder, out = tmp_path / "recorded", tmp_path / "s.safetensors"
    folder.mkdir()

    def refused(model: Path | None = TEACHER) -> str:
        with pytest.raises(InputError) as caught:
            api.calibrate(model, out, activations=folder)
        assert not out.exists()
        assert os.listdir(tmp_path) == ["recorded"]
        return str(caught.value)

    assert "holds no .npy and no .safetensors" in refused()
    np.save(folder / "fc1.npy", np.ones((4, 784)))
    np.save(folder / "fc9.npy", np.ones((4, 3)))
    assert "'fc9': is no linear layer of" in refused()
    (folder / "fc9.npy").unlink()
    np.save(folder / "fc1.npy", np.ones((4, 783)))
    assert "'fc1': has 783 features, where the model's fc1.weight [300, 784] takes 784" in refused()
    np.save(folder / "fc1.npy", np.ones(784))
    assert "'fc1': has the shape [784], where [samples, features] belongs" in refused()
    np.save(folder / "fc1.npy", np.ones((4, 784), complex))
    assert "fc1.npy" in refused()
    save_file({"fc1": np.ones((4, 784), np.float32)}, folder / "a.safetensors")
    np.save(folder / "fc1.npy", np.ones((4, 300)))
    assert "'fc1': has 300 features, and 784 in" in refused(None)
    (folder / "fc1.npy").unlink()
    bad = np.ones((2000, 784), np.float32)
    bad[1234, 5] = np.inf
    save_file({"fc1": bad}, folder / "a.safetensors")
    said = refused()
    assert "holds NaN or infinite values: 1 in samples" in said
    assert "the first in sample 1234" in said
    save_file({"fc1": np.ones((0, 784), np.float32)}, folder / "a.safetensors")
    assert "no inputs reached any layer" in refused()
    (folder / "notes.txt").write_text("")
    assert "holds 'notes.txt', which is no .npy" in refused()
    folder = tmp_path / "missing"
    with pytest.raises(InputError, match="cannot be opened"):
        api.calibrate(None, out, activations=folder)


def test_a_layer_that_saw_nothing_is_noted(tmp_path: Path) -> None:
    save_file({"a": np.ones((0, 5), np.float32), "b": np.ones((9, 5), np.float32)}, tmp_path / "x.safetensors")
    report = api.calibrate(None, tmp_path / "s.safetensors", activations=tmp_path / "x.safetensors")
    assert "no inputs reached a" in report.notes
    assert open_statistics(tmp_path / "s.safetensors").counts == {"a": 0, "b": 9}


# ---- inputs that are refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (np.ones((4, 28, 27)), "has samples of the shape [28, 27], and the network takes [784]"),
        (np.ones(784), "has the shape [784], where [samples, features] belongs"),
        (np.ones((4, 0)), "has the shape [4, 0]"),
        (np.ones((0, 784)), "holds no samples"),
        (np.full((4, 784), np.nan), "holds NaN or infinite values: 3136 in samples 0 to 3, the first in sample 0"),
        (np.full((4, 784), 1e300), "holds NaN or infinite values"),
        (np.full((4, 784), 1e30, np.float32), "'fc1': its inputs' squares are beyond float32"),
        (np.ones((4, 784), np.complex64), "is C64, where numbers belong"),
    ],
)
def test_inputs_that_cannot_be_run(array: np.ndarray, said: str, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", array)
    done = compressor("calibrate", TEACHER, "--inputs", tmp_path / "x.npy", "-o", tmp_path / "s.safetensors")
    assert done.code == 3
    assert said in done.err
    assert "x.npy" in done.err
    assert os.listdir(tmp_path) == ["x.npy"]


def test_channels_elsewhere_are_not_guessed_at(tmp_path: Path) -> None:
    (tmp_path / "n.toml").write_text(toml("[3, 8, 8]", "flatten", 'dense name="a"'))
    save_file({"a.weight": np.ones((2, 192), np.float32)}, tmp_path / "m.safetensors")
    for shape, code in (((5, 3, 8, 8), 0), ((5, 192), 0), ((5, 8, 8, 3), 3)):
        np.save(tmp_path / "x.npy", np.ones(shape))
        done = compressor(
            "calibrate",
            tmp_path / "m.safetensors",
            "--inputs",
            tmp_path / "x.npy",
            "--network",
            tmp_path / "n.toml",
            "-o",
            tmp_path / "s.safetensors",
            "--force",
        )
        assert done.code == code, done.err


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        ([TEACHER], 2, "give one of --inputs, --activations and --text"),
        ([TEACHER, "--inputs", "x.npy", "--text", "t"], 2, "give one of"),
        ([TEACHER, STUDENT, "--inputs", "x.npy"], 2, "calibrate takes one model. --merge joins"),
        (["--inputs", "x.npy"], 2, "--inputs runs a model, and none is given"),
        ([TEACHER, "--inputs", "x.npy", "--length", "4"], 2, "--length is for --text, not for --inputs"),
        (
            [TEACHER, "--activations", "x", "--samples", "4"],
            2,
            "--samples is for --inputs and --text, not for --activations",
        ),
        ([TEACHER, "--activations", "x", "--network", "lenet5"], 2, "--network is for --inputs"),
        ([TEACHER, "--inputs", "x.npy", "--divide", "0"], 2, "is not a number of at least"),
        ([TEACHER, "--inputs", "x.npy", "--samples", "0"], 2, "--samples"),
        ([TEACHER, "--inputs", "x.npy", "--network", "lenet30"], 2, "Did you mean lenet300?"),
        ([TEACHER, "--inputs", "x.npy", "--network", "lenet5"], 3, "'conv1.weight': is not in the model"),
        ([LLAMA, "--inputs", "x.npy"], 3, "is no network that is recognised by its tensors"),
        ([TEACHER, "--inputs", "none.npy"], 3, "cannot be opened"),
        (["none.safetensors", "--inputs", "x.npy"], 3, "cannot be opened"),
        ([TEACHER, "--inputs", TEACHER], 3, "holds 6 arrays, where one of inputs belongs"),
        (["--merge", "a.safetensors"], 2, "--merge takes two files of statistics or more"),
        (
            ["--merge", "a.safetensors", "b.safetensors", "--seed", "3"],
            2,
            "--merge takes files of statistics and no --seed",
        ),
        (["--merge", "a.safetensors", "b.safetensors", "--diagonal"], 2, "and no --diagonal"),
        (["--merge", TEACHER, STUDENT], 3, "is no file of statistics"),
    ],
)
def test_wrong_usage(
    args: list[object], code: int, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("x.npy", images(3))
    done = compressor("calibrate", *args, "-o", "s.safetensors")
    assert (done.code, done.out) == (code, "")
    assert said in done.err
    assert os.listdir() == ["x.npy"]


def test_outputs_are_never_replaced_by_chance(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", images(3))
    out = tmp_path / "s.safetensors"
    out.write_text("mine")
    with pytest.raises(OutputError, match="exists already"):
        api.calibrate(TEACHER, out, inputs=tmp_path / "x.npy")
    assert out.read_text() == "mine"
    with pytest.raises(UsageError, match="statistics are a"):
        api.calibrate(TEACHER, tmp_path / "s.npy", inputs=tmp_path / "x.npy")
    with pytest.raises(UsageError, match="is the input itself"):
        api.calibrate(TEACHER, TEACHER, inputs=tmp_path / "x.npy", force=True)
    bad = np.ones((3, 784))
    bad[1] = np.nan
    np.save(tmp_path / "x.npy", bad)
    with pytest.raises(InputError):
        api.calibrate(TEACHER, out, inputs=tmp_path / "x.npy", force=True)
    assert out.read_text() == "mine"


def test_text_without_torch_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    (tmp_path / "t.txt").write_text("a")
    done = compressor("calibrate", LLAMA, "--text", tmp_path / "t.txt", "-o", tmp_path / "s.safetensors")
    assert done.code == 2
    assert "pip install 'compressor[calibrate]'" in done.err


# ---- merging, reports, signals ---------------------------------------------------------------------------


def test_merged_statistics_are_those_of_all_samples(tmp_path: Path) -> None:
    x = images(700)
    for name, part in (("a", x[:300]), ("b", x[300:])):
        np.save(tmp_path / "x.npy", part)
        api.calibrate(TEACHER, tmp_path / f"{name}.safetensors", inputs=tmp_path / "x.npy")
    out = tmp_path / "s.safetensors"
    done = compressor("calibrate", "--merge", tmp_path / "a.safetensors", tmp_path / "b.safetensors", "-o", out)
    assert done.code == 0, done.err
    check(out, dense_rows(x / 255))
    assert "700" in done.out
    assert "300 inputs of x.npy; 400 inputs of x.npy" in done.out
    again = compressor("calibrate", "--merge", tmp_path / "a.safetensors", tmp_path / "b.safetensors", "-o", out)
    assert again.code == 4


def test_reports(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", images(10))
    args = ("calibrate", TEACHER, "--inputs", tmp_path / "x.npy", "-o", tmp_path / "s.safetensors", "--force")
    table = compressor(*args).out
    assert "fc1" in table
    assert "gram" in table
    assert table.splitlines()[-1].startswith(
        f"wrote {tmp_path}/s.safetensors: 3 layers, 2.87 MB, from 10 inputs of x.npy"
    )
    found = json.loads(compressor(*args, "--format", "json").out)
    assert found["verb"] == "calibrate"
    assert found["layers"][0] == {"name": "fc1", "rows": 10, "width": 784, "gram": True, "size": 2464904}
    assert "layers" not in json.loads(compressor(*args, "--format", "json", "--quiet").out)
    assert "fc2" not in compressor(*args, "--quiet").out.partition("note")[0]
    assert "1 more layers; --top 0 shows all" in compressor(*args, "--top", "2").out


def test_progress_reaches_the_end(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", images(2000))
    seen: list[tuple[int, int]] = []
    api.calibrate(
        TEACHER, tmp_path / "s.safetensors", inputs=tmp_path / "x.npy", progress=lambda *n: seen.append(n)
    )
    assert seen[-1] == (2000 * 784, 2000 * 784)
    assert len(seen) > 2
    save_file({"a": np.ones((3000, 500), np.float16)}, tmp_path / "x.safetensors")
    api.calibrate(
        None, tmp_path / "t.safetensors", activations=tmp_path / "x.safetensors", progress=lambda *n: seen.append(n)
    )
    assert seen[-1] == (3_000_000, 3_000_000)


def test_a_signal_leaves_nothing(tmp_path: Path) -> None:
    for _ in range(8):
        np.save(tmp_path / "x.npy", np.ones((20_000, 784), np.float32))
        with subprocess.Popen(
            [
                sys.executable,
                "-m",
                "compressor",
                "calibrate",
                str(TEACHER),
                "--inputs",
                "x.npy",
                "-o",
                "s.safetensors",
            ],
            cwd=tmp_path,
            env=environment(PYTHONPATH=str(Path(__file__).parents[2])),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        ) as process:
            deadline = time.monotonic() + HANGS
            while not any(name.endswith(".tmp") for name in os.listdir(tmp_path)):
                if process.poll() is not None or time.monotonic() > deadline:
                    break
                time.sleep(0.001)
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=HANGS)
        if process.returncode == 128 + signal.SIGTERM:
            assert os.listdir(tmp_path) == ["x.npy"]
            return
        (tmp_path / "s.safetensors").unlink(missing_ok=True)  # it was faster than the signal
    pytest.fail("never interrupted")


def test_layers_of_hostile_names(tmp_path: Path) -> None:
    """Their names reach the file as they are, and the terminal as escapes."""
    names = ["", "a\x1b[31m", "b\nwrote", "[bold]x[/]", "c.mean", "c", "nul\0", "\u202e"]
    save_file({name: np.eye(4, dtype=np.float32) for name in names}, tmp_path / "x.safetensors")
    out = tmp_path / "s.safetensors"
    done = compressor("calibrate", "--activations", tmp_path / "x.safetensors", "-o", out)
    assert done.code == 0, done.err
    assert set(open_statistics(out).layers) == set(names)
    assert not set("\x1b\0\u202e") & set(done.out)
    assert "[bold]x[/]" in done.out
    assert "\nwrote\n" not in done.out
