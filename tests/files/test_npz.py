"""Archives of NumPy arrays: what `numpy.load`, `zipfile` and a byte-for-byte comparison say of them."""

from __future__ import annotations

import io
import json
import os
import random
import time
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file
from support.clock import at_most

from compressor import api
from compressor.core.errors import InputError, OutputError
from compressor.core.tensor import TensorSpec
from compressor.files import npz
from compressor.files.input_file import InputFile
from compressor.files.layout import FileLayout, Placed
from compressor.files.npz import RECORD, layout, read_header, seal

NUMPY_DTYPES = {"F32": "<f4", "F16": "<f2", "I8": "|i1", "U8": "|u1", "I64": "<i8", "BOOL": "|b1"}


def write(path: Path, plan: FileLayout, data: dict[str, bytes]) -> None:
    """Follow a plan as any writer would: headers, then data, then the checksums."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        for offset, piece in plan.pieces:
            os.pwrite(fd, piece, offset)
        for name, part in data.items():
            os.pwrite(fd, part, plan.offsets[name])
        seal(fd, plan)
        assert os.fstat(fd).st_size == plan.size
    finally:
        os.close(fd)


def check(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """The archive is whole, and holds exactly these arrays."""
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        assert archive.namelist() == [f"{name}.npy" for name in arrays]
        for member in archive.infolist():
            assert member.date_time == (1980, 1, 1, 0, 0, 0)
            assert member.compress_type == zipfile.ZIP_STORED
            expected = io.BytesIO()
            np.save(expected, arrays[member.filename.removesuffix(".npy")])
            assert archive.read(member) == expected.getvalue()
    with np.load(path, allow_pickle=False) as loaded:
        assert sorted(loaded) == sorted(arrays)
        for name, array in arrays.items():
            assert loaded[name].dtype == array.dtype
            assert loaded[name].shape == array.shape
            assert loaded[name].tobytes() == array.tobytes()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("npz")


members = st.dictionaries(
    st.text(st.characters(codec="utf-8", exclude_characters="\0/\\:"), min_size=1, max_size=8),
    st.tuples(st.sampled_from(sorted(NUMPY_DTYPES)), st.lists(st.integers(0, 4), max_size=3).map(tuple)),
    min_size=1,
    max_size=5,
)
Found = dict[str, tuple[str, tuple[int, ...]]]


def planned(found: Found) -> tuple[FileLayout, dict[str, bytes], dict[str, np.ndarray]]:
    rng = random.Random(0)
    data, arrays, tensors = {}, {}, []
    for name, (dtype, shape) in found.items():
        spec = TensorSpec(f"w.{name}", dtype, shape)
        raw = rng.randbytes(spec.nbytes)
        data[spec.name] = bytes(byte & 1 for byte in raw) if dtype == "BOOL" else raw
        arrays[name] = np.frombuffer(data[spec.name], NUMPY_DTYPES[dtype]).reshape(shape)
        tensors.append((name, spec))
    return layout(tensors), data, arrays


@settings(max_examples=40)
@given(found=members, limit=st.sampled_from([0xFFFFFFFF, 0xFFFFFFFF, 200, 0]))
def test_numpy_and_zipfile_read_what_is_written(folder: Path, found: Found, limit: int) -> None:
    """With every limit from which on sizes and offsets need 64-bit fields."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(npz, "_LIMIT", limit)
        plan, data, arrays = planned(found)
    path = folder / "a.npz"
    write(path, plan, data)
    check(path, arrays)


def test_equal_arrays_give_equal_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = {"codes": ("U8", (3, 50)), "scale": ("F32", (3, 1)), "größe": ("I64", ())}
    plan, data, arrays = planned(found)
    write(tmp_path / "a.npz", plan, data)
    monkeypatch.setattr(npz, "_CHUNK", 7)  # checksums do not depend on how the file is read
    plan, data, arrays = planned(found)
    write(tmp_path / "b.npz", plan, dict(reversed(data.items())))
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    check(tmp_path / "b.npz", arrays)


