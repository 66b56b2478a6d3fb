"""`store = archive`, which is of a whole output and not of a stage, although the last stage may say it."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from compressor.core.errors import UsageError
from compressor.files.layout import Container
from compressor.recipe.model import Recipe

Effort = Literal["fast", "small"]
StoreAs = Literal["stages", "archive"]


def archive_store(recipe: Recipe, store: StoreAs, container: Container) -> tuple[Recipe, bool]:
    """The recipe without the word `archive`, and whether its output is to be one: where its last stage or `store`
    says so. UsageError where the container holds none."""
    asked = [number for number, stage in enumerate(recipe.stages) if stage.store == "archive"]
    if asked and asked != [len(recipe.stages) - 1]:
        raise UsageError(
            f"stage {asked[0]} stores an archive, which holds the whole output", remedy="Put it on the last stage"
        )
    if not asked and store != "archive":
        return recipe, False
    if container not in ("safetensors", "folder"):
        raise UsageError(f"an .{container} holds no archive", remedy="Write .safetensors, or a folder")
    stages = tuple(replace(stage, store="auto") if stage.store == "archive" else stage for stage in recipe.stages)
    return replace(recipe, stages=stages), True


def shown_as_archive(recipe: Recipe) -> Recipe:
    """The recipe that says itself that its output is an archive. UsageError where none can."""
    if not recipe.stages or recipe.stages[-1].store not in ("auto", "archive"):
        said = "--store archive is no recipe's own here: no last stage leaves open how it stores"
        raise UsageError(said, remedy="Leave it out to see the recipe, and give it beside that")
    *before, last = recipe.stages
    return replace(recipe, stages=(*before, replace(last, store="archive")))
