"""Pruning while training, a little more in each epoch: the least magnitudes of all matrices together.

    share of zeros after a part x of the pruning = s · (1 − (1 − x)³)

(Zhu and Gupta, arXiv 1710.01878; there from each layer, here from all.) What went stays away.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil

from compressor.core.lazy import np
from compressor.core.workspace import Array


class Gradual:
    """Zeros in these matrices up to the share `sparsity`, reached `over` that part of the epochs.

    `masks` are float32 0 or 1 and change in place; zeros that they have count.
    """

    def __init__(
        self, matrices: Mapping[str, Array], masks: Mapping[str, Array], sparsity: float, over: float, epochs: int
    ) -> None:
        self._matrices, self._masks, self._sparsity = dict(matrices), masks, sparsity
        self.steps = max(1, ceil(epochs * over))
        self.size = sum(weight.size for weight in matrices.values())

    def done(self, epoch: int) -> bool:
        """Whether the share is reached in this epoch, counted from 0."""
        return epoch >= self.steps - 1

    def prune(self, epoch: int) -> bool:
        """What is due at the start of this epoch; False where nothing is."""
        if epoch >= self.steps:
            return False
        share = self._sparsity * (1 - (1 - (epoch + 1) / self.steps) ** 3)
        count = round(share * self.size)
        magnitudes = np.concatenate([np.abs(weight).reshape(-1) for weight in self._matrices.values()])
        magnitudes[np.concatenate([self._masks[name].reshape(-1) == 0 for name in self._matrices])] = -1
        gone = np.zeros(self.size, bool)
        gone[np.argsort(magnitudes, kind="stable")[:count]] = True  # of equal ones the first go
        start = 0
        for name, weight in self._matrices.items():
            mine = gone[start : start + weight.size].reshape(weight.shape)
            self._masks[name][mine] = 0
            weight[mine] = 0
            start += weight.size
        return True
