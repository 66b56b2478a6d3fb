"""Recipes under a budget: made first, told, and then run like any other. `run` is always `api.run_recipe`."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from compressor.calibration.fingerprint import fingerprint
from compressor.checkpoint.checkpoint import open_checkpoint
from compressor.core.errors import UsageError
from compressor.engine.plan.plan import Plan
from compressor.files.destination import check_apart, container_of
from compressor.files.staging import Staging, check_place
from compressor.recipe.budget import Budget
from compressor.recipe.gates import Gates
from compressor.recipe.model import Recipe
from compressor.workflows.budget.choice import Allocation, Evaluation
from compressor.workflows.budget.curve import allocation_of
from compressor.workflows.budget.fit import Fitting, fitting
from compressor.workflows.budget.meet_in_archive import met
from compressor.workflows.budget.tune import Search, tuned, with_log
from compressor.workflows.results import Report

Path = str | os.PathLike[str]
Run = Callable[..., Report]
# Of `run_recipe`: what planning and surveying go by, beside what only the run that writes does
_WRITING = ("force", "progress", "save_mask", "work", "keep_work")  # and what only the last of them does
_PLANNING = ("strict", "requantize", "non_finite", "workers", "processes")


@dataclass(frozen=True)
class _Errand:
    """What is to be done to what, before a recipe is chosen for it; `settings` as `run`'s."""

    run: Run
    verb: str
    source: str
    output: str
    recipe: Recipe
    stats: Path | None
    settings: Mapping[str, Any]

    @property
    def budget(self) -> Budget:
        return self.recipe.budget or Budget()

    def survey(self) -> Fitting:
        """The surveyed input, for any number of choices."""
        settings, budget = self.settings, self.budget
        if settings.get("save_base") is not None or any(stage.teacher is not None for stage in self.recipe.stages):
            raise UsageError("a budget is for recipes without a teacher")
        checkpoint = open_checkpoint(self.source)
        container = container_of(self.output, checkpoint.source)
        check_apart(self.output, self.source)
        if not settings.get("dry_run"):  # before the survey, which takes long
            check_place(self.output, folder=container == "folder", replace=bool(settings.get("force")))
        if budget.survey is not None:
            check_apart(budget.survey, self.source, option="--survey")
            check_apart(budget.survey, self.output, option="--survey", of="output")
        planning = {key: settings[key] for key in _PLANNING if key in settings}
        stats = self.recipe.stats if self.stats is None else os.fspath(self.stats)

        def dry_run(asked: Recipe, **more: Any) -> Report:
            more |= {**planning, **taken(asked, stats), "dry_run": True}
            return self.run(self.verb, self.source, self.output, asked, **more)

        archived = settings.get("store") == "archive" or any(
            one.store == "archive" for one in self.recipe.stages[-1:]
        )
        open_recipe = replace(self.recipe, stats=None)
        return fitting(checkpoint, container, open_recipe, budget, dry_run, stats, archived=archived)

    def trial(self, stats: str | None) -> Callable[[Recipe], Plan]:
        """What writes the output of a recipe beside its place, under a hidden name, to see how large it becomes."""
        quiet = {key: value for key, value in self.settings.items() if key not in _WRITING}
        place = self.output.rstrip("/")

        def write(made: Recipe) -> Plan:
            staging = Staging(f"{place}.trial", folder=True, replace=False)
            try:
                path = os.path.join(staging.path, os.path.basename(place))
                return replace(self, output=path, settings=quiet).carry_out(made, stats, None).plan
            finally:
                staging.discard()

        return write

    def carry_out(self, made: Recipe, stats: str | None, gates: Gates | None) -> Report:
        settings = {**self.settings, **taken(made, stats)}
        return self.run(self.verb, self.source, self.output, made, gates=gates, **settings)


def run_budget(
    run: Run,
    verb: str,
    source: Path,
    output: Path,
    recipe: Recipe,
    *,
    tell: Callable[[Allocation], None] | None = None,
    stats: Path | None = None,
    gates: Gates | None = None,
    **settings: Any,
) -> Report:
    """Survey, choose and run. `tell` is given the choice before anything is written; `settings` as `run`'s.

    The report has the choice as `allocation`. GateFailed where the recipe's budget cannot be met.
    """
    errand = _Errand(run, verb, os.fspath(source), os.fspath(output), recipe, stats, settings)
    budget = errand.budget
    if not budget.asked:
        raise UsageError(
            "there is nothing to meet",
            remedy="Give --target-size, --target-ratio, --target-bits, --max-error or --min-sqnr",
        )
    if budget.max_error is not None:  # what was measured on a sample is judged on the result
        gates = replace(gates or Gates(), max_error=budget.max_error)
    found = errand.survey()
    if found.archived:
        reached = met(found, None if settings.get("dry_run") else errand.trial(found.stats))
        found, chosen = reached.found, reached.chosen
        allocation = allocation_of(found, chosen, reached.size_after, reached.sizes)
    else:
        chosen = found.choice()
        allocation = allocation_of(found, chosen, found.plan(chosen).size_after)
    if tell is not None:
        tell(allocation)
    return replace(errand.carry_out(found.recipe_for(chosen), found.stats, gates), allocation=allocation)


def run_tune(
    run: Run,
    source: Path,
    output: Path,
    recipe: Recipe,
    search: Search,
    *,
    tell: Callable[[Evaluation], None] = lambda one: None,
    stats: Path | None = None,
    gates: Gates | None = None,
    **settings: Any,
) -> Report:
    """The smallest output whose metric holds, by `search` over the curve of the recipe's budget.

    The report has the choice as `allocation`, with all that was tried. GateFailed where none holds.
    """
    errand = _Errand(run, "tune", os.fspath(source), os.fspath(output), recipe, stats, settings)
    budget = errand.budget
    if any(value is not None for value in (budget.target_size, budget.target_ratio, budget.target_bits)):
        raise UsageError("a search finds the size itself: give no target")
    if settings.get("dry_run"):
        raise UsageError("a search has to write what it measures, so that there is no dry run of it")
    search = with_log(search, errand.output)
    found = errand.survey()
    checkpoint = open_checkpoint(errand.source)
    check_apart(search.log, errand.source, option="--log")
    quiet = {key: value for key, value in settings.items() if key not in ("force", "progress")}

    def write(made: Recipe, path: str) -> int:
        aside = replace(errand, output=path, settings=quiet)
        return aside.carry_out(made, found.stats, None).plan.size_after

    identity = [*fingerprint(checkpoint), [one.key for one in found.candidates], found.informed]
    chosen, tried = tuned(found, search, errand.output, identity, write, tell)
    report = errand.carry_out(found.recipe_for(chosen), found.stats, gates)
    allocation = allocation_of(found, chosen, report.plan.size_after)
    said = f"--min-metric {search.minimum:g} of {search.metric}, {len(tried)} outputs tried"
    return replace(report, allocation=replace(allocation, asked=said, tried=tuple(tried)))


def taken(recipe: Recipe, stats: str | None) -> dict[str, Any]:
    """The statistics as a setting, where a stage takes them."""
    takes = (
        stage.stats is None and (stage.statistics or stage.method.with_statistics()) for stage in recipe.stages
    )
    return {"stats": stats} if stats is not None and any(takes) else {}
