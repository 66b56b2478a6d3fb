"""Rows of tensors that lie elsewhere are those of the whole, wherever rows begin and end, raw or decoded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from support.gguf_models import NAMES, folder_named, tensors_named

from compressor import api
from compressor.checkpoint.checkpoint import Checkpoint, open_checkpoint
from compressor.checkpoint.gguf.from_file import as_folder
from compressor.checkpoint.gguf.to_file import as_file
from compressor.core.workspace import Workspace


@pytest.fixture
def by_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """No tensor is small, and few elements are looked at at once."""
    monkeypatch.setattr("compressor.checkpoint.gguf.moved._SMALL", 0)
    monkeypatch.setattr("compressor.checkpoint.gguf.moved._AT_ONCE", 16)


def everything(checkpoint: Checkpoint, step: int) -> dict[str, bytes]:
    """The bytes of every tensor, read so many rows at a time."""
    found = {}
    for name, tensor in checkpoint.tensors.items():
        shape = tensor.spec.shape
        width = shape[-1] if len(shape) > 1 else tensor.spec.size
        rows, work = tensor.spec.size // width, Workspace()
        runs = [
            tensor.whole.read_rows(width, start, min(start + step, rows), work, "rows").tobytes()
            for start in range(0, rows, step)
        ]
        found[name] = b"".join(runs)
    return found


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_any_rows_are_those_of_the_whole(
    tmp_path: Path, name: str, dtype: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = folder_named(tmp_path / "model", name, dtype=dtype)
    whole = everything(as_file(open_checkpoint(folder)), 1 << 20)
    monkeypatch.setattr("compressor.checkpoint.gguf.moved._SMALL", 0)
    monkeypatch.setattr("compressor.checkpoint.gguf.moved._AT_ONCE", 16)
    for step in (1, 3, 1 << 20):
        assert everything(as_file(open_checkpoint(folder)), step) == whole


@pytest.mark.usefixtures("by_rows")
@pytest.mark.parametrize("name", NAMES)
def test_the_way_back_by_rows(tmp_path: Path, name: str) -> None:
    folder = folder_named(tmp_path / "model", name)
    api.restore(folder, tmp_path / "model.gguf")
    back = as_folder(open_checkpoint(tmp_path / "model.gguf"))
    for step in (1, 3, 1 << 20):
        for one, raw in everything(back, step).items():
            found = np.frombuffer(raw, "<f4")
            assert np.allclose(found, tensors_named(name)[one].reshape(-1), rtol=0, atol=1e-6), one


@pytest.mark.usefixtures("by_rows")
@pytest.mark.parametrize("name", ["llama", "gpt2", "mixtral"])
def test_codes_are_decoded_on_the_way(tmp_path: Path, name: str) -> None:
    folder = folder_named(tmp_path / "model", name)
    api.quantize(
        folder,
        tmp_path / "codes",
        bits=8,
        layout="compressor",
        include=["*proj*", "*c_*", "*w?.weight"],
        allow_unmatched=True,
    )
    api.restore(tmp_path / "codes", tmp_path / "dense")
    expected = everything(as_file(open_checkpoint(tmp_path / "dense")), 1 << 20)
    for step in (1, 3, 1 << 20):
        assert everything(as_file(open_checkpoint(tmp_path / "codes")), step) == expected
