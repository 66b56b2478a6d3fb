"""The safetensors container: hostile headers, the library as oracle, golden bytes, mutations.

The number in a case's id is its row in the table of inputs and faults.
"""

from __future__ import annotations

import json
import os
import random
import resource
import struct
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st
from support.clock import at_most

from compressor.core.errors import InputError, OutputError
from compressor.core.tensor import DTYPES, TensorSpec
from compressor.files import safetensors as container
from compressor.files.input_file import InputFile
from compressor.files.layout import FileLayout, Header
from compressor.files.safetensors import MAX_HEADER, layout, read_header

LFS = (
    b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5\n"
    b"size 548105171\n"
)


def entry(dtype: Any = "U8", shape: Any = (4,), offsets: Any = (0, 4)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def framed(header: bytes | dict[str, Any], data: bytes = b"1234") -> bytes:
    """A file with this header, as it is or as JSON."""
    if isinstance(header, dict):
        header = json.dumps(header).encode()
    return struct.pack("<Q", len(header)) + header + data


def raw(fields: str, data: bytes = b"1234") -> bytes:
    """A file whose one tensor has its entry written out."""
    return framed(f'{{"a":{fields}}}'.encode(), data)


GOOD = framed({"a": entry()})
PLAIN = '"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}'
ESCAPED = "\\u0061"  # an "a"


def put(folder: Path, content: bytes) -> InputFile:
    path = folder / "model.safetensors"
    path.write_bytes(content)
    return InputFile.open(path)


def refusal(file: InputFile) -> InputError:
    """The error of reading a header, which must be one short printable line."""
    with pytest.raises(InputError) as caught:
        read_header(file)
    text = str(caught.value)
    assert text.startswith(file.path)
    assert text.isprintable()
    assert len(text) < len(file.path) + 800
    assert caught.value.remedy
    return caught.value


def accepted_by_library(content: bytes) -> bool:
    try:
        safetensors.deserialize(content)
    except safetensors.SafetensorError:
        return False
    return True


BAD: list[Any] = [
    ("1-empty", b"", "it has only 0 bytes"),
    ("1-three-bytes", b"abc", "it has only 3 bytes"),
    ("1-zero-length", bytes(8), "not a JSON object"),
    ("1-one-byte-header", framed(b"{", b""), "not a JSON object"),
    ("2-past-the-end", struct.pack("<Q", 1000) + b"{}", "at least 998 bytes are missing"),
    ("2-2**63", struct.pack("<Q", 2**63) + b"{}", "header length 9223372036854775808"),
    ("2-2**64-1", struct.pack("<Q", 2**64 - 1) + b"{}", "header length 18446744073709551615"),
    ("4-one-short", struct.pack("<Q", len(GOOD) - 13) + GOOD[8:], "near byte"),
    ("4-one-long", struct.pack("<Q", len(GOOD) - 11) + GOOD[8:], "near byte"),
    ("5-not-json", framed(b"{hello}"), "not the JSON"),
    ("5-list", framed(b"[]"), "not a JSON object"),
    ("5-string", framed(b'"a"'), "not a JSON object"),
    ("5-leading-space", framed(b" {}", b""), "not a JSON object"),
    ("5-trailing-junk", framed(b"{}x", b""), "near byte 10"),
    ("5-trailing-nul", framed(b"{}\0\0", b""), "near byte 10"),
    ("5-second-object", framed(b"{}{}", b""), "near byte 10"),
    ("5-comma-at-the-end", framed(b'{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},}'), "near byte"),
    ("5-no-comma", framed(b'{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]} "b":1}'), "near byte"),
    ("5-key-without-value", framed(b'{"a"}'), "near byte"),
    ("5-utf-16", framed('{"a":1}'.encode("utf-16-le")), "near byte"),
    ("5-bom", framed(b"\xef\xbb\xbf{}", b""), "not a JSON object"),
    ("5-name-not-utf-8", framed(b'{"\xff":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}'), "not Unicode"),
    ("5-overlong-utf-8", framed(b'{"\xc0\xaf":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}'), "not Unicode"),
    ("5-dtype-not-utf-8", framed(b'{"a":{"dtype":"\xff","shape":[4],"data_offsets":[0,4]}}'), "damaged"),
    ("5-control-in-a-name", framed(b'{"a\n":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}'), "near byte"),
    ("5-bad-escape", framed(b'{"a\\x":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}'), "near byte"),
    ("6-nan", raw('{"dtype":"U8","shape":[NaN],"data_offsets":[0,4]}'), "NaN is not an integer"),
    ("6-infinity", raw('{"dtype":"U8","shape":[-Infinity],"data_offsets":[0,4]}'), "-Infinity is not"),
    ("6-exponent", raw('{"dtype":"U8","shape":[1e3],"data_offsets":[0,4]}'), "1e3 is not an integer"),
    ("6-5000-digits", raw(f'{{"dtype":"U8","shape":[{"9" * 5000}],"data_offsets":[0,4]}}'), "does not end within"),
    ("6-1900-digits", raw(f'{{"dtype":"U8","shape":[{"9" * 1900}],"data_offsets":[0,4]}}'), "is not one"),
    ("6-minus-zero", raw('{"dtype":"U8","shape":[4],"data_offsets":[-0,4]}'), "library refuses it"),
    ("7-100000-lists", raw("[" * 100_000 + "]" * 100_000), "does not end within"),
    ("7-1990-lists", raw("[" * 1990 + "}"), "recursion"),
    ("7-100000-objects", framed(b'{"a":' * 100_000), "does not end within"),
    ("8-name-twice", framed(f"{{{PLAIN},{PLAIN}}}".encode()), "this name twice"),
    ("8-name-twice-escaped", framed(f"{{{PLAIN},{PLAIN.replace('a', ESCAPED, 1)}}}".encode()), "this name twice"),
    ("8-inner-key-twice", raw('{"dtype":"U8","shape":[4],"data_offsets":[0,4],"dtype":"U8"}'), "occurs twice"),
    ("8-metadata-key-twice", framed(b'{"__metadata__":{"k":"v","k":"v"}}', b""), "this name twice"),
    ("8-metadata-twice", framed(b'{"__metadata__":{},"__metadata__":{}}', b""), "this name twice"),
    ("8-unknown-key", framed({"a": entry() | {"more": 1}}), "does not consist of"),
    ("8-missing-key", raw('{"dtype":"U8","shape":[4]}'), "does not consist of"),
    ("8-entry-is-a-list", raw('["U8",[4],{}]'), "damaged"),
    ("8-entry-is-a-number", raw("1"), "does not consist of"),
    ("9-metadata-number", framed({"__metadata__": {"k": 1}}, b""), "the entry 'k' of its __metadata__ is no text"),
    ("9-metadata-nested", framed({"__metadata__": {"k": {"l": "m"}}}, b""), "is no text"),
    ("9-metadata-null-value", framed({"__metadata__": {"k": None}}, b""), "is no text"),
    ("9-metadata-list", framed({"__metadata__": ["k"]}, b""), "near byte"),
    ("9-metadata-null", framed({"__metadata__": None}, b""), "near byte"),
    ("9-metadata-tensor", framed({"__metadata__": entry()}), "is no text"),
    ("12-overlap", framed({"a": entry(), "b": entry(offsets=(2, 6))}, b"123456"), "where 4 was expected"),
    ("12-full-overlap", framed({"a": entry(), "b": entry()}), "Tensors overlap"),
    ("13-hole", framed({"a": entry(), "b": entry(offsets=(5, 9))}, b"123456789"), "leave a hole"),
    ("13-hole-at-the-start", framed({"a": entry(offsets=(1, 5))}, b"12345"), "leave a hole"),
    ("13-empty-tensor-in-a-hole", framed({"a": entry(), "b": entry(shape=[0], offsets=(9, 9))}), "leave a hole"),
    ("14-bytes-behind", GOOD + b"PK\5\6" + bytes(18), "has 22 bytes after its last tensor"),
    ("14-no-tensor-but-bytes", framed(b"{}", b"x"), "has 1 bytes after"),
    ("15-one-byte-short", GOOD[:-1], "is truncated: 1 bytes are missing"),
    ("15-half", framed({"a": entry(shape=[100], offsets=(0, 100))}, bytes(50)), "truncated: 50 bytes are missing"),
    ("15-in-the-header", GOOD[:20], f"truncated in its header: at least {len(GOOD) - 24} bytes are missing"),
    ("16-negative", framed({"a": entry(offsets=(-4, 0))}), "are no range"),
    ("16-reversed", framed({"a": entry(offsets=(4, 0))}), "are no range"),
    ("16-outside", framed({"a": entry(offsets=(4000, 4004))}), "leave a hole"),
    ("16-2**70", framed({"a": entry(offsets=(2**70, 2**70 + 4))}), "are no range"),
    ("17-float", raw('{"dtype":"U8","shape":[4],"data_offsets":[0.0,4]}'), "0.0 is not an integer"),
    ("17-bool", framed({"a": entry(offsets=(False, 4))}), "[False, 4] are no range"),
    ("17-string", framed({"a": entry(offsets=("0", 4))}), "['0', 4] are no range"),
    ("17-null", framed({"a": entry(offsets=None)}), "None are no range"),
    ("17-null-inside", framed({"a": entry(offsets=(None, 4))}), "are no range"),
    ("17-three", framed({"a": entry(offsets=(0, 2, 4))}), "[0, 2, 4] are no range"),
    ("17-one", framed({"a": entry(offsets=(4,))}), "[4] are no range"),
    ("18-negative", framed({"a": entry(shape=(-2, -2))}), "[-2, -2] is not one"),
    ("18-bool", framed({"a": entry(shape=(True, 4))}), "[True, 4] is not one"),
    ("18-float", raw('{"dtype":"U8","shape":[4.0],"data_offsets":[0,4]}'), "4.0 is not an integer"),
    ("18-string", framed({"a": entry(shape=("4",))}), "['4'] is not one"),
    ("18-number", framed({"a": entry(shape=4)}), "its shape 4 is not one"),
    ("18-null", framed({"a": entry(shape=None)}), "its shape None is not one"),
    ("19-too-many-bytes", framed({"a": entry(shape=(3,))}), "need 3 bytes, its range has 4"),
    ("19-too-few-bytes", framed({"a": entry("F32", (2,))}), "need 8 bytes, its range has 4"),
    ("20-wraps-to-0", framed({"a": entry(shape=(2**32, 2**32), offsets=(0, 0))}, b""), "is too large"),
    ("20-wraps-to-4", framed({"a": entry("I32", (2**62 + 1,))}), "is too large"),
    ("20-dimension", framed({"a": entry(shape=(2**63,))}), "is not one"),
    ("20-hidden-by-0", framed({"a": entry(shape=(2**40, 2**40, 0), offsets=(0, 0))}, b""), "is too large"),
    ("21-2**62-by-0-of-f64", framed({"a": entry("F64", (2**62, 0), (0, 0))}, b""), "is too large"),
    ("21-70-dimensions", framed({"a": entry(shape=[1] * 69 + [4])}), "is not one"),
    ("22-unknown", framed({"a": entry("F33")}), "its dtype 'F33' is unknown"),
    ("22-lower-case", framed({"a": entry("u8")}), "its dtype 'u8' is unknown"),
    ("22-number", framed({"a": entry(8)}), "its dtype 8 is unknown"),
    ("22-null", framed({"a": entry(None)}), "its dtype None is unknown"),
    ("22-list", framed({"a": entry(["U8"])}), "its dtype ['U8'] is unknown"),
    ("22-escapes", framed({"a": entry("\x1b[31m" + "x" * 500)}), "its dtype '\\x1b[31mx"),
    ("23-f4-odd", framed({"a": entry("F4", (3,), (0, 2))}, b"12"), "3 elements of 4 bits do not fill whole bytes"),
    ("23-f6", framed({"a": entry("F6_E2M3", (2,), (0, 1))}, b"1"), "2 elements of 6 bits"),
    ("26-lfs", LFS, "is a Git LFS pointer, not the weights. Run `git lfs pull`"),
    ("26-pickle", b"\x80\x04\x95" + bytes(60) + b".", "is a Python pickle"),
    ("26-pickle-2", b"\x80\x02}q\x00(X\x01\x00\x00\x00aq\x01K\x01u.", "is a Python pickle"),
    ("26-zip", b"PK\x03\x04\x14\x00\x00\x00" + bytes(60), "is a zip archive"),
    ("26-html", b"\n<!DOCTYPE html><html><body>Not found</body></html>", "is a web page"),
    ("26-gguf", b"GGUF\x03\x00\x00\x00" + bytes(60), "is a GGUF file"),
    ("26-gzip", b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03" + bytes(20), "is compressed with gzip"),
    ("26-length-like-a-pickle", struct.pack("<Q", 0x280) + b'{"a":', "is truncated in its header"),
    ("32-surrogate-in-a-name", framed(b'{"\\ud800":{"dtype":"U8","shape":[]}}'), "not Unicode"),
    ("32-surrogate-in-metadata", framed(b'{"__metadata__":{"k":"\\udfff"}}', b""), "not Unicode"),
    ("32-surrogate-in-a-metadata-key", framed(b'{"__metadata__":{"\\udfff":"v"}}', b""), "not Unicode"),
]


@pytest.mark.parametrize(("content", "says"), [pytest.param(*case[1:], id=case[0]) for case in BAD])
def test_bad_header_is_refused(tmp_path: Path, content: bytes, says: str) -> None:
    assert says in str(refusal(put(tmp_path, content)))


MANY = {f"{i:03}": entry(shape=[1], offsets=(i, i + 1)) for i in range(100)}
ACCEPTED: list[Any] = [
    ("10-metadata-1-mb", framed({"__metadata__": {"k": '\x1b[31m"\\\n\u202e' * 80_000}, "a": entry()})),
    ("11-format-pt", framed({"__metadata__": {"format": "pt"}, "a": entry()})),
    ("21-2**62-by-0", framed({"a": entry(shape=(2**62, 0), offsets=(0, 0)), "b": entry()})),
    ("21-32-dimensions", framed({"a": entry(shape=[1] * 31 + [4])})),
    ("23-f4-even", framed({"a": entry("F4", (8,))})),
    ("25-misaligned", framed(b'{"a":{"dtype":"F32","shape":[],"data_offsets":[0,4]}} ')),
    ("25-unsorted", framed({"b": entry(offsets=(4, 8)), "c": entry(offsets=(8, 12)), "a": entry()}, bytes(12))),
    ("25-1-mb-of-padding", framed(json.dumps({"a": entry()}).encode() + b" " * 1_000_000)),
    ("25-white-space", framed(b' { "a" :\t{"shape":[ 4 ],\n"data_offsets":[0,4],"dtype":"U8"}\r } \n'[1:])),
    ("25-keys-in-any-order", framed({"a": dict(reversed(entry().items()))})),
    ("27-no-tensors", framed(b"{}", b"")),
    ("27-no-tensors-spaces", framed(b"{ \n }  ", b"")),
    ("27-only-metadata", framed({"__metadata__": {"k": "v"}}, b"")),
    ("27-empty-metadata", framed({"__metadata__": {}, "a": entry()})),
    ("33-empty-name", framed({"": entry()})),
    ("33-nul-name", framed({"\0": entry()})),
    ("33-long-name", framed({"x" * 10_000: entry()})),
    ("34-nfc-nfd", framed({"é": entry(), "e\u0301": entry(offsets=(4, 8))}, bytes(8))),
    ("34-astral-by-surrogates", framed({"😀": entry()})),
    ("48-empty", framed({"a": entry(shape=[0], offsets=(0, 0)), "b": entry(), "c": entry("F64", [0, 2], (4, 4))})),
    ("87-many", framed(MANY, bytes(100))),
]


@pytest.mark.parametrize("content", [pytest.param(case[1], id=case[0]) for case in ACCEPTED])
def test_odd_header_is_accepted(tmp_path: Path, content: bytes) -> None:
    header = read_header(put(tmp_path, content))
    (length,) = struct.unpack_from("<Q", content)
    stated = json.loads(content[8 : 8 + length])
    assert header.metadata == stated.pop("__metadata__", {})
    assert [placed.spec.name for placed in header.tensors] == sorted(stated)
    for placed in header.tensors:
        fields = stated[placed.spec.name]
        assert placed.spec == TensorSpec(placed.spec.name, fields["dtype"], tuple(fields["shape"]))
        assert placed.offset == 8 + length + fields["data_offsets"][0]


@pytest.mark.parametrize(
    ("length", "says"),
    [
        pytest.param(MAX_HEADER + 1, "header length 100000001", id="3-above-100-mb"),
        pytest.param(MAX_HEADER, "not a JSON object", id="3-100-mb"),
        pytest.param(2**40, "header length", id="3-1-tb"),
    ],
)
def test_a_huge_header_is_not_read(tmp_path: Path, length: int, says: str) -> None:
    file = sparse(tmp_path, struct.pack("<Q", length), 200_000_000)
    tracemalloc.start()
    try:
        assert says in str(refusal(file))
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def sparse(folder: Path, start: bytes, size: int) -> InputFile:
    path = folder / "model.safetensors"
    with path.open("wb") as out:
        out.write(start)
        out.truncate(size)
    return InputFile.open(path)


@pytest.mark.parametrize("unit", [b"[],", b"{},", b"0,", b'"",', b'{"a":', b"["])
def test_a_header_of_little_things_takes_no_memory(tmp_path: Path, unit: bytes) -> None:
    """7: whole-file `json.loads` would take thirty times the size of the header."""
    file = put(tmp_path, framed(b'{"a":[' + unit * (4_000_000 // len(unit)) + b"0]}"))
    tracemalloc.start()
    try:
        refusal(file)
        assert tracemalloc.get_traced_memory()[1] < 6_000_000
    finally:
        tracemalloc.stop()


def test_50000_names_on_one_range_are_refused(tmp_path: Path) -> None:
    """24."""
    one = json.dumps(entry())
    content = framed(("{" + ",".join(f'"layer.{i}":{one}' for i in range(50_000)) + "}").encode())
    file = put(tmp_path, content)
    assert "overlap" in str(refusal(file))


@pytest.mark.faults
def test_100000_tensors_are_planned_and_read_in_time(tmp_path: Path) -> None:
    """87."""
    tensors = [TensorSpec(f"model.layers.{i:06}.weight", "F32", (2, 0)) for i in range(100_000)]
    started = time.process_time()
    plan = layout(tensors, {})
    header = read_header(put(tmp_path, plan.pieces[0][1]))
    at_most(time.process_time() - started, 10)
    assert [placed.spec for placed in header.tensors] == tensors


def test_the_library_is_asked_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise MemoryError("Cannot allocate memory (os error 12)\x1b")

    monkeypatch.setattr(safetensors, "safe_open", fail)
    error = refusal(put(tmp_path, GOOD))
    assert error.reason == "the safetensors library refuses it: Cannot allocate memory (os error 12)\\x1b"
    assert error.remedy == "Raise the limit of address space"


def test_a_file_larger_than_the_address_space_is_a_plain_refusal(tmp_path: Path) -> None:
    start = framed({"a": entry(shape=(2**34,), offsets=(0, 2**34))}, b"")
    file = sparse(tmp_path, start, len(start) + 2**34)
    code = (
        "import resource, sys\n"
        "from compressor.files.safetensors import read_header, InputFile, InputError\n"
        "resource.setrlimit(resource.RLIMIT_AS, (2**33, resource.RLIM_INFINITY))\n"
        "try:\n    read_header(InputFile.open(sys.argv[1]))\n"
        "except InputError as error:\n    print(error)\n"
    )
    assert resource.getrlimit(resource.RLIMIT_AS)[1] == resource.RLIM_INFINITY
    done = subprocess.run([sys.executable, "-c", code, file.path], capture_output=True, text=True, check=True)
    assert "Cannot allocate memory" in done.stdout
    assert done.stdout.count("\n") == 1


def test_a_path_that_is_not_utf_8_is_read(tmp_path: Path) -> None:
    path = tmp_path / "\udcff.safetensors"
    path.write_bytes(GOOD)
    assert len(read_header(InputFile.open(path)).tensors) == 1


def test_overlaps_are_refused_before_all_of_them_are_read(tmp_path: Path) -> None:
    """A header may list them by the hundred thousand: what follows the second is not even looked at."""
    start = framed({"a": entry(), "b": entry(), "c": "x" * 100}, b"1234")
    with pytest.raises(InputError, match="Tensors overlap"):
        read_header(put(tmp_path, start))


def test_the_library_maps_no_file_that_could_be_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []
    monkeypatch.setattr("safetensors.safe_open", lambda path, framework: opened.append(path) or nullcontext())
    read_header(put(tmp_path, GOOD))
    assert len(opened) == 1
    assert not hasattr(os, "memfd_create") or opened[0].startswith("/proc/self/fd/")


def test_reading_the_header_does_not_import_the_library_before_it_is_needed() -> None:
    code = "import sys, compressor.files.safetensors; print('safetensors' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


# ---- writing --------------------------------------------------------------------------------------------


def written(plan: FileLayout, data: dict[str, bytes]) -> bytes:
    """What following the plan writes; every byte must be written exactly once."""
    content, touched = bytearray(plan.size), bytearray(plan.size)
    for offset, piece in [*plan.pieces, *((plan.offsets[name], part) for name, part in data.items())]:
        content[offset : offset + len(piece)] = piece
        for at in range(offset, offset + len(piece)):
            touched[at] += 1
    assert len(content) == plan.size
    assert set(touched) <= {1}
    return bytes(content)


names = st.text(st.characters(codec="utf-8"), max_size=12).filter(lambda name: name != "__metadata__")
kinds = st.tuples(st.sampled_from(sorted(DTYPES)), st.lists(st.integers(0, 4), max_size=4).map(tuple)).filter(
    lambda kind: DTYPES[kind[0]].bits * TensorSpec("", *kind).size % 8 == 0
)
specs = st.dictionaries(names, kinds, max_size=6).map(
    lambda found: [TensorSpec(name, *kind) for name, kind in found.items()]
)
texts = st.dictionaries(st.text(st.characters(codec="utf-8")), st.text(st.characters(codec="utf-8")), max_size=4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("safetensors")


@settings(max_examples=80)
@given(tensors=specs, metadata=texts, seed=st.integers(0, 2**32))
def test_what_is_written_reads_back(
    folder: Path, tensors: list[TensorSpec], metadata: dict[str, str], seed: int
) -> None:
    shuffled = random.Random(seed)
    data = {spec.name: shuffled.randbytes(spec.nbytes) for spec in tensors}
    plan = layout(tensors, metadata)
    content = written(plan, data)
    file = put(folder, content)
    header = read_header(file)
    assert header.metadata == metadata
    assert {placed.spec.name: placed.offset for placed in header.tensors} == plan.offsets
    assert [placed.spec for placed in header.tensors] == sorted(tensors, key=lambda spec: spec.name)
    # the library reads the same
    found = dict(safetensors.deserialize(content))
    assert {name: bytes(fields["data"]) for name, fields in found.items()} == data
    assert {(name, fields["dtype"], tuple(fields["shape"])) for name, fields in found.items()} == {
        (spec.name, spec.dtype, spec.shape) for spec in tensors
    }
    with safetensors.safe_open(file.path, framework="np") as opened:
        assert (opened.metadata() or {}) == metadata
    # every tensor is aligned to its elements, whatever order it was given in
    assert all(plan.offsets[spec.name] % max(1, DTYPES[spec.dtype].bits // 8) == 0 for spec in tensors)
    shuffled.shuffle(tensors)
    assert layout(iter(tensors), dict(reversed(metadata.items()))) == plan


def test_the_library_loads_bf16_and_writes_what_is_read(tmp_path: Path) -> None:
    arrays = {
        "bf16": np.arange(6).reshape(2, 3).astype(ml_dtypes.bfloat16),
        "f64": np.linspace(0, 1, 5),
        "i8": np.arange(-3, 4, dtype=np.int8),
        "scalar": np.array(7, dtype=np.uint16),
    }
    dtypes = {"bf16": "BF16", "f64": "F64", "i8": "I8", "scalar": "U16"}
    plan = layout([TensorSpec(name, dtypes[name], array.shape) for name, array in arrays.items()], {})
    content = written(plan, {name: array.tobytes() for name, array in arrays.items()})
    ours = tmp_path / "ours.safetensors"
    ours.write_bytes(content)
    for name, array in safetensors.numpy.load_file(ours).items():
        assert array.dtype == arrays[name].dtype
        assert np.array_equal(array, arrays[name])
    theirs = tmp_path / "model.safetensors"
    arrays["fp8"] = np.arange(4).astype(ml_dtypes.float8_e4m3fn)
    safetensors.numpy.save_file(arrays, theirs, metadata={"format": "pt"})
    header = read_header(InputFile.open(theirs))
    assert header.metadata == {"format": "pt"}
    assert {placed.spec.name: placed.spec.dtype for placed in header.tensors} == {**dtypes, "fp8": "F8_E4M3"}
    for placed in header.tensors:
        stored = theirs.read_bytes()[placed.offset : placed.offset + placed.spec.nbytes]
        assert stored == arrays[placed.spec.name].tobytes()


def test_golden_bytes() -> None:
    plan = layout(
        [TensorSpec("w", "BF16", (2, 3)), TensorSpec("é", "F32", ()), TensorSpec("a", "BF16", (1,))],
        {"format": "pt", "a": '"'},
    )
    text = (
        '{"__metadata__":{"a":"\\"","format":"pt"},'
        '"é":{"dtype":"F32","shape":[],"data_offsets":[0,4]},'
        '"a":{"dtype":"BF16","shape":[1],"data_offsets":[4,6]},'
        '"w":{"dtype":"BF16","shape":[2,3],"data_offsets":[6,18]}}   '
    )
    assert plan.pieces == ((0, b"\xd0\0\0\0\0\0\0\0" + text.encode()),)
    assert plan.offsets == {"é": 216, "a": 220, "w": 222}
    assert plan.size == 234


def test_nothing_to_write_is_a_file_too(tmp_path: Path) -> None:
    plan = layout([], {})
    assert plan == FileLayout(16, ((0, b"\x08\0\0\0\0\0\0\0{}      "),), {})
    assert read_header(put(tmp_path, written(plan, {}))) == Header((), {})


@pytest.mark.parametrize(
    ("tensors", "metadata", "says"),
    [
        pytest.param(["__metadata__"], {}, "tensor '__metadata__': no tensor can have this name", id="reserved"),
        pytest.param(["a", "b", "a"], {}, "tensor 'a': would be in the file twice", id="twice"),
        pytest.param(["\ud800"], {}, "no valid Unicode", id="surrogate"),
        pytest.param([], {"k": "\ud800"}, "no valid Unicode", id="surrogate-in-metadata"),
    ],
)
def test_what_cannot_be_written(tensors: list[str], metadata: dict[str, str], says: str) -> None:
    with pytest.raises(OutputError) as caught:
        layout([TensorSpec(name, "U8", (1,)) for name in tensors], metadata)
    assert says in str(caught.value)


def test_a_header_above_the_limit_is_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(container, "MAX_HEADER", 64)
    assert layout([TensorSpec("a" * 12, "U8", (1,))], {}).size == 8 + 64 + 1
    with pytest.raises(OutputError, match="72 bytes, and safetensors allows 64"):
        layout([TensorSpec("a" * 13, "U8", (1,))], {})


# ---- mutations ------------------------------------------------------------------------------------------


def mutations(seed: int, good: list[bytes]) -> Callable[[], bytes]:
    """Bit flips (most of them where the header is), cuts, and splices of good files."""
    rng = random.Random(seed)

    def flip(content: bytearray) -> None:
        for _ in range(rng.choice((1, 1, 2, 8))):
            content[int(len(content) * rng.random() ** 2)] ^= 1 << rng.randrange(8)

    def cut(content: bytearray) -> None:
        start = rng.randrange(len(content))
        del content[start : rng.choice((start + 1, start + 8, len(content)))]

    def splice(content: bytearray) -> None:
        other = rng.choice(good)
        start = rng.randrange(len(other))
        at = rng.randrange(len(content))
        piece = other[start : start + rng.choice((1, 4, 40, len(other)))]
        content[at : at + rng.choice((0, len(piece)))] = piece

    def digit(content: bytearray) -> None:
        places = [at for at, byte in enumerate(content) if 0x30 <= byte <= 0x39]
        content[rng.choice(places or [0])] = rng.choice(b'0123456789-.e"')

    def mutate() -> bytes:
        content = bytearray(rng.choice(good))
        rng.choice((flip, cut, splice, digit))(content)
        return bytes(content)

    return mutate


@pytest.mark.parametrize("seed", range(3))
def test_mutated_files_are_refused_or_mean_what_the_library_reads(tmp_path: Path, seed: int) -> None:
    plan = layout(
        [TensorSpec("layer.0.w", "F32", (2, 3)), TensorSpec("layer.0.b", "BF16", (3,)), TensorSpec("n", "I64", ())],
        {"format": "pt", "note": 'a "quoted" text'},
    )
    usual = written(plan, {"layer.0.w": bytes(24), "layer.0.b": b"bbbbbb", "n": b"\1" * 8})
    good = [usual, *(content for _, content in ACCEPTED if len(content) < 10_000)]
    mutate = mutations(seed, good)
    kept = refused = 0
    for _ in range(100):
        content = mutate()
        file = put(tmp_path, content)
        try:
            header = read_header(file)
        except InputError:
            refused += 1
            continue
        kept += 1
        found = dict(safetensors.deserialize(content))
        assert sorted(found) == [placed.spec.name for placed in header.tensors]
        for placed in header.tensors:
            fields = found[placed.spec.name]
            assert (fields["dtype"], tuple(fields["shape"])) == (placed.spec.dtype, placed.spec.shape)
            assert content[placed.offset : placed.offset + placed.spec.nbytes] == bytes(fields["data"])
    assert kept > 5
    assert refused > 40


def test_the_library_accepts_some_that_are_refused_here() -> None:
    """Why there is a parser of our own: each of these means two things, or hides something."""
    lenient = {name for name, content, _ in BAD if accepted_by_library(content)}
    assert lenient >= {"5-leading-space", "8-name-twice", "8-metadata-key-twice", "8-unknown-key"}
