"""How many weights each tensor loses when a share of all of them goes and no tensor may lose more than a limit.

One pass counts the magnitudes of every tensor by the highest 16 bits of their float32 pattern: bfloat16 weights
are told apart entirely, float32 ones to 1/128 of a magnitude. The bins of all tensors are then taken in the order
of their scores, tensor by tensor where scores are equal, until k weights are gone; a tensor that has reached its
limit loses no more. Which weights those are is decided tensor by tensor, exactly (`smallest_keys.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from compressor.core.errors import UsageError
from compressor.core.lazy import np
from compressor.core.tensor import TensorSpec
from compressor.core.workspace import Array
from compressor.methods.contract import Block, ByTensor, Method, Survey
from compressor.methods.numerics.smallest_keys import Keys, first_pass, key_type_of, magnitudes

Score = Callable[[Array, Array], Array]  # of a tensor's bins: (magnitude, how many) → score; ascending like them
Bins = dict[str, tuple[Array, Array]]  # by tensor: the bins that occur, ascending, and how many weights are in each


_FEW = 1 << 12  # weights of a block


def check_floor(min_keep: float | None, sparsity: float) -> None:
    """UsageError when no tensor could lose its share."""
    if min_keep is not None and min_keep > 1 - sparsity + 1e-12:
        raise UsageError(f"min_keep {min_keep:g} and sparsity {sparsity:g} are more than the whole")


def own_magnitude(values: Array, counts: Array) -> Array:
    """The score of plain magnitude pruning."""
    return values


@dataclass(frozen=True)
class Shares(Survey[Bins]):
    """Counts the magnitudes of every tensor; concludes with how many weights each loses, `min_keep` being the share
    that stays at least."""

    method: Keys
    key_type: str
    min_keep: float
    score: Score = own_magnitude

    def start(self) -> Bins:
        return {}

    def observe(self, block: Block, stats: Bins) -> Bins:
        keys = magnitudes(block, self.key_type)
        digits = block.work.array("shares.digits", keys.shape, self.key_type)
        np.right_shift(keys, 48 if self.key_type == "<u8" else 16, out=digits)
        if digits.size < _FEW:  # sorted sooner than so many bins are looked through
            return self.merge(stats, {block.spec.name: np.unique(digits, return_counts=True)})
        counts = np.bincount(digits.reshape(-1).view(self.key_type.replace("u", "i")))
        bins = np.flatnonzero(counts)
        return self.merge(stats, {block.spec.name: (bins, counts[bins])})

    def merge(self, stats: Bins, more: Bins) -> Bins:
        for name, found in more.items():
            if name in stats:
                every = [np.concatenate(pair) for pair in zip(stats[name], found, strict=True)]
                bins, places = np.unique(every[0], return_inverse=True)
                total = np.zeros(bins.size, np.int64)
                np.add.at(total, places, every[1])
                found = bins, total
            stats[name] = found
        return stats

    def conclude(self, stats: Bins) -> Allotted:
        names = sorted(stats)
        found = [stats[name] for name in names]
        lengths = np.array([bins.size for bins, _ in found])
        ends = np.cumsum(lengths)
        values, count = self._values(np.concatenate([bins for bins, _ in found])), np.empty(int(ends[-1]), np.int64)
        np.concatenate([held for _, held in found], out=count)
        score = np.empty(count.size)
        for start, stop in zip((ends - lengths).tolist(), ends.tolist(), strict=True):
            score[start:stop] = self.score(values[start:stop], count[start:stop])
        owner = np.repeat(np.arange(len(names), dtype=np.int32), lengths)
        # A tensor's bins ascend by score: what each may give up to the limit follows from their own order.
        through = np.cumsum(count)
        sizes = np.diff(through[ends - 1], prepend=0)
        limits = np.floor((1 - self.min_keep) * sizes + 1e-9).astype(np.int64)
        before = (through[ends - 1] - sizes)[owner]
        within = np.minimum(through - before, limits[owner])
        give = within - np.minimum(through - count - before, limits[owner])
        del values, count, through, before, within
        order = np.lexsort((owner, score))
        del score
        rank = min(self.method.rank(int(sizes.sum())), int(limits.sum()))
        taken = np.diff(np.minimum(np.cumsum(give[order]), rank), prepend=0)
        shares = np.zeros(len(names), np.int64)
        np.add.at(shares, owner[order], taken)
        return Allotted(self.method, dict(zip(names, shares.tolist(), strict=True)))

    def _values(self, bins: Array) -> Array:
        """The middle of each bin, a positive float64."""
        bits = bins.astype(np.uint64)
        if self.key_type == "<u8":
            return np.maximum((bits << np.uint64(48) | np.uint64(1 << 47)).view(np.float64), 1e-300)
        middle: Array = (bits.astype(np.uint32) << np.uint32(16) | np.uint32(1 << 15)).view(np.float32)
        return middle.astype(np.float64)


@dataclass(frozen=True)
class Allotted(ByTensor):
    """How many weights each tensor loses, by name: those of the smallest keys."""

    method: Keys
    shares: Mapping[str, int]

    def of(self, spec: TensorSpec, own: Method) -> Survey[Any]:
        return first_pass(Share(self.method, self.shares[spec.name]), key_type_of([spec]), [spec])


@dataclass(frozen=True)
class Share:
    """The keys of `method`, of which so many go."""

    method: Keys
    count: int

    def keys(self, block: Block, key_type: str) -> Array:
        return self.method.keys(block, key_type)

    def rank(self, size: int) -> int:
        return self.count
