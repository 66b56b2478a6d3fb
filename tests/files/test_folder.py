"""Hugging Face folders: what an index may say, what shards may be, what goes along, what is refused.

The policies where the format leaves a choice are in the docstrings of the tests that pin them.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save
from support.fault_injection import invoke, is_one_line, make_folder, make_npy, numbers, strays, tree, write_index

from compressor.api import prune, quantize, restore
from compressor.core.errors import InputError
from compressor.files import folder as module
from compressor.files.folder import CONFIG, INDEX, SINGLE
from compressor.files.opening import open_source
from compressor.workflows.inspect import inspect

FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
UP = "model.layers.0.mlp.up_proj.weight"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return make_folder(tmp_path / "in")


def index_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / INDEX).read_text())  # type: ignore[no-any-return]


def put(folder: Path, name: str, *tensors: str) -> Path:
    """A shard with these tensors."""
    path = folder / name
    path.write_bytes(save({tensor: numbers(2, 4) for tensor in tensors}))
    return path


def refused(folder: Path, *words: str) -> str:
    """The line with which a run refuses a folder; nothing is written beside it and nothing in it changes."""
    place, before = folder.parent, tree(folder.parent)
    code, lines = invoke(["quantize", "--bits", "8", str(folder), "-o", str(place / "out")])
    assert code == 3, lines
    assert is_one_line(lines)
    assert tree(place) == before
    assert not strays(place)
    for word in words:
        assert word in lines[0]
    return lines[0]


def accepted(folder: Path, *arguments: str) -> Path:
    out = folder.parent / "out"
    code, lines = invoke(
        [*(arguments or ("prune", "--sparsity", "0.5", "--no-card")), str(folder), "-o", str(out), "-q"]
    )
    assert code == 0, lines
    return out


# ---- row 57: what an index may call a shard --------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "../secret.safetensors",
        "../../x",
        "sub/../../secret.safetensors",
        "sub//model.safetensors",
        "sub/.model.safetensors",
        "/sub/model.safetensors",
        "sub\\model.safetensors",
        "./model-00001-of-00002.safetensors",
        "model\0.safetensors",
        "model\n.safetensors",
        "\x1b]0;x\x07.safetensors",
        "\u202esrosnetefas.safetensors",
        "a" * 5000 + ".safetensors",
        "é" * 130 + ".safetensors",
        ".hidden.safetensors",
        ".",
        "..",
        "",
        " ",
        "config.json",
        "model-00001-of-00002.bin",
    ],
)
def test_shard_names_that_are_no_plain_file_names(model: Path, name: str) -> None:
    secret = model.parent / "secret.safetensors"
    put(model.parent, secret.name, "x")
    write_index(model, {UP: name})
    line = refused(model, f"tensor '{UP}'", "is not a plain file name")
    assert len(line) < 700  # the name is shortened


def test_an_absolute_shard_name_is_refused(model: Path) -> None:
    write_index(model, {UP: str(put(model.parent, "secret.safetensors", UP))})
    refused(model, "is not a plain file name")


@pytest.mark.parametrize("shard", [1, None, True, [], {}, [FIRST]])
def test_shard_names_that_are_no_text(model: Path, shard: Any) -> None:
    write_index(model, {UP: shard})
    refused(model, f"tensor '{UP}'")


# ---- row 58: index and shards that contradict each other -------------------------------------------------------


def test_missing_shards_are_named_and_counted(model: Path) -> None:
    (model / SECOND).unlink()
    refused(model, SECOND, "which is not there. Fetch the missing shards")
    (model / FIRST).unlink()
    refused(model, FIRST, "(nor 1 more)")


def test_an_index_that_says_otherwise_than_the_shards(model: Path) -> None:
    """Loaders read whole shards, so these decide; the output's index is true, and it is said."""
    true = index_of(model)["weight_map"]
    write_index(model, {**true, "absent": FIRST, UP: SECOND})
    out = accepted(model)
    assert index_of(out)["weight_map"] == true
    assert open_source(str(model)).notes == (
        "the index names absent, which no shard holds",
        f"the index places {UP} in other shards than those that hold them",
    )


