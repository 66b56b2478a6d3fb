"""Zeroing exactly k weights: those with the smallest keys, found without holding the weights.

A key is an unsigned integer for each weight, such as the bit pattern of its magnitude, which sorts like the
number. The result is that of a full stable sort by (key, tensor name, row, column):

* a histogram of the highest 16 bits finds the digit of the k-th smallest key, further passes the digits below
  (for bfloat16 magnitudes one pass, for float32 two, four where float64 occurs);
* of many weights, a sample first tells which few digits can be meant: comparing with those takes a third of the
  time of a histogram, and if the sample misled, the histogram is made after all;
* if only some of the weights with the k-th key may go, one more pass counts them block by block.
"""

from __future__ import annotations

from abc import abstractmethod
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import accumulate
from typing import Any, ClassVar, Protocol

from compressor.core.lazy import np
from compressor.core.tensor import TensorSpec
from compressor.core.workspace import Array
from compressor.methods.contract import Block, ByTensor, Method, Selection, Survey, TensorMethod, Treatment

_DIGIT = 16
_FEW = 1 << 12  # keys that are rather sorted
_MANY = 1 << 24  # keys that are worth a sample first
_CANDIDATES = 12  # digits; comparing with more takes longer than counting all


class Keys(Protocol):
    """What tells the weights to zero: a key for each, and how many go."""

    def keys(self, block: Block, key_type: str) -> Array:
        """The keys of a block's weights, of this unsigned type, in a buffer that may be overwritten."""

    def rank(self, size: int) -> int:
        """How many of `size` weights become zero."""


@dataclass(frozen=True)
class Smallest(TensorMethod):
    """Zeroes the weights with the smallest keys, as many as `rank` says."""

    verb: ClassVar[str] = "prune"
    elementwise: ClassVar[bool] = True

    @abstractmethod
    def keys(self, block: Block, key_type: str) -> Array:
        """The keys of a block's weights, of this unsigned type, in a buffer that may be overwritten."""

    @abstractmethod
    def rank(self, size: int) -> int:
        """How many of `size` weights become zero."""

    def key_type(self, specs: Sequence[TensorSpec]) -> str:
        """The unsigned type of the keys: wide enough for every tensor in reach."""
        return key_type_of(specs)

    def prepare(self, specs: Sequence[TensorSpec]) -> Survey[Any] | Treatment:
        return first_pass(self, self.key_type(specs), specs)


@dataclass(frozen=True)
class Cut(Selection, ByTensor):
    """What the survey found: keys under `level` go; those equal to it go up to the place `until`.

    `until` is (tensor name, start of the block, how many in that block), or None where all that equal it go.
    """

    method: Keys
    key_type: str
    level: int
    until: tuple[str, int, int] | None

    @property
    def rows_alone(self) -> bool:  # type: ignore[override]
        return self.until is None

    def of(self, spec: TensorSpec, own: Method) -> Cut:
        """Only one tensor is cut by place: to those before and after it a level is all there is."""
        if self.until is None or self.until[0] == spec.name:
            return self
        return self._before if spec.name < self.until[0] else self._after

    @cached_property
    def _before(self) -> Cut:
        return replace(self, until=None)

    @cached_property
    def _after(self) -> Cut:
        return replace(self, until=None, level=self.level - 1)

    def keep(self, block: Block, out: Array) -> None:
        keys = self.method.keys(block, self.key_type)
        here, place = (block.spec.name, block.start), self.until and self.until[:2]
        if place is None or here < place:
            np.greater(keys, self.level, out=out)
        else:
            np.greater_equal(keys, self.level, out=out)
        if self.until is not None and here == place:
            ties = np.flatnonzero(keys == self.level)[: self.until[2]]
            out.reshape(-1)[ties] = False


@dataclass
class Histogram:
    """Statistics of one digit: how many keys have each value of it, and which lower bits occur at all."""

    counts: Array = field(default_factory=lambda: np.zeros(1 << _DIGIT, np.int64))
    lower: int = 0


