"""Zero the weights of each row that contribute least to its output on calibration inputs (Wanda).

    importance of W[i, j] = |W[i, j]| · ‖x_j‖₂, compared within each row i       (Sun et al., arXiv 2306.11695)

`‖x_j‖₂` is the norm of the j-th input of the layer over all rows of the statistics (their mean square gives it, up
to a factor that all inputs share). Of a row of m weights the round(sparsity · m) least important become zero, of
equal ones the first; or `pattern` N:M keeps N of every M neighbours, of equal ones the first. Needs `--stats`; the
weights that stay are not changed.

Stored: the same dtype and shape. Error: no bound, since a large weight of an input that is never active goes too.

    W = [1, −3, 2, 0.5] on inputs of norms [9, 1, 1, 9] at sparsity 0.5 becomes [1, 0, 0, 0.5]
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from compressor.core.errors import UsageError
from compressor.core.tensor import TensorSpec
from compressor.core.workspace import Array
from compressor.methods.contract import Block, PlainSelection
from compressor.methods.numerics.largest_in_rows import keep_largest
from compressor.methods.numerics.nm_pattern import keep_pattern, parse_pattern, tail_of
from compressor.methods.numerics.smallest_keys import scored
from compressor.methods.options import option


@dataclass(frozen=True)
class Wanda(PlainSelection):
    """Zero the weights of each row that matter least to its output on calibration inputs."""

    verb: ClassVar[str] = "prune"
    id: ClassVar[str] = "wanda"
    statistics: ClassVar[Literal["", "square", "gram"]] = "square"

    sparsity: float | None = option(None, help="share of weights that become zero", low=0, high=1, open_high=True)
    pattern: str | None = option(None, help="N:M, such as 2:4: N of every M stay")

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.sparsity is None) == (self.pattern is None):
            raise UsageError("wanda needs one of sparsity and pattern", remedy="Give 0.5, or 2:4, say")
        if self.pattern is not None:
            parse_pattern(self.pattern)

    def partial_treatment(self, spec: TensorSpec) -> str:
        return "" if self.pattern is None else tail_of(spec, parse_pattern(self.pattern)[1])

    def keep(self, block: Block, out: Array) -> None:
        keys = scored(block)
        if self.pattern is not None:
            keep_pattern(keys, *parse_pattern(self.pattern), out, block.work)
            return
        columns = block.values.shape[1]
        keep_largest(keys, columns - round((self.sparsity or 0) * columns), out, block.work)


METHOD = Wanda
