"""From the singular values of tensors to the ranks of their factors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import sqrt
from typing import Any, Protocol

from compressor.core.lazy import np
from compressor.core.tensor import TensorSpec
from compressor.core.workspace import Array
from compressor.methods.contract import Block, ByTensor, Survey
from compressor.methods.distill._factored import converging, profitable, rank_bytes


class Ranking(Protocol):
    """What makes ranks of what its tensors were seen to be."""

    def wants(self, spec: TensorSpec) -> bool: ...

    def look(self, block: Block) -> Any: ...

    def rank_all(self, seen: Mapping[str, Any], specs: Sequence[TensorSpec]) -> ByTensor: ...


@dataclass(frozen=True)
class Looking(Survey[dict[str, Any]]):
    """Look at each tensor, whole, and rank them all."""

    method: Ranking
    specs: tuple[TensorSpec, ...] = field(repr=False)

    def start(self) -> dict[str, Any]:
        return {}

    def wants(self, spec: TensorSpec) -> bool:
        return self.method.wants(spec)

    def observe(self, block: Block, stats: dict[str, Any]) -> dict[str, Any]:
        with converging(block.spec):
            stats[block.spec.name] = self.method.look(block)
        return stats

    def merge(self, stats: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
        stats.update(more)
        return stats

    def conclude(self, stats: dict[str, Any]) -> ByTensor:
        return self.method.rank_all(stats, self.specs)


def by_energy(values: Array, energy: float) -> int:
    """The smallest rank, at least 1, whose singular values hold this share of the sum of all squares."""
    squares = np.square(values / values[0]) if values.size and values[0] > 0 else np.zeros(1)
    left: Array = np.cumsum(squares[::-1])[::-1]  # what ranks below 0, 1, … would lose, the small terms first
    enough = np.flatnonzero(left <= (1 - energy) * left[0])
    return max(int(enough[0]) if enough.size else len(squares), 1)


def by_error(values: Array, error: float) -> int:
    """The smallest rank, perhaps 0, that leaves no more than this norm."""
    top = float(values[0]) if values.size else 0.0
    scale = max(top, error) or 1.0
    left: Array = np.cumsum(np.square(values / scale)[::-1])[::-1]
    enough = np.flatnonzero(np.sqrt(left) <= error / scale)
    return int(enough[0]) if enough.size else len(values)


def by_ratio(
    values: Mapping[str, Array], specs: Sequence[TensorSpec], ratio: float
) -> tuple[dict[str, int], float]:
    """The ranks of least squared error over all tensors together whose bytes are at most `ratio` of theirs, and
    what that ratio comes to: more where even rank 1 takes more.

    The values go in the order of what they gain for a byte, σ² / bytes of a rank, as many as there is room for. So
    what the last one of a tensor gains is the same everywhere. A tensor whose factors would come to its own size is
    kept as it is, which gives 0 here.
    """
    fixed = sum(spec.nbytes for spec in specs if not values.get(spec.name, np.empty(0)).size)
    held = [spec for spec in specs if values.get(spec.name, np.empty(0)).size]
    total = sum(spec.nbytes for spec in specs)
    if not held:
        return {spec.name: 0 for spec in specs}, 1.0
    gains = [values[spec.name] / sqrt(rank_bytes(spec)) for spec in held]
    owner = np.repeat(np.arange(len(held)), [len(gain) for gain in gains])
    owner = owner[np.argsort(-np.concatenate(gains), kind="stable")]
    cost = np.array([rank_bytes(spec) for spec in held])
    most = np.array([profitable(spec) for spec in held])
    dense = np.array([spec.nbytes for spec in held])

    def ranks(taken: int) -> Array:
        counts = np.maximum(np.bincount(owner[:taken], minlength=len(held)), 1)
        return np.where(counts <= most, counts, 0)

    def size(taken: int) -> int:
        found = ranks(taken)
        return fixed + int(np.where(found > 0, found * cost, dense).sum())

    low, high = 0, len(owner)  # `low` fits, if anything does
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if size(middle) <= ratio * total else (low, middle - 1)
    found = dict.fromkeys((spec.name for spec in specs), 0)
    found.update(zip((spec.name for spec in held), ranks(low).tolist(), strict=True))
    return found, size(low) / total
