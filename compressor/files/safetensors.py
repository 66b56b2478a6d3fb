"""The safetensors container: the header's length (8 bytes, little-endian), a JSON header, tensors without gaps.

    {"__metadata__": {KEY: TEXT, …}, NAME: {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}, …}

Headers come from strangers, and the library accepts some that mean two things, such as a name that occurs
twice. So a header is read here by a stricter grammar of two flat levels, and then by the library too: what
both accept means one thing. It is scanned entry by entry and not given to `json` whole, because a list of
empty lists would take thirty times its own size in memory.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from math import prod
from tempfile import NamedTemporaryFile
from typing import Any, TypeVar

from compressor.core.errors import InputError, OutputError
from compressor.core.tensor import DTYPES, TensorSpec
from compressor.core.text import printable
from compressor.files.input_file import InputFile
from compressor.files.layout import FileLayout, Header, Placed

MAX_HEADER = 100_000_000  # the library's own limit
METADATA = "__metadata__"

_MAX_DIMS = 32
_MAX_ENTRY = 2000  # bytes that describe one tensor: 32 sizes of up to 19 digits, and white space
_BOUND = 2**63  # what fits the signed integers of NumPy and of the kernel
_KEYS = {"dtype", "shape", "data_offsets"}
_AGAIN = "Download or export it again"

# Possessive (`++`, `*+`): nothing is tried twice, so a hostile header cannot make matching slow.
_SPACE = rb"[ \t\r\n]*+"
_STRING = rb'"(?:[^"\\\x00-\x1f]++|\\[^\x00-\x1f])*+"'
_KEY = re.compile(_SPACE + b"(" + _STRING + b")" + _SPACE + b":" + _SPACE)
_TEXT = re.compile(_STRING)
_EMPTY = re.compile(rb"\{" + _SPACE + rb"\}")
_NEXT = re.compile(_SPACE + rb"([,}])")
_TAIL = re.compile(_SPACE)
# An entry as the library writes it, of numbers that are surely short; any other is read by the JSON parser
_NUMBER = rb"(?:0|[1-9][0-9]{0,17})"
_ENTRY = re.compile(
    rb'\{"dtype":"([A-Z0-9_]{1,12})","shape":\[((?:' + _NUMBER + rb"(?:," + _NUMBER + rb"){0,31})?)\],"
    rb'"data_offsets":\[(' + _NUMBER + rb"),(" + _NUMBER + rb")\]\}"
)

# What else is found under the names of weight files. A length may begin like a magic; then zeros follow.
IN_PYTORCH = "Load it in PyTorch, if you trust it, and save its state dict with safetensors.torch.save_file"
_OTHERS = (
    (rb"version https://git-lfs", "is a Git LFS pointer, not the weights", "Run `git lfs pull`"),
    (rb"PK\x03\x04(?!\0{4})", "is a zip archive", "Let its name end in .npz if NumPy wrote it, in .pt if PyTorch"),
    (rb"\x80[\x02-\x05](?!\0{6})", "is a Python pickle", IN_PYTORCH),
    (rb"(?i)\s*<(?:!doctype|html|\?xml)", "is a web page, not the weights", "Download it again"),
    (rb"GGUF(?!\0{4})", "is a GGUF file", "Let its name end in .gguf"),
    (rb"\x1f\x8b(?!\0{6})", "is compressed with gzip", "Unpack it first"),
)

_T = TypeVar("_T")


def read_header(file: InputFile) -> Header:
    """Check and read a header: tensors in the order of their names. InputError names what is wrong with it."""
    start = file.read(0, min(file.size, 512))
    length = int.from_bytes(start[:8], "little")
    problem = _first_look(start, length, file.size)
    if problem:
        raise recognise(start, file.path) or InputError(problem, file=file.path, remedy=_AGAIN)
    raw = bytearray(length)
    file.read_into(memoryview(raw), 8)
    scanner = _Scanner(raw, file.path, file.size - 8 - length)
    scanner.scan()
    _check_places(scanner.tensors, file.size - 8 - length, file.path)
    _check_with_library(file, raw)
    placed = [Placed(spec, 8 + length + begin) for begin, _, spec in scanner.tensors]
    return Header(tuple(sorted(placed, key=lambda placed: placed.spec.name)), scanner.metadata)


def recognise(start: bytes, path: str) -> InputError | None:
    """The refusal of a file that begins like another format; None when it begins like nothing known."""
    for magic, reason, remedy in _OTHERS:
        if re.match(magic, start):
            return InputError(reason, file=path, remedy=remedy)
    return None


def layout(tensors: Iterable[TensorSpec], metadata: Mapping[str, str]) -> FileLayout:
    """Plan a file: widest elements first so that all are aligned, then by name, as the library orders them.

    The same tensors and metadata in any order give the same bytes. OutputError when they cannot be one file.
    """
    ordered = sorted(tensors, key=lambda spec: (-DTYPES[spec.dtype].bits, spec.name))
    header: dict[str, Any] = {METADATA: dict(sorted(metadata.items()))} if metadata else {}
    begins: dict[str, int] = {}
    end = 0
    for spec in ordered:
        if spec.name == METADATA or spec.name in begins:
            reason = "no tensor can have this name" if spec.name == METADATA else "would be in the file twice"
            raise OutputError(reason, tensor=spec.name, remedy="Rename it, or leave it out")
        begins[spec.name], end = end, end + spec.nbytes
        header[spec.name] = {
            "dtype": spec.dtype,
            "shape": list(spec.shape),
            "data_offsets": [begins[spec.name], end],
        }
    try:
        raw = _compact(header)
    except UnicodeEncodeError as error:
        raise OutputError("a name or a metadata entry is no valid Unicode") from error
    raw += b" " * (-len(raw) % 8)  # data aligned for the widest element
    if len(raw) > MAX_HEADER:
        raise OutputError(
            f"its header would have {len(raw)} bytes, and safetensors allows {MAX_HEADER}",
            remedy="Write a folder of several shards",
        )
    data = 8 + len(raw)
    return FileLayout(
        size=data + end,
        pieces=((0, len(raw).to_bytes(8, "little") + raw),),
        offsets={name: data + begin for name, begin in begins.items()},
        metadata=dict(metadata),
    )


def relabelled(layout: FileLayout, metadata: Mapping[str, str]) -> FileLayout:
    """The same file with other metadata, which take as many bytes as its own."""
    before, after = (_compact({METADATA: dict(sorted(said.items()))})[:-1] for said in (layout.metadata, metadata))
    ((_, piece),) = layout.pieces
    if len(before) != len(after) or not piece.startswith(before, 8):
        raise ValueError("metadata of another length")
    header = piece[:8] + after + piece[8 + len(after) :]
    return replace(layout, pieces=((0, header),), metadata=dict(metadata))


def _compact(header: Mapping[str, Any]) -> bytes:
    return json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()


def check_written(file: InputFile, layout: FileLayout) -> None:
    """InputError where a file does not begin with the header that was planned, or the library refuses it."""
    ((_, piece),) = layout.pieces
    raw = bytearray(len(piece))
    file.read_into(memoryview(raw), 0)
    if raw != piece:
        raise InputError("its header is not the one that was written", file=file.path)
    _check_with_library(file, raw[8:])


def _first_look(start: bytes, length: int, size: int) -> str:
    """What speaks against reading a header of `length` bytes, if anything does."""
    if size < 8:
        return f"is no safetensors file: it has only {size} bytes"
    if length > MAX_HEADER:
        return f"is no safetensors file: it begins with the header length {length}"
    if length > size - 8:
        return f"is truncated in its header: at least {length + 8 - size} bytes are missing"
    if length < 2 or start[8:9] != b"{":
        return "is no safetensors file: its header is not a JSON object"
    return ""


class _Scanner:
    """Reads the header's text once, from left to right. Sizes are Python integers, which do not overflow."""

    def __init__(self, raw: bytearray, path: str, size: int) -> None:
        self.raw = raw
        self.path = path
        self.size = size  # of the data
        self.claimed = self.reached = 0  # bytes of the tensors so far, and the end of the last of them
        self.tensors: list[tuple[int, int, TensorSpec]] = []  # begin and end within the data
        self.metadata: dict[str, str] = {}

    def scan(self) -> None:
        """Fill `tensors` and `metadata`."""
        _, at = self._object(0, self._entry)
        rest = _TAIL.match(self.raw, at)
        if rest is None or rest.end() != len(self.raw):
            raise self._malformed(at)

    def _object(self, at: int, read: Callable[[str, int], tuple[_T, int]]) -> tuple[dict[str, _T], int]:
        """An object whose values `read(key, at)` takes; with the place behind it."""
        found: dict[str, _T] = {}
        empty = _EMPTY.match(self.raw, at)
        if empty:
            return found, empty.end()
        if self.raw[at : at + 1] != b"{":
            raise self._malformed(at)
        while True:
            key = _KEY.match(self.raw, at + 1)
            if key is None:
                raise self._malformed(at + 1)
            name = self._unescape(key[1], at + 1)
            if name in found:
                raise InputError("its header has this name twice", file=self.path, tensor=name, remedy=_AGAIN)
            found[name], at = read(name, key.end())
            after = _NEXT.match(self.raw, at)
            if after is None:
                raise self._malformed(at)
            if after[1] == b"}":
                return found, after.end()
            at = after.end() - 1

    def _entry(self, name: str, at: int) -> tuple[None, int]:
        if name == METADATA:
            self.metadata, end = self._object(at, self._text)
            return None, end
        usual = _ENTRY.match(self.raw, at)
        if usual:
            shape = [int(size) for size in usual[2].split(b",")] if usual[2] else []
            self._tensor(name, usual[1].decode(), shape, [int(usual[3]), int(usual[4])])
            return None, usual.end()
        end = self.raw.find(b"}", at, at + _MAX_ENTRY) + 1
        if not end:
            raise self._bad(name, f"its entry in the header does not end within {_MAX_ENTRY} bytes")
        try:
            entry, _ = _STRICT.raw_decode(self.raw[at:end].decode())
        except (ValueError, RecursionError) as error:
            raise self._bad(name, f"its entry in the header is damaged: {printable(str(error), 80)}") from error
        if type(entry) is not dict or entry.keys() != _KEYS:
            raise self._bad(name, "its entry in the header does not consist of dtype, shape and data_offsets")
        self._tensor(name, **entry)
        return None, end

    def _tensor(self, name: str, dtype: Any, shape: Any, data_offsets: Any) -> None:
        kind = DTYPES.get(dtype) if type(dtype) is str else None
        if kind is None:
            raise self._bad(name, f"its dtype {printable(repr(dtype), 40)} is unknown")
        if not _are_sizes(shape) or len(shape) > _MAX_DIMS:
            raise self._bad(name, f"its shape {printable(repr(shape), 60)} is not one")
        if not _are_sizes(data_offsets) or len(data_offsets) != 2 or data_offsets[0] > data_offsets[1]:
            raise self._bad(name, f"its data_offsets {printable(repr(data_offsets), 60)} are no range")
        bits = kind.bits * prod(shape)
        # a zero dimension must not hide that the others overflow: NumPy multiplies them all
        if (bits or prod(filter(None, shape)) * kind.bits) >= 8 * _BOUND:
            raise self._bad(name, f"its shape {printable(repr(shape), 60)} is too large")
        begin, end = data_offsets
        if bits % 8:
            raise self._bad(name, f"its {prod(shape)} elements of {kind.bits} bits do not fill whole bytes")
        if bits // 8 != end - begin:
            raise self._bad(name, f"its dtype and shape need {bits // 8} bytes, its range has {end - begin}")
        self.tensors.append((begin, end, TensorSpec(name, dtype, tuple(shape))))
        self.claimed, self.reached = self.claimed + end - begin, max(self.reached, end)
        if self.claimed > self.size >= self.reached:  # some overlap; a hostile header could list them for long
            _check_overlaps(self.tensors, self.path)

    def _text(self, name: str, at: int) -> tuple[str, int]:
        text = _TEXT.match(self.raw, at)
        if text is None:
            raise InputError(
                f"the entry '{printable(name, 60)}' of its {METADATA} is no text", file=self.path, remedy=_AGAIN
            )
        return self._unescape(text[0], at), text.end()

    def _unescape(self, quoted: bytes, at: int) -> str:
        try:
            text = quoted.decode()
            if "\\" not in text:
                return text[1:-1]
            unescaped: str = json.loads(text)
            unescaped.encode()  # half of a surrogate pair could not be written again
        except UnicodeError as error:
            raise self._malformed(at, "holds a text that is not Unicode") from error
        except ValueError as error:
            raise self._malformed(at) from error
        return unescaped

    def _malformed(self, at: int, what: str = "is not the JSON that safetensors prescribes") -> InputError:
        return InputError(f"its header {what}, near byte {8 + at}", file=self.path, remedy=_AGAIN)

    def _bad(self, name: str, reason: str) -> InputError:
        return InputError(reason, file=self.path, tensor=name, remedy=_AGAIN)


