"""A chunk: some rows of a tensor, coded by themselves, with the checksum of what they are.

    CRC-32 of the bytes (4, little-endian) · length of the head · head · bodies · states and words of the coder

The length of the head is in one byte, or in two, the first with its highest bit set; 0 means that the bytes follow
as they are. The head is a stream of bits (`bitio`) and begins with the length of the bodies, which are raw planes
in their order, and the coder's lanes. (In version 1 planes may be zstd frames too, and the coder is another.)
"""

from __future__ import annotations

from collections import deque

from compressor.core.lazy import np
from compressor.core.workspace import Array, Borrowed, Workspace
from compressor.files.entropy.account import Account
from compressor.files.entropy.ans import AnsReader
from compressor.files.entropy.bitio import BitReader, BitWriter
from compressor.files.entropy.checksum import crc32
from compressor.files.entropy.damage import Damaged
from compressor.files.entropy.elements import Form, read_elements, write_elements
from compressor.files.entropy.planes import Effort, Input, Output
from compressor.files.entropy.rans import RansReader

LEAST = 5  # bytes of a chunk

_idle: deque[Workspace] = deque()  # memory that a page fault a page would cost as much as coding what is in it


def encode_chunk(data: Array, form: Form, effort: Effort) -> bytes:
    """Some rows of a tensor, uint8 [rows, bytes], C-ordered, as a chunk of version 2."""
    check = crc32(data).to_bytes(4, "little")
    if data.size:
        with Borrowed(_idle) as work:
            found = _encoded(Output(effort, work), check, data, form)
        if found is not None:
            return found
    return check + b"\0" + data.tobytes()


def _encoded(out: Output, check: bytes, data: Array, form: Form) -> bytes | None:
    """The chunk in its smallest form; None where that is the bytes as they are."""
    write_elements(out, data, form)
    first = BitWriter()
    first.number(sum(map(len, out.bodies)))
    first.bits(out.ans.lanes, 3)
    first.extend(out.head)
    head = first.to_bytes()
    length = bytes([len(head)]) if len(head) < 128 else bytes([128 | len(head) >> 8 & 127, len(head) & 255])
    pieces = (length, head, *out.bodies, *(one.data for one in out.ans.to_bytes()))
    if len(head) >= 1 << 15 or sum(map(len, pieces)) > data.size:
        return None
    return b"".join((check, *pieces))


def decode_chunk(
    chunk: memoryview,
    shape: tuple[int, int],
    form: Form,
    account: Account | None = None,
    version: int = 2,
    out: Array | None = None,
) -> Array:
    """Undo `encode_chunk`, also as version 1 had it: uint8 [rows, bytes] of this shape, in `out` where that is
    given; what its streams take is added to an `account`. Raises Damaged and, of version 1, NeedsPackage."""
    if len(chunk) < LEAST:
        raise Damaged("it is too short")
    with Borrowed(_idle) as work:
        found = _decoded(chunk[4:], shape, form, (version, account, work), out)
    if crc32(found) != int.from_bytes(chunk[:4], "little"):
        raise Damaged("its checksum does not match")
    if out is None or found.ctypes.data == out.ctypes.data:
        return found
    np.copyto(out, found)
    return out


def _decoded(
    body: memoryview,
    shape: tuple[int, int],
    form: Form,
    how: tuple[int, Account | None, Workspace],
    out: Array | None,
) -> Array:
    (version, account, work), length, start = how, body[0], 1
    if length & 128:
        if len(body) < 2:
            raise Damaged("it is too short")
        length, start = (length & 127) << 8 | body[1], 2
    if not length:
        if len(body) - start != shape[0] * shape[1]:
            raise Damaged("it has another size than its rows")
        found = np.frombuffer(body[start:], np.uint8).reshape(shape)
        if account is not None:
            account.add("values", 8 * found.size, 8 * found.size)
        return found
    head, rest = BitReader(bytes(body[start : start + length])), body[start + length :]
    bodies = head.number()
    if bodies > len(rest):
        raise Damaged("it is too short")
    coded = rest[bodies:]
    words = AnsReader(coded) if version == 1 else RansReader(coded, head.bits(3), work)
    source = Input(version, head, rest[:bodies], words, work, account)
    found = np.ascontiguousarray(read_elements(source, shape, form, out))
    words.finish()
    return found
