"""How the numbers of a tensor are spread, before and after: counts in bins that need no range beforehand."""

from __future__ import annotations

from dataclasses import dataclass
from math import frexp

from compressor.core.lazy import np
from compressor.core.workspace import Array, Workspace

BINS = 128  # half of them below zero
_LEAST = -120  # power of the narrowest bins, whose reciprocal a float32 holds


@dataclass(slots=True)
class Histogram:
    """Numbers other than zero, before and after, in `BINS` bins of the width 2^`power`: bin i has those from
    (i − BINS/2) · 2^power to just below the next. As widths are powers of two, bins of half the width add up to
    them exactly, so that histograms of any ranges merge, in any order, to the same."""

    power: int
    before: list[int]
    after: list[int]

    def merge(self, more: Histogram) -> None:
        """Add the counts of other elements; the wider bins remain."""
        other = Histogram(more.power, more.before, more.after)
        power = max(self.power, other.power)
        for one in (self, other):
            while one.power < power:
                one.before, one.after, one.power = _halved(one.before), _halved(one.after), one.power + 1
        self.before = [a + b for a, b in zip(self.before, other.before, strict=True)]
        self.after = [a + b for a, b in zip(self.after, other.after, strict=True)]


def histogram(before: Array, after: Array, work: Workspace) -> Histogram | None:
    """The histogram of a block, [rows, columns] twice, of finite numbers; None where all are zero."""
    largest = max(float(np.abs(one).max(initial=0)) for one in (before, after))
    if largest == 0:
        return None
    power = max(frexp(largest)[1] - BINS.bit_length() + 2, _LEAST)  # the largest is below BINS/2 of them
    return Histogram(power, _counts(before, power, work), _counts(after, power, work))


def _counts(values: Array, power: int, work: Workspace) -> list[int]:
    scaled = work.array("histogram.scaled", values.shape, values.dtype.str)
    np.multiply(values, values.dtype.type(2.0**-power), out=scaled)
    np.floor(scaled, out=scaled)
    places = work.array("histogram.places", values.shape, "<i8")
    np.copyto(places, scaled, casting="unsafe")
    places += BINS // 2
    found: list[int] = np.bincount(places.reshape(-1), minlength=BINS).tolist()
    found[BINS // 2] -= values.size - int(np.count_nonzero(values))
    return found


def _halved(counts: list[int]) -> list[int]:
    """The same counts in as many bins of twice the width."""
    quarter = [0] * (BINS // 4)
    return [*quarter, *(counts[n] + counts[n + 1] for n in range(0, BINS, 2)), *quarter]
