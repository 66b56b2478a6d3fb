"""What schemes have in common that may go by the inputs of layers: a search with errors weighed by column, or codes
of least error of the outputs (`method` gptq)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar, Literal, Self

from compressor.core.errors import UsageError
from compressor.core.tensor import TensorSpec
from compressor.methods.contract import ReadableScheme
from compressor.methods.numerics.compensated import REACH
from compressor.methods.numerics.hessian import compensation_memory

METHOD_HELP = (
    "how scales are chosen: for the least squared error (search), by the largest magnitude (absmax); gptq: as "
    "search, and codes for the least error on the inputs of --stats"
)
DAMP_HELP = "gptq: added to the gram, in mean diagonals; unset: 0.01"
ACT_ORDER_HELP = "gptq: columns of the largest inputs first"


class Compensating(ReadableScheme):
    """A scheme that has these options: how codes are chosen, and those of gptq."""

    weighs: ClassVar[bool] = True  # whether a search may weigh errors by the inputs

    method: Any
    damp: float | None
    act_order: bool
    informed: bool

    @property
    def by_inputs(self) -> bool:
        """Whether codes go by the layer's inputs."""
        return bool(self.method == "gptq")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.by_inputs and (self.damp is not None or self.act_order):
            raise UsageError("damp and act_order hold for method gptq only")

    def describe(self) -> dict[str, Any]:
        """Without what is off by default: as records of files before it was an option."""
        return {key: said for key, said in super().describe().items() if key != "act_order" or said}

    @property
    def statistics(self) -> Literal["", "square", "gram"]:  # type: ignore[override]
        return "gram" if self.by_inputs else "square" if self.informed else ""

    def with_statistics(self) -> Self | None:
        if self.method != "search" or not self.weighs:
            return None
        return replace(self, informed=True)  # type: ignore[call-arg]  # a field of every scheme

    @property
    def linear_algebra(self) -> bool:  # type: ignore[override]
        return self.by_inputs

    @property
    def at_once(self) -> int:  # type: ignore[override]
        return 1 << 21 if self.by_inputs else 0

    def memory(self, spec: TensorSpec) -> int:
        return compensation_memory(spec, max(self.at_once, spec.matrix[1])) if self.by_inputs else 0

    @property
    def further(self) -> float:
        """By how much an error may exceed that of rounding, in units of the largest weight."""
        return REACH if self.by_inputs else 0
