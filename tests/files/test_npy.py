"""NumPy's format: hostile headers, `numpy.save` and `numpy.load` as oracles, golden bytes, mutations.

The number in a case's id is its row in the table of inputs and faults.
"""

from __future__ import annotations

import io
import pickle
import random
import struct
import time
import tracemalloc
import warnings
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from support.clock import at_most

from compressor.core.errors import InputError, OutputError
from compressor.core.tensor import DTYPES, TensorSpec
from compressor.files.input_file import InputFile
from compressor.files.layout import Placed
from compressor.files.npy import TENSOR_NAME, layout, read_header

Array = npt.NDArray[Any]
NUMPY_DTYPES = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "|i1",
    "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "|u1", "BOOL": "|b1", "C64": "<c8",
}  # fmt: skip


def saved(array: Array, version: tuple[int, int] | None = None) -> bytes:
    out = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # NumPy warns of versions that it was asked for
        np.lib.format.write_array(out, array, version=version)
    return out.getvalue()


def framed(header: str | bytes, data: bytes = bytes(16), version: int = 1) -> bytes:
    """A file with this header as it is."""
    text = header.encode("utf-8") if isinstance(header, str) else header
    return b"\x93NUMPY" + bytes([version, 0]) + struct.pack("<H" if version == 1 else "<I", len(text)) + text + data


def described(descr: str = "'<f4'", order: str = "False", shape: str = "(4,)") -> str:
    return f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}\n"


def put(folder: Path, content: bytes) -> InputFile:
    path = folder / "w.npy"
    path.write_bytes(content)
    return InputFile.open(path)


def refusal(file: InputFile) -> InputError:
    """The error of reading a header, which must be one short printable line."""
    with pytest.raises(InputError) as caught:
        read_header(file)
    text = str(caught.value)
    assert text.startswith(file.path)
    assert text.isprintable()
    assert len(text) < len(file.path) + 400
    assert caught.value.remedy
    return caught.value


def values(file: InputFile, placed: Placed) -> Array:
    """The array that a header describes."""
    kind = np.dtype(NUMPY_DTYPES[placed.spec.dtype]).newbyteorder(">" if placed.big_endian else "<")
    raw = np.frombuffer(file.read(placed.offset, placed.spec.nbytes), kind)
    return raw.reshape(placed.spec.shape, order="F" if placed.fortran else "C")


# ---- 49: accepted, values equal --------------------------------------------------------------------------

MATRIX = np.arange(24).reshape(2, 3, 4)
ACCEPTED: list[Any] = [
    *(pytest.param(saved(MATRIX.astype("<f4"), (version, 0)), id=f"49-version-{version}") for version in (1, 2, 3)),
    *(pytest.param(saved(MATRIX.astype(kind)), id=f"49-{name}") for name, kind in NUMPY_DTYPES.items()),
    *(
        pytest.param(saved(MATRIX.astype(np.dtype(kind).newbyteorder(">"))), id=f"49-big-endian-{name}")
        for name, kind in NUMPY_DTYPES.items()
    ),
    pytest.param(saved(np.asfortranarray(MATRIX.astype("<f4"))), id="49-fortran"),
    pytest.param(saved(np.asfortranarray(MATRIX.astype(">f8"))), id="49-fortran-big-endian"),
    pytest.param(saved(np.float32(1.5) * np.ones(())), id="48-scalar"),
    pytest.param(saved(np.ones((3, 0, 2), "<f4")), id="48-empty"),
    pytest.param(saved(np.ones((1,) * 31 + (4,), "<f4")), id="48-rank-32"),
    pytest.param(framed(described()), id="49-unaligned"),
    pytest.param(framed(described("'<b1'", shape="(16,)"), b"\0\1" * 8), id="49-bool-with-an-order"),
    pytest.param(framed('{"shape":(4,),"descr":"<f4","fortran_order":True}'), id="49-double-quotes"),
    pytest.param(framed("{ 'shape' : ( 2 , 2 , ) ,'fortran_order':False,\n'descr':'<f4',}  "), id="49-spaces"),
]


