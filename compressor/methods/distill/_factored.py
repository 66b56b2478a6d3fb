"""A matrix stored as the product of two: how both are rounded, named and multiplied again.

    W' = left · right,   left [rows, r], right [r, columns]

The product is summed in float64, always in the same tiles of the whole tensor, so that a row comes back with the
same bits whatever rows are asked for with it; what leaves the range of the tensor's dtype is its largest number.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import sqrt
from typing import ClassVar, Literal

from compressor.core.errors import InputError
from compressor.core.floats import epsilon, largest, narrow, smallest, widen
from compressor.core.lazy import np
from compressor.core.tensor import DTYPES, TensorSpec
from compressor.core.workspace import Array, Workspace
from compressor.methods.contract import Block, Encoder, Skip
from compressor.methods.distill import _svd
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
    """What one more rank takes."""
    return sum(spec.matrix) * DTYPES[factor_dtype(spec)].bits // 8


def profitable(spec: TensorSpec) -> int:
    """The largest rank whose factors are smaller than the tensor; 0 where there is none."""
    return min((spec.nbytes - 1) // rank_bytes(spec), *spec.matrix)


@dataclass(frozen=True)
class Factored(Encoder):
    """Two factors for a matrix, of the rank that `rank_of` tells; the best for the layer's inputs where statistics
    of them are given (`_svd`)."""

    verb: ClassVar[str] = "distill"
    keeps_zeros: ClassVar[bool] = False
    whole: ClassVar[bool] = True
    linear_algebra: ClassVar[bool] = True
    left: ClassVar[str] = ".left"
    right: ClassVar[str] = ".right"

    informed: bool = False  # goes by statistics of the layers' inputs

    @property
    def statistics(self) -> Literal["", "square", "gram"]:  # type: ignore[override]
        return "gram" if self.informed else ""

    def with_statistics(self) -> Factored:
        return replace(self, informed=True)

    @abstractmethod
    def rank_of(self, spec: TensorSpec) -> int:
        """The rank for this tensor, at most its smaller side; 0 leaves it as it is."""

    @abstractmethod
    def factors(self, block: Block, rank: int) -> tuple[Array, Array]:
        """The two factors of the block, the whole tensor, in float64."""

    def part(self, spec: TensorSpec, suffix: str, shape: tuple[int, int]) -> Part:
        return Part(suffix, factor_dtype(spec), shape, every=1 if suffix == self.left else 0)

    def parts(self, spec: TensorSpec) -> tuple[Part, ...]:
        (rows, columns), rank = spec.matrix, self.rank_of(spec)
        if rank == 0:
            return (Part("", spec.dtype, spec.shape),)
        return self.part(spec, self.left, (rows, rank)), self.part(spec, self.right, (rank, columns))

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

    def bound(self, largest: float, spec: TensorSpec) -> float:
        """Truncation takes at most the norm of the shorter of row and column, or, for given inputs, of the column;
        rounding the factors takes a unit of each, whose rows and columns have norms that are bounded alike."""
        rows, columns = spec.matrix
        dtype = factor_dtype(spec)
        truncation = sqrt(rows if self.informed else min(rows, columns))
        rounding = 4 * epsilon(dtype) * (sqrt(rows) if self.informed else sqrt(sqrt(rows * columns)))
        lost = largest * (truncation + rounding + 4 * epsilon(spec.dtype))
        root = sqrt(largest) * sqrt(sqrt(max(rows, columns)))
        return 1.001 * lost + 4 * min(rows, columns) * smallest(dtype) * (1 + root) + smallest(spec.dtype)

    def encode(self, block: Block, parts: Mapping[str, Array] | None, restored: Array) -> None:
        spec, work = block.spec, block.work
        rank = self.rank_of(spec)
        if rank == 0:
            np.copyto(restored, block.values)
            if parts is not None:
                narrow(block.values, spec.dtype, parts[""])
            return
        with converging(spec):
            sides = self.factors(block, rank)
        dtype = factor_dtype(spec)
        stored = [np.empty(side.shape, DTYPES[dtype].storage) for side in sides]
        for side, held in zip(sides, stored, strict=True):
            narrow(side, dtype, held)
        if parts is not None:
            np.copyto(parts[self.left], stored[0])
            np.copyto(parts[self.right], stored[1])
        self._multiply(stored[0], stored[1], spec, restored, 0, work)

    def decode(self, parts: Mapping[str, Array], spec: TensorSpec, out: Array, start: int, work: Workspace) -> None:
        if self.rank_of(spec) == 0:
            np.copyto(out, widen(parts[""], spec.dtype, work, "factored.wide"))
        else:
            self._multiply(parts[self.left], parts[self.right], spec, out, start, work)

    def _multiply(
        self, left: Array, right: Array, spec: TensorSpec, out: Array, start: int, work: Workspace
    ) -> None:
        """Rows `start`, … of the product. A tile's shape and place decide how BLAS adds up, and nothing else."""
        dtype, top, (rank, columns) = factor_dtype(spec), largest(spec.dtype), right.shape
        wide = work.array("factored.right", right.shape, "<f8")
        np.copyto(wide, widen(right, dtype, work, "factored.wide"))
        # partial sums of numbers near the end of float64's range would leave it
        shift = _SHIFT if dtype == "F64" and np.max(np.abs(wide), initial=0) > 2.0**480 else 0
        np.ldexp(wide, -shift, out=wide)
        top = float(np.ldexp(top, -shift))
        tile = work.array("factored.tile", (_ROWS, rank), "<f8")
        stop = start + len(out)
        for first in range(start // _ROWS * _ROWS, stop, _ROWS):
            low, high = max(first, start), min(first + _ROWS, stop)
            tile[...] = 0
            np.copyto(tile[low - first : high - first], widen(left[low - start : high - start], dtype, work))
            for begin in range(0, columns, _COLUMNS):
                end = min(begin + _COLUMNS, columns)
                product = work.array("factored.product", (_ROWS, end - begin), "<f8")
                np.matmul(tile, wide[:, begin:end], out=product)
                np.clip(product, -top, top, out=product)
                np.ldexp(product, shift, out=product)
                np.copyto(
                    out[low - start : high - start, begin:end],
                    product[low - first : high - first],
                    casting="same_kind",
                )

    def remark(self, spec: TensorSpec) -> str:
        return _DAMPED if self.informed else ""

    def gram(self, block: Block) -> Array | None:
        """What weighs the errors of the columns, damped; None where nothing is known of the inputs."""
        if not self.informed:
            return None
        assert block.inputs is not None  # noqa: S101 - the method asked for them
        gram = block.inputs.gram
        assert gram is not None  # noqa: S101 - likewise
        found: Array = gram.copy()
        found[np.diag_indices_from(found)] += _DAMPING * (float(np.mean(np.diagonal(gram))) or 1.0)
        return found

    @staticmethod
    def decomposed(
        matrix: Array, rank: int, spec: TensorSpec, gram: Array | None, seed: bytes | None
    ) -> tuple[Array, Array]:
        """`_svd.factors` of numbers of any size."""
        small, exponent = _svd.scaled(matrix)
        left, right = _svd.factors(small, rank, gram, wide=DTYPES[spec.dtype].compute == "<f8", seed=seed)
        half = exponent // 2
        return np.ldexp(left, half), np.ldexp(right, exponent - half)


def too_large(spec: TensorSpec, rank: int) -> Skip | None:
    """Why a tensor is not stored as factors of this rank; None where they are smaller than it."""
    if 0 < rank <= profitable(spec):
        return None
    said = f"factors of rank {rank}" if rank < min(spec.matrix) else "factors"
    return Skip(f"{said} would be no smaller than the matrix")