def test_a_tensor_in_two_shards(model: Path) -> None:
    put(model, SECOND, UP, "model.layers.1.mlp.up_proj.weight", "model.norm.weight")
    refused(model, f"tensor '{UP}'", FIRST, SECOND)


def test_a_tensor_that_the_index_does_not_name(model: Path) -> None:
    """Loaders read whole shards, so it belongs to the model."""
    put(model, FIRST, UP, "hidden.weight")
    out = accepted(model)
    assert index_of(out)["weight_map"]["hidden.weight"] == FIRST
    assert open_source(str(model)).notes == (
        "the index leaves out hidden.weight, which a shard holds: read, as loaders do",
    )


# ---- row 59: an index that is no index -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        "5",
        '"x"',
        "{}",
        '{"weight_map": {}}',
        '{"weight_map": []}',
        '{"weight_map": "x"}',
        '{"weight_map": null}',
        '{"weight_map": {"a": "m.safetensors"}} x',
        '{"weight_map": {"a\\ud800": "m.safetensors"}}',
        '{"weight_map": NaN}',
        '{"a": Infinity}',
        '{"a": ' + "[" * 100_000,
        '{"a":' * 100_000 + "1" + "}" * 100_000,
        "\ufeff{}",
        '{"a": 1' + "0" * 5000 + "}",
    ],
    ids=lambda text: text[:24],
)
def test_an_index_that_is_none(model: Path, text: str) -> None:
    (model / INDEX).write_text(text)
    refused(model, INDEX)


@pytest.mark.parametrize("raw", [b"\xff\xfe{\0}\0", b'{"\xff": 1}', b"\x80\x04]."])
def test_an_index_in_another_encoding(model: Path, raw: bytes) -> None:
    (model / INDEX).write_bytes(raw)
    refused(model, INDEX)


# ---- row 60: what the index says beside the map ----------------------------------------------------------------


@pytest.mark.parametrize("metadata", [{"total_size": 3}, {"total_size": "many"}, {"total_size": -1}, {}, [], None])
def test_total_size_is_counted_and_not_believed(model: Path, metadata: Any) -> None:
    (model / INDEX).write_text(json.dumps({**index_of(model), "metadata": metadata}))
    written = index_of(accepted(model))
    shards = [load_file(model.parent / "out" / name) for name in (FIRST, SECOND)]
    true_size = sum(array.nbytes for shard in shards for array in shard.values())
    assert written["metadata"]["total_size"] == true_size == 24 * 32 * 4 * 2 + 32 * 4


# ---- row 61: things that are no shards -------------------------------------------------------------------------


def _folder(path: Path) -> None:
    path.mkdir()


def _text(path: Path) -> None:
    path.write_text("hello\n")


def _nowhere(path: Path) -> None:
    path.symlink_to("nowhere")


def _loop(path: Path) -> None:
    path.symlink_to(path.name)


def _to_folder(path: Path) -> None:
    path.symlink_to(".")


def _device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def _fifo(path: Path) -> None:
    os.mkfifo(path)


STRANGE = [_folder, _fifo, _text, _nowhere, _loop, _to_folder, _device]


@pytest.mark.parametrize("make", STRANGE)
@pytest.mark.parametrize("name", [SECOND, INDEX, CONFIG])
def test_a_shard_index_or_config_that_is_something_else(
    model: Path, name: str, make: Callable[[Path], None]
) -> None:
    (model / name).unlink()
    make(model / name)
    out = model.parent / "out"
    code, lines = invoke(["prune", "--sparsity", "0.5", str(model), "-o", str(out)])
    assert code == 3, lines
    assert is_one_line(lines)
    assert name in lines[0]
    assert not out.exists()


@pytest.mark.parametrize("make", [make for make in STRANGE if make not in (_folder, _text)])
def test_strange_files_beside_the_model_stay_behind(model: Path, make: Callable[[Path], None]) -> None:
    """Policy: what is no regular file is not carried over, and the report says so."""
    make(model / "notes.txt")
    assert open_source(str(model)).left["notes.txt"] == "not a regular file"
    assert not os.path.lexists(accepted(model) / "notes.txt")


