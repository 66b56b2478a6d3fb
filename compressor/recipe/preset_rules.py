"""The rules that a preset stands for, once the tensors of the checkpoint are known."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from compressor.architectures.ggml_mixtures import GgmlModel, Kind, is_quantized, kind_of, mixture
from compressor.core.errors import UsageError
from compressor.core.tensor import TensorSpec
from compressor.methods.contract import Scheme
from compressor.methods.registry import make_method
from compressor.recipe.presets import MIXTURES, rules

if TYPE_CHECKING:
    from compressor.recipe.model import Recipe, Stage


_STORED_AS_BLOCKS = ("auto", "packed")
_PURE = "pure"


def for_gguf(recipe: Recipe) -> Recipe:
    """The recipe of a run that writes a `.gguf`: where a stage asks for bits, or for nothing, a mixture of
    llama.cpp's; where it names a type of ggml's, the tensors that `llama-quantize --pure` would take."""
    return replace(recipe, stages=tuple(map(_implied, recipe.stages)))


def _implied(stage: Stage) -> Stage:
    meant = stage.method.in_gguf if isinstance(stage.method, Scheme) else ""
    if not meant or stage.preset or stage.store not in _STORED_AS_BLOCKS or (meant == _PURE and stage.include):
        return stage
    if meant == _PURE:
        return replace(stage, implied=True)
    return replace(stage, method=make_method("quantize", {"scheme": MIXTURES[meant]}), preset=meant, implied=True)


def implied_notes(recipe: Recipe, model: GgmlModel | None) -> Iterator[str]:
    """What is taken where nobody named it."""
    for stage in recipe.stages:
        if not stage.implied:
            continue
        scheme = stage.method.id
        known = model is not None and not model.images
        if stage.preset and known:
            yield f"no type of ggml's was named: this is llama.cpp's mixture {stage.preset} (--preset)"
        elif stage.preset:
            yield f"no type of ggml's was named: this is {scheme} (--scheme)"
        elif known:
            yield (
                f"{scheme} is for all tensors that `llama-quantize --pure` takes, embedding and output head too: "
                "--exclude leaves them, --preset mixes types"
            )


def with_presets(
    recipe: Recipe, specs: Sequence[TensorSpec], model: GgmlModel | None, *, allow_unmatched: bool = False
) -> Recipe:
    """The recipe with its presets turned into rules for these tensors, after the user's own; `model` is what a GGUF
    model's metadata say. UsageError where a preset needs them and there are none, and, unless `allow_unmatched`,
    where none of the tensors is one that the preset treats otherwise than the rest."""
    stages = []
    for stage in recipe.stages:
        if stage.implied and (model is None or model.images):  # one type, of all layers
            stage = replace(stage, preset="", implied=False)
        if stage.preset in MIXTURES or stage.implied:
            stage = _mixed(stage, specs, model)
        elif stage.preset:
            added = rules(stage.preset, specs, stage.method.named_layout)
            if not added and not allow_unmatched:
                raise _unfit(stage.preset)
            made = tuple((glob, replace(stage.method, **options)) for glob, options in added)
            stage = replace(stage, rules=stage.rules + made, preset="")
        stages.append(stage)
    return replace(recipe, stages=tuple(stages))


def _unfit(preset: str) -> UsageError:
    if preset == "edge-conv":
        return UsageError(
            f"preset {preset}: there are no kernels, so this is no network of convolutions",
            remedy="Use --bits 4 --granularity channel, and --set 'PATTERN:bits=8' for what is to get more",
        )
    return UsageError(
        f"preset {preset}: by their names none of the tensors is a value or down projection of a layer, which it "
        "gives more bits",
        remedy="Use --bits 4, which the rest gets, and --set 'PATTERN:bits=8' for what is to get more",
    )


def _mixed(stage: Stage, specs: Sequence[TensorSpec], model: GgmlModel | None) -> Stage:
    """The stage for what llama.cpp quantizes, with a rule for each scheme of the mixture but its own."""
    if model is None:
        raise UsageError(
            f"preset {stage.preset} goes by what a .gguf says of its model, and the input says nothing",
            remedy="Use --scheme, or write a .gguf of a model's folder (-o NAME.gguf)",
        )
    informed = stage.stats is not None
    if model.images:
        from compressor.architectures.image_mixtures import image_mixture

        schemes = image_mixture(stage.preset, MIXTURES[stage.preset], specs, model.architecture)
    elif stage.preset:
        schemes = mixture(stage.preset, MIXTURES[stage.preset], specs, model, informed=informed)
    else:
        schemes = {spec.name: stage.method.id for spec in specs if is_quantized(spec)}
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
    return replace(stage, include=include, rules=(*stage.rules, *made), preset="", implied=False)


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
