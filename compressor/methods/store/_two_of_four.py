"""Two of four: tables over the bytes of a mask."""

from __future__ import annotations

from functools import cache

from compressor.core.lazy import np


class Fours:
    """Tables over the bytes of a mask, each of which covers two groups of four elements.

    `fits`: neither group has more than two set. `full`: the byte with exactly two set in each group, the first free
    ones added. `places`: the positions of those two, four bits a group. `masks` undoes `places` where `valid`.
    """

    def __init__(self) -> None:
        masks = [[place for place in range(4) if mask >> place & 1] for mask in range(16)]
        fits, full, places = (np.zeros(16, np.uint8) for _ in range(3))
        back = np.zeros(16, np.uint8)
        for mask, held in enumerate(masks):
            fits[mask] = len(held) <= 2
            free = [place for place in range(4) if place not in held]
            first, second = sorted([*held, *free][:2])
            full[mask] = 1 << first | 1 << second
            places[mask] = first | second << 2
            if len(held) == 2:
                back[first | second << 2] = mask
        low, high = np.arange(256) & 15, np.arange(256) >> 4
        self.fits = (fits[low] & fits[high]).astype(np.bool_)
        self.full = full[low] | full[high] << np.uint8(4)
        self.places = places[low] | places[high] << np.uint8(4)
        self.masks = back[low] | back[high] << np.uint8(4)
        self.valid = (back[low] > 0) & (back[high] > 0)


@cache
def fours() -> Fours:
    """The tables, made when first asked for."""
    return Fours()
