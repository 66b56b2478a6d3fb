"""k-means on a line: many small problems at once, or a large one whose points are counted.

The cells of an optimal clustering are intervals, so the best of all partitions is found by dynamic programming
over cumulative sums. A cell over the points (a, b] costs Σy² − (Σy)²/n, which is a Monge cost: the best place to
cut moves to the right as the end does, and halving the ends level by level looks at about n candidates a level
(Grønlund et al., arXiv 1701.07204, describe the same cost; the halving is older). Where the points are more than
`buckets`, neighbours are first put together, finer where the points are rarer, and Lloyd's iteration over all
the points finishes what the partition of the buckets began.

With a cell pinned to zero the two sides fall apart: each side's cost for every number of cells comes out of the
same tables, and the best split of the cells between the sides is looked up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from compressor.core.lazy import np
from compressor.core.workspace import Array

_ITERATIONS = 300  # of Lloyd's; it ends when no centroid moves by a millionth of its cell
_STILL = 1e-6


@dataclass(frozen=True, slots=True)
class Points:
    """Ascending `values` [problems, n] within ±1, in units of 2^`exponent` [problems], with how often each occurs:
    `counts` broadcasts over them. A value with a `width` is the mean of that many values, evenly spread."""

    values: Array
    counts: Array
    exponent: Array
    width: Array | None = None

    def distinct(self, problem: int) -> Array:
        """The different values of one problem."""
        row = self.values[problem]
        found: Array = row[np.append(True, row[1:] != row[:-1])]
        return found


@dataclass(frozen=True, slots=True)
class Sums:
    """Σ1, Σy and Σy² over the points before each place, [problems, n + 1]."""

    count: Array
    first: Array
    second: Array

    @classmethod
    def of(cls, points: Points, values: Array) -> Sums:
        """Running sums of the points' counts, of their values times these, and of the squares."""
        counts = np.broadcast_to(points.counts, values.shape)
        weighted = counts * values
        return cls(*(_cumulative(term) for term in (counts, weighted, weighted * values)))


def sort_points(values: Array) -> Points:
    """Every row of floats [problems, n] as a problem of its own."""
    ordered = np.sort(values, axis=1).astype(np.float64)
    exponent = np.frexp(np.maximum(-ordered[:, 0], ordered[:, -1]))[1]
    return Points(np.ldexp(ordered, -exponent[:, None]), np.ones((1, 1)), exponent)


Draw = Callable[[int], float]  # the i-th random number of a problem, in [0, 1)


def centroids(
    points: Points, entries: int, start: str, pinned: bool, buckets: int, draws: Callable[[int], Draw]
) -> Array:
    """The `entries` centroids of each problem, ascending, [problems, entries]; the last one again where there are
    fewer different values. `pinned`: one of them is zero, exactly. `draws` gives each problem its random numbers.

    `start` is `optimal` (the best partition; of at most `buckets` buckets) or names where Lloyd's iteration begins.
    """
    values = points.values
    few = np.count_nonzero(np.diff(values, axis=1), axis=1) < entries
    if few.all():  # nothing to look for
        found = np.zeros((len(values), entries))
    else:
        found = _fitted(points, entries, start, pinned, buckets, draws)
    for problem in np.flatnonzero(few):
        own = points.distinct(int(problem))  # each is its own centroid, to the last bit
        found[problem] = np.append(own, np.full(entries - own.size, own[-1]))
        if pinned:
            found[problem, np.abs(found[problem]).argmin()] = 0
    with np.errstate(over="ignore"):  # a mean of float64's largest may round beyond them; who stores it clips
        exact: Array = np.ldexp(found, points.exponent[:, None])
    return exact