# ---- row 62: the cache of huggingface_hub ----------------------------------------------------------------------


def test_the_links_of_a_cache_are_followed(tmp_path: Path) -> None:
    plain = make_folder(tmp_path / "plain")
    blobs = tmp_path / "models--org--name" / "blobs"
    snapshot = tmp_path / "models--org--name" / "snapshots" / "0123abc"
    blobs.mkdir(parents=True)
    (snapshot / "1_Pooling").mkdir(parents=True)
    for number, path in enumerate(sorted(plain.rglob("*.*"))):
        shutil.copy(path, blobs / f"{number:040x}")
        there = snapshot / path.relative_to(plain)
        there.symlink_to(os.path.relpath(blobs / f"{number:040x}", there.parent))
    before = tree(tmp_path / "models--org--name")
    one = prune(plain, tmp_path / "one", method="magnitude", sparsity=0.5, card=False)
    two = prune(snapshot, tmp_path / "two", method="magnitude", sparsity=0.5, card=False)
    assert one.plan.carried == two.plan.carried != ()
    assert tree(tmp_path / "one") == tree(tmp_path / "two")
    assert not any(path.is_symlink() for path in (tmp_path / "two").rglob("*"))
    assert tree(tmp_path / "models--org--name") == before


# ---- row 63: a later shard is bad ------------------------------------------------------------------------------


@pytest.mark.parametrize("cut", [0, 5, 100, -1])
def test_a_bad_second_shard_leaves_nothing_of_the_first(model: Path, cut: int) -> None:
    raw = (model / SECOND).read_bytes()
    (model / SECOND).write_bytes(raw[:cut])
    refused(model, SECOND)


def test_a_nan_in_the_second_shard_leaves_nothing_of_the_first(model: Path) -> None:
    bad = numbers(2, 4)
    bad[1, 2] = np.nan
    names = [tensor for tensor, shard in index_of(model)["weight_map"].items() if shard == SECOND]
    (model / SECOND).write_bytes(save(dict.fromkeys(names, bad)))
    refused(model, "holds 1 NaN or infinite value")


# ---- row 64: choices -------------------------------------------------------------------------------------------


def test_the_index_is_followed_beside_a_single_file(model: Path) -> None:
    """Policy: with an index only its shards are read; a `model.safetensors` beside them stays behind."""
    put(model, SINGLE, "other.weight")
    source = open_source(str(model))
    assert "other.weight" not in source.tensors
    assert source.left == {SINGLE: "weights that the index does not name"}
    assert not (accepted(model) / SINGLE).exists()