def _are_sizes(found: Any) -> bool:
    if type(found) is not list:
        return False
    for size in found:  # noqa: SIM110  three times as fast as `all`, and headers have 100,000 of these
        if type(size) is not int or not 0 <= size < _BOUND:  # True would be an instance of int
            return False
    return True


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key occurs twice")
    return found


def _no_number(text: str) -> Any:
    raise ValueError(f"{text} is not an integer")


_STRICT = json.JSONDecoder(object_pairs_hook=_unique, parse_float=_no_number, parse_constant=_no_number)


def _check_overlaps(tensors: list[tuple[int, int, TensorSpec]], path: str) -> None:
    reached = 0
    for begin, end, spec in sorted(tensors, key=lambda placed: placed[:2]):
        if begin < reached:
            raise _misplaced(begin, reached, spec, path)
        reached = end


def _misplaced(begin: int, reached: int, spec: TensorSpec, path: str) -> InputError:
    reason = f"its bytes begin at {begin} of the data, where {reached} was expected"
    remedy = f"Tensors {'overlap' if begin < reached else 'leave a hole'}: export the file again"
    return InputError(reason, file=path, tensor=spec.name, remedy=remedy)


def _check_places(tensors: list[tuple[int, int, TensorSpec]], size: int, path: str) -> None:
    """The ranges must cover the data from its first byte to its last, once."""
    tensors.sort(key=lambda placed: placed[:2])
    reached = 0
    for begin, end, spec in tensors:
        if begin != reached:
            raise _misplaced(begin, reached, spec, path)
        reached = end
    if reached > size:
        raise InputError(f"is truncated: {reached - size} bytes are missing", file=path, remedy=_AGAIN)
    if reached < size:
        raise InputError(f"has {size - reached} bytes after its last tensor", file=path, remedy=_AGAIN)


