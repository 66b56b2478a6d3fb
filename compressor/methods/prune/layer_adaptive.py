"""Zero a share of all weights, each weighed by what its own layer would still have: LAMP.

    score(w) = w² / Σ w'² over the weights of the same tensor that are no smaller than w

(Lee et al., Layer-adaptive sparsity for the magnitude-based pruning, arXiv 2010.07611). The weights with the
lowest scores over the whole checkpoint become zero, k = round(sparsity · n) of them. The largest weight of a
tensor has score 1, so no tensor is emptied, and what a layer of small weights loses is set by its own shape.
Scores are taken bin by bin of the magnitudes' highest 16 bits (see `shares.py`); each tensor then loses exactly
its smallest ones. `min_keep` is a share of each tensor that stays at least.

Stored: the same dtype and shape. Error: every zeroed weight is at most the largest zeroed one of its tensor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from compressor.core.lazy import np
from compressor.core.tensor import TensorSpec
from compressor.core.workspace import Array
from compressor.methods.contract import Block, Survey
from compressor.methods.numerics.shares import Shares, check_floor
from compressor.methods.numerics.smallest_keys import Smallest, magnitudes
from compressor.methods.options import option


@dataclass(frozen=True)
class LayerAdaptive(Smallest):
    """Zero the `sparsity` share of all weights with the lowest LAMP scores."""

    id: ClassVar[str] = "layer-adaptive"

    sparsity: float = option(help="share of weights that become zero", low=0, high=1, open_high=True)
    min_keep: float | None = option(None, help="share of each tensor that stays at least", low=0, high=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_floor(self.min_keep, self.sparsity)

    @property
    def reach(self) -> Literal["tensor", "model"]:
        return "model"

    def prepare(self, specs: Sequence[TensorSpec]) -> Survey[Any]:
        return Shares(self, self.key_type(specs), self.min_keep or 0, scores)

    def rank(self, size: int) -> int:
        return round(self.sparsity * size)

    def keys(self, block: Block, key_type: str) -> Array:
        return magnitudes(block, key_type)


def scores(values: Array, counts: Array) -> Array:
    """LAMP scores of a tensor's bins, ascending: each as that of the bin's smallest weight."""
    largest = values.max(initial=1e-300)
    squares = (values / largest) ** 2  # the score does not change with the scale
    rest = np.cumsum((squares * counts)[::-1])[::-1]
    found: Array = squares / np.maximum(rest, 1e-300)
    return found


METHOD = LayerAdaptive
