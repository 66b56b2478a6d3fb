"""A recipe for a loader: what its stages leave open of layouts is what that loader reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from compressor.architectures.loaders import READERS, Loader
from compressor.methods.contract import Method
from compressor.methods.options import options_of
from compressor.recipe.model import Recipe, Stage


def for_loader(recipe: Recipe, loader: Loader | None) -> Recipe:
    """The recipe with the options that the loader needs where methods leave them as they are by default. UsageError
    where the other options contradict these."""
    needed = {} if loader is None else READERS[loader].options
    if not needed:
        return recipe
    earlier = None if recipe.earlier is None else for_loader(recipe.earlier, loader)
    stages = tuple(_stage(stage, needed) for stage in recipe.stages)
    return replace(recipe, stages=stages, earlier=earlier)


def _stage(stage: Stage, needed: Mapping[str, Any]) -> Stage:
    rules = tuple((text, _method(method, needed)) for text, method in stage.rules)
    return replace(stage, method=_method(stage.method, needed), rules=rules)


def _method(method: Method, needed: Mapping[str, Any]) -> Method:
    own = options_of(type(method))
    opened = {
        name: value
        for name, value in needed.items()
        if name in own and getattr(method, name) == getattr(type(method), name)
    }
    return replace(method, **opened) if opened else method
