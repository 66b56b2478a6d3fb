"""What `sparsegpt` and `alps` are asked with: how much goes, and how the gram of the inputs is damped."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from compressor.core.errors import UsageError
from compressor.core.tensor import TensorSpec
from compressor.methods.contract import PlainTransform
from compressor.methods.numerics.nm_pattern import parse_pattern, tail_of
from compressor.methods.options import option


@dataclass(frozen=True)
class ByGram(PlainTransform):
    """Zeroes weights by the gram of a layer's inputs, and moves the others."""

    statistics: ClassVar[Literal["", "square", "gram"]] = "gram"
    linear_algebra: ClassVar[bool] = True
    usual: ClassVar[str]  # a sparsity to try

    sparsity: float | None = option(None, help="share of weights that become zero", low=0, high=1, open_high=True)
    pattern: str | None = option(None, help="N:M, such as 2:4: N of every M stay")
    damp: float | None = option(
        None, help="added to the gram, in mean diagonals; unset: 0.01, more where that is too little", low=0
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.sparsity is None) == (self.pattern is None):
            raise UsageError(
                f"{self.id} needs one of sparsity and pattern", remedy=f"Give {self.usual}, or 2:4, say"
            )
        if self.pattern is not None:
            parse_pattern(self.pattern)

    def partial_treatment(self, spec: TensorSpec) -> str:
        return "" if self.pattern is None else tail_of(spec, parse_pattern(self.pattern)[1])
