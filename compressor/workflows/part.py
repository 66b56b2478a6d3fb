"""`--part K/N`: which share of a run that is, what it is called, and what cannot be divided among several jobs."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from compressor.core.errors import UsageError
from compressor.core.text import printable
from compressor.files.ours import MOST_PARTS

if TYPE_CHECKING:
    from compressor.engine.execution.units import Share

_PART = re.compile(r"([0-9]{1,6})/([0-9]{1,6})")


def numbers_of(part: str) -> tuple[int, int]:
    """The K and N of a text `K/N`: 1 ≤ K ≤ N. UsageError where it is none."""
    found = _PART.fullmatch(part)
    number, count = (0, 0) if found is None else map(int, found.groups())
    if not 1 <= number <= count <= MOST_PARTS:
        raise UsageError(
            f"--part {printable(part, 40)}: is not K/N with K from 1 to N",
            remedy="The jobs of three are --part 1/3, --part 2/3 and --part 3/3",
        )
    return number, count


def share_of(part: str, *, whole: bool) -> Share:
    """The share of a text `K/N`; `whole`: of undivided tensors."""
    from compressor.engine.execution.units import Share

    return Share(*numbers_of(part), whole)


def part_path(output: str, share: Share) -> str:
    """Where the part of an output goes: beside its place, so that jobs need to know nothing of each other."""
    return f"{output.rstrip('/')}.part-{share.number}-of-{share.count}"
