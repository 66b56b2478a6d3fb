"""A matrix stored as the product of two: how both are rounded, named and multiplied again.

    W' = left · right,   left [rows, r], right [r, columns]

The product is summed in float64, always in the same tiles of the whole tensor, so that a row comes back with the
same bits whatever rows are asked for with it; what leaves the range of the tensor's dtype is its largest number.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from math import sqrt
from typing import Any, ClassVar, Literal

from compressor.core.errors import InputError
from compressor.core.floats import epsilon, largest, narrow, smallest, widen
from compressor.core.lazy import np
from compressor.core.tensor import DTYPES, TensorSpec
from compressor.core.workspace import Array, Workspace
from compressor.methods.contract import Block, Decoder, Encoder, Scheme, Skip
from compressor.methods.numerics import svd
from compressor.methods.parts import Part

_SHIFT = 64
_DAMPING = 1e-6  # of a gram's mean diagonal
_DAMPED = (
    f"the inputs' grams are damped by {_DAMPING:g} of their mean diagonal: what lies where no input did "
    "is kept by the weights' own size"
)
_ROWS, _COLUMNS = 128, 8192  # of the tiles in which factors are multiplied


@contextmanager
def converging(spec: TensorSpec) -> Iterator[None]:
    """LAPACK's one way to fail, as a refusal of the tensor."""
    try:
        yield
    except np.linalg.LinAlgError as error:
        reason = "its singular values were not found: LAPACK did not converge"
        raise InputError(reason, tensor=spec.name, remedy="Exclude it") from error


def factor_dtype(spec: TensorSpec) -> str:
    """What factors of a tensor are stored in: its own dtype, which for FP8 would be too coarse."""
    return spec.dtype if DTYPES[spec.dtype].bits > 8 else "BF16"


def rank_bytes(spec: TensorSpec) -> int:
    """Bytes that the factors of a tensor take for one more rank."""
    return sum(spec.matrix) * DTYPES[factor_dtype(spec)].bits // 8


