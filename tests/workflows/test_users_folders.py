"""Shards of a size that is asked for, names without wrappers, components of pipelines."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from support.console import LLAMA
from support.fault_injection import invoke

from compressor import api
from compressor.core.errors import InputError, UsageError


def contents(folder: Path) -> dict[str, Any]:
    return {name: array for file in folder.rglob("*.safetensors") for name, array in load_file(file).items()}


# ---- shards --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", ["50kB", "200kB", "1GB"])
@pytest.mark.parametrize(
    "verb", [("prune", "--sparsity", "0.5"), ("quantize", "--bits", "4", "--group-size", "32"), ("restore",)]
)
def test_shards_are_no_larger_than_asked(tmp_path: Path, size: str, verb: tuple[str, ...]) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert invoke([*verb, str(LLAMA), "-o", str(whole), "-q"])[0] == 0
    assert invoke([*verb, str(LLAMA), "-o", str(parts), "--max-shard-size", size, "-q"])[0] == 0
    files = sorted(path.name for path in parts.glob("*.safetensors"))
    limit = {"50kB": 50_000, "200kB": 200_000, "1GB": 10**9}[size]
    for file in files:
        arrays = load_file(parts / file)
        assert sum(array.nbytes for array in arrays.values()) <= limit or len(arrays) <= 4  # one tensor's parts
    expected = contents(whole)
    found = contents(parts)
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[name], array) for name, array in expected.items())
    if size == "1GB":
        assert files == ["model.safetensors"]
        assert not (parts / "model.safetensors.index.json").exists()
        return
    assert files == [f"model-{n + 1:05d}-of-{len(files):05d}.safetensors" for n in range(len(files))]
    index = json.loads((parts / "model.safetensors.index.json").read_text())
    assert {name: file for file in files for name in load_file(parts / file)} == index["weight_map"]
    assert index["metadata"]["total_size"] == sum(array.nbytes for array in found.values())


def test_what_has_no_shards(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--max-shard-size is for folders"):
        api.prune(LLAMA, tmp_path / "o.safetensors", sparsity=0.5, max_shard_size=1000)
    with pytest.raises(UsageError, match="an archive of a folder has its files"):
        api.restore(LLAMA, tmp_path / "o", store="archive", max_shard_size=1000)


# ---- prefixes ------------------------------------------------------------------------------------------


@pytest.fixture
def wrapped(tmp_path: Path) -> Path:
    folder = tmp_path / "wrapped"
    shutil.copytree(LLAMA, folder)
    for file in folder.glob("*.safetensors*"):
        file.unlink()
    bare = {name: array.astype(np.float32) for name, array in plain(LLAMA).items()}
    save_file({f"_orig_mod.module.{name}": array for name, array in bare.items()}, folder / "model.safetensors")
    return folder


def plain(folder: Path) -> dict[str, Any]:
    api.restore(folder, folder.parent / "x.safetensors", dry_run=True)
    from compressor.checkpoint.checkpoint import open_checkpoint
    from compressor.checkpoint.rows import read_whole

    tensors = open_checkpoint(folder).tensors
    return {name: read_whole(tensor).reshape(tensor.spec.shape) for name, tensor in tensors.items()}


def test_wrappers_are_taken_off_or_told(tmp_path: Path, wrapped: Path) -> None:
    report = api.quantize(wrapped, tmp_path / "kept", bits=8, layout="int-quantized")
    assert any("--strip-prefix _orig_mod.module. takes it away" in note for note in report.plan.notes)
    api.quantize(wrapped, tmp_path / "bare", bits=8, layout="int-quantized", strip_prefix="_orig_mod.module.")
    kept, bare = contents(tmp_path / "kept"), contents(tmp_path / "bare")
    assert {name.removeprefix("_orig_mod.module.") for name in kept} == set(bare)
    assert "lm_head.weight" in bare
    api.prune(wrapped, tmp_path / "cut", structure="neurons", fraction=0.25, strip_prefix="_orig_mod.module.")
    again = api.restore(tmp_path / "kept", tmp_path / "restored", strip_prefix="_orig_mod.module.")
    assert any("was taken off" in note for note in again.plan.notes)
    assert set(contents(tmp_path / "restored")) == set(plain(LLAMA))


def test_cuts_of_wrapped_models_say_what_helps(tmp_path: Path, wrapped: Path) -> None:
    with pytest.raises(InputError, match=r"--strip-prefix _orig_mod\.module\."):
        api.prune(wrapped, tmp_path / "cut", structure="neurons", fraction=0.25)


@pytest.mark.parametrize(
    ("prefix", "reason"),
    [("nothing.", "no name begins so. All names begin with '_orig_mod.module.'"), ("", "no name begins so")],
)
def test_prefixes_that_are_none(tmp_path: Path, wrapped: Path, prefix: str, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        api.prune(wrapped, tmp_path / "o", sparsity=0.5, strip_prefix=prefix)


def test_names_that_would_be_one(tmp_path: Path) -> None:
    ones = np.ones((4, 4), np.float32)
    save_file({"module.a": ones, "a": ones.copy()}, tmp_path / "m.safetensors")
    with pytest.raises(UsageError, match="the name that is left is taken"):
        api.prune(tmp_path / "m.safetensors", tmp_path / "o.safetensors", sparsity=0.5, strip_prefix="module.")


# ---- components ----------------------------------------------------------------------------------------


@pytest.fixture
def pipeline(tmp_path: Path) -> Path:
    folder = tmp_path / "pipe"
    random = np.random.default_rng(0)
    for part, file in (("transformer", "diffusion_pytorch_model"), ("text_encoder", "model")):
        (folder / part).mkdir(parents=True)
        weights = {f"{part}.to_q.weight": random.standard_normal((64, 64), np.float32)}
        save_file(weights, folder / part / f"{file}.safetensors")
        (folder / part / "config.json").write_text(json.dumps({"_class_name": part}))
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text("{}")
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "FluxPipeline"}))
    return folder


def test_one_component_is_treated_and_the_rest_goes_along(tmp_path: Path, pipeline: Path) -> None:
    out = tmp_path / "out"
    assert (
        invoke(["prune", "--sparsity", "0.5", str(pipeline), "-o", str(out), "--component", "transformer", "-q"])[0]
        == 0
    )
    before = {path.relative_to(pipeline): path for path in pipeline.rglob("*") if path.is_file()}
    after = {path.relative_to(out): path for path in out.rglob("*") if path.is_file()}
    assert {*before, Path("README.md")} == after.keys()
    treated = Path("transformer/diffusion_pytorch_model.safetensors")
    for name, path in before.items():
        assert (path.read_bytes() == after[name].read_bytes()) == (name != treated), name
    (array,) = load_file(out / treated).values()
    assert np.count_nonzero(array) == array.size // 2
    shutil.rmtree(out)
    api.prune(pipeline, out, sparsity=0.5, component="transformer", max_shard_size=1000)
    assert load_file(out / "transformer" / "diffusion_pytorch_model.safetensors")


def test_components_that_are_none(tmp_path: Path, pipeline: Path) -> None:
    with pytest.raises(InputError, match="say which of its components, --component text_encoder, transformer"):
        api.prune(pipeline, tmp_path / "o", sparsity=0.5)
    with pytest.raises(UsageError, match=r"there is none of this name\. There are text_encoder, transformer"):
        api.prune(pipeline, tmp_path / "o", sparsity=0.5, component="../pipe")
    with pytest.raises(UsageError, match="The input is no pipeline of diffusers"):
        api.prune(LLAMA, tmp_path / "o", sparsity=0.5, component="transformer")
