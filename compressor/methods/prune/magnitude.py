"""Zero the given share of weights, those of smallest magnitude; exactly that many.

Of the n weights that are compared with each other, the k = round(sparsity · n) smallest become zero. They are all
weights of a tensor, of a row (`granularity` row) or of `block_size` weights of a row (block); with `scope` global
they are all weights of all tensors that the stage treats. Of weights with the same magnitude as the last one cut,
those first in the order (tensor name, row, column) are cut. `min_keep` is a share of each tensor that stays under
`scope` global: no tensor is emptied for the others' sake, and they lose the more (see `layer_adaptive.py`).

With `--scores FILE` it is |W| · s_j instead of |W|, s_j being the given score of the j-th input of the layer,
compared within each row or block: activation norms make it Wanda's criterion (see `wanda.py`).

Whole tensors are cut by a survey that never holds the weights (`smallest_keys.py`).

Stored: the same dtype and shape. Error: every zeroed weight is at most the largest zeroed one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from compressor.core.errors import UsageError
from compressor.core.tensor import TensorSpec
from compressor.core.workspace import Array
from compressor.methods.contract import SMALL, Block, Method, Selection, Skip, Survey, Treatment
from compressor.methods.numerics.largest_in_rows import keep_largest
from compressor.methods.numerics.shares import Shares, check_floor
from compressor.methods.numerics.smallest_keys import Smallest, key_type_of, magnitudes, scored
from compressor.methods.options import option


@dataclass(frozen=True)
class Magnitude(Smallest):
    """Zero the `sparsity` share of smallest magnitude, in each tensor, row or block, or over all tensors."""

    id: ClassVar[str] = "magnitude"

    sparsity: float = option(help="share of weights that become zero", low=0, high=1, open_high=True)
    scope: Literal["tensor", "global"] = option("tensor", help="each tensor alone, or all of them together")
    granularity: Literal["tensor", "row", "block"] | None = option(
        None, help="what loses the share: the whole, each row, each block of a row; unset: tensor"
    )
    block_size: int | None = option(None, help="weights of a row that are a block", low=2, high=2**31)
    min_keep: float | None = option(None, help="share of each tensor that stays at least", low=0, high=1)
    scored: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self._by_rows and self.scope == "global":
            by = "--scores" if self.scored else f"granularity {self.granularity}"
            raise UsageError(f"{by} compares within a tensor, so scope cannot be global")
        if self.scored and self.granularity == "tensor":
            raise UsageError("--scores compares within a row or a block of it, so granularity cannot be tensor")
        if (self.block_size is not None) != (self.granularity == "block"):
            raise UsageError("granularity block and block_size go together")
        if self.min_keep and self.scope != "global":
            raise UsageError("min_keep is for scope global: alone, each tensor loses exactly its share")
        check_floor(self.min_keep, self.sparsity)

    @property
    def _by_rows(self) -> bool:
        return self.scored or self.granularity in ("row", "block")

    @property
    def statistics(self) -> Literal["", "square", "gram"]:  # type: ignore[override]
        return "square" if self.scored else ""

    def with_scores(self) -> Method:
        return replace(self, scored=True)

    @property
    def elementwise(self) -> bool:  # type: ignore[override]
        return not self._by_rows

    @property
    def reach(self) -> Literal["tensor", "model"]:
        return "model" if self.scope == "global" else "tensor"

    def skip(self, spec: TensorSpec) -> Skip | None:
        if self.block_size is not None and spec.matrix[1] % self.block_size:
            raise UsageError(
                f"block size {self.block_size} does not divide the row of {spec.matrix[1]}",
                tensor=spec.name,
                remedy="Use another --block-size, --granularity row, or --exclude it",
            )
        return None

    def prepare(self, specs: Sequence[TensorSpec]) -> Survey[Any] | Treatment:
        if self._by_rows:
            return InRows(self.sparsity, self.block_size, self.scored)
        if self.min_keep:
            return Shares(self, self.key_type(specs), self.min_keep)
        if self.scope == "tensor" and len(specs) == 1 and specs[0].size <= SMALL:
            return InTensor(self.sparsity, specs[0].size)
        return super().prepare(specs)

    def rank(self, size: int) -> int:
        return share_of(self.sparsity, size)

    def keys(self, block: Block, key_type: str) -> Array:
        return magnitudes(block, key_type)


@dataclass(frozen=True)
class InRows(Selection):
    """Zeroes the `sparsity` share of smallest magnitude, or score, in each row or each block of so many weights."""

    rows_alone: ClassVar[bool] = True

    sparsity: float
    block_size: int | None
    scored: bool

    def keep(self, block: Block, out: Array) -> None:
        size = self.block_size or block.values.shape[1]
        keys = scored(block) if self.scored else magnitudes(block, key_type_of([block.spec]))
        cut = share_of(self.sparsity, size)
        keep_largest(keys.reshape(-1, size), size - cut, out.reshape(-1, size), block.work)


@dataclass(frozen=True)
class InTensor(Selection):
    """Zeroes the `sparsity` share of smallest magnitude of a tensor of `size` weights, a single block."""

    flat_alone: ClassVar[bool] = True

    sparsity: float
    size: int

    def keep(self, block: Block, out: Array) -> None:
        keys = magnitudes(block, key_type_of([block.spec]))
        kept = self.size - share_of(self.sparsity, self.size)
        keep_largest(keys.reshape(-1, self.size), kept, out.reshape(-1, self.size), block.work)


def share_of(sparsity: float, size: int) -> int:
    """How many of `size` weights a `sparsity` (0 to 1) makes zero."""
    return round(sparsity * size)


METHOD = Magnitude
