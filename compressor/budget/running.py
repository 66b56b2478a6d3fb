"""`run_recipe` under a budget: the recipe is made first, told, and then run like any other."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from compressor import api
from compressor.budget.curve import Allocation, allocation_of
from compressor.budget.fitting import Fitting, fitting
from compressor.budget.request import Budget
from compressor.checkpoint import open_checkpoint
from compressor.errors import UsageError
from compressor.recipe import Recipe
from compressor.results import Gates, Report
from compressor.target import container_of

# Of `run_recipe`: what planning and surveying go by, beside what only the run that writes does
_PLANNING = ("strict", "requantize", "non_finite", "workers", "processes")


def run_budget(
    verb: str,
    source: api.Path,
    output: api.Path,
    recipe: Recipe,
    budget: Budget,
    *,
    stats: api.Path | None = None,
    tell: Callable[[Allocation], None] | None = None,
    gates: Gates | None = None,
    **settings: Any,
) -> Report:
    """Survey, choose and run. `tell` is given the choice before anything is written; `settings` as `run_recipe`'s.

    The report has the choice as `allocation`. GateFailed where the budget cannot be met.
    """
    if budget.max_error is not None:  # what was measured on a sample is judged on the result
        gates = replace(gates or Gates(), max_error=budget.max_error)
    found = fitted(verb, source, output, recipe, budget, stats=stats, **settings)
    chosen = found.choice()
    allocation = allocation_of(found, chosen, found.plan(chosen).size_after)
    if tell is not None:
        tell(allocation)
    made = found.recipe_for(chosen)
    report = api.run_recipe(verb, source, output, made, gates=gates, **taken(made, found.stats), **settings)
    return replace(report, allocation=allocation)


def fitted(
    verb: str,
    source: api.Path,
    output: api.Path,
    recipe: Recipe,
    budget: Budget,
    *,
    stats: api.Path | None = None,
    **settings: Any,
) -> Fitting:
    """The surveyed input, for any number of choices."""
    if settings.get("save_base") is not None or any(stage.teacher for stage in recipe.stages):
        raise UsageError("a budget is for recipes without a teacher")
    checkpoint = open_checkpoint(source)
    container = container_of(os.fspath(output), checkpoint.source)
    planning = {key: settings[key] for key in _PLANNING if key in settings}
    given = recipe.stats if stats is None else os.fspath(stats)

    def dry_run(asked: Recipe, **more: Any) -> Report:
        return api.run_recipe(verb, source, output, asked, dry_run=True, **planning, **taken(asked, given), **more)

    return fitting(checkpoint, container, replace(recipe, stats=None), budget, dry_run, given)


def taken(recipe: Recipe, stats: str | None) -> dict[str, str]:
    """The statistics as a setting, where a stage takes them."""
    takes = (
        stage.stats is None and (stage.statistics or stage.method.with_statistics()) for stage in recipe.stages
    )
    return {"stats": stats} if stats is not None and any(takes) else {}
