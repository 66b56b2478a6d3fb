"""compressed-tensors' old sparse folders are read. The layouts are written here by their description, in NumPy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import archives
from support.laws import store

from compressor import api
from compressor.core.errors import InputError


def bitmask(matrix: Any, dtype: str) -> dict[str, tuple[str, Any]]:
    """`sparse-bitmask` of stored elements."""
    mask = matrix.view(f"<u{matrix.itemsize}") != 0
    counts = mask.sum(axis=1)
    return {
        ".shape": ("I64", np.array(matrix.shape)),
        ".compressed": (dtype, matrix[mask]),
        ".bitmask": ("U8", np.packbits(mask, axis=1, bitorder="little")),
        ".row_offsets": ("I64", np.cumsum(counts) - counts),
    }


def two_of_four(matrix: Any, dtype: str) -> dict[str, tuple[str, Any]]:
    """`sparse-24-bitmask`: the two largest magnitudes of every four, zeros among them where there are fewer."""
    rows, columns = matrix.shape
    magnitude = np.abs(
        matrix.astype(np.float64) if matrix.dtype.kind == "f" else (matrix & 0x7FFF).astype(np.int64)
    )
    order = np.argsort(-magnitude.reshape(rows, -1, 4), axis=2, kind="stable")
    mask = np.zeros((rows, columns // 4, 4), bool)
    np.put_along_axis(mask, order[:, :, :2], True, axis=2)
    mask = mask.reshape(rows, columns)
    return {
        ".shape": ("I64", np.array(matrix.shape)[:, None]),
        ".compressed": (dtype, matrix[mask].reshape(rows, columns // 2)),
        ".bitmask": ("U8", np.packbits(mask, axis=1, bitorder="little")),
    }


WRITERS = {"sparse-bitmask": bitmask, "sparse-24-bitmask": two_of_four}


def pruned(rows: int, columns: int) -> Any:
    """Two of every four, some rows and groups empty."""
    random = np.random.default_rng(5)
    values = random.standard_normal((rows, columns))
    keep = np.argsort(random.random((rows, columns // 4, 4)), axis=2) < 2
    values = np.where(keep.reshape(rows, columns), values, 0)
    values[1], values[:, 4:8] = 0, 0
    return values


def folder(path: Path, form: str, *, nested: str = "", dtype: str = "BF16", **changes: Any) -> tuple[Path, Any]:
    """A folder in the old format, and the stored elements that it stands for. `changes`: parts by suffix."""
    path.mkdir()
    raw = store(pruned(12, 24), dtype)
    parts = WRITERS[form](raw, dtype)
    for suffix, part in changes.items():
        parts.pop(f".{suffix}")
        if part is not None:
            parts[f".{suffix}"] = part
    tensors = {f"layer.weight{suffix}": part for suffix, part in parts.items()}
    archives.write(path / "model.safetensors", {**tensors, "layer.bias": ("F32", np.ones(12, "<f4"))})
    sparsity = {"format": form, "targets": ["Linear"], "ignore": ["lm_head"], "sparsity_structure": "2:4"}
    config: dict[str, Any] = {"model_type": "llama", "sparsity_config": sparsity}
    if nested:
        inside = {"quant_method": "compressed-tensors", "sparsity_config": sparsity}
        config = {"model_type": "llama", nested: inside}
    (path / "config.json").write_text(json.dumps(config))
    return path, raw


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
@pytest.mark.parametrize("nested", ["", "quantization_config", "compression_config"])
@pytest.mark.parametrize("form", WRITERS)
def test_old_folders_are_restored(form: str, nested: str, dtype: str, tmp_path: Path) -> None:
    source, raw = folder(tmp_path / "in", form, nested=nested, dtype=dtype)
    report = api.inspect(source, stats=True)
    assert report.compression == "stored sparse (compressed-tensors)"
    assert [tensor.spec.name for tensor, _ in report.rows] == ["layer.bias", "layer.weight"]
    api.restore(source, tmp_path / "out")
    found = archives.read(tmp_path / "out" / "model.safetensors")
    assert found["layer.weight"] == (dtype, (12, 24), raw.tobytes())
    assert set(found) == {"layer.bias", "layer.weight"}
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == {"model_type": "llama"}


def test_what_they_hold_can_be_worked_on(tmp_path: Path) -> None:
    source, _ = folder(tmp_path / "in", "sparse-bitmask")
    report = api.prune(source, tmp_path / "out", pattern="2:4", store="nm")
    assert {job.dtype_after for job in report.plan.jobs} == {"F32", "nm"}
    assert not api.compare(source, tmp_path / "out", max_error=0).failures
    api.quantize(source, tmp_path / "q", bits=4, group_size=8)


I64 = np.int64


@pytest.mark.parametrize(
    ("form", "changes", "said"),
    [
        ("sparse-bitmask", {"shape": None}, "its part .shape is not two integers"),
        ("sparse-bitmask", {"shape": ("I64", np.array([12]))}, "its part .shape is not two integers"),
        ("sparse-bitmask", {"shape": ("I32", np.array([12, 24], "<i4"))}, "its part .shape is not two integers"),
        ("sparse-bitmask", {"shape": ("I64", np.array([12, -24]))}, "makes no sense"),
        ("sparse-bitmask", {"shape": ("I64", np.array([2**50, 1]))}, "makes no sense"),
        ("sparse-bitmask", {"shape": ("I64", np.array([2**39, 2]))}, "its part .row_offsets is not"),
        ("sparse-bitmask", {"shape": ("I64", np.array([12, 2**39]))}, "its part .bitmask is"),
        ("sparse-bitmask", {"row_offsets": None}, "its part .row_offsets is not 12 integers"),
        ("sparse-bitmask", {"row_offsets": ("I64", np.arange(12)[::-1].copy())}, "tells no numbers of values"),
        ("sparse-bitmask", {"row_offsets": ("I64", np.arange(12))}, "tells no numbers of values|other numbers"),
        ("sparse-bitmask", {"bitmask": None}, "its part .bitmask is missing"),
        ("sparse-bitmask", {"bitmask": ("U8", np.zeros((12, 3), np.uint8))}, "marks other numbers of values"),
        ("sparse-bitmask", {"compressed": ("I16", np.zeros(9, "<i2"))}, "makes no sense"),
        ("sparse-24-bitmask", {"shape": ("I64", np.array([2**39, 4]))}, "not two of four"),
        ("sparse-24-bitmask", {"shape": ("I64", np.array([2**39, 0]))}, "makes no sense"),
        ("sparse-24-bitmask", {"bitmask": ("U8", np.full((12, 3), 1, np.uint8))}, "marks other numbers"),
    ],
)
def test_parts_that_contradict_each_other(form: str, changes: Any, said: str, tmp_path: Path) -> None:
    source, _ = folder(tmp_path / "in", form, **changes)
    with pytest.raises(InputError, match=said) as caught:
        api.restore(source, tmp_path / "out")
    assert caught.value.tensor == "layer.weight"
    assert caught.value.file


def test_sparse_and_quantized_at_once_is_refused(tmp_path: Path) -> None:
    source, _ = folder(tmp_path / "in", "sparse-bitmask", nested="quantization_config")
    config = json.loads((source / "config.json").read_text())
    config["quantization_config"]["config_groups"] = {"group_0": {}}
    (source / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="sparse and quantized at once"):
        api.restore(source, tmp_path / "out")


@pytest.mark.parametrize("declared", [{"format": "dense"}, {"format": 3}, [], None, {}])
def test_a_sparsity_config_that_says_nothing_is_no_matter(declared: Any, tmp_path: Path) -> None:
    source, _ = folder(tmp_path / "in", "sparse-bitmask")
    (source / "config.json").write_text(json.dumps({"sparsity_config": declared}))
    assert api.inspect(source).compression == ""
