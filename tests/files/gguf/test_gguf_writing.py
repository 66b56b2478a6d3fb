"""Laid out GGUF files: read by ggml's own package, and byte for byte what a file was that said the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from support.gguf_files import gguf_package, small_model

from compressor.core.errors import OutputError
from compressor.core.ggml_types import BY_NAME
from compressor.files.gguf import values
from compressor.files.gguf.reading import read_header
from compressor.files.gguf.values import Kind, Value
from compressor.files.gguf.writing import GgufTensor, layout
from compressor.files.input_file import InputFile
from compressor.files.layout import FileLayout


def write(path: Path, planned: FileLayout, data: dict[str, bytes]) -> Path:
    """Follow a plan as any writer would, in a file whose every byte must be written."""
    raw = bytearray(b"\xaa" * planned.size)
    written = 0
    for offset, piece in (*planned.pieces, *((planned.offsets[name], part) for name, part in data.items())):
        raw[offset : offset + len(piece)] = piece
        written += len(piece)
    assert written == len(raw) == planned.size
    path.write_bytes(raw)
    return path


def test_what_was_read_is_written_again_byte_for_byte(tmp_path: Path) -> None:
    made = small_model()
    path = tmp_path / "model.gguf"
    path.write_bytes(made.file())
    header = read_header(InputFile.open(path))
    tensors = [GgufTensor(name, kind, header.shapes[name]) for name, kind in header.types.items()]
    planned = layout(tensors, header.fields)
    again = write(tmp_path / "again.gguf", planned, {str(line.name): line.data for line in made.lines})
    assert again.read_bytes() == made.file()


def test_the_package_reads_what_is_written(tmp_path: Path) -> None:
    gguf = gguf_package()
    fields = {
        "general.architecture": values.text("llama"),
        "general.alignment": values.scalar(Kind.UINT32, 64),
        "a.flag": values.scalar(Kind.BOOL, True),
        "a.tokens": values.array(Kind.STRING, ["x", "ŷ", ""]),
        "a.scores": values.array(Kind.FLOAT32, [1.5, -2.0]),
        "a.large": values.scalar(Kind.INT64, -(2**60)),
    }
    data = {"b": np.arange(6, dtype="<f4"), "a": np.arange(34, dtype=np.uint8), "c": np.array(3.0, "<f2")}
    tensors = [
        GgufTensor("b", BY_NAME["F32"], (2, 3)),
        GgufTensor("a", BY_NAME["Q8_0"], (1, 32)),
        GgufTensor("c", BY_NAME["F16"], (1,)),
    ]
    planned = layout(tensors, fields)
    path = write(tmp_path / "out.gguf", planned, {name: one.tobytes() for name, one in data.items()})
    theirs = gguf.GGUFReader(path)
    assert {tensor.name: tensor.data.tobytes() for tensor in theirs.tensors} == {
        name: one.tobytes() for name, one in data.items()
    }
    assert {key: theirs.fields[key].contents() for key in fields} == {
        key: one.python() for key, one in fields.items()
    }
    assert all(offset % 64 == 0 for offset in planned.offsets.values())


def test_values_are_kept_as_they_are() -> None:
    nested = values.array(Kind.ARRAY, [values.array(Kind.UINT8, [1, 2]), values.array(Kind.STRING, ["x"])])
    assert nested.python() == [[1, 2], ["x"]]
    assert (nested.items, len(nested)) == (Kind.ARRAY, 2)
    assert values.text("\udcff").raw[-1:] == b"\xff"  # a byte that is no text, as reading gives it
    assert len(values.text("abc")) == 1
    assert values.array(Kind.INT8, range(17)).shown == "17 × INT8"
    assert values.scalar(Kind.BOOL, True).shown == "True"


@pytest.mark.parametrize(
    ("tensors", "fields", "reason"),
    [
        ([("w", "F32", (2,)), ("w", "F32", (2,))], {}, "would be in the file twice"),
        ([("", "F32", (2,))], {}, "its name has 0 bytes"),
        ([("w" * 128, "F32", (2,))], {}, "its name has 128 bytes, and a .gguf has 1 to 127"),
        ([("w", "F32", (1, 1, 1, 1, 1, 2))], {}, "has 6 axes, and a .gguf holds at most 5"),
        ([("w", "Q4_K", (2, 128))], {}, "are no whole blocks of 256 weights"),
        ([], {"general.alignment": values.scalar(Kind.UINT32, 3)}, "general.alignment is no power of two"),
    ],
)
def test_what_the_format_does_not_hold(
    tensors: list[tuple[str, str, tuple[int, ...]]], fields: dict[str, Value], reason: str
) -> None:
    with pytest.raises(OutputError, match=reason):
        layout([GgufTensor(name, BY_NAME[kind], shape) for name, kind, shape in tensors], fields)
