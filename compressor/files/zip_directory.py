"""The members of a zip archive that a stranger sent, as places in its file: plain `.npz`, and what PyTorch writes.

Only members that are stored as they are (not compressed, not encrypted) can be read by rows. The central directory
and each member's local header must agree on name and place; what a member claims must lie in the file. Layout:
PKWARE's APPNOTE 6.3.10, sections 4.3.7, 4.3.12, 4.3.14 to 4.3.16 and 4.5.3.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from compressor.core.errors import InputError
from compressor.core.text import printable
from compressor.files.input_file import InputFile

_LOCAL = struct.Struct("<4s5H3L2H")
_CENTRAL = struct.Struct("<4s6H3L5H2L")
_END = struct.Struct("<4s4H2LH")
_END64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR = struct.Struct("<4sLQL")
_FULL = 0xFFFFFFFF  # "see the 64-bit field"
_MAX_COMMENT = 0xFFFF
_MAX_DIRECTORY = 100_000_000  # bytes; a member of a checkpoint takes about 80
_AGAIN = "Save or download it again"


@dataclass(frozen=True, slots=True)
class Member:
    """A member: its bytes are [begin, begin + size) of the file. `coded`: as what they are stored, "" for as is."""

    name: str
    begin: int
    size: int
    coded: str = ""


def read_members(file: InputFile) -> dict[str, Member]:
    """The members of an archive by name. InputError where it is damaged, or one cannot be read where it lies."""
    start, size, count = _directory(file)
    raw = file.read(start, size)
    found: dict[str, Member] = {}
    at = 0
    for _ in range(count):
        if raw[at : at + 4] != b"PK\1\2" or at + _CENTRAL.size > len(raw):
            raise _damaged(file, "its directory ends early")
        (_, _, _, flags, method, _, _, _, coded, plain, name_size, extra_size, comment, _, _, _, begin) = (
            _CENTRAL.unpack_from(raw, at)
        )
        at += _CENTRAL.size
        raw_name = raw[at : at + name_size]
        name = raw_name.decode("utf-8", "replace")
        extra = raw[at + name_size : at + name_size + extra_size]
        at += name_size + extra_size + comment
        plain, coded, begin = _wide(file, extra, plain, coded, begin)
        if name.endswith("/") and not plain:
            continue
        if name in found:
            raise _damaged(file, f"it has two members {printable(name, 60)}")
        how = "encrypted" if flags & 1 else "compressed" if method or coded != plain else ""
        found[name] = Member(name, _content(file, raw_name, begin), plain, how)
        if found[name].begin + coded > start:
            raise _damaged(file, f"its member {printable(name, 60)} does not lie in the file")
    return found


def stored(file: InputFile, member: Member) -> Member:
    """The member, if its bytes lie in the file as they are. InputError else."""
    if member.coded:
        raise InputError(
            f"its member {printable(member.name, 60)} is {member.coded}",
            file=file.path,
            remedy="Save it without compression (np.savez, not np.savez_compressed), or as .safetensors",
        )
    return member


def _directory(file: InputFile) -> tuple[int, int, int]:
    """Where the central directory begins, its bytes, and how many members it lists."""
    tail_at = max(0, file.size - _END.size - _MAX_COMMENT)
    tail = file.read(tail_at, file.size - tail_at)
    at = tail.rfind(b"PK\5\6")
    if at < 0 or at + _END.size > len(tail):
        raise _damaged(file, "it has no directory of members, as a download that broke off")
    _, _, _, _, count, size, start, _ = _END.unpack_from(tail, at)
    locator = tail_at + at - _LOCATOR.size
    if locator >= 0 and file.read(locator, 4) == b"PK\6\7":
        end64 = _LOCATOR.unpack(file.read(locator, _LOCATOR.size))[2]
        if end64 + _END64.size > locator:
            raise _damaged(file, "its directory does not lie in the file")
        sign, *_, count, size, start = _END64.unpack(file.read(end64, _END64.size))
        if sign != b"PK\6\6":
            raise _damaged(file, "its directory is not where it should be")
    if size > _MAX_DIRECTORY:
        raise _damaged(file, f"its directory of {size} bytes is too large")
    if start + size > tail_at + at or count * _CENTRAL.size > size:
        raise _damaged(file, "its directory does not lie in the file")
    return start, size, count


def _wide(file: InputFile, extra: bytes, plain: int, coded: int, begin: int) -> tuple[int, int, int]:
    """Sizes and place with those that 32 bits do not hold taken from the extra field of 64-bit ones."""
    values, at = [plain, coded, begin], 0
    while _FULL in values and at + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, at)
        if kind == 1:
            held = extra[at + 4 :][:length]  # it may say that it is longer than what is there
            wide = [number for (number,) in struct.iter_unpack("<Q", held[: len(held) & ~7])]
            values = [wide.pop(0) if value == _FULL and wide else value for value in values]
            break
        at += 4 + length
    if _FULL in values:
        raise _damaged(file, "a member is larger than it can say")
    return values[0], values[1], values[2]


def _content(file: InputFile, name: bytes, begin: int) -> int:
    """Where a member's bytes begin, by its local header, which must be of the same name."""
    if begin + _LOCAL.size > file.size:
        raise _damaged(file, "a member does not lie in the file")
    header = _LOCAL.unpack(file.read(begin, _LOCAL.size))
    length = min(header[9], file.size - begin - _LOCAL.size)
    if header[0] != b"PK\3\4" or file.read(begin + _LOCAL.size, length) != name:
        raise _damaged(
            file, f"its member {printable(name.decode('utf-8', 'replace'), 60)} is not where it should be"
        )
    return begin + _LOCAL.size + int(header[9]) + int(header[10])


def _damaged(file: InputFile, reason: str) -> InputError:
    return InputError(f"is a damaged zip archive: {reason}", file=file.path, remedy=_AGAIN)
