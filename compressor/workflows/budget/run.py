"""Recipes under a budget: made first, told, and then run like any other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from compressor.calibration.fingerprint import fingerprint
from compressor.core import cleanup
from compressor.core.errors import UsageError
from compressor.files.destination import check_apart, container_of
from compressor.files.writing import check_output
from compressor.recipe.budget import Budget
from compressor.recipe.for_loader import for_loader
from compressor.recipe.model import Recipe
from compressor.workflows.budget.choice import Allocation, Evaluation
from compressor.workflows.budget.curve import allocation_of
from compressor.workflows.budget.errand import Errand
from compressor.workflows.budget.fit import Fitting, fitting
from compressor.workflows.budget.meet_in_archive import met
from compressor.workflows.budget.tune import Measure, tuned
from compressor.workflows.one_pass import Origin, open_input
from compressor.workflows.results import Report
from compressor.workflows.run_options import RunOptions


def run_budget(
    verb: str,
    source: str,
    output: str,
    recipe: Recipe,
    options: RunOptions,
    *,
    tell: Callable[[Allocation], None] | None = None,
    origin: Origin | None = None,
) -> Report:
    """Survey, choose and run. `tell` is given the choice before anything is written.

    The report has the choice as `allocation`. GateFailed where the recipe's budget cannot be met; else as
    `run_one_pass`.
    """
    budget = recipe.budget or Budget()
    if not budget.asked:
        raise UsageError(
            "there is nothing to meet",
            remedy="Give --target-size, --target-ratio, --target-bits, --max-error or --min-sqnr",
        )
    if budget.max_error is not None:  # what was measured on a sample is judged on the result
        options = replace(options, gates=replace(options.gates, max_error=budget.max_error))
    if budget.text is not None and options.dry_run:
        raise UsageError("what errors cost is measured on a trial, so that there is no dry run of --text")
    surveyed = _surveyed(_errand(verb, source, output, recipe, options, origin), recipe, budget)
    if budget.text is not None:
        from compressor.workflows.budget.slopes import by_slopes

        surveyed = by_slopes(surveyed, budget.text)
    if surveyed.archived:
        reached = met(surveyed, trials=not options.dry_run)
        surveyed, chosen = reached.found, reached.chosen
        allocation = allocation_of(surveyed, chosen, reached.size_after, reached.sizes)
    else:
        chosen = surveyed.choice()
        allocation = allocation_of(surveyed, chosen, surveyed.plan(chosen).size_after)
    if tell is not None:
        tell(allocation)
    return replace(surveyed.errand.carry_out(surveyed.recipe_for(chosen)), allocation=allocation)


def run_tune(
    source: str,
    output: str,
    recipe: Recipe,
    search: Measure,
    options: RunOptions,
    *,
    tell: Callable[[Evaluation], None] | None = None,
) -> Report:
    """The smallest output whose metric holds, by `search` over the curve of the recipe's budget. `tell` is given
    each output that was measured.

    The report has the choice as `allocation`, with all that was tried. GateFailed where none holds.
    """
    cleanup.begin()
    options.check_work(source, output)
    recipe = for_loader(recipe, options.loader)
    budget = recipe.budget or Budget()
    if any(value is not None for value in (budget.target_size, budget.target_ratio, budget.target_bits)):
        raise UsageError("a search finds the size itself: give no target")
    if options.part is not None:
        raise UsageError("a search goes by whole outputs, so that it has no parts", remedy="Leave --part out")
    if options.dry_run:
        raise UsageError("a search has to write what it measures, so that there is no dry run of it")
    search.check()
    if search.log:
        check_apart(search.log, output, option="--log", of="output")
        check_apart(search.log, source, option="--log")
    search.check_input(source)
    surveyed = _surveyed(_errand("tune", source, output, recipe, options), recipe, budget)
    checkpoint = open_input(source, options)
    identity = [*fingerprint(checkpoint), [one.key for one in surveyed.candidates], surveyed.informed]
    chosen, tried = tuned(surveyed, search, identity, tell)
    report = surveyed.errand.carry_out(surveyed.recipe_for(chosen))
    allocation = allocation_of(surveyed, chosen, report.plan.size_after)
    asked = f"{search.limit}, {len(tried)} outputs tried"
    return replace(report, allocation=replace(allocation, asked=asked, tried=tuple(tried)))


def _errand(
    verb: str, source: str, output: str, recipe: Recipe, options: RunOptions, origin: Origin | None = None
) -> Errand:
    return Errand(verb, source, output, options, options.stats or recipe.stats, origin)


def _surveyed(errand: Errand, recipe: Recipe, budget: Budget) -> Fitting:
    """The surveyed input, for any number of choices. UsageError or OutputError, before the survey, which takes
    long, for what could not be carried out after it."""
    options = errand.options
    if options.save_base is not None or any(stage.teacher is not None for stage in recipe.stages):
        raise UsageError("a budget is for recipes without a teacher")
    checkpoint = open_input(errand.source, options)
    container = container_of(errand.output, checkpoint.source)
    check_apart(errand.output, errand.source)
    if not options.dry_run:
        check_output(errand.output, folder=container == "folder", replace=options.force)
    if budget.survey is not None:
        check_apart(budget.survey, errand.source, option="--survey")
        check_apart(budget.survey, errand.output, option="--survey", of="output")
    archived = options.store == "archive" or any(stage.store == "archive" for stage in recipe.stages[-1:])
    return fitting(checkpoint, container, replace(recipe, stats=None), budget, errand, archived=archived)
