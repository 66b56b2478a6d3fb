"""The inputs of a linear layer in numbers, gathered row by row; arrays only, no files (`statistics.py` has those).

Products are taken by BLAS in float32 over blocks of rows and summed in float64.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from compressor.core.errors import InputError
from compressor.core.lazy import np
from compressor.core.workspace import Array

PANEL = 1024  # rows of a gram that are worked on at a time
_BLOCK = 512  # rows whose products are summed in float32


@dataclass(frozen=True)
class Layer:
    """The statistics of one layer's inputs: float64 `mean` and `square` [in], `gram` [in, in] or None."""

    count: int
    mean: Array
    square: Array
    gram: Array | None = None

    @property
    def width(self) -> int:
        """How many inputs the layer has."""
        return len(self.mean)

    def merge(self, more: Layer) -> Layer:
        """The statistics of both samples together. InputError when they are not of the same kind."""
        if self.width != more.width:
            raise InputError(f"inputs of {self.width} and of {more.width} features cannot be merged")
        if (self.gram is None) != (more.gram is None):
            raise InputError("statistics with a gram and without one cannot be merged")
        total = self.count + more.count
        ours, theirs = (self.count / total, more.count / total) if total else (0.0, 0.0)
        gram = None
        if self.gram is not None and more.gram is not None:
            gram = self.gram * ours
            for start in range(0, self.width, PANEL):  # no further whole gram for the time
                gram[start : start + PANEL] += more.gram[start : start + PANEL] * theirs
        return Layer(total, self.mean * ours + more.mean * theirs, self.square * ours + more.square * theirs, gram)


@dataclass
class Gather:
    """Gathers the statistics of inputs of `width` features, with their gram where wanted; `name` is for errors.

    Rows are added in any portions: products are taken in float32 over blocks of the same rows whatever the portions
    were, and summed in float64. With a gram it holds 8·width² bytes.
    """

    width: int
    gram: bool = False
    name: str = ""
    _count: int = 0
    _held: int = 0  # rows that wait in `_rows`
    _rows: Array = field(init=False, repr=False)
    _sums: Array = field(init=False, repr=False)
    _squares: Array = field(init=False, repr=False)
    _products: Array | None = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._rows = np.empty((_BLOCK, self.width), np.float32)
        self._sums, self._squares = np.zeros(self.width), np.zeros(self.width)
        self._products = np.zeros((self.width, self.width)) if self.gram else None  # on and right of the diagonal

    def add(self, rows: Any) -> None:
        """Take in inputs [.., width] of any real type. InputError when any is NaN, infinite or beyond float32."""
        rows = np.asarray(rows)
        if rows.ndim == 0 or rows.shape[-1] != self.width:
            raise InputError(
                f"inputs of shape {list(rows.shape)} were given, where [.., {self.width}] belongs",
                tensor=self.name,
            )
        rows = rows.reshape(-1, self.width)
        for start in range(0, len(rows), _BLOCK):
            self._add(rows[start : start + _BLOCK])

    def _add(self, rows: Array) -> None:
        with np.errstate(all="ignore"):
            rows = rows.astype(np.float32, copy=False)
            if not np.isfinite(rows.sum(dtype=np.float64)):
                count = rows.size - int(np.count_nonzero(np.isfinite(rows)))
                raise InputError(
                    f"its inputs hold {count} NaN or infinite value{'s' if count != 1 else ''}",
                    tensor=self.name,
                    remedy="Leave such samples out, or look where they come from",
                )
        while len(rows):
            part, rows = rows[: _BLOCK - self._held], rows[_BLOCK - self._held :]
            self._rows[self._held : self._held + len(part)] = part
            self._held += len(part)
            if self._held == _BLOCK:
                self._sum(self._rows, self._sums, self._squares, self._products)
                self._count, self._held = self._count + _BLOCK, 0

    @staticmethod
    def _sum(rows: Array, sums: Array, squares: Array, products: Array | None) -> None:
        wide = rows.astype(np.float64)
        sums += wide.sum(axis=0)
        squares += np.square(wide).sum(axis=0)
        if products is None:
            return
        for start in range(0, len(products), PANEL):
            stop = start + PANEL
            with np.errstate(all="ignore"):
                found = rows[:, start:stop].T @ rows[:, start:]
            if not np.isfinite(found).all():  # magnitudes about 1e19
                found = wide[:, start:stop].T @ wide[:, start:]
            products[start:stop, start:] += found

    @property
    def layer(self) -> Layer:
        """What was gathered so far; a copy, so that more can be added."""
        sums, squares = self._sums.copy(), self._squares.copy()
        products = None if self._products is None else self._products.copy()
        self._sum(self._rows[: self._held], sums, squares, products)
        count = self._count + self._held
        for found in (sums, squares, products):
            if found is not None:
                found /= max(count, 1)
        if products is not None:
            _mirror(products)
            np.fill_diagonal(products, squares)
        return Layer(count, sums, squares, products)


def _mirror(gram: Array) -> None:
    """Fill what lies left of the diagonal."""
    for start in range(0, len(gram), PANEL):
        stop = start + PANEL
        gram[stop:, start:stop] = gram[start:stop, stop:].T
        square = gram[start:stop, start:stop]
        square[...] = np.triu(square) + np.triu(square, 1).T
