"""What a run did, as data: the reporters print it, gates judge it, the exit code follows from it."""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from compressor.core.errors import NothingWritten
from compressor.core.metrics import Change
from compressor.core.shown import Shown, document_of
from compressor.engine.plan.plan import Job, Plan

if TYPE_CHECKING:
    from compressor.workflows.budget.choice import Allocation

_MUCH = 0.5  # relative error of what a structured cut leaves of a tensor
_SPARSE = 0.4  # share of zeros


@dataclass(frozen=True)
class Verdict:
    """What a gate (an option with its limit, such as `--max-error 0.02`) says of a result: in `failure` why it does
    not hold, "" where it does. `measured` is what was compared with the limit, as a text."""

    gate: str
    measured: str
    failure: str = ""


@dataclass(frozen=True, repr=False)
class Report(Shown):
    """A plan and, unless it was a dry run, what it changed. `changes` are in the order of the plan's jobs; of a run
    that was one of several for an output, `part` are the tensors of which it did anything. `gates` are those that
    were judged."""

    verb: str
    input: str
    output: str
    plan: Plan
    changes: Sequence[Change] | None = None
    gates: tuple[Verdict, ...] = ()
    allocation: Allocation | None = None  # what a budget chose
    part: Set[str] | None = None
    beside: tuple[tuple[str, int], ...] = ()  # small files that no plan knows, a model card, and their bytes

    def to_html(self) -> str:
        """The whole report to look at, as `--report FILE.html` writes it: one document that loads nothing. It has
        histograms where the run was asked for them (`histograms=True`)."""
        return document_of(self)

    @property
    def failures(self) -> tuple[str, ...]:
        """What gates say that do not hold."""
        return tuple(one.failure for one in self.gates if one.failure)

    @cached_property
    def rows(self) -> list[tuple[Job, Change | None]]:
        """The tensors that were treated, with their changes."""
        changes: Sequence[Change | None] = self.changes or [None] * len(self.plan.jobs)
        return [
            (job, change)
            for job, change in zip(self.plan.jobs, changes, strict=True)
            if (job.treated or (job.stored_as and not job.stays))
            and (self.part is None or job.spec.name in self.part)
        ]

    @property
    def measured(self) -> list[tuple[str, Change]]:
        """What happened to the tensors that were treated, by name; nothing of a dry run."""
        return [(job.spec.name, change) for job, change in self.rows if change is not None]

    @cached_property
    def total(self) -> Change | None:
        """What happened to all treated tensors together; None for a dry run."""
        return None if self.changes is None else merged([change for _, change in self.rows if change])

    @cached_property
    def everything(self) -> Change | None:
        """What happened to all tensors together, those that were carried over included."""
        return None if self.changes is None else merged(self.changes)

    @property
    def ratio(self) -> float:
        """Size of the container files before, over after."""
        return self.plan.size_before / self.plan.size_after

    @property
    def bits_per_weight(self) -> float:
        """Stored bits of the treated tensors, over their weights."""
        size = sum(job.spec.size for job, _ in self.rows)
        return sum(job.size_after for job, _ in self.rows) * 8 / size if size else 0.0

    @property
    def kept(self) -> list[tuple[str, list[Job]]]:
        """Tensors that no stage treated, by their reason."""
        groups: dict[str, list[Job]] = {}
        for job in self.plan.jobs:
            if not job.treated and job.left_alone:
                groups.setdefault("; ".join(dict.fromkeys(why.reason for why in job.left_alone)), []).append(job)
        return sorted(groups.items(), key=lambda item: -len(item[1]))

    @cached_property
    def warnings(self) -> list[str]:
        """What the methods have to say about what was measured, alike sentences gathered."""
        found: dict[str, list[str]] = {}
        for job, change in self.rows:
            if change is None:
                continue
            for said in (*change.notes, *filter(None, (step.method.warning(change) for step in job.steps))):
                found.setdefault(said, []).append(job.spec.name)
        sentences = [
            f"{names[0]}{f' and {len(names) - 1} more' if len(names) > 1 else ''}: {said}"
            for said, names in found.items()
        ]
        stores = any(
            step.method.verb != "distill" for job, _ in self.rows if job.encoder is not None for step in job.steps
        )
        if self.ratio < 1 and stores:
            sentences.append("the output is larger than the input: scales and headers outweigh what the codes save")
        return [*sentences, *self._much_removed()]

    def _much_removed(self) -> list[str]:
        """What to know where structured cuts, or zeros in a language model, are many."""
        found = []
        hurt = sorted((cut for cut in self.plan.cuts if cut.error > _MUCH), key=lambda cut: -cut.error)
        if hurt:
            more = f", and of {len(hurt) - 1} more groups" if len(hurt) > 1 else ""
            found.append(
                f"{hurt[0].worst}: the cut of {hurt[0].structure} removes much: its relative error is "
                f"{hurt[0].error:.2g}{more} above {_MUCH:g}"
            )
        emptied = [
            (job.spec.name, change.error)
            for job, change in self.rows
            if change is not None
            and change.error > _MUCH
            and any(step.method.verb == "prune" for step in job.steps)
        ]
        if emptied:
            name, error = max(emptied, key=lambda item: item[1])
            more = f", and of {len(emptied) - 1} more tensors" if len(emptied) > 1 else ""
            found.append(f"{name}: pruning removes much: its relative error is {error:.2g}{more} above {_MUCH:g}")
        blind = {"structure", "stats", "scores"}  # cuts have figures of their own, the others go by data
        pruned = any(stage["kind"] == "prune" and not blind & stage.keys() for stage in self.plan.stages)
        zeros = pruned and self.total is not None and self.total.sparsity_after >= _SPARSE
        cut = hurt and any(stage["kind"] == "prune" and "stats" not in stage for stage in self.plan.stages)
        if self.plan.language_model and (zeros or cut):
            found.append(
                "half of a language model's weights pruned without calibration data is known to hurt "
                "(Llama-2-7B by magnitude: perplexity 5.1 to 14.9); prune --method wanda goes by such data; "
                "compare the results on your own task"
            )
        return found


def merged(changes: Sequence[Change]) -> Change:
    """Several changes added up to one."""
    total = Change()
    for change in changes:
        total.merge(change)
    return total


class ReportedGateFailed(NothingWritten):
    """A gate failed; `report` says what the output would have been. Nothing was written."""

    def __init__(self, report: Report) -> None:
        self.report = report
        super().__init__("; ".join(report.failures))
