"""The legs of a recipe: parts that are each one pass, because a network is trained whole, so that what comes before
it must be complete; and because an adapter is for what the stages before it leave."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import reduce

from compressor.core.errors import UsageError
from compressor.methods.structured_cut import StructuredCut
from compressor.recipe.model import Recipe, Stage


def plan_legs(recipe: Recipe, source: str) -> list[Recipe]:
    """The recipe in parts that are each one pass; who needs a teacher and names none learns from `source`, the path
    that the whole recipe begins with. UsageError where that would be the student itself, or a training has no
    example inputs."""
    legs = []
    for number, leg in enumerate(recipe.legs):
        untaught = next((stage for stage in leg.stages if stage.teacher == ""), None)
        if untaught is not None:
            if not number:
                raise UsageError(f"method {untaught.method.id} needs a teacher", remedy="Give --teacher PATH")
            leg = replace(leg, stages=tuple(_taught(stage, source) for stage in leg.stages))
        training = leg.training
        if training is not None and training.needs_inputs and not training.inputs:
            raise UsageError(f"method {training.label} needs example inputs", remedy="Give --inputs FILE.npy")
        if training is not None and not training.teacher:
            leg = replace(leg, training=replace(training, teacher=source))
        legs.append(leg)
    return legs


def _taught(stage: Stage, teacher: str) -> Stage:
    return replace(stage, teacher=teacher) if stage.teacher == "" else stage


def asks_for_statistics(leg: Recipe) -> bool:
    """Whether a stage of it takes statistics that it does not name, or a cut may."""
    cuts = [cut for cut in leg.cuts if isinstance(cut, StructuredCut) and cut.stats is None and cut.layers is None]
    return any(stage.statistics and stage.stats is None for stage in leg.stages) or any(
        cut.importance in ("inputs", "influence") or cut.takes_statistics for cut in cuts
    )


def count_of(leg: Recipe) -> int:
    """How many stages of the user's a leg has."""
    return len(leg.cuts) + (leg.training is not None) + len(leg.stages)


def words_of(leg: Recipe) -> str:
    """What a leg does, in the words of its recipe."""
    cuts = [str(cut.describe().get("kind")) for cut in leg.cuts]
    trained = [f"distill {leg.training.label}"] if leg.training is not None else []
    return ", ".join([*cuts, *trained, *(f"{stage.method.verb} {stage.method.id}" for stage in leg.stages)])


def makes_adapter_of(legs: Sequence[Recipe]) -> bool:
    """Whether the last leg makes an adapter for what the legs before it leave."""
    return len(legs) > 1 and any(stage.adapts for stage in legs[-1].stages)


def rehearsal_of(leg: Recipe) -> Recipe:
    """A leg with everything but the training itself, so that its sizes are exact."""
    return leg if leg.training is None else replace(leg, training=replace(leg.training, rehearsal=True))


def takes_teacher(recipe: Recipe) -> bool:
    """Whether any stage learns from a teacher."""
    return any(
        leg.training is not None or any(stage.teacher is not None for stage in leg.stages) for leg in recipe.legs
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
