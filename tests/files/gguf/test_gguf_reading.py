"""Headers of GGUF files: what ggml's own package reads, and every way in which one can lie."""

from __future__ import annotations

import re
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.gguf_files import (
    ARRAY,
    STRING,
    UINT32,
    GgufFile,
    Line,
    blocks,
    gguf_package,
    numbers,
    small_model,
    text,
    value,
)

from compressor.core.errors import InputError
from compressor.core.ggml_types import BY_NUMBER
from compressor.files.gguf.reading import RECORD, GgufHeader, read_header
from compressor.files.gguf.values import Kind
from compressor.files.input_file import InputFile


def read(place: Path, raw: bytes) -> GgufHeader:
    path = place / "model.gguf"
    path.write_bytes(raw)
    return read_header(InputFile.open(path))


def refused(place: Path, raw: bytes) -> str:
    with pytest.raises(InputError) as caught:
        read(place, raw)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_header_says_what_is_in_the_file(tmp_path: Path) -> None:
    made = small_model()
    found = read(tmp_path, made.file())
    assert [one.spec.name for one in found.tensors] == sorted(str(line.name) for line in made.lines)
    assert {name: kind.name for name, kind in found.types.items()} == {line.name: line.type for line in made.lines}
    assert list(found.shapes.items()) == [(line.name, line.shape) for line in made.lines]
    raw = made.file()
    for placed in found.tensors:
        (line,) = (line for line in made.lines if line.name == placed.spec.name)
        assert raw[placed.offset : placed.offset + placed.spec.nbytes] == line.data
        assert placed.offset % 32 == 0
    said = {key: one.python() for key, one in found.fields.items()}
    assert said == {
        "general.architecture": "llama",
        "general.file_type": 15,
        "general.quantization_version": 2,
        "llama.block_count": 1,
        "llama.rope.freq_base": 1e4,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.tokens": ["a", "Ġb", ""],
        "tokenizer.ggml.scores": [0.5, -1.0, 2.0],
        "tokenizer.ggml.token_type": [1, 3, 1],
    }
    assert (found.fields["tokenizer.ggml.tokens"].items, len(found.fields["tokenizer.ggml.tokens"])) == (
        Kind.STRING,
        3,
    )


@pytest.mark.parametrize("kind", [0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12])
def test_every_kind_of_value(tmp_path: Path, kind: int) -> None:
    one: Any = {6: 0.25, 12: 1e300, 7: True}.get(kind, 7)
    found = read(tmp_path, GgufFile((), {"a": value(kind, one), "b": value(ARRAY, (kind, [one, one]))}).file())
    assert (found.fields["a"].python(), found.fields["b"].python()) == (one, [one, one])


def test_arrays_in_arrays_and_texts_that_are_none(tmp_path: Path) -> None:
    nested = value(ARRAY, (ARRAY, [(ARRAY, [(STRING, ["x"]), (4, [1, 2])]), (7, [])]))
    found = read(tmp_path, GgufFile((), {"a": nested, "b": value(STRING, b"\xff\xfe")}).file())
    assert found.fields["a"].python() == [[["x"], [1, 2]], []]
    assert found.fields["b"].python().encode("utf-8", "surrogateescape") == b"\xff\xfe"


def test_version_2_and_other_alignments_and_no_padding_at_the_end(tmp_path: Path) -> None:
    lines = (numbers("a", (3,)), numbers("b", (5,)))
    aligned = GgufFile(lines, {"general.alignment": value(UINT32, 8)}, version=2, alignment=8)
    found = read(tmp_path, aligned.file()[:-4])  # ggml reads a file that ends with its last weight
    assert [one.offset % 8 for one in found.tensors] == [0, 0]
    assert read(tmp_path, GgufFile().file()).tensors == ()  # a vocabulary has none


def test_our_record_is_metadata_as_in_other_containers(tmp_path: Path) -> None:
    found = read(tmp_path, GgufFile((), {RECORD: value(STRING, "{}")}).file())
    assert found.metadata == {"compressor": "{}"}