@pytest.mark.parametrize("content", ACCEPTED)
def test_good_header_is_read(tmp_path: Path, content: bytes) -> None:
    file = put(tmp_path, content)
    (placed,) = read_header(file).tensors
    expected = np.load(io.BytesIO(content), allow_pickle=False)
    found = values(file, placed)
    assert placed.spec.name == TENSOR_NAME
    assert NUMPY_DTYPES[placed.spec.dtype] == expected.dtype.newbyteorder("<").str
    assert found.shape == expected.shape
    assert np.array_equal(found, expected)


@pytest.mark.parametrize(("shape", "fortran"), [("(4,)", 0), ("(1, 4)", 0), ("(2, 2)", 1), ("()", 0)])
def test_the_order_matters_from_two_sizes_on(tmp_path: Path, shape: str, fortran: int) -> None:
    content = framed(described(order="True", shape=shape), bytes(4 if shape == "()" else 16))
    assert read_header(put(tmp_path, content)).tensors[0].fortran is bool(fortran)


def test_bools_that_are_no_bools_are_no_matter(tmp_path: Path) -> None:
    """45: they are copied."""
    file = put(tmp_path, framed(described("'|b1'"), b"\0\1\2\xff"))
    (placed,) = read_header(file).tensors
    assert file.read(placed.offset, 4) == b"\0\1\2\xff"


# ---- 50 to 56: refused -----------------------------------------------------------------------------------


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return pytest.fail, ("a pickle was loaded",)


def npz() -> bytes:
    out = io.BytesIO()
    np.savez(out, a=np.ones(3))
    return out.getvalue()


