"""Recipes under a budget: made first, told, and then run like any other. `run` is always `api.run_recipe`."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from compressor.budget.curve import Allocation, allocation_of
from compressor.budget.fitting import Fitting, fitting
from compressor.budget.request import Budget
from compressor.budget.tune import Evaluation, Search, tuned, with_log
from compressor.checkpoint import open_checkpoint
from compressor.errors import UsageError
from compressor.files.atomic import check_place
from compressor.recipe import Recipe
from compressor.results import Gates, Report
from compressor.statistics import fingerprint
from compressor.target import check_apart, container_of

Path = str | os.PathLike[str]
Run = Callable[..., Report]
# Of `run_recipe`: what planning and surveying go by, beside what only the run that writes does
_PLANNING = ("strict", "requantize", "non_finite", "workers", "processes")


def run_budget(
    run: Run,
    verb: str,
    source: Path,
    output: Path,
    recipe: Recipe,
    budget: Budget,
    *,
    stats: Path | None = None,
    tell: Callable[[Allocation], None] | None = None,
    gates: Gates | None = None,
    **settings: Any,
) -> Report:
    """Survey, choose and run. `tell` is given the choice before anything is written; `settings` as `run`'s.

    The report has the choice as `allocation`. GateFailed where the budget cannot be met.
    """
    if not budget.asked:
        raise UsageError(
            "there is nothing to meet",
            remedy="Give --target-size, --target-ratio, --target-bits, --max-error or --min-sqnr",
        )
    if budget.max_error is not None:  # what was measured on a sample is judged on the result
        gates = replace(gates or Gates(), max_error=budget.max_error)
    found = fitted(run, verb, source, output, recipe, budget, stats=stats, **settings)
    chosen = found.choice()
    made = found.recipe_for(chosen)
    allocation = allocation_of(found, chosen, found.plan(chosen).size_after)
    if tell is not None:
        tell(allocation)
    settings |= taken(made, found.stats)
    return replace(run(verb, source, output, made, gates=gates, **settings), allocation=allocation)


def run_tune(
    run: Run,
    source: Path,
    output: Path,
    recipe: Recipe,
    search: Search,
    *,
    stats: Path | None = None,
    tell: Callable[[Evaluation], None] = lambda one: None,
    gates: Gates | None = None,
    **settings: Any,
) -> Report:
    """The smallest output whose metric holds, by `search` over the curve of the recipe's budget.

    The report has the choice as `allocation`, with all that was tried. GateFailed where none holds.
    """
    output, budget = os.fspath(output), recipe.budget or Budget()
    if any(value is not None for value in (budget.target_size, budget.target_ratio, budget.target_bits)):
        raise UsageError("a search finds the size itself: give no target")
    if settings.get("dry_run"):
        raise UsageError("a search has to write what it measures, so that there is no dry run of it")
    search = with_log(search, output)
    found = fitted(run, "tune", source, output, recipe, budget, stats=stats, **settings)
    checkpoint = open_checkpoint(source)
    check_apart(search.log, os.fspath(source), option="--log")
    quiet = {key: value for key, value in settings.items() if key not in ("force", "progress")}

    def write(made: Recipe, path: str) -> int:
        return run("tune", source, path, made, **quiet, **taken(made, found.stats)).plan.size_after

    identity = [*fingerprint(checkpoint), [one.key for one in found.candidates], found.informed]
    chosen, tried = tuned(found, search, output, identity, write, tell)
    made = found.recipe_for(chosen)
    settings |= taken(made, found.stats)
    report = run("tune", source, output, made, gates=gates, **settings)
    allocation = allocation_of(found, chosen, report.plan.size_after)
    said = f"--min-metric {search.minimum:g} of {search.metric}, {len(tried)} outputs tried"
    return replace(report, allocation=replace(allocation, asked=said, tried=tuple(tried)))


def fitted(
    run: Run,
    verb: str,
    source: Path,
    output: Path,
    recipe: Recipe,
    budget: Budget,
    *,
    stats: Path | None = None,
    **settings: Any,
) -> Fitting:
    """The surveyed input, for any number of choices."""
    if settings.get("save_base") is not None or any(stage.teacher is not None for stage in recipe.stages):
        raise UsageError("a budget is for recipes without a teacher")
    checkpoint = open_checkpoint(source)
    container = container_of(os.fspath(output), checkpoint.source)
    check_apart(os.fspath(output), os.fspath(source))
    if not settings.get("dry_run"):  # before the survey, which takes long
        check_place(os.fspath(output), folder=container == "folder", replace=bool(settings.get("force")))
    if budget.survey is not None:
        check_apart(budget.survey, os.fspath(source), option="--survey")
        check_apart(budget.survey, os.fspath(output), option="--survey", of="output")
    planning = {key: settings[key] for key in _PLANNING if key in settings}
    given = recipe.stats if stats is None else os.fspath(stats)

    def dry_run(asked: Recipe, **more: Any) -> Report:
        more |= {**planning, **taken(asked, given), "dry_run": True}
        return run(verb, source, output, asked, **more)

    return fitting(checkpoint, container, replace(recipe, stats=None), budget, dry_run, given)


def taken(recipe: Recipe, stats: str | None) -> dict[str, Any]:
    """The statistics as a setting, where a stage takes them."""
    takes = (
        stage.stats is None and (stage.statistics or stage.method.with_statistics()) for stage in recipe.stages
    )
    return {"stats": stats} if stats is not None and any(takes) else {}