def test_the_types_are_those_of_the_package(tmp_path: Path) -> None:
    gguf = gguf_package()
    sizes = {kind.value: (kind.name, *found) for kind, found in gguf.constants.GGML_QUANT_SIZES.items()}
    sizes[9] = (
        "Q8_1",
        32,
        36,
    )  # ggml-common.h; the package has kept an older 40
    ours = {number: (one.name, one.block, one.nbytes) for number, one in BY_NUMBER.items() if number in sizes}
    assert ours == sizes


def test_the_package_reads_the_same(tmp_path: Path) -> None:
    gguf = gguf_package()
    found = read(tmp_path, small_model().file())
    theirs = gguf.GGUFReader(tmp_path / "model.gguf")
    for tensor in theirs.tensors:
        assert found.types[tensor.name].number == tensor.tensor_type
        assert found.shapes[tensor.name] == tuple(reversed(tensor.shape.tolist()))
        (placed,) = (one for one in found.tensors if one.spec.name == tensor.name)
        assert placed.offset == tensor.data_offset
        assert placed.spec.nbytes == tensor.n_bytes
    for key, value_ in found.fields.items():
        said = theirs.fields[key].contents()
        assert value_.python() == (bool(said) if value_.kind is Kind.BOOL else said)


LINE = Line("w", "F32", (2, 3), np.ones(6, "<f4").tobytes())
ONE = GgufFile((LINE,))


def but(**changes: Any) -> GgufFile:
    """A file of one tensor that says something else of it."""
    return GgufFile((Line(**{**LINE.__dict__, **changes}),))