@dataclass(frozen=True)
class Digit(Survey[Histogram]):
    """Find one digit of the k-th smallest key, the higher digits `prefix` being known."""

    method: Keys
    key_type: str
    shift: int
    prefix: int = 0
    rank: int | None = None  # how many of the keys under this prefix are to go; None: not yet known

    def start(self) -> Histogram:
        return Histogram()

    def observe(self, block: Block, stats: Histogram) -> Histogram:
        keys = self.method.keys(block, self.key_type).reshape(-1)
        if self.rank is not None:
            keys = keys[keys >> (self.shift + _DIGIT) == self.prefix]
        digits = block.work.array("smallest.digits", keys.shape, self.key_type)
        np.right_shift(keys, self.shift, out=digits)
        np.bitwise_and(digits, (1 << _DIGIT) - 1, out=digits)
        counts = np.bincount(digits.view(self.key_type.replace("u", "i")), minlength=1)
        stats.counts[: counts.size] += counts
        if self.shift and keys.size:
            stats.lower |= int(np.bitwise_or.reduce(keys)) & ((1 << self.shift) - 1)
        return stats

    def merge(self, stats: Histogram, more: Histogram) -> Histogram:
        stats.counts += more.counts
        stats.lower |= more.lower
        return stats

    def conclude(self, stats: Histogram) -> Digit | Ties | Cut:
        below = np.cumsum(stats.counts)
        rank = self.method.rank(int(below[-1])) if self.rank is None else self.rank
        if rank == 0:
            return Cut(self.method, self.key_type, 0, ("", 0, 0))
        digit = int(np.searchsorted(below, rank))
        count = int(stats.counts[digit])
        return self.found(digit, rank - int(below[digit]) + count, count, lower=bool(stats.lower))

    def found(self, digit: int, rank: int, count: int, *, lower: bool) -> Digit | Ties | Cut:
        """What is left to do when `rank` of the `count` keys with this digit are to go."""
        prefix = self.prefix << _DIGIT | digit
        if self.shift and lower:
            return replace(self, shift=self.shift - _DIGIT, prefix=prefix, rank=rank)
        level = prefix << self.shift
        if rank == count:
            return Cut(self.method, self.key_type, level, None)
        return Ties(self, level, rank)


def first_pass(method: Keys, key_type: str, specs: Sequence[TensorSpec]) -> Survey[Any]:
    """The first look at these tensors, whose keys are of this type."""
    digit = Digit(method, key_type, shift=48 if key_type == "<u8" else 16)
    size = sum(spec.size for spec in specs)
    if size <= _FEW:
        return Few(digit)
    return Sample(digit) if size >= _MANY else digit


@dataclass(frozen=True)
class Few(Survey[list[tuple[str, int, Array]]]):
    """All the keys, where there are so few that sorting them takes less than a histogram of nothing."""

    digit: Digit

    def start(self) -> list[tuple[str, int, Array]]:
        return []

    def observe(self, block: Block, stats: list[tuple[str, int, Array]]) -> list[tuple[str, int, Array]]:
        keys = self.digit.method.keys(block, self.digit.key_type)
        stats.append((block.spec.name, block.start, keys.flatten()))
        return stats

    def merge(
        self, stats: list[tuple[str, int, Array]], more: list[tuple[str, int, Array]]
    ) -> list[tuple[str, int, Array]]:
        stats.extend(more)
        return stats

    def conclude(self, stats: list[tuple[str, int, Array]]) -> Ties | Cut:
        every = np.concatenate([keys for _, _, keys in stats])
        method, key_type, rank = self.digit.method, self.digit.key_type, self.digit.method.rank(every.size)
        if rank == 0:
            return Cut(method, key_type, 0, ("", 0, 0))
        every.sort()
        level = int(every[rank - 1])
        if rank == every.size or int(every[rank]) != level:
            return Cut(method, key_type, level, None)
        ties = Ties(self.digit, level, rank - int(np.searchsorted(every, level)))
        places = [(name, start, int(np.count_nonzero(keys == level))) for name, start, keys in stats]
        return ties.conclude([place for place in places if place[2]])


