"""Inputs as they lie on disk: opened, read row by row in every order, watched for changes."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from support.fault_injection import FaultyOs, make_file, make_folder, make_npy

from compressor.core.errors import InputError
from compressor.core.workspace import Workspace
from compressor.files.input_file import InputFile
from compressor.files.opening import open_source


@pytest.mark.parametrize("name", ["", "nul\0.npy", "half\ud800.npy", "missing.npy", "n" * 300, "missing/a.npy"])
def test_inputs_that_cannot_be_opened(name: str) -> None:
    with pytest.raises(InputError, match="cannot be opened"):
        open_source(name)


def test_a_suffix_is_shown_escaped(tmp_path: Path) -> None:
    (tmp_path / "x.\x1b[31mred").touch()
    with pytest.raises(InputError, match=r"\\x1b\[31mred"):
        open_source(tmp_path / "x.\x1b[31mred")


@pytest.mark.parametrize("big_endian", [False, True])
@pytest.mark.parametrize("fortran", [False, True])
def test_rows_of_every_order_and_endianness(tmp_path: Path, fortran: bool, big_endian: bool) -> None:
    array = np.arange(60, dtype=">f4" if big_endian else "<f4").reshape(5, 4, 3)
    np.save(tmp_path / "x.npy", np.asfortranarray(array) if fortran else array)
    tensor = open_source(tmp_path / "x.npy").tensors["weight"]
    assert tensor.contiguous == (not fortran and not big_endian)
    for start, stop in ((0, 5), (1, 3), (4, 5), (2, 2)):
        rows = tensor.read_rows(12, start, stop, Workspace(), "x")
        np.testing.assert_array_equal(rows, array.reshape(5, 12)[start:stop].astype("<f4"))


def test_bytes_of_a_tensor_that_is_only_copied(tmp_path: Path) -> None:
    source = open_source(make_file(tmp_path / "x.safetensors"))
    assert bytes(source.tensors["ids"].read_bytes(0, 8, Workspace(), "x")) == (2**53 + 1).to_bytes(8, "little")
    assert source.nbytes == (tmp_path / "x.safetensors").stat().st_size


def test_every_file_of_a_source_is_watched(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "in")
    source = open_source(folder)
    assert len(source.opened) == 5
    source.check_unchanged()
    os.utime(folder / "tokenizer.json", (1, 1))
    with pytest.raises(InputError, match=r"tokenizer\.json: changed while it was read"):
        source.check_unchanged()


@pytest.mark.parametrize(("at", "call"), [(2, "fstat"), (3, "close")])
def test_errors_of_looking_at_a_file_are_refusals(tmp_path: Path, at: int, call: str) -> None:
    path = make_npy(tmp_path / "x.npy")
    with FaultyOs(at).installed() as faulty, pytest.raises(InputError, match="cannot be read: Input/output error"):
        InputFile.open(path)
    assert faulty.victims == [(call, str(path))]