ONE = saved(np.ones(4, "<f4"))
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab\nsize 548105171\n"
BAD: list[Any] = [
    ("50-object-array", saved(np.array([Bomb(), None])), "of Python objects"),
    ("50-object-8", framed(described("'|O8'")), "of Python objects"),
    ("50-object-field", saved(np.array([(Bomb(),)], dtype=[("a", "O")])), "of structs"),
    ("50-pickle", pickle.dumps(np.ones(3)), "is a Python pickle"),
    ("50-code-as-shape", framed(described(shape="__import__('os').abort()")), "not the plain dict"),
    ("50-code-as-header", framed("__import__('os').abort()"), "not the plain dict"),
    ("51-2**40", framed(described(shape=f"({2**40},)")), "is truncated: 4398046511088 bytes are missing"),
    ("51-20-digits", framed(described(shape=f"({10**20 - 1},)")), "(99999999999999999999,) is not one"),
    ("51-2**63", framed(described(shape=f"({2**63},)")), "is too large"),
    ("51-negative", framed(described(shape="(-1,)")), "shape (-1,) is not one"),
    ("51-two-negatives", framed(described(shape="(-2, -2)")), "is not one"),
    ("51-wraps-to-0", framed(described(shape=f"({2**32}, {2**32})"), b""), "is too large"),
    ("51-wraps-to-16", framed(described(shape=f"({2**62 + 4},)")), "is too large"),
    ("51-hidden-by-0", framed(described(shape=f"({2**40}, {2**40}, 0)"), b""), "is too large"),
    ("51-bool", framed(described(shape="(True, 4)")), "is not one"),
    ("51-float", framed(described(shape="(4.0,)")), "is not one"),
    ("51-hexadecimal", framed(described(shape="(0x4,)")), "is not one"),
    ("51-underscore", framed(described(shape="(1_6,)"), bytes(64)), "is not one"),
    ("51-leading-zero", framed(described(shape="(04,)")), "is not one"),
    ("51-arabic-digit", framed(described(shape="(٤,)"), version=3), "is not one"),
    ("51-list", framed(described(shape="[4]")), "shape [4] is not one"),
    ("51-number", framed(described(shape="4")), "not the plain dict"),
    ("51-number-in-parentheses", framed(described(shape="(4)")), "is not one"),
    ("51-only-a-comma", framed(described(shape="(,)")), "is not one"),
    ("51-two-commas", framed(described(shape="(2,,2)")), "is not one"),
    ("51-string", framed(described(shape="'(4,)'")), "is not one"),
    ("51-nested", framed(described(shape="((4,),)")), "not the plain dict"),
    ("51-70-dimensions", framed(described(shape=f"({'1, ' * 69}4)")), "is too large"),
    ("51-escapes", framed(described(shape="(\x1b[31m,)")), "not the plain dict"),
    ("51-escape", framed(described(shape="(\x1b31m\u202e,)")), "shape (\\x1b31m"),
    ("52-4-gib-header", b"\x93NUMPY\2\0\xf0\xff\xff\xff{}", "has a header of 4294967280 bytes; the limit is 10000"),
    ("52-20-kb-header", framed(described() + " " * 20_000), "has a header of 20"),
    ("52-parentheses", framed(described(shape="(" * 9000)), "not the plain dict"),
    ("52-bare-parentheses", framed("(" * 9000), "not the plain dict"),
    ("52-minus-signs", framed(described(shape=f"({'-' * 9500}1,)")), "is not one"),
    ("52-quotes", framed("{" + "'" * 9900 + "}"), "not the plain dict"),
    ("52-spaces", framed("{" + " " * 9900), "not the plain dict"),
    ("52-keys", framed("{" + "'descr': True, " * 600 + "}"), "two entries 'descr'"),
    ("52-commas", framed(described(shape=f"({', ' * 4900})")), "is not one"),
    ("52-sizes", framed(described(shape=f"({'1,' * 4900})")), "is too large"),
    ("53-one-byte-short", ONE[:-1], "is truncated: 1 bytes are missing"),
    ("53-no-data", ONE[:128], "is truncated: 16 bytes are missing"),
    ("53-in-the-header", ONE[:100], "is truncated in its header: 28 bytes of it are missing"),
    ("53-in-the-length", ONE[:9], "is truncated in its header"),
    ("53-before-the-length", ONE[:8], "is truncated in its header"),
    ("53-in-the-version", ONE[:7], "has 1 for its version"),
    ("53-only-the-magic", ONE[:6], "has nothing for its version"),
    ("53-trailing-byte", ONE + b"\0", "has 1 bytes after its array"),
    ("53-second-array", ONE + ONE, "has 144 bytes after its array"),
    ("53-data-of-an-empty-array", framed(described(shape="(0,)")), "has 16 bytes after its array"),
    ("54-struct", saved(np.zeros(2, [("a", "<f4"), ("b", "<i4")])), "of structs"),
    ("54-sub-array", framed(described("('<f4', (2,))", shape="(2,)")), "of sub-arrays"),
    ("54-string", saved(np.array(["abc"])), "of dtype '<U3'"),
    ("54-bytes", saved(np.array([b"abc"])), "of dtype '|S3'"),
    ("54-datetime", saved(np.array(["2020-01-01"], "M8[ns]")), "of dtype '<M8[ns]'"),
    ("54-s0", framed(described("'|S0'", shape=f"({10**12},)"), b""), "of dtype '|S0'"),
    ("54-complex128", saved(np.zeros(2, "c16")), "of dtype '<c16'"),
    ("54-longdouble", framed(described("'<f16'")), "of dtype '<f16'"),
    ("54-no-byte-order", framed(described("'f4'")), "of dtype 'f4'"),
    ("54-order-does-not-apply", framed(described("'|f4'")), "of dtype '|f4'"),
    ("54-native-order", framed(described("'=f4'")), "of dtype '=f4'"),
    ("54-name", framed(described("'float32'")), "of dtype 'float32'"),
    ("54-list", framed(described("[]")), "of dtype []"),
    ("54-bool", framed(described("True")), "of dtype True"),
    ("54-escapes", framed(described("'\x1b]0;x\x07" + "y" * 500 + "'")), "of dtype '\\x1b]0;x\\x07yy"),
    ("54-escaped", framed(described(r"'\x3cf4'")), "not the plain dict"),
    ("55-npz", npz(), "is a zip archive"),
    ("55-empty", b"", "does not begin as one"),
    ("55-wrong-magic", b"\x93NUMPX" + ONE[6:], "does not begin as one"),
    ("55-version-0", b"\x93NUMPY\0\0" + ONE[8:], "has 0.0 for its version"),
    ("55-version-1.1", b"\x93NUMPY\1\1" + ONE[8:], "has 1.1 for its version"),
    ("55-version-4", b"\x93NUMPY\4\0" + ONE[8:], "has 4.0 for its version; known are 1.0, 2.0 and 3.0"),
    ("55-version-255", b"\x93NUMPY\xff\xff" + ONE[8:], "has 255.255 for its version"),
    ("55-extra-key", framed(described()[:-2] + "'more': True}"), "are not exactly descr, fortran_order and shape"),
    ("55-missing-key", framed("{'descr': '<f4', 'shape': (4,)}"), "are not exactly"),
    ("55-no-keys", framed("{}"), "are not exactly"),
    ("55-double-key", framed(described()[:-2] + "'shape': (4,)}"), "two entries 'shape'"),
    ("55-order-is-a-number", framed(described(order="1")), "not the plain dict"),
    ("55-order-is-a-string", framed(described(order="'True'")), "neither True nor False"),
    ("55-behind-the-dict", framed(described() + "x"), "not the plain dict"),
    ("55-two-dicts", framed(described() + described()), "not the plain dict"),
    ("55-before-the-dict", framed(" " + described()), "not the plain dict"),
    ("55-no-comma", framed("{'descr': '<f4' 'fortran_order': False, 'shape': (4,)}"), "not the plain dict"),
    ("55-python-2", framed(described(shape="(4L,)")), "is not one"),
    ("55-not-latin", framed(b"{'descr': '<f4', '\xff': False, 'shape': (4,)}", version=3), "are not exactly"),
    ("56-bf16", saved(np.zeros(4, ml_dtypes.bfloat16)), "of raw bytes (<V2): np.save loses bfloat16"),
    ("56-fp8", saved(np.zeros(4, ml_dtypes.float8_e4m3fn)), "of raw bytes (<V1): np.save loses bfloat16 and FP8"),
    ("56-void", framed(described("'|V2'"), bytes(8)), "of raw bytes (|V2)"),
    ("26-lfs", LFS, "is a Git LFS pointer, not the weights. Run `git lfs pull`"),
]


