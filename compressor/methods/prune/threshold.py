"""Zero every weight whose magnitude lies under a threshold.

    S[i,j] = 0 where |W[i,j]| < θ, else W[i,j]

The comparison is strict: a weight equal to θ stays. Stored: the same dtype and shape. Error: below θ.

>>> Threshold(threshold=2.5)    # [[1, 2], [3, 4]] becomes [[0, 0], [3, 4]]
Threshold(threshold=2.5)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from compressor.lazy import np
from compressor.method import Block, Transform, option
from compressor.workspace import Array


@dataclass(frozen=True)
class Threshold(Transform):
    """Zero what lies strictly under `threshold` in magnitude."""

    verb: ClassVar[str] = "prune"
    id: ClassVar[str] = "threshold"
    elementwise: ClassVar[bool] = True
    selects: ClassVar[bool] = True
    nameless: ClassVar[bool] = True

    threshold: float = option(help="weights with a smaller magnitude become zero", low=0)

    def apply(self, block: Block, out: Array) -> None:
        np.abs(block.values, out=out)
        keep = block.work.array("threshold.keep", out.shape, "|b1")
        np.greater_equal(out, self._level(out), out=keep)
        select(block.values, keep, out)

    def _level(self, values: Array) -> float | np.floating:
        """θ in the type of the weights, rounded up: |w| < θ decides the same for every w of that type."""
        with np.errstate(over="ignore"):  # beyond the type's range every weight goes: the level is infinite
            level: np.floating = values.dtype.type(self.threshold)
        if float(level) < self.threshold:
            level = np.nextafter(level, values.dtype.type(np.inf))
        return level


def select(values: Array, keep: Array, out: Array) -> None:
    """`values` where `keep` [same shape, bool], else +0, without touching a kept weight's bits.

    Multiplying bit patterns instead of numbers leaves no −0 behind and is as fast.
    """
    bits = f"<u{values.itemsize}"
    np.multiply(values.view(bits), keep, out=out.view(bits), casting="same_kind")


METHOD = Threshold
