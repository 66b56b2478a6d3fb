"""The state of a student that is kept, and when to stop."""

from __future__ import annotations

from collections.abc import Mapping
from math import sqrt

from compressor.core.workspace import Array

Judged = tuple[float, float]  # the loss, and the share on which student and teacher choose alike


class BestState:
    """The best state so far, by held-out inputs: the least loss among those that agree with the teacher as often as
    any, but for what may be chance (a standard error of the highest share)."""

    def __init__(self, tensors: Mapping[str, Array], count: int) -> None:
        self._tensors, self._count = tensors, count
        self._kept: dict[str, Array] = {}
        self._highest = 0.0
        self.epoch, self.judged = 0, (0.0, 0.0)
        self.since = 0  # epochs since it was found

    def offer(self, epoch: int, judged: Judged) -> None:
        """Keep the tensors as they are, if they are better."""
        loss, agreed = judged
        self._highest = max(self._highest, agreed)
        enough = self._highest - sqrt(self._highest * (1 - self._highest) / self._count)
        self.since += 1
        if agreed >= enough and (not self._kept or self.judged[1] < enough or loss < self.judged[0]):
            self._kept = {name: array.copy() for name, array in self._tensors.items()}
            self.epoch, self.judged, self.since = epoch, judged, 0

    def restore(self) -> None:
        """Give the student's tensors the numbers of the best state again."""
        for name, array in self._kept.items():
            self._tensors[name][...] = array