def _fitted(
    points: Points, entries: int, start: str, pinned: bool, buckets: int, draws: Callable[[int], Draw]
) -> Array:
    """What `centroids` gives, ascending and within ±1, whether or not there are as many different values."""
    values = points.values
    weight = np.broadcast_to(points.counts, values.shape)
    centre = 0.0 if pinned else values[:, values.shape[1] // 2, None]  # what is left cancels less in sums
    centred = values - centre
    sums = Sums.of(points, centred)
    if start == "optimal":
        found = _optimal(centred, sums, entries, pinned, buckets)
    else:
        found = np.stack(
            [
                _started(start, *row, entries, draws(number))
                for number, row in enumerate(zip(centred, weight, strict=True))
            ]
        )
    if pinned:
        found[np.arange(len(found)), np.abs(found).argmin(axis=1)] = 0
    moved: Array = np.sort(_lloyd(points, centred, sums, found, pinned), axis=1) + centre
    return moved


# ---- the best partition --------------------------------------------------------------------------------


def _optimal(centred: Array, sums: Sums, entries: int, pinned: bool, buckets: int) -> Array:
    """The means of the cells of the best partition; with `pinned`, one of the cells has zero for its mean."""
    problems, size = centred.shape
    everything = np.zeros(problems, np.int64), np.full(problems, size)
    if not pinned:
        held = _bucketed(centred, sums, *everything, buckets)
        means = _partition(held, held.second - held.first**2 / np.maximum(held.count, 1), entries - 1)[1]
        return _ascending(means(np.full(problems, entries - 1)), entries)
    zero = np.count_nonzero(centred < 0, axis=1)
    sides = [_bucketed(centred, sums, zero, end, buckets) for end in everything]
    held = Sums(
        *(np.concatenate(pair) for pair in zip(*((s.count, s.first, s.second) for s in sides), strict=True))
    )
    costs, means = _partition(held, held.second, entries - 1)
    left = (costs[:, :problems] + costs[::-1, problems:]).argmin(axis=0)
    cells = means(np.concatenate([left, entries - 1 - left]))
    cells[:, 0] = 0
    return _ascending(np.concatenate([-cells[:problems, 1:], cells[problems:]], axis=1), entries)


def _bucketed(centred: Array, sums: Sums, start: Array, stop: Array, buckets: int) -> Sums:
    """Sums outward from `start` to `stop` [problems], at the ends of at most `buckets` buckets, mirrored where it
    goes down. A bucket holds the more points the closer they lie: equal shares of Σ√(n · gap)."""
    problems, size = centred.shape
    rows = np.arange(problems)[:, None]
    if size <= buckets:
        step = np.arange(size + 1) * np.sign(stop - start)[:, None]
        low, high = np.minimum(start, stop)[:, None], np.maximum(start, stop)[:, None]
        ends = np.clip(start[:, None] + step, low, high)
    else:
        gaps = np.diff(centred, axis=1, append=centred[:, -1:]) + np.diff(centred, axis=1, prepend=centred[:, :1])
        share = _cumulative(np.sqrt(gaps * np.diff(sums.count, axis=1)))
        share /= np.maximum(share[:, -1:], np.finfo(np.float64).tiny)
        first, last = share[rows, start[:, None]], share[rows, stop[:, None]]
        wanted = first + (last - first) * (np.arange(buckets + 1) / buckets)
        ends = _places(share, wanted, "left")
        ends[:, 0], ends[:, -1] = start, stop
    sign = np.where(stop < start, -1.0, 1.0)[:, None]
    moved = [total[rows, ends] - total[rows, start[:, None]] for total in (sums.count, sums.first, sums.second)]
    return Sums(sign * moved[0], moved[1], sign * moved[2])


def _partition(held: Sums, first: Array, layers: int) -> tuple[Array, Callable[[Array], Array]]:
    """The cost of covering everything with the first cell and 0, 1, …, `layers` more, [layers + 1, problems], where
    the first cell up to a place costs `first`; and the means of the cells when so many more are used."""
    problems, places = first.shape
    offsets = np.arange(problems)[:, None] * places
    count, total = held.count.reshape(-1), held.first.reshape(-1)
    cut = np.zeros((layers + 1, problems, places), np.uint16 if places <= 1 << 16 else np.uint32)
    reduced = first - held.second  # a cost without the Σy² of what it covers, which telescopes
    ends = [reduced[:, -1]]
    plan = _halvings(places - 1)
    for layer in range(1, layers + 1):
        chosen, before = cut[layer], reduced.reshape(-1)
        reduced = reduced.copy()
        for middle, left, right in plan if layer < layers else plan[:1]:
            low = chosen[:, left].astype(np.int64)
            high = np.minimum(chosen[:, right], middle) if right is not None else np.full_like(low, middle)
            span = (high - low + 1).reshape(-1)
            begins = np.cumsum(span) - span
            candidate = np.repeat((low + offsets).reshape(-1) - begins, span)
            candidate += np.arange(candidate.size)
            at = (middle + offsets).reshape(-1)
            covered = np.repeat(count[at], span) - count[candidate]
            inside = np.repeat(total[at], span) - total[candidate]
            cost = before[candidate] - inside * inside / np.maximum(covered, 1)
            best = np.minimum.reduceat(cost, begins)
            reduced[:, middle] = best.reshape(low.shape)
            hits = np.flatnonzero(cost == np.repeat(best, span))[::-1]  # of equal ones the first is written last
            owner = np.repeat(np.arange(span.size), span)[hits]
            picked = np.empty(span.size, np.int64)
            picked[owner] = candidate[hits]
            chosen[:, middle] = picked.reshape(low.shape) - offsets
        ends.append(reduced[:, -1])

    def means(used: Array) -> Array:
        rows, end = np.arange(problems), np.full(problems, places - 1)
        found = np.full((problems, layers + 1), np.nan)
        for layer in range(layers, -1, -1):
            begin = np.where(layer <= used, cut[layer][rows, end], end)
            covered = held.count[rows, end] - held.count[rows, begin]
            inside = held.first[rows, end] - held.first[rows, begin]
            np.divide(inside, covered, out=found[:, layer], where=covered > 0)
            end = begin
        return found

    return np.stack(ends) + held.second[:, -1], means


def _halvings(last: int) -> list[tuple[Array, Array, Array | None]]:
    """The places 1 … last in an order in which each has its nearest neighbours of earlier levels: (places, their
    left neighbours, their right ones)."""
    plan: list[tuple[Array, Array, Array | None]] = [(np.array([last]), np.array([0]), None)]
    stride = 1 << (last - 1).bit_length()
    while stride > 1:
        middle = np.arange(stride // 2, last, stride)
        if middle.size:
            plan.append((middle, middle - stride // 2, np.minimum(middle + stride // 2, last)))
        stride //= 2
    return plan


def _ascending(found: Array, entries: int) -> Array:
    """Sorted, empty cells (NaN) last and then filled with the largest centroid."""
    ordered = np.sort(found, axis=1)[:, :entries]
    return np.where(np.isnan(ordered), np.fmax.reduce(ordered, axis=1)[:, None], ordered)


# ---- other starts, and Lloyd's iteration ---------------------------------------------------------------


def _started(start: str, values: Array, weight: Array, entries: int, draw: Draw) -> Array:
    """Where Lloyd's iteration begins: Deep Compression's linear and density starts, or k-means++."""
    if start == "linear":
        return np.linspace(values[0], values[-1], entries)
    shares = np.cumsum(weight)
    if start == "density":
        found: Array = values[np.searchsorted(shares, (np.arange(entries) + 0.5) / entries * shares[-1])]
        return found
    distance = np.full(values.shape, np.inf)
    chosen = np.empty(entries)
    for number in range(entries):
        at = int(np.searchsorted(shares, draw(number) * shares[-1], "right"))
        chosen[number] = values[min(at, values.size - 1)]
        np.minimum(distance, (values - chosen[number]) ** 2, out=distance)
        shares = np.cumsum(weight * distance)
    return np.sort(chosen)


def _lloyd(points: Points, centred: Array, sums: Sums, found: Array, pinned: bool) -> Array:
    """Move each centroid to the mean of the points nearest to it, until all stand still. A centroid without points
    stays where it is, and so does zero if `pinned`."""
    low = centred if points.width is None else centred - points.width / 2
    result, moving = found.copy(), np.arange(len(found))
    for _ in range(_ITERATIONS):
        rows = moving[:, None]
        border = (found[:, 1:] + found[:, :-1]) / 2
        place = _places((low[row] for row in moving), border, "right")
        edges = np.zeros((len(moving), found.shape[1] + 1), np.int64)
        edges[:, 1:-1], edges[:, -1] = place, centred.shape[1]
        count, total = sums.count[rows, edges], sums.first[rows, edges]
        if points.width is not None:  # of the value that a border goes through, what lies beyond it is not below
            at = np.maximum(place - 1, 0)
            width = points.width[rows, at]
            beyond = 1 - (border - low[rows, at]) / np.where(width > 0, width, np.inf)
            beyond = np.where((place > 0) & (width > 0), np.clip(beyond, 0, 1), 0)
            share = beyond * (sums.count[rows, at + 1] - sums.count[rows, at])
            count[:, 1:-1] -= share
            total[:, 1:-1] -= share * (centred[rows, at] + (1 - beyond) * width / 2)
        held, moment = np.diff(count, axis=1), np.diff(total, axis=1)
        moved = np.where(held >= 0.5, moment / np.maximum(held, 0.5), found)
        if pinned:
            moved[found == 0] = 0
        reach = np.diff(border, axis=1, prepend=found[:, :1], append=found[:, -1:])
        result[moving] = moved
        # each problem ends by itself, so that it does not matter which others it is solved with
        still = (np.abs(moved - found) <= _STILL * reach).all(axis=1)
        found, moving = moved[~still], moving[~still]
        if not moving.size:
            break
    return result


def _cumulative(terms: Array) -> Array:
    found = np.zeros((terms.shape[0], terms.shape[1] + 1))
    np.cumsum(terms, axis=1, out=found[:, 1:])
    return found


def _places(ascending: Iterable[Array], wanted: Array, side: Literal["left", "right"]) -> Array:
    """`searchsorted`, row by row."""
    return np.stack([row.searchsorted(sought, side) for row, sought in zip(ascending, wanted, strict=True)])
