"""What was done, as a plan and the files record it: the stages of a recipe and what they went by."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from compressor.calibration.statistics import Statistics
from compressor.recipe.model import Recipe, Stage


def described(recipe: Recipe, statistics: Mapping[int, Statistics]) -> Iterator[Mapping[str, Any]]:
    """All that is done as a recipe would give it, in order; `statistics` of layer inputs, by the number of the cut
    or stage that goes by them, are told by the hash that they are known by."""
    for number, stage in enumerate((*recipe.cuts, *recipe.stages)):
        if number == len(recipe.cuts):
            yield from _trained(recipe)
        record = stage.describe()
        if number in statistics:
            methods = (stage.method, *(method for _, method in stage.rules)) if isinstance(stage, Stage) else ()
            grams = any(method.statistics == "gram" or method.balances for method in methods)
            scored = isinstance(stage, Stage) and stage.scored
            record["scores" if scored else "stats"] = f"sha256:{statistics[number].identity(grams=grams)}"
        yield record
    if not recipe.stages:
        yield from _trained(recipe)


def _trained(recipe: Recipe) -> Iterator[Mapping[str, Any]]:
    """Training comes between cuts and stages."""
    if recipe.training is not None:
        yield recipe.training.describe()
