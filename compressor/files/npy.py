"""NumPy's `.npy`: a magic, a version, a header's length, a Python dict as text, one array.

    \\x93NUMPY 1 0 | 118 0 | {'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }     \\n | the bytes

The dict is read by a grammar of our own: `numpy.load` hands it to `ast.literal_eval`, which strangers can
make slow or crash, believes any shape, and ignores what follows the array.
"""

from __future__ import annotations

import re
from math import prod

from compressor.core.errors import InputError, OutputError
from compressor.core.tensor import DTYPES, TensorSpec
from compressor.core.text import printable
from compressor.files.input_file import InputFile
from compressor.files.layout import FileLayout, Header, Placed
from compressor.files.safetensors import recognise

TENSOR_NAME = "weight"  # the format has none; this one lets the same rules select it as in other containers

_MAX_HEADER = 10_000  # NumPy's own limit
_MAX_DIMS = 32
_BOUND = 2**63  # what fits the signed integers of NumPy and of the kernel
_ALIGN = 64
_GROWTH = 21  # NumPy leaves room for the first size to grow to so many digits
_AGAIN = "Save or download it again"
_MAGIC = b"\x93NUMPY"
_LENGTH_BYTES = {b"\x01\x00": 2, b"\x02\x00": 4, b"\x03\x00": 4}

# BF16 and FP8 have a storage type too, but an .npy cannot say that it is one of them
_HELD = ("F64", "F32", "F16", "I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8", "BOOL", "C64")
_BY_CODE = {DTYPES[name].storage[1:]: name for name in _HELD}

_SPACE = r"[ \t\r\n]*+"
_VALUE = r"""'[^'\\]*+'|"[^"\\]*+"|True|False|[(\[][^()\[\]'"{}]*+[)\]]"""
_PAIR = re.compile(rf"""{_SPACE}(['"])(\w++)\1{_SPACE}:{_SPACE}({_VALUE}){_SPACE}(,|(?=\}}))""")
_END = re.compile(rf"{_SPACE}\}}{_SPACE}")
_SIZE = rf"{_SPACE}(?:0|[1-9][0-9]{{0,18}}+){_SPACE}"
_SHAPE = re.compile(rf"\({_SPACE}\)|\({_SIZE},(?:{_SIZE},)*+(?:{_SIZE}|{_SPACE})\)")
_DESCR = re.compile(r"""['"]([<>|])([a-zA-Z][0-9]+)['"]""")
_NESTED = re.compile(r"""['"]descr['"]\s*+:\s*+([\[(])""")


def read_header(file: InputFile) -> Header:
    """Check and read a header: one tensor called `TENSOR_NAME`. InputError names what is wrong with it."""
    start = file.read(0, min(file.size, 512))
    width = _LENGTH_BYTES.get(start[6:8])
    if start[:6] != _MAGIC:
        raise recognise(start, file.path) or InputError(
            "is no .npy file: it does not begin as one", file=file.path, remedy=_AGAIN
        )
    if width is None:
        version = ".".join(map(str, start[6:8])) or "nothing"
        raise _refusal(file, f"has {version} for its version; known are 1.0, 2.0 and 3.0")
    begin = 8 + width
    length = int.from_bytes(start[8:begin], "little")
    if length > _MAX_HEADER:
        raise _refusal(file, f"has a header of {length} bytes; the limit is {_MAX_HEADER}")
    if begin + length > file.size:
        raise _refusal(file, f"is truncated in its header: {begin + length - file.size} bytes of it are missing")
    # only ASCII can match the grammar, so the versions' encodings do not matter
    found = _parse(file.read(begin, length).decode("latin-1"), file)
    name, big_endian = _dtype(found["descr"], file)
    spec = TensorSpec(TENSOR_NAME, name, _shape(found["shape"], DTYPES[name].bits // 8, file))
    order = found["fortran_order"]
    if order not in ("True", "False"):
        raise _refusal(file, "has a header whose fortran_order is neither True nor False")
    extra = file.size - begin - length - spec.nbytes
    if extra < 0:
        raise _refusal(file, f"is truncated: {-extra} bytes are missing")
    if extra > 0:
        raise _refusal(file, f"has {extra} bytes after its array")
    # with at most one size above 1 there is only one order
    fortran = order == "True" and sum(size != 1 for size in spec.shape) > 1
    return Header((Placed(spec, begin + length, fortran, big_endian),))


def layout(spec: TensorSpec) -> FileLayout:
    """Plan a file: the very bytes of `numpy.save`. OutputError for a dtype that the format cannot hold."""
    header = header_bytes(spec)
    return FileLayout(len(header) + spec.nbytes, ((0, header),), {spec.name: len(header)})


def header_bytes(spec: TensorSpec) -> bytes:
    """Everything before a C-ordered array's bytes; always version 1.0, which suffices for plain dtypes."""
    if spec.dtype not in _HELD:
        raise OutputError(
            f"NumPy's format cannot hold {spec.dtype}", tensor=spec.name, remedy="Write .safetensors instead"
        )
    return _header(DTYPES[spec.dtype].storage, spec.shape)


def text_header(content: bytes) -> bytes:
    """Everything before the bytes of a scalar that is a text, as `np.array(b"…")` has it."""
    return _header(f"|S{len(content)}", ())


def _header(descr: str, shape: tuple[int, ...]) -> bytes:
    text = f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {shape!r}, }}"
    if shape:
        text += " " * (_GROWTH - len(str(shape[0])))
    text += " " * (_ALIGN - (len(_MAGIC) + 4 + len(text) + 1) % _ALIGN) + "\n"
    return _MAGIC + b"\x01\x00" + len(text).to_bytes(2, "little") + text.encode("ascii")