def test_golden_bytes(tmp_path: Path) -> None:
    """One member: local header, array, directory, end."""
    plan = layout([("codes", TensorSpec("w", "U8", (2,)))])
    write(tmp_path / "a.npz", plan, {"w": b"\1\2"})
    array = io.BytesIO()
    np.save(array, np.array([1, 2], np.uint8))
    checksum = zlib.crc32(array.getvalue()).to_bytes(4, "little")
    both = checksum + b"\x82\0\0\0\x82\0\0\0\x09\0\0\0"
    assert (tmp_path / "a.npz").read_bytes() == b"".join(
        (
            b"PK\3\4\x14\0\0\0\0\0\0\0\x21\0" + both + b"codes.npy" + array.getvalue(),
            b"PK\1\2\x14\3\x14\0\0\0\0\0\0\0\x21\0" + both + bytes(6) + b"\0\0\xa4\x81\0\0\0\0codes.npy",
            b"PK\5\6\0\0\0\0\1\0\1\0\x37\0\0\0\xa9\0\0\0\0\0",
        )
    )
    assert plan.offsets == {"w": 39 + 128}


def test_members_above_4_gib(tmp_path: Path) -> None:
    """Sizes and offsets only: summing up 5 GB would take too long here."""
    plan = layout([("a", TensorSpec("a", "U8", (5 << 30,))), ("b", TensorSpec("b", "F32", (2,)))])
    path = tmp_path / "a.npz"
    with path.open("wb") as out:
        for offset, piece in plan.pieces:
            out.seek(offset)
            out.write(piece)
    assert path.stat().st_size == plan.size
    with zipfile.ZipFile(path) as archive:
        first, second = archive.infolist()
        assert (first.file_size, first.header_offset) == ((5 << 30) + 128, 0)
        assert second.file_size == 128 + 8
        assert second.header_offset == plan.pieces[1][0] > 5 << 30
        with archive.open(first) as member:
            assert np.lib.format.read_magic(member) == (1, 0)
            assert np.lib.format.read_array_header_1_0(member) == ((5 << 30,), False, np.dtype("u1"))


def test_more_members_than_16_bits_count(tmp_path: Path) -> None:
    plan = layout([(str(number), TensorSpec(str(number), "U8", (0,))) for number in range(0x10001)])
    path = tmp_path / "a.npz"
    path.write_bytes(b"".join(piece for _, piece in plan.pieces))
    with zipfile.ZipFile(path) as archive:
        assert len(archive.namelist()) == 0x10001


@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        pytest.param(
            [("a", TensorSpec("w", "BF16", (1,)))],
            "tensor 'w': NumPy's format cannot hold BF16. Write .safetensors instead",
            id="bf16",
        ),
        pytest.param(
            [("a", TensorSpec("w", "U8", (1,))), ("a", TensorSpec("v", "U8", (1,)))],
            "tensor 'v': would be in the archive twice",
            id="member-twice",
        ),
        pytest.param(
            [("a", TensorSpec("w", "U8", (1,))), ("b", TensorSpec("w", "U8", (1,)))],
            "tensor 'w': would be in the archive twice",
            id="tensor-twice",
        ),
    ],
)
def test_what_cannot_be_written(tensors: list[tuple[str, TensorSpec]], says: str) -> None:
    with pytest.raises(OutputError) as caught:
        layout(tensors)
    assert str(caught.value) == says


def test_an_archive_that_lost_its_end_is_not_sealed(tmp_path: Path) -> None:
    plan, data, _ = planned({"a": ("U8", (50,))})
    write(tmp_path / "a.npz", plan, data)
    fd = os.open(tmp_path / "a.npz", os.O_RDWR)
    try:
        os.ftruncate(fd, 60)
        with pytest.raises(OSError, match="shorter than what was written"):
            seal(fd, plan)
    finally:
        os.close(fd)


def test_a_checksum_that_is_not_written_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan, data, _ = planned({"a": ("U8", (50,))})
    write(tmp_path / "a.npz", plan, data)
    fd = os.open(tmp_path / "a.npz", os.O_RDWR)
    try:
        monkeypatch.setattr(os, "pwrite", lambda *_: 2)
        with pytest.raises(OSError, match="could not be written"):
            seal(fd, plan)
    finally:
        os.close(fd)


# ---- reading what was written ----------------------------------------------------------------------------

SPECS = [("codes", TensorSpec("w.codes", "I8", (3, 50))), ("scale", TensorSpec("w.scale", "F32", (3, 1)))]
DATA = {"w.codes": bytes(range(150)), "w.scale": b"scale" * 2 + b"??"}


def listing(**changes: Any) -> dict[str, Any]:
    listed = [[member, spec.name, spec.dtype, list(spec.shape)] for member, spec in SPECS]
    return {"version": 1, "members": listed} | changes


