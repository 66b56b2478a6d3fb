"""What a document shows, whatever it is of: a run, a comparison, a merge, or an output that lies there."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from compressor.core.metrics import Change
from compressor.core.text import size_text
from compressor.reports.figures import error_text, percent
from compressor.workflows.results import Verdict

if TYPE_CHECKING:
    from compressor.calibration.loss import ModelLoss
    from compressor.workflows.budget.choice import Allocation


@dataclass(frozen=True)
class TensorRow:
    """A tensor: what it is stored as and its bytes, `before` and `after`; whether it was `treated`, and then what
    that changed; why it is as it is."""

    name: str
    shape: tuple[int, ...]
    stored: tuple[str, str]
    before: int
    after: int
    treated: bool
    change: Change | None = None
    why: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        """Its elements."""
        count = 1
        for length in self.shape:
            count *= length
        return count


@dataclass(frozen=True)
class Sheet:
    """A document's content. `sizes` are the bytes of the container files before and after; `errors`: whether losses
    were measured; `told` are items of what else there is to know, and `heading` what they are called."""

    title: str
    verdict: str
    facts: Sequence[tuple[str, str]]
    sizes: tuple[int, int]
    rows: Sequence[TensorRow]
    errors: bool = True
    failed: bool = False
    warnings: Sequence[str] = ()
    pruned: bool = False
    gates: Sequence[Verdict] = ()
    limits: str = ""  # what could have been given, where no gate was
    heading: str = "What to know"
    told: Sequence[str] = ()
    stages: Sequence[Mapping[str, Any]] = ()
    known_by: Sequence[tuple[str, str]] = ()
    allocation: Allocation | None = None
    loss: ModelLoss | None = None


def sizes_told(before: int, after: int) -> str:
    """`3.2× smaller: 724 kB → 292 kB`."""
    times = before / after if after else 1.0
    said = f"{times:.3g}× smaller" if times >= 1.005 else "not smaller"
    return f"{said}: {size_text(before)} → {size_text(after)}"


def loss_told(rows: Iterable[TensorRow], total: float, whose: str = "The weights") -> str:
    """What these rows lost together, and which of them most."""
    if total == 0:
        return "Nothing was lost."
    worst = max((row for row in rows if row.change is not None), key=lambda row: _error(row.change))
    most = f"most in {worst.name}: {error_text(_error(worst.change))}"
    return f"{whose} lost {error_text(total)} of their norm ({most})."


def gates_told(gates: Sequence[Verdict]) -> str:
    """That all gates hold, where there are some."""
    return "" if not gates else " The gate holds." if len(gates) == 1 else f" All {len(gates)} gates hold."


def figures(before: int, after: int, rows: Sequence[TensorRow]) -> list[tuple[str, str]]:
    """Sizes, and how many tensors were treated with how many bits."""
    treated = [row for row in rows if row.treated]
    size = sum(row.size for row in treated)
    bits = sum(row.after for row in treated) * 8 / size if size else 0.0
    return [
        ("files before", size_text(before)),
        ("files after", size_text(after)),
        ("times smaller", f"{before / after:.3g}" if after else ""),
        ("tensors treated", f"{len(treated)} of {len(rows)}"),
        ("bits a treated weight", f"{bits:.3g}"),
    ]


def losses(treated: Change, everything: Change) -> list[tuple[str, str]]:
    """What was lost, and zeros."""
    return [
        ("error of the treated", error_text(treated.error)),
        ("error of the whole file", error_text(everything.error)),
        ("zeros", f"{percent(everything.sparsity_before)} → {percent(everything.sparsity_after)}"),
    ]


def _error(change: Change | None) -> float:
    return change.error if change is not None else 0.0