@dataclass(frozen=True)
class Sample(Survey[Histogram]):
    """A histogram of some of the keys, to guess the digit of the k-th smallest of all."""

    digit: Digit
    sample: ClassVar[int] = 64

    def start(self) -> Histogram:
        return Histogram()

    def observe(self, block: Block, stats: Histogram) -> Histogram:
        return self.digit.observe(block, stats)

    def merge(self, stats: Histogram, more: Histogram) -> Histogram:
        return self.digit.merge(stats, more)

    def conclude(self, stats: Histogram) -> Digit | Bracket:
        below = np.cumsum(stats.counts)
        total = int(below[-1])
        rank = self.digit.method.rank(total)
        slack = total // 500 + 1
        low = int(np.searchsorted(below, max(rank - slack, 1)))
        high = int(np.searchsorted(below, min(rank + slack, total)))
        if rank == 0 or high - low >= _CANDIDATES:
            return self.digit
        return Bracket(self.digit, max(low - 1, 0), min(high + 1, (1 << _DIGIT) - 2))


@dataclass(frozen=True)
class Bracket(Survey[Histogram]):
    """How many keys have a digit up to `low`, `low` + 1, …, `high`, found by comparing; last, how many are all."""

    digit: Digit
    low: int
    high: int

    def start(self) -> Histogram:
        return Histogram(np.zeros(self.high - self.low + 2, np.int64))

    def observe(self, block: Block, stats: Histogram) -> Histogram:
        keys = self.digit.method.keys(block, self.digit.key_type)
        under = block.work.array("smallest.under", keys.shape, "|b1")
        for number in range(self.high - self.low + 1):
            np.less(keys, (self.low + number + 1) << self.digit.shift, out=under)
            stats.counts[number] += np.count_nonzero(under)
        stats.counts[-1] += keys.size
        if keys.size:
            stats.lower |= int(np.bitwise_or.reduce(keys, axis=None)) & ((1 << self.digit.shift) - 1)
        return stats

    def merge(self, stats: Histogram, more: Histogram) -> Histogram:
        return self.digit.merge(stats, more)

    def conclude(self, stats: Histogram) -> Digit | Ties | Cut:
        *below, total = stats.counts.tolist()
        rank = self.digit.method.rank(total)
        if not below[0] < rank <= below[-1]:
            return self.digit  # the sample misled
        at = bisect_left(below, rank)
        count = below[at] - below[at - 1]
        return self.digit.found(self.low + at, rank - below[at - 1], count, lower=bool(stats.lower))


Places = list[tuple[str, int, int]]  # tensor name, start of a block, how many in it


@dataclass(frozen=True)
class Ties(Survey[Places]):
    """Count the keys equal to `level` in each block, to find the place where `rank` of them are reached."""

    digit: Digit
    level: int
    rank: int

    def start(self) -> Places:
        return []

    def observe(self, block: Block, stats: Places) -> Places:
        count = int(np.count_nonzero(self.digit.method.keys(block, self.digit.key_type) == self.level))
        if count:
            stats.append((block.spec.name, block.start, count))
        return stats

    def merge(self, stats: Places, more: Places) -> Places:
        stats.extend(more)
        return stats

    def conclude(self, stats: Places) -> Cut:
        stats.sort()
        reached = list(accumulate(count for _, _, count in stats))
        last = bisect_left(reached, self.rank)
        name, start, count = stats[last]
        until = name, start, self.rank - (reached[last] - count)
        return Cut(self.digit.method, self.digit.key_type, self.level, until)


def key_type_of(specs: Sequence[TensorSpec]) -> str:
    """The unsigned type that holds the magnitudes of all these tensors as keys."""
    return "<u8" if any(spec.dtype == "F64" for spec in specs) else "<u4"


def magnitudes(block: Block, key_type: str) -> Array:
    """The block's magnitudes as unsigned integers that sort like them."""
    values = block.values
    wide = "<f8" if key_type == "<u8" else "<f4"
    found = block.work.array("smallest.keys", values.shape, wide)
    np.abs(values, out=found)
    return found.view(key_type)


def scored(block: Block) -> Array:
    """|W| · √square of `block.inputs` as unsigned integers that sort like it, in a buffer.

    The roots are scaled by a power of two, which changes no comparison, so that no product overflows.
    """
    assert block.inputs is not None  # noqa: S101 - the method asked for them
    values = block.values
    root = np.abs(np.sqrt(block.inputs.square))  # the root of −0 is −0, which would sort above all
    root = np.ldexp(root, -np.frexp(root.max())[1])
    found = block.work.array("smallest.keys", values.shape, values.dtype.str)
    np.abs(values, out=found)
    np.multiply(found, root.astype(values.dtype), out=found)
    return found.view(f"<u{values.itemsize}")
