"""What a merged output came to, as data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from compressor.core.errors import NothingWritten
from compressor.core.metrics import Change
from compressor.core.shown import Shown, document_of
from compressor.workflows.results import Verdict, merged

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
    stages: Sequence[Mapping[str, Any]] = ()
    gates: tuple[Verdict, ...] = ()

    def to_html(self) -> str:
        """The whole report to look at, as `--report FILE.html` writes it: one document that loads nothing. It has
        histograms where all parts were made with `--report`."""
        return document_of(self)

    @property
    def failures(self) -> tuple[str, ...]:
        """What gates say that do not hold."""
        return tuple(one.failure for one in self.gates if one.failure)

    @cached_property
    def rows(self) -> list[MergedTensor]:
        """The tensors that were treated."""
        return [one for one in self.tensors if one.treated]

    @cached_property
    def total(self) -> Change:
        """What happened to all treated tensors together."""
        return merged([one.change for one in self.rows])

    @cached_property
    def everything(self) -> Change:
        """What happened to all tensors together, those that were carried over included."""
        return merged([one.change for one in self.tensors])


class MergeGateFailed(NothingWritten):
    """The parts are whole and miss a limit; `report` says what the output would have been. Nothing was written."""

    def __init__(self, report: MergeReport) -> None:
        self.report = report
        super().__init__("; ".join(report.failures))
