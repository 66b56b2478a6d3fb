"""Recipes: TOML, `--stage` texts and Python keywords, all turned into the same frozen dataclasses.

`toml_file.py` reads and writes the files. Nothing here is lenient: unknown keys, wrong types and values out of
range are errors that name the place in the recipe. Text from the command line is converted by the type of the
option it is for.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from compressor.core.errors import UsageError
from compressor.core.tensor import TensorSpec
from compressor.methods.contract import Method, Scheme
from compressor.methods.model_method import Reshape
from compressor.methods.structured_cut import StructuredCut
from compressor.recipe.budget import Budget
from compressor.recipe.gates import Gates
from compressor.recipe.selection import LeftAlone, left_alone, matches, patterns
from compressor.recipe.training import OfNetworks
from compressor.recipe.when import Conditions

Cut = StructuredCut | Reshape
Store = Literal["auto", "dense", "packed", "codes", "bitmask", "csr", "nm", "smallest", "archive"]


@dataclass(frozen=True)
class Stage:
    """One step of a recipe: a method, where it applies, and overrides by tensor name (first match wins). `store`
    auto is what suits the container: numbers of a transform, codes of an encoder. `stats` is the file of statistics
    of layer inputs, or (`scored`) of their scores, that its methods go by. `kept` are names of tensors that a
    budget leaves as they are, and why; a recipe gives them as excluded. `implied`: nobody named the preset, or the
    choice of tensors: it is what llama.cpp's users take for granted."""

    method: Method
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    rules: tuple[tuple[str, Method], ...] = ()
    store: Store = "auto"
    teacher: str | None = None
    fallback: bool = False
    preset: str = ""
    stats: str | None = None
    scored: bool = False
    when: Conditions | None = None
    kept: Mapping[str, LeftAlone] = field(default_factory=dict, hash=False)
    implied: bool = False

    @property
    def adapts(self) -> bool:
        """Whether the stage makes an adapter for what the stages before it leave."""
        return isinstance(self.method, Scheme) and self.method.adapter

    @property
    def methods(self) -> tuple[Method, ...]:
        """Its own method and those of its rules."""
        return (self.method, *(made for _, made in self.rules))

    @property
    def statistics(self) -> Method | None:
        """The first of its methods that goes by statistics of layer inputs."""
        return next((one for one in self.methods if one.statistics), None)

    @property
    def balances(self) -> bool:
        """Whether any of its methods has the model's inputs scaled, which goes by what the stages before left."""
        return any(one.balances for one in self.methods)

    def leaves(self, spec: TensorSpec) -> LeftAlone | None:
        """Why the stage leaves this tensor alone; None when it is to be treated."""
        why = left_alone(spec, self.method.verb, self.include, self.exclude) or self.kept.get(spec.name)
        return self.when.leaves(spec) if why is None and self.when is not None else why

    def method_for(self, name: str) -> Method:
        """The stage's method with the options of the first rule that matches the tensor."""
        text = matches(name, (rule for rule, _ in self.rules))
        return self.method if text is None else dict(self.rules)[text]

    def to_table(self) -> dict[str, Any]:
        """The stage as a recipe gives it, with the paths of other files."""
        table = self.describe()
        if self.preset:
            table["preset"] = self.preset
        if self.teacher:
            table[next(iter(self.method.partners), "teacher")] = self.teacher
        if self.stats is not None:
            table["scores" if self.scored else "stats"] = self.stats
        return table

    def describe(self) -> dict[str, Any]:
        """The stage as a recipe would give it; paths of other files are not part of what was done."""
        found: dict[str, Any] = {"kind": self.method.verb, **self.method.describe()}
        excluded = [*self.exclude, *patterns(list(self.kept))]
        if self.include:
            found["include"] = list(self.include)
        if excluded:
            found["exclude"] = excluded
        if self.store != "auto":
            found["store"] = self.store
        if self.fallback:
            found["fallback"] = True
        if self.when is not None:
            found["when"] = self.when.describe()
        if self.rules:
            found["rule"] = [{"match": text, **method.describe()} for text, method in self.rules]
        return found


@dataclass(frozen=True)
class Recipe:
    """Structured cuts, then a training, then stages, in the order in which they are applied; before them all comes
    what was `earlier` (see `workflows/legs.py`)."""

    stages: tuple[Stage, ...]
    name: str = ""
    description: str = ""
    cuts: tuple[Cut, ...] = ()
    stats: str | None = None
    gates: Gates = field(default_factory=Gates)
    report: Mapping[str, Any] = field(default_factory=dict)  # how to print: format, top, quiet
    budget: Budget | None = None
    training: OfNetworks | None = None
    earlier: Recipe | None = None

    @property
    def legs(self) -> tuple[Recipe, ...]:
        """The recipe in parts that are each one pass, the first one first."""
        return (*(self.earlier.legs if self.earlier is not None else ()), replace(self, earlier=None))


Item = Stage | StructuredCut | OfNetworks


def recipe_of(stages: Iterable[Item], where: str = "", name: str = "", description: str = "") -> Recipe:
    """A recipe of these stages; UsageError where a structured cut would follow another stage."""
    cuts: list[Cut] = []
    others: list[Stage] = []
    training: OfNetworks | None = None
    earlier: Recipe | None = None
    for number, stage in enumerate(stages):
        if isinstance(stage, Stage) and stage.adapts and (others or cuts or training is not None):
            earlier = Recipe(tuple(others), cuts=tuple(cuts), training=training, earlier=earlier)
            cuts, others, training = [], [], None
        if isinstance(stage, OfNetworks):
            if others or training is not None:
                earlier = Recipe(tuple(others), cuts=tuple(cuts), training=training, earlier=earlier)
                cuts, others = [], []
            training = stage
            continue
        if isinstance(stage, Stage) and stage.balances and any(one.method.verb != "quantize" for one in others):
            earlier = Recipe(tuple(others), cuts=tuple(cuts), training=training, earlier=earlier)
            cuts, others, training = [], [], None
        cut = stage.method if isinstance(stage, Stage) else stage
        if isinstance(stage, Stage) and not isinstance(cut, Reshape):
            others.append(stage)
        elif others or training is not None:
            raise UsageError(
                f"{where}stage[{number}]: a structured cut must come before all other stages, which then work on "
                "what it leaves"
            )
        elif isinstance(cut, StructuredCut | Reshape):
            cuts.append(cut)
    return Recipe(tuple(others), name, description, tuple(cuts), training=training, earlier=earlier)


# ---- stages and recipes --------------------------------------------------------------------------------
