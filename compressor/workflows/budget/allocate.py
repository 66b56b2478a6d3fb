"""Which option each unit takes, for a number of bytes.

A unit is a tensor, or several that must have one scheme. Each option has a size and a loss; losses add up. The
least total loss for a total size, were units divisible, is found by Lagrange: every unit goes down its lower
convex hull, and all steps of all hulls are taken in the order of what they gain a byte (Shoham & Gersho 1988). At
the sizes that lie between two steps, which are the `breakpoints`, that is optimal for whole units too. What is
left of the budget then goes to whatever gains most a byte and still fits, on the hulls or off them; and as long as
one unit made larger and another made smaller is a gain within the budget, the best such exchange is made.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import isfinite

_LEAST = 1e-9  # what an exchange gains at least, of what it would gain for nothing


@dataclass(frozen=True, slots=True)
class Option:
    """A candidate for a unit: stored bytes, and loss (any unit, the smaller the better)."""

    size: int
    loss: float


@dataclass(frozen=True, slots=True)
class Step:
    """A unit's move along its hull to a larger option, and what it gains a byte."""

    gain: float
    unit: int
    option: int
    size: int  # bytes more
    loss: float  # what the loss becomes smaller by


def hull(options: Sequence[Option]) -> list[int]:
    """The options on the lower convex hull, from the smallest size to the least loss."""
    order = sorted(
        (n for n, option in enumerate(options) if isfinite(option.loss)), key=lambda n: _key(options[n], n)
    )
    found: list[int] = []
    for n in order:
        if found and options[n].loss >= options[found[-1]].loss:
            continue  # larger and no better
        while len(found) > 1 and _gain(options, found[-1], n) >= _gain(options, found[-2], found[-1]):
            found.pop()
        found.append(n)
    return found


def _key(option: Option, number: int) -> tuple[int, float, int]:
    return option.size, option.loss, number


def _gain(options: Sequence[Option], before: int, after: int) -> float:
    """Loss saved a byte; sizes on a hull differ."""
    return (options[before].loss - options[after].loss) / (options[after].size - options[before].size)


def steps(units: Sequence[Sequence[Option]]) -> list[Step]:
    """The moves along all units' hulls, the most gainful first; equal ones in the order of the units."""
    found = []
    for unit, options in enumerate(units):
        line = hull(options)
        for before, after in pairwise(line):
            gain = _gain(options, before, after)
            saved = options[before].loss - options[after].loss
            found.append(Step(gain, unit, after, options[after].size - options[before].size, saved))
    return sorted(found, key=lambda step: (-step.gain, step.unit, step.size))


def smallest(units: Sequence[Sequence[Option]]) -> list[int]:
    """The smallest option of every unit, of equal ones that of least loss. ValueError where a unit has none."""
    lines = [hull(options) for options in units]
    if not all(lines):
        raise ValueError(f"unit {lines.index([])} has no option")
    return [line[0] for line in lines]


def breakpoints(units: Sequence[Sequence[Option]]) -> Iterator[list[int]]:
    """The choices that are optimal for their size, from the smallest to the best."""
    chosen = smallest(units)
    yield list(chosen)
    for step in steps(units):
        chosen[step.unit] = step.option
        yield list(chosen)


def allocate(units: Sequence[Sequence[Option]], budget: int) -> list[int]:
    """An option for every unit, of at most `budget` bytes together. ValueError where the smallest are more."""
    chosen = smallest(units)
    left = budget - sum(options[n].size for options, n in zip(units, chosen, strict=True))
    if left < 0:
        raise ValueError(f"the smallest options take {-left} bytes more")
    for step in steps(units):
        if step.size > left:
            break
        chosen[step.unit] = step.option
        left -= step.size
    left = _fill(units, chosen, left)
    while (freed := _exchange(units, chosen, left)) is not None:
        left = _fill(units, chosen, left + freed)
    return chosen


def _exchange(units: Sequence[Sequence[Option]], chosen: list[int], left: int) -> int | None:
    """Make one unit smaller and another larger, where both together lose less and fit: the pair of the least loss.
    The bytes that this frees (below 0: takes); None where no pair is a gain, which must come, as the loss falls."""
    smaller: list[tuple[int, float, int, int]] = []  # bytes freed, loss more, unit, option
    larger: list[tuple[int, float, int, int]] = []  # bytes taken, loss less, unit, option
    for unit, options in enumerate(units):
        now = options[chosen[unit]]
        for n, option in enumerate(options):
            if option.size < now.size and isfinite(option.loss):
                smaller.append((now.size - option.size, option.loss - now.loss, unit, n))
            elif option.size > now.size and option.loss < now.loss:
                larger.append((option.size - now.size, now.loss - option.loss, unit, n))
    smaller.sort(reverse=True)
    larger.sort(reverse=True)
    cheapest: list[tuple[int, float, int, int]] = []  # of what frees enough: of two units, so that one is another
    best: tuple[float, int, int, int, int, int] | None = None
    place = 0
    for taken, gained, unit, n in larger:  # from the most bytes on, so that ever more frees enough
        while place < len(smaller) and smaller[place][0] + left >= taken:
            cheapest = _two([*cheapest, smaller[place]])
            place += 1
        for freed, lost, other, m in cheapest:
            if other != unit and gained - lost > _LEAST * gained:
                found = (lost - gained, unit, n, other, m, freed - taken)
                best = min(best or found, found)
                break
    if best is None:
        return None
    _, unit, n, other, m, freed = best
    chosen[unit], chosen[other] = n, m
    return freed


def _two(moves: list[tuple[int, float, int, int]]) -> list[tuple[int, float, int, int]]:
    """Of moves the one that loses least, and the one of another unit that does."""
    moves.sort(key=lambda move: (move[1], -move[0], move[2]))
    return [*moves[:1], *[move for move in moves if move[2] != moves[0][2]][:1]]


def _fill(units: Sequence[Sequence[Option]], chosen: list[int], left: int) -> int:
    """Spend what is left, and say what is then: again and again the larger option that gains most a byte and fits.

    One that does not fit never will, for what is left only becomes less; so each is looked at once.
    """
    heap: list[tuple[float, int, int, int]] = []

    def offer(unit: int) -> None:
        now = units[unit][chosen[unit]]
        for n, option in enumerate(units[unit]):
            if now.size < option.size <= now.size + left and option.loss < now.loss:
                heapq.heappush(heap, ((option.loss - now.loss) / (option.size - now.size), unit, n, chosen[unit]))

    for unit in range(len(units)):
        offer(unit)
    while heap:
        _, unit, n, before = heapq.heappop(heap)
        size = units[unit][n].size - units[unit][before].size
        if chosen[unit] == before and size <= left:
            chosen[unit] = n
            left -= size
            offer(unit)
    return left
