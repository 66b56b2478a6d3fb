"""How much a file may stand for: the one limit for whatever is decoded, of archives, sparse layouts or factors.

A few bytes can name a tensor of any size: two vectors the matrix that is their product, a row's index a row of
zeros. Real files come nowhere near the limit; a small one that asks for terabytes is refused by arithmetic.
"""

from __future__ import annotations

FREE = 64 << 20  # bytes that any file may stand for
GROWTH = 4096  # and for each byte of its own


def most(size: int) -> int:
    """The bytes of numbers that files of `size` bytes may stand for."""
    return FREE + GROWTH * size
