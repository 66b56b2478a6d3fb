"""How many weights each tensor loses when a share of all of them goes and no tensor may lose more than a limit.

One pass counts the magnitudes of every tensor by the highest 16 bits of their float32 pattern: bfloat16 weights
are told apart entirely, float32 ones to 1/128 of a magnitude. The bins of all tensors are then taken in the order
of their scores, tensor by tensor where scores are equal, until k weights are gone; a tensor that has reached its
limit loses no more. Which weights those are is decided tensor by tensor, exactly (`_smallest.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import floor
from typing import Any

from compressor.errors import UsageError
from compressor.lazy import np
from compressor.method import Block, Survey
from compressor.methods.prune._smallest import Smallest, first_pass, magnitudes
from compressor.tensor import TensorSpec
from compressor.workspace import Array

Score = Callable[[Array, Array], Array]  # of a tensor's bins: (magnitude, how many) → score; ascending like them
Bins = dict[str, tuple[int, Array]]  # by tensor: the first bin that occurs, counts from it on


def check_floor(min_keep: float | None, sparsity: float) -> None:
    """UsageError when no tensor could lose its share."""
    if min_keep is not None and min_keep > 1 - sparsity + 1e-12:
        raise UsageError(f"min_keep {min_keep:g} and sparsity {sparsity:g} are more than the whole")


def own_magnitude(values: Array, counts: Array) -> Array:
    """The score of plain magnitude pruning."""
    return values


@dataclass(frozen=True)
class Shares(Survey[Bins]):
    """Counts the magnitudes of every tensor; concludes with a method that knows each tensor's share."""

    method: Any  # a Smallest with min_keep
    key_type: str
    specs: Sequence[TensorSpec]
    score: Score = own_magnitude

    def start(self) -> Bins:
        return {}

    def observe(self, block: Block, stats: Bins) -> Bins:
        keys = magnitudes(block, self.key_type)
        digits = block.work.array("shares.digits", keys.shape, self.key_type)
        np.right_shift(keys, 48 if self.key_type == "<u8" else 16, out=digits)
        counts = np.bincount(digits.reshape(-1).view(self.key_type.replace("u", "i")))
        first = int(np.argmax(counts > 0))
        return self.merge(stats, {block.spec.name: (first, counts[first:])})

    def merge(self, stats: Bins, more: Bins) -> Bins:
        for name, (first, counts) in more.items():
            if name in stats:
                start, held = stats[name]
                low, high = min(start, first), max(start + held.size, first + counts.size)
                total = np.zeros(high - low, np.int64)
                total[start - low : start - low + held.size] += held
                total[first - low : first - low + counts.size] += counts
                stats[name] = low, total
            else:
                stats[name] = first, counts
        return stats

    def conclude(self, stats: Bins) -> Allotted:
        names = sorted(stats)
        scores, owners, counts = [], [], []
        for number, name in enumerate(names):
            first, held = stats[name]
            scores.append(self.score(self._values(first, held.size), held))
            owners.append(np.full(held.size, number))
            counts.append(held)
        sizes = [int(held.sum()) for held in counts]
        limits = [floor((1 - (self.method.min_keep or 0)) * size + 1e-9) for size in sizes]
        left = min(self.method.rank(sum(sizes)), sum(limits))
        shares = [0] * len(names)
        score, owner, count = np.concatenate(scores), np.concatenate(owners), np.concatenate(counts)
        for at in np.lexsort((owner, score)):  # no more than a few thousand bins a tensor
            who = int(owner[at])
            taken = min(int(count[at]), limits[who] - shares[who], left)
            shares[who] += taken
            left -= taken
            if not left:
                break
        return Allotted(self.method, tuple(zip(names, shares, strict=True)))

    def _values(self, first: int, count: int) -> Array:
        """The middle of each bin, a positive float64."""
        bits = np.arange(first, first + count, dtype=np.uint64)
        if self.key_type == "<u8":
            return np.maximum((bits << np.uint64(48) | np.uint64(1 << 47)).view(np.float64), 1e-300)
        middle: Array = (bits.astype(np.uint32) << np.uint32(16) | np.uint32(1 << 15)).view(np.float32)
        return middle.astype(np.float64)


@dataclass(frozen=True)
class Allotted(Smallest):
    """`method` with how many weights each tensor loses."""

    method: Smallest
    shares: tuple[tuple[str, int], ...]

    def survey(self, specs: Sequence[TensorSpec]) -> Survey[Any]:
        names = {spec.name for spec in specs}
        own = replace(self, shares=tuple(share for share in self.shares if share[0] in names))
        return first_pass(own, specs)

    def rank(self, size: int) -> int:
        return sum(count for _, count in self.shares)

    def keys(self, block: Block, key_type: str) -> Array:
        return self.method.keys(block, key_type)

    @property
    def id(self) -> str:  # type: ignore[override]  # what was asked
        return self.method.id

    def describe(self) -> dict[str, Any]:
        return self.method.describe()
