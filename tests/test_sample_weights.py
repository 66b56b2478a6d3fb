"""The sample files are what their script makes, what their README says, and small."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from support.clock import HANGS

FOLDER = Path(__file__).resolve().parent.parent / "sample_weights"
TEACHER = FOLDER / "lenet300_teacher.safetensors"
STUDENT = FOLDER / "lenet300_student.safetensors"
Tensors = dict[str, np.ndarray]


def run(script: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, str(script), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=HANGS)


@pytest.fixture(scope="module")
def score() -> ModuleType:
    spec = importlib.util.spec_from_file_location("sample_weights_score", FOLDER / "score.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """A copy of the folder that a test may damage."""
    return shutil.copytree(FOLDER, tmp_path / "samples", ignore=shutil.ignore_patterns("__pycache__"))


def test_made_files_are_what_the_script_makes() -> None:
    done = run(FOLDER / "make_samples.py", "--check")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("file", ["matrix.npy", "tiny-llama/model-00002-of-00002.safetensors"])
def test_check_sees_one_changed_byte_and_making_mends_it(copied: Path, file: str) -> None:
    true_bytes = (copied / file).read_bytes()
    (copied / file).write_bytes(true_bytes[:-1] + bytes([true_bytes[-1] ^ 1]))
    done = run(copied / "make_samples.py", "--check")
    assert done.returncode == 1
    assert f"differs  {file}" in done.stdout
    assert run(copied / "make_samples.py").returncode == 0
    assert (copied / file).read_bytes() == true_bytes


def test_check_sees_missing_and_stray_files(copied: Path) -> None:
    (copied / "matrix.npy").unlink()
    (copied / "tiny-llama" / "model.safetensors").write_bytes(b"")
    done = run(copied / "make_samples.py", "--check")
    assert done.returncode == 1
    assert "missing  matrix.npy" in done.stdout
    assert "stray    tiny-llama/model.safetensors" in done.stdout


def test_check_compares_the_copied_files_with_their_source(copied: Path, tmp_path: Path) -> None:
    source = tmp_path / "lenet"
    source.mkdir()
    shutil.copy(TEACHER, source / "teacher.safetensors")
    shutil.copy(STUDENT, source / "student.safetensors")
    assert run(copied / "make_samples.py", "--check", "--lenet", source).returncode == 0
    shutil.copy(STUDENT, source / "teacher.safetensors")
    assert run(copied / "make_samples.py", "--check", "--lenet", source).returncode == 1
    unusable = run(copied / "make_samples.py", "--check", "--mnist", copied / "mnist_test_2000.npz")
    assert unusable.returncode == 2
    assert "[10000, 28, 28]" in unusable.stderr


def test_test_set() -> None:
    with np.load(FOLDER / "mnist_test_2000.npz") as test:
        assert sorted(test) == ["x", "y"]
        x, y = test["x"], test["y"]
    assert (x.dtype, x.shape) == (np.uint8, (2000, 28, 28))
    assert (y.dtype, y.shape) == (np.uint8, (2000,))
    assert np.bincount(y, minlength=10).min() > 150


def test_matrix_follows_the_distribution_it_is_said_to_have() -> None:
    values = np.load(FOLDER / "matrix.npy")
    assert (values.dtype, values.shape) == (np.float32, (256, 1024))
    # quantiles of Student-t with 4 degrees of freedom, from any table
    wanted = np.array([-2.1318, -0.7407, 0.0, 0.7407, 2.1318, 3.7469])
    found = np.quantile(values / 0.02, [0.05, 0.25, 0.5, 0.75, 0.95, 0.99])
    np.testing.assert_allclose(found, wanted, rtol=0.02, atol=0.01)


def test_the_index_of_tiny_llama_is_true() -> None:
    folder = FOLDER / "tiny-llama"
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    weight_map, size, parameters = {}, 0, 0
    for shard in sorted(folder.glob("*.safetensors")):
        with safe_open(shard, framework="np") as file:
            assert file.metadata() == {"format": "pt"}
            for name in file.keys():  # noqa: SIM118  safe_open is no mapping
                piece = file.get_slice(name)
                assert piece.get_dtype() == "BF16"
                assert name not in weight_map
                weight_map[name] = shard.name
                parameters += int(np.prod(piece.get_shape()))
                size += 2 * int(np.prod(piece.get_shape()))
    assert len(set(weight_map.values())) == 2
    assert index == {
        "metadata": {"total_parameters": parameters, "total_size": size},
        "weight_map": weight_map,
    }


def test_tiny_llama_holds_what_its_config_says() -> None:
    folder = FOLDER / "tiny-llama"
    config = json.loads((folder / "config.json").read_text())
    hidden, inter = config["hidden_size"], config["intermediate_size"]
    kv = config["num_key_value_heads"] * config["head_dim"]
    wanted = {
        "model.embed_tokens.weight": (config["vocab_size"], hidden),
        "model.norm.weight": (hidden,),
        "lm_head.weight": (config["vocab_size"], hidden),
    }
    for layer in range(config["num_hidden_layers"]):
        for name, shape in {
            "self_attn.q_proj": (hidden, hidden),
            "self_attn.k_proj": (kv, hidden),
            "self_attn.v_proj": (kv, hidden),
            "self_attn.o_proj": (hidden, hidden),
            "mlp.gate_proj": (inter, hidden),
            "mlp.up_proj": (inter, hidden),
            "mlp.down_proj": (hidden, inter),
            "input_layernorm": (hidden,),
            "post_attention_layernorm": (hidden,),
        }.items():
            wanted[f"model.layers.{layer}.{name}.weight"] = shape
    tensors: Tensors = {}
    for shard in folder.glob("*.safetensors"):
        tensors |= load_file(shard)
    assert {name: values.shape for name, values in tensors.items()} == wanted
    for name, values in tensors.items():
        if values.ndim == 1:
            assert (values == 1).all(), name
        else:
            plain = values.astype(np.float64)
            # five standard errors of the mean and of the standard deviation
            assert abs(plain.mean()) < 5 * 0.02 / plain.size**0.5, name
            assert abs(plain.std() - 0.02) < 5 * 0.02 / (2 * plain.size) ** 0.5, name


@pytest.mark.parametrize("file", [TEACHER, STUDENT], ids=["teacher", "student"])
def test_accuracy_is_high_and_is_what_the_readme_says(score: ModuleType, file: Path) -> None:
    found = score.accuracy(file)
    assert found > 97
    row = next(
        line
        for line in (FOLDER / "README.md").read_text(encoding="utf-8").splitlines()
        if line.startswith(f"| `{file.name}` | {file.stat().st_size:,} |")
    )
    said = re.search(r"([\d.]+) % \((\d+) errors\)", row)
    assert said is not None
    assert float(said[1]) == pytest.approx(found)
    assert int(said[2]) == round(2000 * (100 - found) / 100)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16], ids=["F16", "BF16"])
def test_score_reads_half_precision(score: ModuleType, tmp_path: Path, dtype: type) -> None:
    narrow = {name: values.astype(dtype) for name, values in load_file(TEACHER).items()}
    save_file(narrow, tmp_path / "narrow.safetensors")
    for name, values in score.load(tmp_path / "narrow.safetensors").items():
        assert values.dtype == np.float32
        np.testing.assert_array_equal(values, narrow[name].astype(np.float32))
    assert score.accuracy(tmp_path / "narrow.safetensors") > 98


def test_score_prints_a_line_a_file() -> None:
    done = run(FOLDER / "score.py", TEACHER, STUDENT)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert len(lines) == 2
    for file, line in zip((TEACHER, STUDENT), lines, strict=True):
        assert line.startswith(str(file))
        assert re.search(rf"{file.stat().st_size:,} bytes +\d\d\.\d\d % +\d+ errors$", line)


def rename(tensors: Tensors) -> None:
    tensors["fc1.weight_packed"] = tensors.pop("fc1.weight")


def narrow_codes(tensors: Tensors) -> None:
    tensors["fc1.weight"] = tensors["fc1.weight"].astype(np.int8)


def beside(tensors: Tensors) -> None:
    tensors["fc1.weight_scale"] = np.ones(1, np.float32)


def transpose(tensors: Tensors) -> None:
    tensors["fc2.weight"] = np.ascontiguousarray(tensors["fc2.weight"].T)


def fewer_classes(tensors: Tensors) -> None:
    tensors["fc3.weight"], tensors["fc3.bias"] = tensors["fc3.weight"][:9], tensors["fc3.bias"][:9]


@pytest.mark.parametrize("change", [rename, narrow_codes, beside, transpose, fewer_classes])
def test_score_refuses_other_files_and_scores_the_rest(tmp_path: Path, change: Callable[[Tensors], None]) -> None:
    tensors = load_file(TEACHER)
    change(tensors)
    save_file(tensors, tmp_path / "other.safetensors")
    done = run(FOLDER / "score.py", tmp_path / "other.safetensors", TEACHER)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "other.safetensors" in done.stderr
    assert "`compressor restore`" in done.stderr
    assert done.stdout.startswith(str(TEACHER))


def test_score_refuses_what_is_no_readable_file(score: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "noise").write_bytes(bytes(range(256)))
    tensors = load_file(TEACHER)
    tensors["fc3.bias"][0] = np.nan
    save_file(tensors, tmp_path / "nan")
    for name in ("noise", "nan", "."):
        with pytest.raises(score.NotANetworkError):
            score.accuracy(tmp_path / name)
    done = run(FOLDER / "score.py", tmp_path / "absent", tmp_path / "noise", tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 3
    assert "absent" in done.stderr


def test_the_folder_is_small() -> None:
    files = [path for path in FOLDER.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert sum(path.stat().st_size for path in files) < 4_000_000
