"""A smaller model by itself: each matrix as the product of two thin ones, the best of their rank.

    M' = f(M):   W ≈ left · right,   left · right = argmin ‖W − W'‖ over matrices of rank r   (Eckart and Young)

One option says how large r is:

* `rank`: the same number for every tensor;
* `energy`: the smallest r that holds this share of Σσ², σ the singular values: the relative error is √(1 − energy);
* `ratio`: bytes of the treated tensors after, over before, all together. Singular values are taken in the order of
  σ² / (rows + columns) until the bytes are used up, so that the last one of each tensor gains as much for a stored
  number as that of any other: the least squared error over the checkpoint that the size allows.

With `--stats` what is minimised is the error of each layer's outputs, ‖(W − W')·gram^½‖, gram the mean of x xᵀ over
its inputs: left · right = U Uᵀ W with the leading left singular vectors U of W·gram^½. `energy` is then that of the
outputs, and `ratio` compares σ² over each tensor's Σσ², since outputs of different layers have different units.

Tensors for which factors would take as many bytes as the matrix stay as they are, and the plan says so. Factors
are found in float64: by LAPACK for float64 weights; by the smaller Gram matrix's eigenvectors for others, which
lose what is below 1e-8 of the largest singular value; or by randomised subspace iteration (Halko, Martinsson,
Tropp, arXiv 0909.4061), which `svd = auto` takes where it needs less than half the time: its error was above the
optimum's by less than 1 % in all that was measured. `energy` and `ratio` need all singular values and read the
weights twice.

Stored: for `NAME` [rows, columns] `NAME.left` [rows, r] and `NAME.right` [r, columns], of norms √σ but for a
power of two, in the weights' dtype (BF16 for FP8); with `--store dense` the product, in the tensor's own dtype.
Error: at most √min(rows, columns) · max|w|, the norm of a row or a column of the largest weights.

    rank = 1: [[1, 2], [2, 4]] is the product of [[1], [2]] and [[1, 2]]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from compressor.core.lazy import np
from compressor.core.tensor import DTYPES, TensorSpec
from compressor.core.workspace import Array
from compressor.methods.contract import Block, ByTensor, Encoder, Method, Skip, Survey
from compressor.methods.distill._factored import Factored, Factoring, Factors, profitable, seed_of, too_large
from compressor.methods.distill._ranks import Looking, by_energy, by_ratio
from compressor.methods.numerics import svd
from compressor.methods.options import option

if TYPE_CHECKING:
    from compressor.core.metrics import Change


_KEPT = 2**31  # a rank whose factors are never smaller


@dataclass(frozen=True)
class LowRank(Factored):
    """Truncated singular value decompositions, of a given rank, energy or size."""

    id: ClassVar[str] = "low-rank"
    alternatives: ClassVar[tuple[str, ...]] = ("rank", "energy", "ratio")

    rank: int | None = option(None, help="columns of the left and rows of the right factor", low=1, high=_KEPT)
    energy: float | None = option(None, help="share of the squared norm to keep", low=0, high=1, open_low=True)
    ratio: float | None = option(
        None, help="bytes of the treated tensors after, over before", low=0, high=1, open_low=True, open_high=True
    )
    svd: Literal["auto", "exact", "randomized"] = option("auto", help="how singular vectors are found")
    seed: int = option(0, help="of what randomised ones begin with", low=0, high=2**63)

    @property
    def reach(self) -> Literal["tensor", "model"]:
        return "tensor" if self.rank is not None else "model"

    def decoder_for(self, spec: TensorSpec) -> RankFactors | None:
        return None if self.rank is None else RankFactors(self, "", self.rank)

    def skip(self, spec: TensorSpec) -> Skip | None:
        return too_large(spec, min(self.rank or 1, *spec.matrix))

    def warning(self, change: Change) -> str | None:
        if change.lost == 0 and change.energy > 0:
            return "is as it was: factors of the rank it needs would be no smaller"
        return None

    def seed_for(self, spec: TensorSpec, rank: int) -> bytes | None:
        return seed_of(self.svd, self.seed, spec, rank)

    # ---- ranks by the singular values ---------------------------------------------------------------

    def prepare(self, specs: Sequence[TensorSpec]) -> Survey[Any] | Encoder:
        if self.rank is None:
            return Looking(self, tuple(specs))
        return Truncating(RankFactors(self, "", self.rank))

    def wants(self, spec: TensorSpec) -> bool:
        return profitable(spec) > 0

    def look(self, block: Block) -> tuple[Array, int]:
        """The singular values of the tensor, and the exponent that they lack."""
        small, exponent = svd.scaled(block.values)
        wide = DTYPES[block.spec.dtype].compute == "<f8"
        return svd.spectrum(small, self.gram(block), wide=wide), exponent

    def rank_all(self, seen: Mapping[str, tuple[Array, int]], specs: Sequence[TensorSpec]) -> RankByTensor:
        """The rank of each tensor, from the singular values that were seen of it."""
        note = ""
        if self.energy is not None:
            found = {name: by_energy(values, self.energy) for name, (values, _) in seen.items()}
        else:
            assert self.ratio is not None  # noqa: S101 - one of the three is given
            top = max((exponent for _, exponent in seen.values()), default=0)
            values = {name: np.ldexp(values, exponent - top) for name, (values, exponent) in seen.items()}
            if self.informed:  # outputs of different layers have different units
                values = {name: found / (np.linalg.norm(found) or 1.0) for name, found in values.items()}
            found, reached = by_ratio(values, specs, self.ratio)
            if reached > self.ratio:
                note = f"the ratio {self.ratio:g} cannot be reached: with rank 1 it is {reached:.4g}"
        return RankByTensor(found, note)


@dataclass(frozen=True)
class RankFactors(Factors):
    """Factors of a given `rank`, where they are smaller than the matrix."""

    id: ClassVar[str] = "low-rank"

    rank: int

    @property
    def scheme(self) -> Factored:
        return self.asked

    @property
    def label(self) -> str:
        return f"rank {self.rank}"

    def rank_of(self, spec: TensorSpec) -> int:
        return self.rank if self.rank <= profitable(spec) else 0


@dataclass(frozen=True)
class Truncating(Factoring):
    """The best factors of a tensor."""

    def matrix(self, block: Block) -> Array:
        return block.values

    def leaves(self, spec: TensorSpec) -> Skip | None:
        return self.read_by.asked.skip(spec)


@dataclass(frozen=True)
class RankByTensor(ByTensor):
    """The rank that each tensor was found to need, by name; 0 or none: it is kept."""

    ranks: Mapping[str, int]
    note: str

    def of(self, spec: TensorSpec, own: Method) -> Truncating:
        assert isinstance(own, LowRank)  # noqa: S101 - it equals the one that was surveyed
        rank = self.ranks.get(spec.name, 0) or _KEPT
        return Truncating(RankFactors(replace(own, rank=rank, energy=None, ratio=None), self.note, rank))


METHOD = LowRank
