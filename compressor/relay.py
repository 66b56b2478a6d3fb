"""Recipes with training after other stages, run in legs: a network is trained whole, so what comes before it must
be complete, and is written out beside the output until the next leg has read it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import reduce
from typing import Any

from compressor.errors import UsageError
from compressor.files.atomic import Staging, as_unfinished
from compressor.plan import Plan
from compressor.recipe import Recipe
from compressor.results import Report
from compressor.target import check_apart
from compressor.training.request import METHOD

Run = Callable[..., Report]


def legs(recipe: Recipe, source: str) -> list[Recipe]:
    """The recipe in parts that are each one pass; who trains without a teacher of its own learns from `source`."""
    found = []
    for part in recipe.legs:
        training = part.training
        if training is not None and not training.teacher:
            training = replace(training, teacher=source)
        found.append(replace(part, training=training))
    return found


def takes_teacher(recipe: Recipe) -> bool:
    """Whether any stage learns from a teacher."""
    return any(
        part.training is not None or any(stage.teacher is not None for stage in part.stages) for part in recipe.legs
    )


def with_inputs(recipe: Recipe, inputs: str | None) -> Recipe:
    """The recipe with example inputs for the trainings that name none; UsageError where all name their own."""
    if inputs is None:
        return recipe
    if all(leg.training is None or leg.training.inputs for leg in recipe.legs):
        raise UsageError("--inputs: no stage takes them, or all name their own", remedy="Leave it out")
    filled = []
    for leg in recipe.legs:
        if leg.training is not None and not leg.training.inputs:
            leg = replace(leg, training=replace(leg.training, inputs=inputs))
        filled.append(leg)
    return reduce(lambda earlier, leg: replace(leg, earlier=earlier), filled)


def relay(run: Run, source: str, output: str, recipe: Recipe, settings: dict[str, Any]) -> Report:
    """Run the legs one after the other with `run_recipe`; the report of the last, with the stages of all.

    Its changes, and so the limits of gates, are those of the last leg; sizes go by `source`. A dry run does all but
    train, so that sizes are exact, and leaves nothing behind.
    """
    parts = legs(recipe, source)
    if any(part.training is not None and not part.training.inputs for part in parts):
        raise UsageError(f"method {METHOD} needs example inputs", remedy="Give --inputs FILE.npy")
    if len(parts) == 1:
        return run("pipeline", source, output, parts[0], **settings)
    dry, stats = settings.get("dry_run", False), settings.pop("stats", None) or recipe.stats
    check_apart(output, source, *(path for part in parts if part.training for path in part.training.files))
    own = {key: settings[key] for key in ("workers", "progress", "processes", "non_finite") if key in settings}
    taken, plans = source, list[Plan]()
    with _between(output) as place:
        for number, part in enumerate(parts):
            if dry and part.training is not None:
                part = replace(part, training=replace(part.training, rehearsal=True))
            asks = any(stage.statistics and stage.stats is None for stage in part.stages)
            given = {"stats": stats if asks else None}
            if number == len(parts) - 1:
                report = run("pipeline", taken, output, replace(part, stats=None), **settings, **given)
                break
            written = os.path.join(place, f"{number}{'.safetensors' if os.path.isfile(source) else ''}")
            plans.append(run("pipeline", taken, written, replace(part, stats=None), **own, **given).plan)
            as_unfinished()
            taken = written
    said = [*plans, report.plan]
    plan = replace(
        report.plan,
        source=said[0].source,
        size_before=said[0].size_before,
        stages=tuple(stage for one in said for stage in one.stages),
        notes=tuple(dict.fromkeys(note for one in said for note in one.notes)),
        cuts=tuple(cut for one in said for cut in one.cuts),
    )
    return replace(report, input=source, plan=plan)


@contextmanager
def _between(output: str) -> Iterator[str]:
    """A hidden folder beside the output, gone in the end whatever happens."""
    staging = Staging(f"{output.rstrip('/')}.legs", folder=True, replace=True)
    try:
        yield staging.path
    finally:
        staging.discard()
