"""The rules that a preset stands for, once the tensors of the checkpoint are known."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from compressor.architectures.ggml_mixtures import GgmlModel, Kind, kind_of, mixture
from compressor.core.errors import UsageError
from compressor.core.tensor import TensorSpec
from compressor.methods.registry import make_method
from compressor.recipe.presets import MIXTURES, rules

if TYPE_CHECKING:
    from compressor.recipe.model import Recipe, Stage


def with_presets(recipe: Recipe, specs: Sequence[TensorSpec], model: GgmlModel | None) -> Recipe:
    """The recipe with its presets turned into rules for these tensors, after the user's own; `model` is what a GGUF
    model's metadata say. UsageError where a preset needs them and there are none."""
    stages = []
    for stage in recipe.stages:
        if stage.preset in MIXTURES:
            stage = _mixed(stage, specs, model)
        elif stage.preset:
            added = rules(stage.preset, [spec.name for spec in specs], stage.method.named_layout)
            made = tuple((glob, replace(stage.method, **options)) for glob, options in added)
            stage = replace(stage, rules=stage.rules + made, preset="")
        stages.append(stage)
    return replace(recipe, stages=tuple(stages))


def _mixed(stage: Stage, specs: Sequence[TensorSpec], model: GgmlModel | None) -> Stage:
    """The stage for what llama.cpp quantizes, with a rule for each scheme of the mixture but its own."""
    if model is None:
        raise UsageError(
            f"preset {stage.preset} goes by what a .gguf says of its model, and the input says nothing",
            remedy="Write a .gguf (-o NAME.gguf), or use --scheme",
        )
    informed = stage.stats is not None
    schemes = mixture(stage.preset, MIXTURES[stage.preset], specs, model, informed=informed)
    ends = {
        name for name in schemes if kind_of(name) in (Kind.OUTPUT, Kind.EMBEDDING)
    }  # nobody gathers their inputs
    made = []
    for scheme, apart in dict.fromkeys((own, informed and name in ends) for name, own in schemes.items()):
        method = make_method("quantize", {"scheme": scheme})
        if informed and not apart:
            method = method.with_statistics() or method
        if method != stage.method:
            names = [name for name, own in schemes.items() if (own, informed and name in ends) == (scheme, apart)]
            made.append((_any_of(names), method))
    include = stage.include or (_any_of(schemes),)
    return replace(stage, include=include, rules=(*stage.rules, *made), preset="")


def _any_of(names: Iterable[str]) -> str:
    """A pattern of these names, those of layers that differ in nothing but the layer together."""
    layers: dict[str, list[str]] = {}
    for name in names:
        found = re.fullmatch(r"blk\.(\d+)\.(.*)", name)
        head, rest = (found[1], found[2]) if found else ("", name)
        layers.setdefault(rest, []).append(head)
    told: dict[str, list[str]] = {}
    for rest, numbers in layers.items():
        told.setdefault("|".join(numbers), []).append(re.escape(rest))
    texts = [
        (rf"blk\.(?:{numbers})\." if numbers else "") + f"(?:{'|'.join(rests)})" for numbers, rests in told.items()
    ]
    return f"re:{'|'.join(texts)}"