def profitable(spec: TensorSpec) -> int:
    """The largest rank whose factors are smaller than the tensor; 0 where there is none."""
    return min((spec.nbytes - 1) // rank_bytes(spec), *spec.matrix)


@dataclass(frozen=True)
class Factored(Scheme):
    """Two factors for a matrix; the best for the layer's inputs where statistics of them are given (`svd.py`)."""

    verb: ClassVar[str] = "distill"
    keeps_zeros: ClassVar[bool] = False
    whole: ClassVar[bool] = True
    linear_algebra: ClassVar[bool] = True

    informed: bool = False  # goes by statistics of the layers' inputs

    @property
    def statistics(self) -> Literal["", "square", "gram"]:  # type: ignore[override]
        return "gram" if self.informed else ""

    def with_statistics(self) -> Factored:
        return replace(self, informed=True)

    @abstractmethod
    def seed_for(self, spec: TensorSpec, rank: int) -> bytes | None:
        """What randomised singular vectors of this tensor begin with; None for exact ones."""

    def check(self, spec: TensorSpec) -> None:
        """Any matrix has factors."""

    def align(self, spec: TensorSpec) -> int:
        return max(spec.matrix[0], 1)

    def memory(self, spec: TensorSpec) -> int:
        """The matrix as stored, as numbers and as restored, the Gram matrix with its eigenvectors or what LAPACK
        works with, and the factors in float64."""
        item = int(DTYPES[spec.dtype].compute[-1])
        short = min(spec.matrix)
        inner = 3 * spec.size if item == 8 or self.informed else 6 * short * short
        inner += spec.matrix[1] ** 2 if self.informed else 0
        return spec.nbytes + spec.size * 3 * item + 8 * (inner + sum(spec.matrix) * short)

    def gram(self, block: Block) -> Array | None:
        """What weighs the errors of the columns [columns, columns], damped; None where nothing is known of the
        inputs."""
        if not self.informed:
            return None
        assert block.inputs is not None  # noqa: S101 - the method asked for them
        gram = block.inputs.gram
        assert gram is not None  # noqa: S101 - likewise
        found: Array = gram.copy()
        found[np.diag_indices_from(found)] += _DAMPING * (float(np.mean(np.diagonal(gram))) or 1.0)
        return found


def seed_of(svd_option: str, seed: int, spec: TensorSpec, rank: int) -> bytes | None:
    """What randomised singular vectors begin with, where the option `svd` or the shape asks for such; else None."""
    quick = svd_option == "randomized" or (svd_option == "auto" and svd.faster(*spec.matrix, rank))
    return f"{seed}\0{spec.name}".encode() if quick else None


@dataclass(frozen=True)
class Factors(Decoder):
    """Two factors, of the rank that `rank_of` tells, or the matrix itself. `note` is for the user."""

    verb: ClassVar[str] = "distill"
    left: ClassVar[str] = ".left"
    right: ClassVar[str] = ".right"

    asked: Factored
    note: str = field(compare=False)

    @abstractmethod
    def rank_of(self, spec: TensorSpec) -> int:
        """The rank for this tensor, at most its smaller side; 0 leaves it as it is."""

    def describe(self) -> dict[str, Any]:
        return self.asked.describe()

    def part(self, spec: TensorSpec, suffix: str, shape: tuple[int, int]) -> Part:
        """The part of one factor."""
        return Part(suffix, factor_dtype(spec), shape, every=1 if suffix == self.left else 0)

    def parts(self, spec: TensorSpec) -> tuple[Part, ...]:
        (rows, columns), rank = spec.matrix, self.rank_of(spec)
        if rank == 0:
            return (Part("", spec.dtype, spec.shape),)
        return self.part(spec, self.left, (rows, rank)), self.part(spec, self.right, (rank, columns))

    def remark(self, spec: TensorSpec) -> str:
        return "; ".join(filter(None, (self.note, _DAMPED if self.asked.informed else "")))

    def bound(self, largest: float, spec: TensorSpec) -> float:
        """Truncation takes at most the norm of the shorter of row and column, or, for given inputs, of the column;
        rounding the factors takes a unit of each, whose rows and columns have norms that are bounded alike."""
        rows, columns = spec.matrix
        dtype = factor_dtype(spec)
        truncation = sqrt(rows if self.asked.informed else min(rows, columns))
        rounding = 4 * epsilon(dtype) * (sqrt(rows) if self.asked.informed else sqrt(sqrt(rows * columns)))
        lost = largest * (truncation + rounding + 4 * epsilon(spec.dtype))
        root = sqrt(largest) * sqrt(sqrt(max(rows, columns)))
        return 1.001 * lost + 4 * min(rows, columns) * smallest(dtype) * (1 + root) + smallest(spec.dtype)

    def decode(self, parts: Mapping[str, Array], spec: TensorSpec, out: Array, start: int, work: Workspace) -> None:
        if self.rank_of(spec) == 0:
            np.copyto(out, widen(parts[""], spec.dtype, work, "factored.wide"))
        else:
            multiply(parts[self.left], parts[self.right], spec, out, start, work)


@dataclass(frozen=True)
class Factoring(Encoder):
    """Finds the factors that `decoder` reads."""

    read_by: Factors

    @property
    def decoder(self) -> Factors:
        return self.read_by

    @abstractmethod
    def matrix(self, block: Block) -> Array:
        """What is factored: the block, which is a whole tensor, or what it lacks."""

    def encode(self, block: Block, parts: Mapping[str, Array] | None, restored: Array) -> None:
        spec, work, form = block.spec, block.work, self.read_by
        rank = form.rank_of(spec)
        if rank == 0:
            np.copyto(restored, block.values)
            if parts is not None:
                narrow(block.values, spec.dtype, parts[""])
            return
        with converging(spec):
            sides = self._factors(block, rank)
        dtype = factor_dtype(spec)
        stored = [np.empty(side.shape, DTYPES[dtype].storage) for side in sides]
        for side, held in zip(sides, stored, strict=True):
            narrow(side, dtype, held)
        if parts is not None:
            np.copyto(parts[form.left], stored[0])
            np.copyto(parts[form.right], stored[1])
        multiply(stored[0], stored[1], spec, restored, 0, work)

    def _factors(self, block: Block, rank: int) -> tuple[Array, Array]:
        """`svd.factors` of numbers of any size, float64."""
        spec, asked = block.spec, self.read_by.asked
        small, exponent = svd.scaled(self.matrix(block))
        wide, seed = DTYPES[spec.dtype].compute == "<f8", asked.seed_for(spec, rank)
        left, right = svd.factors(small, rank, asked.gram(block), wide=wide, seed=seed)
        half = exponent // 2
        return np.ldexp(left, half), np.ldexp(right, exponent - half)


def multiply(left: Array, right: Array, spec: TensorSpec, out: Array, start: int, work: Workspace) -> None:
    """Rows `start`, … of the product of factors as they are stored."""
    dtype = factor_dtype(spec)
    wide = work.array("factored.right", right.shape, "<f8")
    np.copyto(wide, widen(right, dtype, work, "factored.wide"))
    product(widen(left, dtype, work), wide, spec, out, start, work)


def product(left: Array, wide: Array, spec: TensorSpec, out: Array, start: int, work: Workspace) -> None:
    """Rows `start`, … of the product of numbers, `left` [rows, rank] and `wide` [rank, columns], float64, which is
    changed. A tile's shape and place decide how BLAS adds up, and nothing else."""
    dtype, top, (rank, columns) = factor_dtype(spec), largest(spec.dtype), wide.shape
    # partial sums of numbers near the end of float64's range would leave it
    shift = _SHIFT if dtype == "F64" and np.max(np.abs(wide), initial=0) > 2.0**480 else 0
    np.ldexp(wide, -shift, out=wide)
    top = float(np.ldexp(top, -shift))
    tile = work.array("factored.tile", (_ROWS, rank), "<f8")
    stop = start + len(out)
    for first in range(start // _ROWS * _ROWS, stop, _ROWS):
        low, high = max(first, start), min(first + _ROWS, stop)
        tile[...] = 0
        np.copyto(tile[low - first : high - first], left[low - start : high - start])
        for begin in range(0, columns, _COLUMNS):
            end = min(begin + _COLUMNS, columns)
            found = work.array("factored.product", (_ROWS, end - begin), "<f8")
            np.matmul(tile, wide[:, begin:end], out=found)
            np.clip(found, -top, top, out=found)
            np.ldexp(found, shift, out=found)
            np.copyto(
                out[low - start : high - start, begin:end],
                found[low - first : high - first],
                casting="same_kind",
            )


def too_large(spec: TensorSpec, rank: int) -> Skip | None:
    """Why a tensor is not stored as factors of this rank; None where they are smaller than it."""
    if 0 < rank <= profitable(spec):
        return None
    said = f"factors of rank {rank}" if rank < min(spec.matrix) else "factors"
    return Skip(f"{said} would be no smaller than the matrix")
