"""Which stages of a recipe go by statistics of layer inputs, and from which file."""

from __future__ import annotations

from dataclasses import replace

from compressor.core.errors import CompressorError, UsageError, raise_all
from compressor.methods.model_method import Reshape
from compressor.methods.structured_cut import StructuredCut
from compressor.recipe.model import Recipe, Stage


def with_statistics(recipe: Recipe, stats: str | None) -> Recipe:
    """The recipe whose stages know the file that they go by: their own, else `stats`, else the recipe's. Cuts that
    leave open what they go by take the common one where no stage needs it; else stages that can do without it do.

    UsageError where a stage lacks one, has one for nothing, or nothing would be done with `stats`.
    """
    common = stats or recipe.stats
    stages, problems, taken, used = [], list[CompressorError](), False, False
    by_cuts = any(map(_may_take, recipe.cuts))
    for stage in recipe.stages:
        if stage.stats is not None or (common is not None and not by_cuts):
            stage = _going_by_them(stage)
        needs = stage.statistics
        if needs is None and stage.stats is not None:
            problems.append(UsageError(f"{stage.method.verb} {stage.method.id} goes by no statistics: drop stats"))
        elif needs is not None and stage.stats is None:
            if common is None:
                problems.append(_lacking(f"{needs.verb} {needs.id}"))
            stage, taken = replace(stage, stats=common), True
        stages.append(stage)
    cuts: list[StructuredCut | Reshape] = []
    for cut in recipe.cuts:
        if isinstance(cut, StructuredCut) and _is_open(cut):
            asked = cut.importance in ("inputs", "influence")
            if asked and common is None:
                problems.append(_lacking(f"importance {cut.importance}"))
            elif common is not None and (asked or (cut.takes_statistics and not taken)):
                cut, used = replace(cut, stats=common), True
        cuts.append(cut)
    taken = taken or used
    if common is not None and not taken and not problems:
        own = any(stage.statistics for stage in recipe.stages) or any(
            isinstance(cut, StructuredCut) and cut.stats for cut in recipe.cuts
        )
        said = "its own" if own else "none"
        problems.append(UsageError(f"--stats: no stage takes it; what they go by is {said}", remedy="Leave it out"))
    raise_all(problems)
    return replace(recipe, stages=tuple(stages), cuts=tuple(cuts))


def _is_open(cut: StructuredCut) -> bool:
    return cut.stats is None and cut.layers is None


def _may_take(cut: StructuredCut | Reshape) -> bool:
    """Whether a cut goes by the common statistics, if there are some: those of layers that it makes narrower."""
    if not isinstance(cut, StructuredCut) or not _is_open(cut):
        return False
    return cut.importance in ("inputs", "influence") or cut.takes_statistics


def _lacking(what: str) -> UsageError:
    return UsageError(
        f"{what} goes by statistics of the layers' inputs",
        remedy="Give --stats FILE, which `compressor calibrate` makes",
    )


def _going_by_them(stage: Stage) -> Stage:
    """The stage with its methods going by statistics where they may."""
    method = stage.method.with_statistics() or stage.method
    return replace(stage, method=method, rules=tuple((t, one.with_statistics() or one) for t, one in stage.rules))
