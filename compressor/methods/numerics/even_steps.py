"""What an even step costs and gives, from counts of the weights alone: entropy of its codes, and what they lose.

Weights are counted by the highest bits of their floats, which tells every number of bfloat16, float16 and FP8 and
puts float32 (float64) ones into classes of 2^-9 (2^-7) of their magnitude. Counts add up in any order.

The rounding that goes by rate minimises, for x = w/Δ between the neighbouring codes k and k + 1,

    (x − code)² + c · bits(code),   so that x is rounded up from k + ½ + c · (bits(k + 1) − bits(k)) / 2

with bits(code) = −log2 of the code's share, found by turns with the codes themselves. c = ln 2 / 6 is the slope of
the distortion of a fine even step over its rate, dD/dR = −2 ln 2 · Δ²/12 (Gish and Pierce 1968), in units of Δ².
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import fsum, ldexp, sqrt

from compressor.core.elementary import LN2, exp2, log2
from compressor.core.floats import largest, smallest
from compressor.core.lazy import np
from compressor.core.sums import dot
from compressor.core.tensor import DTYPES, TensorSpec
from compressor.core.workspace import Array, Workspace

FAR = 128  # codes from −FAR to FAR − 1 have a threshold of their own, which is rounded to halves beyond
_BYTE = 127  # the largest code of one byte on both sides
LARGEST = 32_000  # a code that a survey aims at, at most; two bytes hold 32,639
_SLOPE = LN2 / 6
_NORMAL = 2.0471  # bits that normally distributed weights of variance 1 have at a step of 1
_TURNS = 4  # in which thresholds and shares settle
_LEAST = 0.05  # of a step that any weight stays from the next code, whatever its bits
_HELD = 16  # tables before they are merged into one
_CLASS = 2.0**-7  # no class of magnitudes is wider, of its middle on one side
_QUARTER = 1.189207115002721
_CLOSE = 2e-4  # bits that a found step's entropy may lie below what is asked


@dataclass
class Classes:
    """Counts so far: `tables` [2, classes] of class and count, int64; `top` is the largest magnitude."""

    dropped: int  # bits below a class's
    exact: bool
    tables: list[Array] = field(default_factory=list)
    top: float = 0.0

    @classmethod
    def of(cls, spec: TensorSpec, *, scaled: bool = False) -> Classes:
        """None yet, of a tensor like this, or of its weights divided by something."""
        if DTYPES[spec.dtype].compute == "<f8":
            return cls(45, exact=False)
        if scaled or spec.dtype == "F32":
            return cls(14, exact=False)
        return cls(16 if spec.dtype == "BF16" else 13, exact=True)

    def add(self, values: Array, work: Workspace) -> None:
        """Count the floats `values` (C-ordered) by their highest bits."""
        flat = values.reshape(-1)
        if not flat.size:
            return
        self.top = max(self.top, float(flat.max()), -float(flat.min()))
        bits = flat.view(f"<u{flat.itemsize}")
        classes = work.array("steps.classes", bits.shape, "<i8")
        np.right_shift(bits, bits.dtype.type(self.dropped), out=classes, casting="unsafe")
        counts = np.bincount(classes)
        found = np.flatnonzero(counts)
        self.tables.append(np.stack([found, counts[found]]))
        self._compact()

    def bits(self) -> float:
        """About the bits a weight of the numbers themselves: by their shares, and digits below as they are."""
        if not self.tables:
            return 0.0
        counts = _merged(self.tables)[1].astype(np.float64)
        return entropy_of(counts) + (0 if self.exact else self.dropped)

    def merge(self, more: Classes) -> None:
        """Add the counts of other weights of the same tensor."""
        self.tables += more.tables
        self.top = max(self.top, more.top)
        self.settle()

    def settle(self) -> None:
        """Hold one table only: a survey of a model keeps those of all tensors."""
        if len(self.tables) > 1:
            self.tables = [_merged(self.tables)]

    def points(self, dtype: str) -> Points:
        """The classes as numbers, where floats of this type were counted."""
        if not self.tables:
            return Points(np.zeros(1), np.zeros(1), self.top)
        kind = np.dtype(dtype)
        classes, counts = _merged(self.tables)
        half = 0 if self.exact else 1 << (self.dropped - 1)
        bits = (classes << self.dropped) | half
        values = bits.view("<u8").astype(f"<u{kind.itemsize}").view(kind).astype(np.float64)
        return Points(np.clip(values, -self.top, self.top), counts.astype(np.float64), self.top, self.exact)

    def _compact(self) -> None:
        if len(self.tables) > _HELD:
            self.settle()


def _merged(tables: list[Array]) -> Array:
    """One table of all, each class once, ascending."""
    every = np.concatenate(tables, axis=1)
    totals = np.bincount(every[0], weights=every[1])  # whole numbers below 2^53, so exact
    classes = np.flatnonzero(totals)
    return np.stack([classes, totals[classes].astype(np.int64)])


@dataclass(frozen=True)
class Coding:
    """A step with its rounding: `rounds` [2·FAR], what is added to w/Δ above the code k = −FAR, … before it is
    rounded down; weights of at most `zeroed` steps become zero in any case; `entropy` of the codes as they are
    stored in bits a weight, `lost` Σ (w − w')²."""

    step: float
    rounds: tuple[float, ...]
    entropy: float
    lost: float
    zeroed: float = -1.0


@dataclass(frozen=True)
class Points:
    """Numbers, how often each is there, and the largest magnitude among what they stand for."""

    values: Array
    counts: Array
    top: float
    exact: bool = True

    @property
    def size(self) -> float:
        """How many weights there are."""
        return float(self.counts.sum())

    @property
    def energy(self) -> float:
        """Σ w²; infinite where it leaves the range."""
        with np.errstate(over="ignore"):
            return dot(self.counts, np.square(self.values))

    @property
    def least(self) -> float:
        """The smallest step whose codes two bytes hold."""
        return max(self.top / LARGEST, smallest("F64"))

    def smallest_share(self, share: float) -> float:
        """The magnitude up to which at least this share of the weights lies; below 0 for none of them."""
        if not share:
            return -1.0
        sizes = np.abs(self.values)
        order = np.argsort(sizes, kind="stable")
        reached = np.cumsum(self.counts[order])
        place = min(int(np.searchsorted(reached, share * self.size)), len(order) - 1)
        return float(sizes[order[place]])

    def coding(self, step: float, *, by_rate: bool, zeroed: float = -1.0) -> Coding:
        """What this step gives; `by_rate` rounds by rate and distortion, else to the nearest code; magnitudes up to
        `zeroed` become zero."""
        step = min(step, largest("F64"))  # of the largest weights there are, twice one is an infinity
        x = self.values / step
        kept = np.abs(self.values) > zeroed
        x *= kept
        below = np.floor(x).astype(np.int64)
        low = int(below.min())
        span = int(below.max()) - low + 2
        rounds = np.full(span, 0.5)
        near = (np.arange(span) + low >= -FAR) & (np.arange(span) + low < FAR)
        below -= low

        def shares() -> tuple[Array, Array]:
            codes = np.floor(x + rounds[below]).astype(np.int64)
            return codes, np.bincount(codes - low, self.counts, span)

        codes, counts = shares()
        for _ in range(_TURNS if by_rate else 0):
            bits = -log2(counts + 0.5)
            raised = 0.5 - _SLOPE / 2 * np.append(np.diff(bits), 0)
            np.clip(raised, _LEAST, 1 - _LEAST, out=rounds, where=near)
            codes, counts = shares()
        entropy = entropy_of(counts)
        numbers = np.arange(span) + low
        if np.abs(numbers[counts > 0]).max(initial=0) > _BYTE:  # two planes, which are coded one by one
            planes = numbers & 255, (numbers + 128) >> 8
            entropy = sum(entropy_of(np.bincount(plane - plane.min(), counts)) for plane in planes)
        table = np.full(2 * FAR, 0.5)
        places = np.flatnonzero(near)
        table[places + low + FAR] = rounds[places]
        with np.errstate(over="ignore"):
            lost = dot(self.counts, np.square((self.values / step - codes) * step))
        # the classes' middles were compared, and all of a class has to follow
        top = zeroed / step * (1 if self.exact else 1 + _CLASS) if zeroed >= 0 else -1.0
        return Coding(step, tuple(table.astype(np.float32).tolist()), entropy, lost, top)


def entropy_of(counts: Array) -> float:
    """Bits a symbol, of symbols that are there so often."""
    seen = counts[counts > 0].astype(np.float64, copy=False)
    total = float(seen.sum())
    return float(log2(total)) - dot(seen, log2(seen)) / total if len(seen) > 1 else 0.0


def step_for(target: float, entropy: Callable[[float], float], low: float, high: float, root: float) -> float:
    """The least step in [low, high] whose entropy, which falls as the step grows, is at most `target` bits.

    It is looked for first where normally distributed weights of this root mean square have it.
    """
    guess, lowest = root * float(exp2(_NORMAL - target)), low
    if not low < guess < high:
        guess = high
    for _ in range(60):
        found = entropy(guess)
        if found <= target:
            high = guess
            if target - found < _CLOSE:
                break
        else:
            low = guess
        if high <= low * (1 + 1e-7):
            break
        # a fine step twice as large: one bit less
        guess *= float(exp2(min(max(found - target + _CLOSE / 2, -900), 900)))
        if not low < guess < high:
            if guess <= low == lowest and entropy(low) <= target:  # as of weights of few values
                return low
            guess = low * sqrt(high / low)
    return high


def forecast(
    points: Points, aims: Sequence[float], *, by_rate: bool, sparsity: float = 0.0
) -> list[tuple[float, float]]:
    """For each entropy that is aimed at, what the codes of the least such step have, and Σ (w − w')² of them:
    between steps a quarter of an octave apart, where the logarithm of the loss is nearly straight."""
    if not points.top:
        return [(0.0, 0.0) for _ in aims]
    step = max(root_of(points) * float(exp2(_NORMAL - max(aims) - 0.5)), points.least)
    zeroed = points.smallest_share(sparsity)
    entropies: list[float] = []
    losses: list[float] = []
    while not entropies or (entropies[-1] > min(aims) and step < 4 * points.top):
        found = points.coding(step, by_rate=by_rate, zeroed=zeroed)
        entropies.append(found.entropy)
        losses.append(float(log2(max(found.lost, smallest("F64")))))
        step *= _QUARTER
    rising = np.maximum.accumulate(entropies[::-1])  # as interpolation wants them
    reached = [min(aim, float(rising[-1])) for aim in aims]
    return [(aim, float(exp2(_between(aim, rising, losses[::-1])))) for aim in reached]


def _between(aim: float, rising: Array, heights: Sequence[float]) -> float:
    """The height at `aim` of the line through the points (rising, heights), level beyond its ends. (`np.interp` may
    multiply and add in one step, as the processor has it.)"""
    after = int(np.searchsorted(rising, aim, "right"))
    if after in (0, len(rising)):
        return heights[max(after - 1, 0)]
    low, high = float(rising[after - 1]), float(rising[after])
    return heights[after - 1] + (heights[after] - heights[after - 1]) * ((aim - low) / (high - low))


def in_float(step: float, dtype: str) -> float:
    """A step as it is stored, rounded up: in float32, of a float64 tensor in float64."""
    kind = np.dtype(DTYPES[dtype].compute).type
    step = min(step, float(np.finfo(kind).max))
    found = kind(step)
    return float(found if float(found) >= step else np.nextafter(found, kind(np.inf)))


def shared_factor(target: float, tensors: Mapping[str, Points], *, by_rate: bool, sparsity: float = 0.0) -> float:
    """The factor of every tensor's root mean square that, as its step, gives all of them `target` bits a weight."""
    roots = {name: root_of(points) for name, points in tensors.items()}
    zeroed = {name: points.smallest_share(sparsity) for name, points in tensors.items()}
    total = sum(points.size for points in tensors.values()) or 1.0

    def entropy(factor: float) -> float:
        found = (
            points.size
            * points.coding(max(factor * roots[name], points.least), by_rate=by_rate, zeroed=zeroed[name]).entropy
            for name, points in tensors.items()
            if points.top
        )
        return fsum(found) / total

    return step_for(target, entropy, ldexp(1.0, -14), ldexp(1.0, 14), 1.0)


def root_of(points: Points) -> float:
    """The root mean square of the weights, without leaving the range on the way."""
    if not points.top:
        return 1.0
    part = points.values / points.top
    return points.top * sqrt(max(dot(points.counts, np.square(part)) / points.size, 1e-300))
