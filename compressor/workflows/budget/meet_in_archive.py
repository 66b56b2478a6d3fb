"""Meeting a budget in an archive, whose size only coding can tell.

The survey estimates what candidates take. A choice by the estimates is written for a trial, the estimates are
corrected by what that took, and so on. Between two candidates of its kind an even step may have any bits, so what
is left of the budget goes to all of them alike: as they lie on the hull, each gains about the same a bit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf

from compressor.engine.plan.plan import Plan
from compressor.recipe.model import Recipe
from compressor.workflows.budget.allocate import allocate, smallest
from compressor.workflows.budget.fit import Fitting

_TRIALS = 6
_NEAR = 0.997  # of the budget: near enough
_STEP = 0.5  # bits that all even steps are moved by at most; candidates are no farther apart
_REST = 0.85  # of a float's bytes in an archive, about, as long as no trial has told


@dataclass(frozen=True)
class Met:
    """A choice that meets a budget: `found` with what its even steps get more, and the size of the files; `sizes`
    are bytes by tensor, where a trial has told them."""

    found: Fitting
    chosen: list[int]
    size_after: int
    sizes: Mapping[str, int]


def met(found: Fitting, *, trials: bool) -> Met:
    """The choice that meets the budget, by estimates where there are to be no `trials`. GateFailed where none
    does."""
    target = inf if found.target is None else found.target
    rest = int((found.size_before - found.weights_before) * _REST)
    if not trials or target == inf:
        limit = found.least if target == inf else target - (0 if found.by_bits else rest)
        moved, chosen = _choose(found, limit)
        return Met(moved, chosen, _bytes(moved, chosen) + rest, {})
    best: tuple[int, Met] | None = None
    ratio, tried = 1.0, list[Recipe]()
    for _ in range(_TRIALS):
        moved, chosen = _choose(found, (target - (0 if found.by_bits else rest)) / ratio)
        made = moved.recipe_for(chosen)
        if made in tried:
            break
        tried.append(made)
        plan = found.errand.hidden_trial(made).plan
        decided = _decided(found, plan)
        reached = decided if found.by_bits else plan.size_after
        if reached <= target and (best is None or reached > best[0]):
            best = reached, Met(moved, chosen, plan.size_after, _sizes(found, plan))
            if reached >= _NEAR * target:
                break
        rest = plan.size_after - decided
        ratio = decided / max(_bytes(moved, chosen), 1) * (1.0005 if reached > target else 1)
    if best is None:
        chosen = smallest(found.options)
        plan = found.errand.hidden_trial(found.recipe_for(chosen)).plan
        reached = _decided(found, plan) if found.by_bits else plan.size_after
        if reached > target:
            found.refuse(reached)
        return Met(found, chosen, plan.size_after, _sizes(found, plan))
    return best[1]


def _choose(found: Fitting, limit: float) -> tuple[Fitting, list[int]]:
    """The best choice of about so many bytes by the estimates, as near as even steps allow; the smallest where that
    is more."""
    least = smallest(found.options)
    if limit < found.bytes_of(least):
        return found, least
    chosen = allocate(found.options, int(limit))
    steps = _stepped(found, chosen)
    more = min((limit - found.bytes_of(chosen)) * 8 / steps, _STEP) if steps else 0.0
    return replace(found, more=more), chosen


def _stepped(found: Fitting, chosen: Sequence[int]) -> int:
    """Weights of the tensors that have an even step."""
    return sum(
        sum(spec.size for spec in unit.specs)
        for number, unit in enumerate(found.units)
        if found.candidate(number, chosen).bits is not None
    )


def _bytes(found: Fitting, chosen: Sequence[int]) -> int:
    """Of the decided tensors by the estimates."""
    return found.bytes_of(chosen) + int(found.more * _stepped(found, chosen) / 8)


def _sizes(found: Fitting, plan: Plan) -> dict[str, int]:
    """Bytes of the decided tensors in an archive that was written."""
    names = {spec.name for unit in found.units for spec in unit.specs}
    return {job.spec.name: job.size_after for job in plan.jobs if job.spec.name in names}


def _decided(found: Fitting, plan: Plan) -> int:
    return sum(_sizes(found, plan).values())
