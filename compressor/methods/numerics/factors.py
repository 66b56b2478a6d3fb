"""Factors of rows and columns before an even step, so that rounding noise falls where it matters least.

    w ≈ code · Δ · 2^(a/4) · 2^(b/4)      a of the weight's row, b of its column, whole numbers

Without statistics the factor of a row is the square root of its weights' root mean square, and that of a column its
power 3/4: between the same noise everywhere and noise in proportion. Columns of large weights mostly stand for
small inputs. With the mean squares of a layer's inputs a column's factor is (that of its weights)^(1/4) over the
square root of its inputs'. (Both were chosen on sentences that no figure is measured on.)

Rows have factors where they are long enough for their size to be no accident, and so have columns.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import ldexp

from compressor.core.elementary import log2
from compressor.core.lazy import np
from compressor.core.sums import dot
from compressor.core.tensor import TensorSpec
from compressor.core.workspace import Array

OCTAVE = 4  # factors to an octave
FAR = 24  # what a factor may be at most, and at least, as an exponent of the fourth root of 2
LONG = 128  # weights of a row, or a column, whose size tells of more than chance
_ROOTS = (1.0, 1.18920707702637, 1.41421353816986, 1.68179285526276)  # 2^(n/4) in float32
_ORDINARY = 2.0**60  # beyond, and below one over it, weights are left as they are
_ROW, _COLUMN, _INFORMED = 0.5, 0.75, 0.25  # powers of root mean squares
_AROUND = 2500  # bits that a part adds to an archive's directory and header, about
_FAINT = 1e-3  # of the mean is added to every input's mean square


@dataclass(frozen=True)
class Factors:
    """Exponents of rows and columns, one signed byte each, rows first."""

    exponents: bytes
    rows: int

    @classmethod
    def of(cls, rows: Array, columns: Array) -> Factors:
        """From int8 [rows] and [columns]."""
        return cls(rows.tobytes() + columns.tobytes(), len(rows))

    @property
    def stored(self) -> Array:
        """int8 [rows + columns]."""
        return np.frombuffer(self.exponents, np.int8)

    @property
    def trivial(self) -> bool:
        """Whether every factor is 1."""
        return not self.stored.any()

    @property
    def bits(self) -> float:
        """About what they take in an archive with what surrounds a part."""
        _, counts = np.unique(self.stored, return_counts=True)
        shares = counts / counts.sum()
        return _AROUND + 1.01 * dot(counts.astype(np.float64), -log2(shares))

    @property
    def largest(self) -> float:
        """The largest product of a row's and a column's."""
        found = self.stored
        return power_of(int(found[: self.rows].max(initial=0))) * power_of(int(found[self.rows :].max(initial=0)))

    def by_row(self, start: int, count: int, kind: str) -> Array:
        """The factors of some rows, [count, 1]."""
        return _powers(self.stored[: self.rows][start : start + count], kind)[:, None]

    def by_column(self, kind: str) -> Array:
        """The factors of all columns."""
        return _powers(self.stored[self.rows :], kind)


def power_of(exponent: int) -> float:
    """2^(exponent/4), as a float32 has it."""
    return ldexp(_ROOTS[exponent % OCTAVE], exponent // OCTAVE)


def _powers(exponents: Array, kind: str) -> Array:
    table = np.array([power_of(number) for number in range(-128, 128)], kind)
    found: Array = table[exponents.astype(np.int64) + 128]
    return found


def may_have(spec: TensorSpec) -> bool:
    """Whether a tensor of this shape can have factors."""
    return max(spec.matrix) >= LONG and min(spec.matrix) > 1


@dataclass
class Sizes:
    """Of a tensor so far: `rows`, root mean squares by the first row of each block; `columns`, Σ w² of each column;
    the largest magnitude `top`; mean squares of the layer's `inputs`."""

    rows: dict[int, Array] = field(default_factory=dict)
    columns: Array | None = None
    top: float = 0.0
    inputs: Array | None = None

    def add(self, values: Array, start: int, inputs: Array | None) -> None:
        """Whole rows of the tensor from `start` on."""
        peaks = np.maximum(values.max(axis=1), -values.min(axis=1))
        top = float(peaks.max())
        if not top < _ORDINARY:
            self.merge(Sizes({start: np.zeros(len(values))}, None, top, inputs))
            return
        square = np.square(values, dtype=np.float64)
        square[peaks <= 1 / _ORDINARY] = 0
        roots = np.sqrt(np.add.reduce(square, axis=1) / values.shape[1])
        self.merge(Sizes({start: roots}, np.add.reduce(square, axis=0), top, inputs))

    def merge(self, more: Sizes) -> None:
        """Take in other rows of the same tensor."""
        self.rows |= more.rows
        self.top = max(self.top, more.top)
        self.inputs = more.inputs if self.inputs is None else self.inputs
        if self.columns is None:
            self.columns = more.columns
        elif more.columns is not None:
            self.columns = self.columns + more.columns

    def factors(self, spec: TensorSpec) -> Factors:
        """What these sizes give; all 1 where weights leave the ordinary range."""
        rows, columns = spec.matrix
        of_rows, of_columns = np.zeros(rows, np.int8), np.zeros(columns, np.int8)
        if self.columns is None or not self.top < _ORDINARY:
            return Factors.of(of_rows, of_columns)
        by_row = np.concatenate([self.rows[start] for start in sorted(self.rows)])
        by_column = np.sqrt(self.columns / max(rows, 1))
        if columns >= LONG:
            of_rows = _exponents(by_row, _ROW * _logs(by_row))
        if rows >= LONG and self.inputs is not None and self.inputs.any():
            loud = np.sqrt(self.inputs + _FAINT * self.inputs.mean())
            of_columns = _exponents(by_column, _INFORMED * _logs(by_column) - 0.5 * _logs(loud))
        elif rows >= LONG:
            of_columns = _exponents(by_column, _COLUMN * _logs(by_column))
        return Factors.of(of_rows, of_columns)


def _logs(sizes: Array) -> Array:
    found: Array = log2(np.where(sizes > 0, sizes, 1.0))
    return found


def _exponents(sizes: Array, logs: Array) -> Array:
    """Logarithms as whole exponents about their mean; 0 where a size is."""
    there = sizes > 0
    if not there.any():
        return np.zeros(len(sizes), np.int8)
    apart = OCTAVE * (logs - np.add.reduce(np.where(there, logs, 0.0)) / np.count_nonzero(there))
    # no tie is left to the last bit of a sum
    return np.where(there, np.clip(np.rint(apart + 1e-6), -FAR, FAR), 0).astype(np.int8)
