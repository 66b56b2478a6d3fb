"""What tells of a symbol before it is decoded: how dense its row and its column are, and its neighbours.

A plane is a matrix of symbols. Rows, and columns, are put into classes of alike ones, which are stored. The class
of a row and that of a column add up, as logarithms of densities do. Neighbours are those one column, and `lag`
columns, to the left: in a layer that sees images a row of which has 28 pixels, the pixel above is 28 columns back.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from compressor.core.elementary import log2
from compressor.core.lazy import np
from compressor.core.sums import dot
from compressor.core.workspace import Array

CLASSES = 16  # of rows, or of columns, at most
_LAST = 64  # the farthest neighbour that is looked at

# What is classed: how far symbols are from the commonest one, or how large they are (exponents).
Feature = Literal["spread", "level"]


@dataclass(frozen=True)
class Model:
    """How the context of a symbol is found. `mode` is the commonest symbol; `neighbours` how many are looked at:
    none, the one to the left by its size, or that and the one at `lag` by whether they are the mode."""

    alphabet: int
    mode: int = 0
    rows: Array | None = None  # the class of each row, and each column
    columns: Array | None = None
    neighbours: int = 0
    lag: int = 0

    @property
    def nears(self) -> int:
        """Different states of the neighbours."""
        return (1, 2 if self.alphabet == 2 else 4, 3)[self.neighbours]

    @property
    def contexts(self) -> int:
        """How many contexts there may be."""
        classes = sum(int(found.max(initial=0)) for found in (self.rows, self.columns) if found is not None)
        return (classes + 1) * self.nears

    def classes(self, shape: tuple[int, int]) -> Array:
        """Of every symbol the sum of its classes [rows, columns], int64."""
        found = np.zeros(shape, np.int64)
        if self.rows is not None:
            found += self.rows[:, None]
        if self.columns is not None:
            found += self.columns[None, :]
        return found

    def all(self, symbols: Array) -> Array:
        """The context of every symbol of a plane whose symbols are known."""
        found = self.classes(symbols.shape)
        if not self.neighbours:
            return found
        sizes = self._sizes()[symbols]
        found *= self.nears
        found[:, 1:] += sizes[:, :-1]
        if self.neighbours == 2 and self.lag < symbols.shape[1]:
            found[:, self.lag :] += sizes[:, : -self.lag]
        return found

    def column(self, number: int, classes: Array, symbols: Array) -> Array:
        """The contexts of one column when those before it are known; `classes` as from `classes`."""
        found: Array = classes[:, number] * self.nears
        for back in (1, self.lag)[: self.neighbours]:
            if back <= number:
                found = found + self._sizes()[symbols[:, number - back]]
        return found

    def _sizes(self) -> Array:
        """Of every symbol how far it is from the mode, in few steps."""
        steps = (1,) if self.neighbours == 2 else (1, 2, 4)[: self.nears - 1]
        return np.searchsorted(steps, distances(self.alphabet, self.mode), side="right")


def distances(alphabet: int, mode: int) -> Array:
    """Of every symbol how far it is from the mode, where the last one is beside the first."""
    symbols = np.arange(alphabet)
    return np.minimum((symbols - mode) % alphabet, (mode - symbols) % alphabet)


def classed(symbols: Array, axis: int, alphabet: int, mode: int, feature: Feature, step: float) -> Array | None:
    """The class of each row (axis 1) or column (axis 0), of so many octaves each; None where there is only one."""
    if feature == "level":
        means = symbols.mean(axis=axis)
        if not len(means):
            return None
        found = np.rint((means - means.mean()) / step)
    else:
        far = distances(alphabet, mode)[symbols].sum(axis=axis)
        count = symbols.shape[axis]
        odds = (far + 0.3) / (count - far + 0.3) if alphabet == 2 else far + 0.3
        logs = log2(odds)
        if not len(logs):
            return None
        found = np.rint((logs - np.median(logs)) / step)
    lowest = max(float(found.min()), float(np.median(found)) - CLASSES // 2)
    found = np.clip(found - lowest, 0, CLASSES - 1).astype(np.int64)
    return found if found.max() > 0 else None


def likely_lag(symbols: Array, mode: int) -> int:
    """The distance in columns, beyond one, at which symbols beside the mode most often stand together; 0: none."""
    there = (symbols != mode).astype(np.float32)
    columns = there.shape[1]
    there -= there.mean(axis=0)  # or dense columns would meet everywhere
    scores = [
        dot(there[:, lag:], there[:, :-lag]) / ((columns - lag) * len(there))
        for lag in range(2, min(_LAST, columns // 2) + 1)
    ]
    return int(np.argmax(scores)) + 2 if scores and max(scores) > 0 else 0