def test_a_single_file_needs_no_index(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    put(folder, SINGLE, "a.weight")
    out = accepted(folder)
    assert sorted(os.listdir(out)) == [SINGLE]


def test_a_single_file_with_an_index_of_its_own(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    put(folder, SINGLE, "a.weight")
    write_index(folder, {"a.weight": SINGLE})
    assert sorted(os.listdir(accepted(folder))) == [SINGLE, INDEX]


def test_shards_without_an_index_are_read_where_their_names_form_one_set(model: Path) -> None:
    whole = index_of(model)["weight_map"]
    (model / INDEX).unlink()
    out = accepted(model)
    assert index_of(out)["weight_map"] == whole
    assert "the shards have no index: all of their set are read" in open_source(str(model)).notes
    (model / SECOND).unlink()
    refused(model, f"1 of 2 shards are missing, {SECOND} first")


def test_an_index_that_leaves_out_a_shard(model: Path) -> None:
    """Whoever lost a part of the index has not lost the weights."""
    weight_map = index_of(model)["weight_map"]
    write_index(model, {name: shard for name, shard in weight_map.items() if shard == FIRST})
    assert index_of(accepted(model))["weight_map"] == weight_map
    assert any("leaves out 1 of the 2 shards" in note for note in open_source(str(model)).notes)
    shutil.rmtree(model.parent / "out")
    (model / SECOND).unlink()  # as a cut leaves a folder: the index is the whole truth
    assert set(index_of(accepted(model))["weight_map"].values()) == {FIRST}


def test_a_stale_index_beside_whole_weights(model: Path) -> None:
    put(model, SINGLE, "whole.weight")
    (model / SECOND).unlink()
    source = open_source(str(model))
    assert list(source.tensors) == ["whole.weight"]
    assert source.notes == (f"{INDEX} names shards that are not there: {SINGLE} was read, as loaders do",)
    assert sorted(os.listdir(accepted(model))) == sorted([CONFIG, SINGLE, *_carried(model)])


def _carried(model: Path) -> list[str]:
    return [name for name in os.listdir(model) if not name.endswith((".safetensors", INDEX, CONFIG))]


def test_shards_in_a_sub_folder(model: Path) -> None:
    (model / "parts").mkdir()
    for shard in (FIRST, SECOND):
        (model / shard).rename(model / "parts" / shard)
    write_index(model, {name: f"parts/{shard}" for name, shard in index_of(model)["weight_map"].items()})
    out = accepted(model)
    weight_map = index_of(out)["weight_map"]
    assert {str(path.relative_to(out)) for path in out.rglob("*.safetensors")} == set(weight_map.values())
    assert set(weight_map.values()) == {f"parts/{FIRST}", f"parts/{SECOND}"}
    assert any("in sub-folders" in note for note in open_source(str(model)).notes)
    assert all(name in load_file(out / shard) for name, shard in weight_map.items())


def test_what_an_index_says_beside_the_size_is_kept(model: Path) -> None:
    index = index_of(model)
    index["metadata"] = {"total_size": 1, "total_parameters": 12345, "note": "x"}
    (model / INDEX).write_text(json.dumps(index))
    out = accepted(model)
    size = index_of(out)["metadata"].pop("total_size")
    assert index_of(out)["metadata"] == {"total_size": size, "total_parameters": 12345, "note": "x"}
    assert size > 1


STEMS = [("diffusion_pytorch_model", ""), ("model", ".fp16"), ("diffusion_pytorch_model", ".fp16")]


@pytest.mark.parametrize(("stem", "variant"), STEMS)
def test_other_names_of_weights(tmp_path: Path, stem: str, variant: str) -> None:
    """Components of diffusers, and variants, whole and in shards, under their own names."""
    folder = tmp_path / "in"
    folder.mkdir()
    put(folder, f"{stem}{variant}.safetensors", "up.weight")
    assert sorted(os.listdir(accepted(folder))) == [f"{stem}{variant}.safetensors"]
    shutil.rmtree(folder.parent / "out")
    (folder / f"{stem}{variant}.safetensors").unlink()
    names = [f"{stem}-{number:05d}-of-00002{variant}.safetensors" for number in (1, 2)]
    for number, name in enumerate(names):
        put(folder, name, f"t{number}.weight")
    index = f"{stem}.safetensors.index{variant}.json"
    for _ in range(2):  # without an index, and with one
        out = accepted(folder)
        assert sorted(os.listdir(out)) == sorted([*names, index])
        (folder / index).write_bytes((out / index).read_bytes())
        shutil.rmtree(out)


def test_shards_that_are_counted_from_zero(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    names = [f"model-{number:05d}-of-00002.safetensors" for number in (0, 1)]
    for number, name in enumerate(names):
        put(folder, name, f"t{number}.weight")
    assert sorted(os.listdir(accepted(folder))) == sorted([*names, INDEX])
    (folder / names[1]).unlink()
    refused(folder, f"1 of 2 shards are missing, {names[1]} first")


def test_plain_names_come_before_variants(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    put(folder, "model.fp16.safetensors", "half.weight")
    put(folder, SINGLE, "full.weight")
    source = open_source(str(folder))
    assert list(source.tensors) == ["full.weight"]
    assert list(source.left) == ["model.fp16.safetensors"]


def test_a_pipeline_names_its_components(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    (folder / "transformer").mkdir(parents=True)
    put(folder / "transformer", "diffusion_pytorch_model.safetensors", "up.weight")
    (folder / "transformer" / CONFIG).write_text('{"_class_name": "FluxTransformer2DModel"}')
    (folder / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    refused(folder, "It is a pipeline of diffusers: say which of its components, --component transformer")
    (tmp_path / "out").mkdir()
    code, lines = invoke(
        ["prune", "--sparsity", "0.5", str(folder / "transformer"), "-o", str(tmp_path / "out" / "t")]
    )
    assert code == 0, lines


def test_an_adapter_goes_along_with_its_weights_or_not_at_all(model: Path) -> None:
    (model / "adapter_config.json").write_text("{}")
    assert "adapter_config.json" not in os.listdir(accepted(model))
    left = open_source(str(model)).left
    assert left["adapter_config.json"] == "describes an adapter whose weights are not there"
    shutil.rmtree(model.parent / "out")
    put(model, "adapter_model.safetensors", "lora")
    out = accepted(model)
    assert (out / "adapter_model.safetensors").read_bytes() == (model / "adapter_model.safetensors").read_bytes()
    assert (out / "adapter_config.json").exists()


def test_links_that_lead_out_of_the_folder_are_not_carried(model: Path) -> None:
    secret = model.parent / "secret.txt"
    secret.write_text("x")
    (model / "tokenizer.json").unlink(missing_ok=True)
    (model / "tokenizer.json").symlink_to(secret)
    (model / "inner.txt").write_text("y")
    (model / "alias.txt").symlink_to("inner.txt")
    source = open_source(str(model))
    assert source.left["tokenizer.json"] == "a link that leads out of the folder"
    assert "alias.txt" in source.carried


def test_links_of_a_hub_cache_are_followed(tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "models--a--b" / "blobs", tmp_path / "models--a--b" / "snapshots" / "123"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    put(blobs, "w.safetensors", "up.weight")
    (blobs / "t").write_text("{}")
    (snapshot / SINGLE).symlink_to("../../blobs/w.safetensors")
    (snapshot / "tokenizer.json").symlink_to("../../blobs/t")
    assert list(open_source(str(snapshot)).carried) == ["tokenizer.json"]


def test_odd_shard_names_are_kept(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    names = ["consolidated.safetensors", "poids été.safetensors", "x.SAFETENSORS.safetensors", "-o.safetensors"]
    write_index(folder, {f"t{n}.weight": put(folder, name, f"t{n}.weight").name for n, name in enumerate(names)})
    assert sorted(os.listdir(accepted(folder))) == sorted([*names, INDEX])


def test_subfolders_go_along_but_not_other_weights(model: Path) -> None:
    """Policy: other files go along, also in sub-folders. Weights in other formats stay behind, for they would be
    the uncompressed model once more; in the module folders of sentence-transformers they are part of it."""
    (model / "onnx").mkdir()
    (model / "onnx" / "model.onnx").write_bytes(b"onnx")
    (model / "onnx" / "config.json").write_bytes(b"{}")
    (model / "2_Dense").mkdir()
    put(model / "2_Dense", "model.safetensors", "linear.weight")
    (model / "pytorch_model.bin").write_bytes(b"pickle")
    (model / "pytorch_model.bin.index.json").write_bytes(b"{}")
    (model / ".git").mkdir()
    (model / ".git" / "config").write_bytes(b"secret")
    (model / ".gitattributes").write_bytes(b"*")
    (model / ".model.123.tmp").write_bytes(b"stale")
    (model / "empty").mkdir()
    (model / "README.md").write_bytes(b"\xff not text")
    source = open_source(str(model))
    assert source.left == {
        "onnx/model.onnx": "weights that the index does not name",
        "pytorch_model.bin": "weights that the index does not name",
        "pytorch_model.bin.index.json": "weights that the index does not name",
        ".git": "hidden folder",
        ".model.123.tmp": "temporary file",
    }
    out = accepted(model)
    carried = ["1_Pooling/config.json", "2_Dense/model.safetensors", "onnx/config.json", "README.md"]
    for name in [*carried, ".gitattributes", "tokenizer.json", CONFIG]:
        assert (out / name).read_bytes() == (model / name).read_bytes()
    assert not (out / "onnx" / "model.onnx").exists()
    assert not (out / ".git").exists()
    assert not (out / "empty").exists()


def test_what_stays_behind_is_reported(model: Path, tmp_path: Path) -> None:
    (model / "pytorch_model.bin").write_bytes(b"pickle")
    report = prune(model, tmp_path / "out", method="magnitude", sparsity=0.5)
    assert dict(report.plan.left) == {"pytorch_model.bin": "weights that the index does not name"}
    single = prune(model, tmp_path / "one.safetensors", method="magnitude", sparsity=0.5)
    assert dict(single.plan.left)["tokenizer.json"] == "a single .safetensors holds tensors only"


def test_folders_inside_one_another_have_an_end(model: Path) -> None:
    deep = model
    for _ in range(40):
        deep = deep / "d"
        deep.mkdir()
    refused(model, "has more than 32 folders inside one another")


def test_a_subfolder_that_cannot_be_listed(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scandir = os.scandir

    def failing(path: str) -> Any:
        if path.endswith("1_Pooling/"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(module.os, "scandir", failing)
    with pytest.raises(InputError, match="1_Pooling/: cannot be listed: Permission denied"):
        open_source(str(model))


def test_a_folder_that_cannot_be_listed(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(path: str) -> Any:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(module.os, "listdir", failing)
    with pytest.raises(InputError, match="cannot be listed: Permission denied"):
        open_source(model)


# ---- row 65: folders without weights that are read here --------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "remedy"),
    [
        ([], "Give a folder with model.safetensors, or with shards and their index"),
        (["config.json"], "Give a folder with model.safetensors, or with shards and their index"),
        (["other_model.bin", "config.json"], "It holds other_model.bin: give that file itself"),
        (["model.pt"], "It holds model.pt: give that file itself"),
        (["consolidated.00.pth", "params.json"], "It holds consolidated.00.pth: give that file itself"),
        (["a.npy"], "It holds a.npy: give that file itself"),
        (["model.onnx"], "It holds model.onnx: convert it to safetensors first"),
        (["model-Q4.gguf"], "It holds model-Q4.gguf: give that file itself"),
        (["weights.npz"], "It holds weights.npz: give that file itself"),
        (["a.bin", "lora.safetensors"], "It holds lora.safetensors without an index: give that file itself"),
        (["x\x1b[31m.safetensors"], "It holds x\\x1b[31m.safetensors without an index"),
    ],
)
def test_folders_without_weights(tmp_path: Path, names: list[str], remedy: str) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for name in names:
        (folder / name).write_bytes(b"x")
    refused(folder, f"is a folder without {SINGLE} or {INDEX}", remedy)


@pytest.mark.parametrize("name", ["model.safetensors", "model.safetensors.index.json", "model.fp16.safetensors"])
def test_a_sub_folder_that_has_the_weights_is_named(tmp_path: Path, name: str) -> None:
    """Such as that of a cache of the hub, whose files lie in snapshots/COMMIT."""
    folder = tmp_path / "in"
    inner = folder / "snapshots" / "0123abc"
    inner.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (inner / name).write_bytes(b"")
    refused(folder, "is a folder without", f"give {inner}")
    (folder / "b").mkdir()
    (folder / "b" / "model.safetensors").write_bytes(b"")
    refused(folder, "is a folder without", "Of its sub-folders b, snapshots/0123abc have weights: give one of them")


@pytest.mark.parametrize("name", ["model.onnx", "model", "model.safetensor"])
def test_files_that_are_no_container_of_ours(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(b"\x80\x04K\x01.")
    code, lines = invoke(["inspect", str(path)])
    assert code == 3
    assert is_one_line(lines)
    assert "is not a container that is read here" in lines[0]


# ---- row 66: more shards than descriptors ----------------------------------------------------------------------

_MANY = """
import resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (48, 48))
from compressor.cli.main import run
sys.exit(run(sys.argv[1:]))
"""


def test_two_hundred_shards_with_48_descriptors(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    weight_map = {}
    for number in range(200):
        name = f"model-{number + 1:05}-of-00200.safetensors"
        weight_map[f"layers.{number}.weight"] = put(folder, name, f"layers.{number}.weight").name
    write_index(folder, weight_map)
    out = tmp_path / "out"
    command = [sys.executable, "-c", _MANY, "prune", "--sparsity", "0.5", str(folder), "-o", str(out), "-q"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(os.listdir(out)) == 201
    pruned = load_file(out / "model-00123-of-00200.safetensors")["layers.122.weight"]
    assert np.count_nonzero(pruned) == pruned.size // 2


# ---- config.json -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["", "[]", "{", '{"a": nan}', '{"a": "\\ud800"}', "\x00"])
def test_a_config_that_is_no_json_object(model: Path, text: str) -> None:
    (model / CONFIG).write_text(text)
    refused(model, CONFIG)


def test_a_config_is_read_as_loaders_read_it(model: Path) -> None:
    (model / CONFIG).write_text('{"a": 1, "a": 2, "limit": [0.0, Infinity], "b": NaN, "c": 1e999}')
    out = model.parent / "out"
    code, lines = invoke(["quantize", "--bits", "8", "--granularity", "tensor", str(model), "-o", str(out), "-q"])
    assert code == 0, lines
    written = json.loads((out / CONFIG).read_text())
    assert (written["a"], written["limit"], written["c"]) == (2, [0.0, math.inf], math.inf)
    assert math.isnan(written["b"])
    assert invoke(["restore", str(out), "-o", str(model.parent / "back"), "-q"])[0] == 0


def test_a_config_that_is_too_large(model: Path) -> None:
    with (model / CONFIG).open("wb") as file:
        file.truncate(30_000_000)
    refused(model, CONFIG, "the limit is")


def test_a_folder_without_a_config(model: Path) -> None:
    (model / CONFIG).unlink()
    assert not (accepted(model, "quantize", "--bits", "8") / CONFIG).exists()
    assert open_source(str(model)).config is None


def test_a_config_that_nothing_changes_is_carried_to_the_byte(model: Path) -> None:
    raw = b'{ "odd":\t1.50, "unicode": "\xc3\xa9\\u00e9" }'
    (model / CONFIG).write_bytes(raw)
    assert (accepted(model) / CONFIG).read_bytes() == raw


def foreign(model: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """The folder quantized as compressed-tensors' own tools leave it, with a changed quantization_config."""
    out = model.parent / "packed"
    quantize(model, out, bits=8, layout="int-quantized")
    for name in (FIRST, SECOND):
        raw = (out / name).read_bytes()
        length = int.from_bytes(raw[:8], "little")
        header = json.loads(raw[8 : 8 + length])
        del header["__metadata__"]["compressor"]
        text = json.dumps(header).encode()
        (out / name).write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + length :])
    config = json.loads((out / CONFIG).read_text())
    change(config)
    (out / CONFIG).write_text(json.dumps(config))
    return out


def _weights(config: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = config["quantization_config"]["config_groups"]["group_0"]["weights"]
    return found


def test_a_foreign_quantized_folder_is_read(model: Path) -> None:
    packed = foreign(model, lambda config: None)
    report = inspect(packed)
    assert report.compression == "quantized (compressed-tensors)"
    restore(packed, model.parent / "dense")
    dense = load_file(model.parent / "dense" / FIRST)[UP]
    np.testing.assert_allclose(dense, load_file(model / FIRST)[UP], atol=0.03)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: _weights(c).update(num_bits=4), "layout int-quantized"),
        (lambda c: _weights(c).update(strategy="group", group_size=16), "layout int-quantized"),
        (lambda c: _weights(c).update(strategy="tensor"), "where BF16 [1] belongs"),
        (lambda c: _weights(c).update(strategy="group", group_size=0), "quantization_config"),
        (lambda c: _weights(c).update(strategy="group", group_size=-5), "quantization_config"),
        (lambda c: _weights(c).update(symmetric=False), ""),
        (lambda c: _weights(c).update(type="float"), "not of scaled integers"),
        (lambda c: _weights(c).update(num_bits="8"), "quantization_config"),
        (lambda c: _weights(c).update(num_bits=10**30), "quantization_config"),
        (lambda c: c["quantization_config"]["config_groups"]["group_0"].update(weights=None), "not of scaled"),
        (lambda c: c["quantization_config"].update(config_groups=[]), "has no config_groups"),
        (lambda c: c["quantization_config"].update(config_groups={"a": 1}), "has no config_groups"),
        (lambda c: c["quantization_config"].update(config_groups={}), "group"),
        (lambda c: c["quantization_config"].update(quant_method="aqlm"), "is quantized by 'aqlm'"),
        (lambda c: c["quantization_config"].update(quant_method="\x1b[31m\n"), "\\x1b[31m"),
        (lambda c: c.update(quantization_config=[]), "is not an object"),
        (lambda c: c.update(quantization_config="int8"), "is not an object"),
    ],
)
def test_a_quantization_config_that_contradicts_the_tensors(
    model: Path, change: Callable[[dict[str, Any]], None], words: str
) -> None:
    packed = foreign(model, change)
    out = model.parent / "dense"
    code, lines = invoke(["restore", str(packed), "-o", str(out)])
    assert code == 3, lines
    assert is_one_line(lines)
    assert words in lines[0]
    assert not out.exists()
    assert not strays(model.parent)


def test_patterns_of_strangers_are_not_run(tmp_path: Path) -> None:
    """A regular expression can take for ever: here 2^40 ways to match a name of sixty letters."""
    folder = tmp_path / "in"
    folder.mkdir()
    name = "a" * 60 + ".weight"
    codes = {name: np.ones((4, 8), np.int8), f"{name}_scale": np.ones((4, 1), np.float32)}
    (folder / SINGLE).write_bytes(save(codes))
    weights = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel"}
    groups = {
        "a": {"targets": ["re:(a|aa)+!", "re:(" * 5000], "weights": weights},
        "b": {"targets": ["Linear"], "weights": weights},
    }
    declared = {"quant_method": "compressed-tensors", "format": "int-quantized", "config_groups": groups}
    (folder / CONFIG).write_text(json.dumps({"quantization_config": declared}))
    out = accepted(folder, "restore")
    np.testing.assert_array_equal(load_file(out / SINGLE)[name], np.ones((4, 8), np.float32))


def test_a_quantization_config_over_dense_tensors(model: Path) -> None:
    """Policy: a folder that says that it is quantized is not quantized again, whatever its tensors are."""
    (model / CONFIG).write_text('{"quantization_config": {"quant_method": "eetq"}}')
    refused(model, "is quantized by 'eetq'", "Give the model before it was quantized")


# ---- other containers ------------------------------------------------------------------------------------------


def test_a_single_matrix_becomes_a_folder_and_back(tmp_path: Path) -> None:
    make_npy(tmp_path / "in.npy")
    for source, target in (("in.npy", "folder"), ("folder", "back.npy")):
        code, lines = invoke(["prune", "--threshold", "0", str(tmp_path / source), "-o", str(tmp_path / target)])
        assert code == 0, lines
    assert os.listdir(tmp_path / "folder") == [SINGLE]
    np.testing.assert_array_equal(np.load(tmp_path / "back.npy"), np.load(tmp_path / "in.npy"))


@pytest.mark.parametrize("kind", ["index", "config"])
def test_a_json_file_that_changes_while_it_is_read_is_noticed(
    model: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = {"index": INDEX, "config": CONFIG}[kind]
    os.utime(model / name, (1, 1))
    inside = module.read_object

    def late(file: Any, **options: Any) -> Any:
        if file.path.endswith(name):
            os.utime(model / name)
        return inside(file, **options)

    monkeypatch.setattr(module, "read_object", late)
    with pytest.raises(InputError, match="changed while it was read"):
        open_source(str(model))


def test_weights_that_go_along_untreated_are_said(model: Path, tmp_path: Path) -> None:
    from compressor import api

    (model / "2_Dense").mkdir()
    put(model / "2_Dense", "model.safetensors", "linear.weight")
    notes = api.prune(model, tmp_path / "out", sparsity=0.5).plan.notes
    assert "carried as they are, with weights of their own: 2_Dense/model.safetensors" in notes
