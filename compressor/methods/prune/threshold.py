"""Zero every weight whose magnitude lies under a threshold.

    S[i,j] = 0 where |W[i,j]| < θ, else W[i,j]

The comparison is strict: a weight equal to θ stays. Stored: the same dtype and shape. Error: below θ.

>>> Threshold(threshold=2.5)    # [[1, 2], [3, 4]] becomes [[0, 0], [3, 4]]
Threshold(threshold=2.5)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from compressor.core import kernels
from compressor.core.lazy import np
from compressor.core.workspace import Array
from compressor.methods.contract import Block, PlainSelection
from compressor.methods.options import option


@dataclass(frozen=True)
class Threshold(PlainSelection):
    """Zero what lies strictly under `threshold` in magnitude."""

    verb: ClassVar[str] = "prune"
    id: ClassVar[str] = "threshold"
    elementwise: ClassVar[bool] = True
    rows_alone: ClassVar[bool] = True

    threshold: float = option(help="weights with a smaller magnitude become zero", low=0)

    def keep(self, block: Block, out: Array) -> None:
        if kernels.at_least(block.values, float(self._level(block.values)), out):
            return
        magnitudes = block.work.array("threshold.magnitudes", block.values.shape, block.values.dtype.str)
        np.abs(block.values, out=magnitudes)
        np.greater_equal(magnitudes, self._level(magnitudes), out=out)

    def _level(self, values: Array) -> float | np.floating:
        """θ in the type of the weights, rounded up: |w| < θ decides the same for every w of that type."""
        with np.errstate(over="ignore"):  # beyond the type's range every weight goes: the level is infinite
            level: np.floating = values.dtype.type(self.threshold)
        if float(level) < self.threshold:
            level = np.nextafter(level, values.dtype.type(np.inf))
        return level


METHOD = Threshold
