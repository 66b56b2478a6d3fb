"""What of a recipe needs a teacher or example inputs from outside."""

from __future__ import annotations

from dataclasses import replace
from functools import reduce

from compressor.core.errors import UsageError
from compressor.recipe.model import Recipe


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
