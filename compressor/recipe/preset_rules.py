"""The rules that a preset stands for, once the tensors of the checkpoint are known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from compressor.recipe.model import Recipe
from compressor.recipe.presets import rules


def with_presets(recipe: Recipe, names: Sequence[str]) -> Recipe:
    """The recipe with its presets turned into rules for tensors of these names, after the user's own."""
    stages = []
    for stage in recipe.stages:
        if stage.preset:
            added = rules(stage.preset, names, stage.method.named_layout)
            made = tuple((glob, replace(stage.method, **options)) for glob, options in added)
            stage = replace(stage, rules=stage.rules + made, preset="")
        stages.append(stage)
    return replace(recipe, stages=tuple(stages))
