"""Pruning while training, a little more in each epoch: the least of all matrices together.

    share of zeros after a part x of the pruning = s · (1 − (1 − x)³)

(Zhu and Gupta, arXiv 1710.01878; there from each layer, here from all.) What went stays away. The least are
those of the smallest magnitudes, or of the smallest scores of LAMP (Lee et al., arXiv 2010.07611), which compares
a weight with those of its matrix that are no smaller and so takes less from small matrices:

    score(w) = w² / Σ v² over the weights v of the same matrix with |v| ≥ |w|
"""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil
from typing import Literal

from compressor.core.lazy import np
from compressor.core.workspace import Array


class Gradual:
    """Zeros in these matrices up to the share `sparsity`, reached `over` that part of the epochs.

    `masks` are float32 0 or 1 and change in place; zeros that they have count.
    """

    def __init__(
        self,
        matrices: Mapping[str, Array],
        masks: Mapping[str, Array],
        sparsity: float,
        over: float,
        epochs: int,
        by: Literal["magnitude", "lamp"] = "magnitude",
    ) -> None:
        self._score = np.abs if by == "magnitude" else lamp_scores
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
        scores = np.concatenate([self._score(weight).reshape(-1) for weight in self._matrices.values()])
        scores[np.concatenate([self._masks[name].reshape(-1) == 0 for name in self._matrices])] = -1
        gone = np.zeros(self.size, bool)
        gone[np.argsort(scores, kind="stable")[:count]] = True  # of equal ones the first go
        start = 0
        for name, weight in self._matrices.items():
            mine = gone[start : start + weight.size].reshape(weight.shape)
            self._masks[name][mine] = 0
            weight[mine] = 0
            start += weight.size
        return True


def lamp_scores(weight: Array) -> Array:
    """LAMP's score of each weight of a matrix, float64 of its shape; zeros have 0."""
    flat = weight.reshape(-1).astype(np.float64)
    squares = flat * flat
    order = np.argsort(squares, kind="stable")
    ascending = squares[order]
    behind = np.cumsum(ascending[::-1])[::-1]
    found = np.empty_like(squares)
    found[order] = ascending / np.where(behind > 0, behind, 1.0)
    return found.reshape(weight.shape)