@pytest.mark.parametrize(("content", "says"), [pytest.param(*case[1:], id=case[0]) for case in BAD])
def test_bad_header_is_refused(tmp_path: Path, content: bytes, says: str) -> None:
    file = put(tmp_path, content)
    assert says in str(refusal(file))


@pytest.mark.faults
def test_no_bad_header_takes_long(tmp_path: Path) -> None:
    for name, content, _ in BAD:
        file = put(tmp_path, content)
        started = time.process_time()
        refusal(file)
        at_most(time.process_time() - started, 0.5, name)


def test_a_long_header_is_not_read(tmp_path: Path) -> None:
    """52: not even where the file has the bytes."""
    path = tmp_path / "w.npy"
    with path.open("wb") as out:
        out.write(b"\x93NUMPY\2\0\xf0\xff\xff\xff{")
        out.truncate(2**33)
    file = InputFile.open(path)
    tracemalloc.start()
    try:
        refusal(file)
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()


# ---- writing ---------------------------------------------------------------------------------------------


def test_golden_bytes() -> None:
    header = (
        b"\x93NUMPY\x01\x00v\x00{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }" + b" " * 58 + b"\n"
    )
    assert layout(TensorSpec("any", "F32", (2, 3))).pieces == ((0, header),)
    assert layout(TensorSpec("any", "F32", (2, 3))).offsets == {"any": 128}
    assert layout(TensorSpec("any", "F32", (2, 3))).size == 128 + 24


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("npy")


shapes = hnp.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=4)