def _check_with_library(file: InputFile, raw: bytearray) -> None:
    """The library must accept the header too: others will read by it."""
    from safetensors import SafetensorError, safe_open  # here because `--help` should not wait for it

    try:
        with _standing_in(file, raw) as path, safe_open(path, framework="np"):
            pass
    except (SafetensorError, OSError, MemoryError) as error:  # MemoryError: the library maps the whole file
        text = printable(str(error).partition("\n")[0], 160)
        remedy = "Raise the limit of address space" if isinstance(error, MemoryError) else _AGAIN
        raise InputError(f"the safetensors library refuses it: {text}", file=file.path, remedy=remedy) from error


@contextmanager
def _standing_in(file: InputFile, raw: bytearray) -> Iterator[str]:
    """A file of the same header and size for the library to map, in memory and full of holes: whoever cuts off a
    mapped file kills the process that reads it. The file itself where the system has no such files."""
    with ExitStack() as stack:
        path = file.path
        with suppress(OSError, AttributeError):  # a limit of file sizes holds for these too
            if file.origin is not None and not hasattr(os, "memfd_create"):
                fd = stack.enter_context(NamedTemporaryFile()).fileno()
            else:
                fd = os.memfd_create("header", os.MFD_CLOEXEC)
                stack.callback(os.close, fd)
            os.truncate(fd, file.size)
            for offset, piece in ((0, len(raw).to_bytes(8, "little")), (8, raw)):
                view = memoryview(piece)
                while view:
                    done = os.pwrite(fd, view, offset)
                    view, offset = view[done:], offset + done
            path = f"/proc/self/fd/{fd}" if hasattr(os, "memfd_create") else f"/dev/fd/{fd}"
        yield path