LIES: dict[str, tuple[GgufFile, str]] = {
    "magic": (ONE.but(magic=b"GGML"), "does not begin as one"),
    "version 1": (ONE.but(version=1), "is GGUF of version 1, and versions 2 and 3"),
    "version 0": (ONE.but(version=0), "version 0"),
    "version 4": (ONE.but(version=4), "Use a newer compressor"),
    "big-endian": (ONE.but(version=3 << 24), "of a big-endian machine.*gguf-convert-endian"),
    "tensors": (ONE.but(tensors=2**60), "claims 1152921504606846976 tensors"),
    "negative": (ONE.but(tensors=2**64 - 1), "claims 18446744073709551615 tensors"),
    "values": (ONE.but(count=2**62), "claims 4611686018427387904 values"),
    "one more value": (ONE.but(count=1), "is truncated, or damaged|unknown kind"),
    "one more tensor": (ONE.but(tensors=2), "has 0 bytes, where 1 to 1024 are allowed"),
    "type": (but(number=99), "tensor 'w': its ggml type 99 is unknown"),
    "removed": (
        but(number=31),
        r"its type is Q4_0_4_4 \(31\), which ggml has given up. Quantize the model to Q4_0",
    ),
    "axes": (but(axes=6), r"has 6 axes, and tensors of a \.gguf have at most 5"),
    "overflow": (but(shape=(2**40, 2**40)), "is too large"),
    "overflow behind a zero": (but(shape=(0, 2**40, 2**40)), "is too large"),
    "one axis": (but(shape=(2**63,)), "is too large"),
    "more than the file": (but(shape=(2**20, 3)), "is truncated: 12582880 bytes are missing"),
    "less than the file": (but(shape=(1, 1), data=bytes(100)), "has 96 bytes after its last tensor"),
    "hole": (but(offset=32), "begin at 32 of the data, where 0 was expected. Tensors leave a hole"),
    "far away": (but(offset=2**63), "where 0 was expected"),
    "overlap": (
        GgufFile((LINE, Line("v", "F32", (6,), LINE.data, offset=0))),
        "tensor 'v': its bytes begin at 0 of the data, where 32 was expected. Tensors overlap",
    ),
    "twice": (GgufFile((LINE, LINE)), "tensor 'w': is in the file twice"),
    "no blocks": (
        GgufFile((Line("w", "Q4_K", (2, 128), bytes(144)),)),
        r"its rows \[2, 128\] are no whole blocks of 256 weights of Q4_K",
    ),
    "scalar of blocks": (GgufFile((Line("w", "Q8_0", (), bytes(34)),)), "are no whole blocks"),
    "no name": (but(name=""), "the name of a tensor has 0 bytes"),
    "long name": (but(name="w" * 2000), "the name of a tensor has 2000 bytes, where 1 to 1024 are allowed"),
    "name of bytes": (but(name=b"\xff"), "the name of a tensor is no valid UTF-8"),
    "tail": (ONE.but(tail=b"x" * 5), "has 5 bytes after its last tensor"),
    "key twice": (ONE.but(values={"a": value(4, 1) + text("a") + value(4, 2)}, count=2), "the key 'a' twice"),
    "no key": (ONE.but(values={"": value(4, 1)}), "a key of its metadata has 0 bytes"),
    "key of bytes": (ONE.but(values={b"\x80": value(4, 1)}), "a key of its metadata is no valid UTF-8"),
    "kind": (ONE.but(values={"a": struct.pack("<I", 13)}), "'a' is of the unknown kind 13"),
    "truth": (ONE.but(values={"a": struct.pack("<IB", 7, 2)}), "'a' is no truth value"),
    "truths": (ONE.but(values={"a": struct.pack("<IIQBB", 9, 7, 2, 1, 255)}), "holds what is no truth value"),
    "text": (ONE.but(values={"a": struct.pack("<IQ", 8, 2**62)}), "'a' claims 4611686018427387904 bytes"),
    "elements": (ONE.but(values={"a": struct.pack("<IIQ", 9, 0, 2**62)}), "'a' claims .* elements"),
    "texts": (ONE.but(values={"a": struct.pack("<IIQ", 9, 8, 2**40)}), "'a' claims .* elements"),
    "text in an array": (ONE.but(values={"a": struct.pack("<IIQQ", 9, 8, 1, 2**40)}), "'a' claims .* bytes"),
    "arrays": (ONE.but(values={"a": struct.pack("<IIQ", 9, 9, 2**40)}), "'a' claims .* elements"),
    "depth": (
        ONE.but(values={"a": struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 6}),
        "has arrays within 4 others",
    ),
    "alignment": (ONE.but(values={"general.alignment": value(4, 24)}), "general.alignment is 24, no power of two"),
    "no alignment": (ONE.but(values={"general.alignment": value(4, 0)}), "general.alignment is 0"),
    "kind of alignment": (ONE.but(values={"general.alignment": value(10, 32)}), "no power of two .UINT32."),
    "large alignment": (ONE.but(values={"general.alignment": value(4, 2**31)}), "up to 65536"),
}


@pytest.mark.parametrize("name", LIES)
def test_a_lie_is_refused_with_a_line(tmp_path: Path, name: str) -> None:
    made, reason = LIES[name]
    found = refused(tmp_path, made.file())
    assert re.search(reason, found), found


def test_other_files_by_this_name(tmp_path: Path) -> None:
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
    assert "is a Git LFS pointer, not the weights. Run `git lfs pull`" in refused(tmp_path, pointer)
    assert "is a zip archive" in refused(tmp_path, b"PK\x03\x04\x14" + bytes(60))


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    raw = small_model().file()
    whole = len(raw) - 20  # the last tensor has 12 bytes of 32
    for length in range(0, whole, 7):
        assert refused(tmp_path, raw[:length])


def test_a_header_that_is_no_header_is_not_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.gguf"
    with path.open("wb") as file:
        file.write(GgufFile((), {"a": struct.pack("<IQ", 8, 2**34)}).file())
        file.truncate(2**35)
    with pytest.raises(InputError, match="its header has more than 256000000 bytes"):
        read_header(InputFile.open(path))


def test_blocks_of_a_matrix_are_rows_of_bytes(tmp_path: Path) -> None:
    found = read(tmp_path, GgufFile((blocks("w", "Q4_0", (2, 3, 64)),)).file())
    (placed,) = found.tensors
    assert (placed.spec.dtype, placed.spec.shape) == ("U8", (2, 3, 36))
