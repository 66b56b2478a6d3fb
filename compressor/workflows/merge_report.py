"""What a merged output came to, as data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from compressor.core.errors import NothingWritten
from compressor.core.metrics import Change
from compressor.core.shown import Shown
from compressor.workflows.results import merged

if TYPE_CHECKING:
    from compressor.engine.execution.parts import MergedTensor


@dataclass(frozen=True, repr=False)
class MergeReport(Shown):
    """What an output of `parts` parts came to: bytes of its container files before and after, and its tensors."""

    output: str
    parts: int
    fingerprint: str
    size_before: int
    size_after: int
    tensors: Sequence[MergedTensor]
    failures: tuple[str, ...] = ()

    @cached_property
    def rows(self) -> list[MergedTensor]:
        """The tensors that were treated."""
        return [one for one in self.tensors if one.treated]

    @cached_property
    def total(self) -> Change:
        """What happened to all treated tensors together."""
        return merged([one.change for one in self.rows])


class MergeGateFailed(NothingWritten):
    """The parts are whole and miss a limit; `report` says what the output would have been. Nothing was written."""

    def __init__(self, report: MergeReport) -> None:
        self.report = report
        super().__init__("; ".join(report.failures))