def archive(folder: Path, record: Any = None) -> Path:
    """An archive of `SPECS`, whatever its record says of them."""
    raw = record if isinstance(record, bytes) else json.dumps(record or listing()).encode()
    path = folder / "a.npz"
    write(path, layout(SPECS, raw), DATA)
    return path


def refusal(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        read_header(InputFile.open(path))
    text = str(caught.value)
    assert text.startswith(str(path))
    assert text.isprintable()
    return text


def test_an_archive_with_a_record_is_read(tmp_path: Path) -> None:
    record = json.dumps(listing()).encode()
    path = archive(tmp_path)
    plan = layout(SPECS, record)
    header = read_header(InputFile.open(path))
    assert header.tensors == tuple(Placed(spec, plan.offsets[spec.name]) for _, spec in SPECS)
    assert header.metadata == {RECORD: record.decode()}
    for placed in header.tensors:
        assert path.read_bytes()[placed.offset :].startswith(DATA[placed.spec.name])
    arrays = {
        RECORD: np.frombuffer(record, np.uint8),
        "codes": np.frombuffer(DATA["w.codes"], np.int8).reshape(3, 50),
        "scale": np.frombuffer(DATA["w.scale"], np.float32).reshape(3, 1),
    }
    check(path, arrays)


def test_no_member_can_be_called_like_the_record() -> None:
    with pytest.raises(OutputError, match="twice"):
        layout([(RECORD, SPECS[0][1])], b"{}")


def entry(**changes: Any) -> dict[str, Any]:
    """A listing whose first entry is changed."""
    fields = {"member": "codes", "name": "w.codes", "dtype": "I8", "shape": [3, 50]} | changes
    return listing(members=[list(fields.values()), listing()["members"][1]])


@pytest.mark.parametrize(
    ("record", "says"),
    [
        pytest.param(b"not JSON", "not a valid JSON object", id="not-json"),
        pytest.param(b'{"a":1,"a":1}', "not a valid JSON object", id="key-twice"),
        pytest.param(b"[" * 50_000, "not a valid JSON object", id="deep"),
        pytest.param(b"", "impossible size", id="empty"),
        pytest.param(b"{}", "lists no members", id="no-list"),
        pytest.param(listing(members=None), "lists no members", id="null"),
        pytest.param(listing(members="codes"), "lists no members", id="text"),
        pytest.param(listing(members=[1]), "lists no members", id="number-as-entry"),
        pytest.param(listing(members=["abcd"]), "lists no members", id="text-as-entry"),
        pytest.param(listing(members=[["codes", "w"]]), "lists no members", id="short-entry"),
        pytest.param(listing(members=listing()["members"][:1]), "is not what its record says", id="too-few"),
        pytest.param(listing(members=listing()["members"][::-1]), "is not what its record says", id="other-order"),
        pytest.param(listing(members=listing()["members"] * 2), "lists no members", id="twice"),
        pytest.param(entry(member="other"), "is not what its record says", id="other-member"),
        pytest.param(entry(member=5), "lists no members", id="member-is-a-number"),
        pytest.param(entry(member="x" * 70_000), "lists no members", id="member-too-long"),
        pytest.param(entry(name=5), "lists no members", id="name-is-a-number"),
        pytest.param(entry(name=["w"]), "lists no members", id="name-is-a-list"),
        pytest.param(entry(dtype="U8"), "is not what its record says", id="other-dtype"),
        pytest.param(entry(dtype="BF16"), "lists no members", id="dtype-not-in-numpy"),
        pytest.param(entry(dtype="x"), "lists no members", id="dtype-unknown"),
        pytest.param(entry(dtype=None), "lists no members", id="dtype-null"),
        pytest.param(entry(shape=[50, 3]), "is not what its record says", id="other-shape"),
        pytest.param(entry(shape=[-3, -50]), "lists no members", id="shape-negative"),
        pytest.param(entry(shape=[True, 150]), "lists no members", id="shape-bool"),
        pytest.param(entry(shape="x"), "lists no members", id="shape-text"),
        pytest.param(entry(shape=[2**47, 2**47]), "lists no members", id="shape-overflows"),
        pytest.param(entry(shape=[2**63, 0]), "lists no members", id="shape-hidden-by-0"),
        pytest.param(entry(shape=[1] * 10_000), "lists no members", id="shape-of-10000-sizes"),
        pytest.param(listing(texts=[]), "lists no members", id="texts-are-a-list"),
        pytest.param(listing(texts={"format": 5}), "lists no members", id="text-is-a-number"),
        pytest.param(listing(texts={"format": "\u00e9"}), "lists no members", id="text-beyond-ascii"),
        pytest.param(listing(texts={"compressor": "csr"}), "lists no members", id="text-called-like-the-record"),
        pytest.param(listing(texts={"format": "csr"}), "is not what its record says", id="text-that-is-not-there"),
        pytest.param(
            listing(members=[[str(n), str(n), "I64", [2**39]] for n in range(20_000)]),
            "is not what its record says",
            id="sum-of-sizes",
        ),
    ],
)
def test_a_record_that_lies_is_refused(tmp_path: Path, record: Any, says: str) -> None:
    assert says in refusal(archive(tmp_path, record))


def test_a_record_is_not_read_beyond_its_limit(tmp_path: Path) -> None:
    path = archive(tmp_path, json.dumps(listing()).encode() + b" " * 1_000_000)
    assert "has a record of an impossible size" in refusal(path)


def test_what_is_no_archive_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    for content, reason in (
        (b"", "is no .npz file"),
        (bytes(1000), "is no .npz file"),
        (b"PK\3\4", "it has no directory of members"),
        (b"PK\3\4" + bytes(1000), "it has no directory of members"),
    ):
        path.write_bytes(content)
        assert reason in refusal(path)


def test_a_damaged_archive_is_refused(tmp_path: Path) -> None:
    """Every byte is compared with what the record implies, but for the data, the checksums and the record."""
    record = json.dumps(listing()).encode()
    whole = archive(tmp_path).read_bytes()
    free = set(range(whole.index(record), whole.index(record) + len(record)))
    for name, offset in layout(SPECS, record).offsets.items():
        free |= set(range(offset, offset + len(DATA[name])))
    path = tmp_path / "b.npz"
    read = set()
    for at in range(len(whole)):
        content = bytearray(whole)
        content[at] ^= 1
        path.write_bytes(content)
        try:
            read_header(InputFile.open(path))
        except InputError:
            continue
        read.add(at)
    assert free - read  # the record's list of members is not free
    assert len(read - free) == 4 * 2 * 3  # the checksums of three members, each in two places
    for content in (whole[:-1], whole + b"x", whole[:600], whole[:300]):
        path.write_bytes(content)
        refusal(path)


@pytest.mark.faults
def test_many_members_are_compared_in_time(tmp_path: Path) -> None:
    tensors = [(str(number), TensorSpec(str(number), "U8", (0,))) for number in range(10_000)]
    record = json.dumps({"members": [[name, name, "U8", [0]] for name, _ in tensors]}).encode()
    plan = layout(tensors, record)
    path = tmp_path / "a.npz"
    path.write_bytes(b"".join(piece for _, piece in plan.pieces))
    started = time.process_time()
    assert len(read_header(InputFile.open(path)).tensors) == 10_000
    at_most(time.process_time() - started, 5)


# ---- plain arrays ----------------------------------------------------------------------------------------------


def test_arrays_of_numpy_savez_are_tensors(tmp_path: Path) -> None:
    arrays = {
        "fc1.weight": np.random.default_rng(0).standard_normal((6, 4), np.float32),
        "fc1.bias": np.zeros(6),
        "nested/name": np.asfortranarray(np.arange(6, dtype=">f4").reshape(2, 3)),
    }
    np.savez(tmp_path / "a.npz", **arrays)
    api.restore(tmp_path / "a.npz", tmp_path / "b.safetensors")
    found = load_file(tmp_path / "b.safetensors")
    assert set(found) == set(arrays)
    assert all(np.array_equal(found[name], array) for name, array in arrays.items())


def test_archives_that_hold_other_things(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "a.npz", x=np.ones(300))
    with pytest.raises(InputError, match=r"its member x.npy is compressed. Save it without compression"):
        npz.read_header(InputFile.open(tmp_path / "a.npz"))
    np.savez(tmp_path / "b.npz", x=np.array([{}], dtype=object))
    with pytest.raises(InputError, match=r"its member x.npy holds an array of Python objects"):
        npz.read_header(InputFile.open(tmp_path / "b.npz"))
    np.savez(tmp_path / "c.npz")
    with pytest.raises(InputError, match="holds no arrays"):
        npz.read_header(InputFile.open(tmp_path / "c.npz"))