def _parse(text: str, file: InputFile) -> dict[str, str]:
    """The three entries of the dict as they are written; each once, in any order, and nothing else."""
    found: dict[str, str] = {}
    at = 1
    while text[:1] == "{" and (pair := _PAIR.match(text, at)):
        if pair[2] in found:
            raise _refusal(file, f"has a header with two entries '{printable(pair[2], 40)}'")
        found[pair[2]] = pair[3]
        at = pair.end()
    if not _END.fullmatch(text, at):
        nested = _NESTED.search(text)
        if nested:
            raise _unsupported(file, "of structs" if nested[1] == "[" else "of sub-arrays")
        raise _refusal(file, "has a header that is not the plain dict which NumPy writes")
    if found.keys() != {"descr", "fortran_order", "shape"}:
        raise _refusal(file, "has a header whose entries are not exactly descr, fortran_order and shape")
    return found


def _dtype(text: str, file: InputFile) -> tuple[str, bool]:
    """The dtype's name in `DTYPES`, and whether it is stored big-endian."""
    descr = _DESCR.fullmatch(text)
    name = _BY_CODE.get(descr[2]) if descr else None
    if descr is None or name is None:
        if text.strip("'\"<>|=").startswith("O"):
            raise _unsupported(file, "of Python objects, which are a pickle and never loaded")
        if descr and descr[2] in ("V1", "V2"):
            raise _unsupported(file, f"of raw bytes ({descr[1]}{descr[2]}): np.save loses bfloat16 and FP8 dtypes")
        raise _unsupported(file, f"of dtype {printable(text, 40)}")
    one_byte = DTYPES[name].bits == 8
    if descr[1] == "|" and not one_byte:
        raise _unsupported(file, f"of dtype {text}")
    return name, descr[1] == ">" and not one_byte


def _shape(text: str, itemsize: int, file: InputFile) -> tuple[int, ...]:
    if not _SHAPE.fullmatch(text):
        raise _refusal(file, f"has a header whose shape {printable(text, 60)} is not one")
    shape = tuple(int(size) for size in text[1:-1].split(",") if size.strip(" \t\r\n"))
    # a zero must not hide that the others overflow: NumPy multiplies them all
    if len(shape) > _MAX_DIMS or prod(filter(None, shape)) * itemsize >= _BOUND:
        raise _refusal(file, f"has a header whose shape {printable(text, 60)} is too large")
    return shape


def _refusal(file: InputFile, reason: str) -> InputError:
    return InputError(reason, file=file.path, remedy=_AGAIN)


def _unsupported(file: InputFile, what: str) -> InputError:
    return InputError(
        f"holds an array {what}", file=file.path, remedy="Save plain numbers, or write a .safetensors"
    )