@settings(max_examples=80)
@given(dtype=st.sampled_from(sorted(NUMPY_DTYPES)), shape=shapes, seed=st.integers(0, 2**32))
def test_what_is_written_is_what_numpy_writes(folder: Path, dtype: str, shape: tuple[int, ...], seed: int) -> None:
    spec = TensorSpec(TENSOR_NAME, dtype, shape)
    data = random.Random(seed).randbytes(spec.nbytes)
    if dtype == "BOOL":
        data = bytes(byte & 1 for byte in data)
    plan = layout(spec)
    ((_, header),) = plan.pieces
    content = header + data
    array = np.frombuffer(data, NUMPY_DTYPES[dtype]).reshape(shape)
    assert content == saved(array)
    assert plan.size == len(content)
    file = put(folder, content)
    assert read_header(file).tensors == (Placed(spec, plan.offsets[TENSOR_NAME]),)
    assert np.load(file.path).tobytes() == data


@settings(max_examples=80)
@given(
    array=st.sampled_from(sorted(NUMPY_DTYPES.values())).flatmap(lambda kind: hnp.arrays(kind, shapes)),
    order=st.sampled_from("CF"),
    byte_order=st.sampled_from("<>"),
    version=st.sampled_from([(1, 0), (2, 0), (3, 0)]),
)
def test_what_numpy_writes_is_read(
    folder: Path, array: Array, order: Any, byte_order: Any, version: tuple[int, int]
) -> None:
    array = array.astype(array.dtype.newbyteorder(byte_order)).copy(order=order)
    file = put(folder, saved(array, version))
    found = values(file, read_header(file).tensors[0])
    assert found.shape == array.shape
    assert found.astype(array.dtype).tobytes() == array.tobytes()


def test_the_first_sizes_of_any_length(tmp_path: Path) -> None:
    """NumPy pads by the length of the first size, and to the next 64 bytes."""
    for rank in range(1, 12):
        for digits in range(1, 19):
            shape = (10 ** (digits - 1), *(0,) * (rank - 1))
            expected = io.BytesIO()
            np.lib.format.write_array_header_1_0(expected, {"descr": "<f4", "fortran_order": False, "shape": shape})
            assert layout(TensorSpec("w", "F32", shape)).pieces == ((0, expected.getvalue()),)


@pytest.mark.parametrize("dtype", sorted(set(DTYPES) - set(NUMPY_DTYPES)))
def test_what_numpy_cannot_hold_is_not_written(dtype: str) -> None:
    with pytest.raises(OutputError) as caught:
        layout(TensorSpec("a\n", dtype, (4,)))
    expected = f"tensor 'a\\n': NumPy's format cannot hold {dtype}. Write .safetensors instead"
    assert str(caught.value) == expected


# ---- mutations -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_mutated_files_are_refused_or_mean_what_numpy_reads(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    good: list[bytes] = [case.values[0] for case in ACCEPTED]
    kept = refused = 0
    for _ in range(200):
        content = bytearray(rng.choice(good))
        action = rng.choice(("flip", "flip", "cut", "splice", "digit"))
        at = int(len(content) * rng.random() ** 2)
        if action == "flip":
            content[at] ^= 1 << rng.randrange(8)
        elif action == "cut":
            del content[at : rng.choice((at + 1, len(content)))]
        elif action == "splice":
            other = rng.choice(good)
            start = rng.randrange(len(other))
            content[at : at + rng.choice((0, 4))] = other[start : start + rng.choice((1, 4, len(other)))]
        else:
            digits = [at for at, byte in enumerate(content) if 0x30 <= byte <= 0x39]
            content[rng.choice(digits)] = rng.choice(b"0123456789-, ")
        file = put(tmp_path, bytes(content))
        try:
            (placed,) = read_header(file).tensors
        except InputError:
            refused += 1
            continue
        kept += 1
        expected = np.load(file.path, allow_pickle=False)
        found = values(file, placed)
        assert found.shape == expected.shape
        assert found.dtype == expected.dtype
        assert found.tobytes() == expected.tobytes()
    assert kept > 10
    assert refused > 60
