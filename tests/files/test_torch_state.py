"""State dicts of PyTorch without PyTorch: one of its files, strangers' pickles, which are never run, and damage."""

from __future__ import annotations

import os
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from safetensors import safe_open
from support.fault_injection import invoke, is_one_line

from compressor.checkpoint.checkpoint import open_checkpoint
from compressor.checkpoint.rows import read_whole
from compressor.core.errors import InputError
from compressor.files.input_file import InputFile
from compressor.files.opening import open_source
from compressor.files.torch_state import read_header

DATA = Path(__file__).parent / "data"
STATE = DATA / "torch-state.pt"  # written by torch 2.13, inside a trainer's dict; views, a tied parameter, …
VALUES = np.load(DATA / "torch-state-values.npz")


def archive(path: Path, content: bytes, more: dict[str, bytes] | None = None, method: int = 0) -> Path:
    with zipfile.ZipFile(path, "w", method) as file:
        file.writestr("a/data.pkl", content)
        for name, raw in (more or {"a/byteorder": b"little", "a/data/0": bytes(64)}).items():
            file.writestr(name, raw)
    return path


def test_torchs_own_file_is_read() -> None:
    checkpoint = open_checkpoint(STATE)
    assert set(checkpoint.tensors) == set(VALUES.files)
    for name, tensor in checkpoint.tensors.items():
        if tensor.spec.is_float:
            assert np.array_equal(read_whole(tensor), VALUES[name]), name
    assert checkpoint.tensors["steps"].spec.dtype == "I64"


def test_a_folder_of_pickles_becomes_one_of_safetensors(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "pytorch_model.bin").write_bytes(STATE.read_bytes())
    assert invoke(["prune", "--threshold", "0.01", str(folder), "-o", str(tmp_path / "out"), "-q"])[0] == 0
    assert sorted(os.listdir(tmp_path / "out")) == ["README.md", "config.json", "model.safetensors"]
    with safe_open(tmp_path / "out" / "model.safetensors", "np") as file:
        written = file.get_tensor("up.weight")
    assert np.array_equal(written, np.where(np.abs(VALUES["up.weight"]) < 0.01, 0, VALUES["up.weight"]))


def test_several_state_dicts_are_not_chosen_from(tmp_path: Path) -> None:
    """Nor is an optimizer's state, which lies deeper, one of them."""
    with zipfile.ZipFile(STATE) as file:
        content = {name: file.read(name) for name in file.namelist()}
    name = next(name for name in content if name.endswith("/data.pkl"))
    whole = content[name]
    body = whole[2:-1]  # without its protocol and its end
    for keys, good in ((("model", "model_ema"), False), (("model",), True)):
        nested = b"".join(pickle.dumps(key, 2)[2:-3] + body for key in keys)
        content[name] = b"\x80\x02}(" + nested + b"u."
        with zipfile.ZipFile(tmp_path / "two.pt", "w") as made:
            for inner, raw in content.items():
                made.writestr(inner, raw)
        if good:
            assert set(open_checkpoint(tmp_path / "two.pt").tensors) == set(VALUES.files)
            continue
        with pytest.raises(InputError, match="holds 2 state dicts: model, model_ema"):
            open_checkpoint(tmp_path / "two.pt")


def test_shards_of_pickles(tmp_path: Path) -> None:
    shard = "pytorch_model-00001-of-00001.bin"
    (tmp_path / shard).write_bytes(STATE.read_bytes())
    index = dict.fromkeys(VALUES.files, shard)
    (tmp_path / "pytorch_model.bin.index.json").write_text(
        f'{{"weight_map": {str(index).replace(chr(39), chr(34))}}}'
    )
    source = open_source(str(tmp_path))
    assert source.files[0].name == "model-00001-of-00001.safetensors"
    assert source.index == "model.safetensors.index.json"
    assert source.notes == ("the weights are pickles of PyTorch: their tensors were read, nothing in them was run",)
    (tmp_path / shard).unlink()
    with pytest.raises(InputError, match=f"the index names {shard}, which is not there"):
        open_source(str(tmp_path))


class Evil:
    """Runs a command when it is unpickled by anybody who believes it."""

    def __init__(self, call: Any, *arguments: Any) -> None:
        self.call, self.arguments = call, arguments

    def __reduce__(self) -> Any:
        return self.call, self.arguments


@pytest.mark.parametrize("wrap", [lambda evil: evil, lambda evil: {"a": evil}, lambda evil: OrderedDict(a=[evil])])
def test_no_code_of_a_file_is_run(tmp_path: Path, wrap: Any) -> None:
    marker = tmp_path / "was-run"
    for call, arguments in ((os.mkdir, (str(marker),)), (eval, ("1+1",)), (getattr, (OrderedDict, "fromkeys"))):
        path = archive(tmp_path / "evil.pt", pickle.dumps(wrap(Evil(call, *arguments))))
        code, lines = invoke(["inspect", str(path)])
        assert code == 3
        assert "which is no tensor and is never loaded" in lines[0]
        assert is_one_line(lines)
    assert not marker.exists()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (pickle.dumps([1, 2]), "holds no state dict"),
        (pickle.dumps({"a": 1}), "holds no state dict"),
        (pickle.dumps({"state_dict": {"state_dict": {"state_dict": {}}}}), "holds no state dict"),
        (b"", "has a damaged pickle"),
        (b"\x80\x02}q\x00", "has a damaged pickle"),
        (b"(" * 100_000, "has a damaged pickle"),
        (b"\x80\x02}r\xff\xff\xff\x7f.", "has a damaged pickle"),  # would make room for 2^31 places
        (b"\x80\x04\x8d\xff\xff\xff\xff\xff\xff\xff\x00.", "has a damaged pickle"),
    ],
)
def test_what_is_no_state_dict(tmp_path: Path, content: bytes, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        read_header(InputFile.open(archive(tmp_path / "x.pt", content)))


def test_other_files_of_torch(tmp_path: Path) -> None:
    old = tmp_path / "old.pt"
    old.write_bytes(b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19." + bytes(100))
    cases = [
        (old, "before 1.6"),
        (archive(tmp_path / "jit.pt", b"", {"a/constants.pkl": b""}), "no state dict of PyTorch"),
        (archive(tmp_path / "big.pt", b"", {"a/byteorder": b"big"}), "reversed"),
        (archive(tmp_path / "zip.pt", b"x" * 100, None, zipfile.ZIP_DEFLATED), "is compressed"),
    ]
    for path, reason in cases:
        with pytest.raises(InputError, match=reason):
            read_header(InputFile.open(path))


@settings(max_examples=300)
@given(st.data())
def test_damaged_files_are_refused_or_read(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Any byte changed, or the end cut off: an InputError, or tensors that lie in the file."""
    raw = bytearray(STATE.read_bytes())
    for _ in range(data.draw(st.integers(0, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    raw = raw[: data.draw(st.one_of(st.just(len(raw)), st.integers(0, len(raw))))]
    path = tmp_path_factory.getbasetemp() / "damaged.pt"
    path.write_bytes(raw)
    try:
        header = read_header(InputFile.open(path))
    except InputError:
        return
    for placed in header.tensors:
        assert placed.strides is not None or placed.offset + placed.spec.nbytes <= len(raw)
