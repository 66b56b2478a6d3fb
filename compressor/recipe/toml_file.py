"""Recipes as TOML: read from files or the package, and written again as what they come to.

extends = "w4a16"          another recipe, changed by this one (`extends.py`)
name, description, stats   texts
[[stage]]                  what is done, in order; `repeat` unrolls (`repeat.py`)
[[structure]]              dimensions that belong together, for `structure` cuts
[gate]                     limits that the result must keep
[report]                   how the result is printed
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import replace
from difflib import get_close_matches
from importlib import resources
from pathlib import Path
from typing import Any

import msgspec

from compressor.core.errors import CompressorError, UsageError, problems_of, raise_all
from compressor.core.text import printable, size_of
from compressor.files import strict_toml
from compressor.methods.structured_cut import StructuredCut, parse_description
from compressor.recipe.budget import parse_budget
from compressor.recipe.extends import Tables, extended
from compressor.recipe.gates import Gates
from compressor.recipe.legs import takes_teacher, with_inputs
from compressor.recipe.model import Item, Recipe, recipe_of
from compressor.recipe.repeat import unrolled
from compressor.recipe.stages import parse_stage, plain, stage_from_table


class _Gates(msgspec.Struct, forbid_unknown_fields=True):
    max_error: float | None = None
    min_ratio: float | None = None
    max_size: int | str | None = None
    min_sparsity: float | None = None


class _File(msgspec.Struct, forbid_unknown_fields=True):
    stage: list[dict[str, Any]] = []
    structure: list[dict[str, Any]] = []
    name: str = ""
    description: str = ""
    stats: str | None = None
    gate: _Gates = msgspec.field(default_factory=_Gates)
    report: dict[str, Any] = {}
    budget: dict[str, Any] | None = None


def recipe_for(
    recipe: Recipe | str | os.PathLike[str] | None,
    stages: Iterable[str] = (),
    teacher: str | os.PathLike[str] | None = None,
    inputs: str | os.PathLike[str] | None = None,
    *,
    bare: bool = False,
) -> Recipe:
    """The recipe that is meant: a TOML file, a ready one's name, or stage texts; `teacher` and `inputs` serve
    stages that name none. UsageError where both or neither are given, unless it may be `bare` of stages."""
    mentor = None if teacher is None else os.fspath(teacher)
    texts = list(stages)
    if recipe is None and not texts and bare:
        recipe = Recipe(())
    if (recipe is None) == (not texts):
        raise UsageError("give either a recipe or stages", remedy="--recipe FILE-or-NAME, or --stage, repeatedly")
    if recipe is None:
        recipe = recipe_of((parse_stage(text, mentor) for text in texts), "--stage: ")
    elif not isinstance(recipe, Recipe):
        recipe = load_recipe(os.fspath(recipe), mentor)
    if mentor is not None and not takes_teacher(recipe):
        raise UsageError("--teacher: no stage takes a teacher")
    return with_inputs(recipe, None if inputs is None else os.fspath(inputs))


def load_recipe(name: str, teacher: str | None = None) -> Recipe:
    """A recipe from a TOML file, or a ready one by its name."""
    text, where = _text(name)
    return parse_recipe(text, where, teacher, name)


def parse_recipe(text: str, where: str, teacher: str | None = None, name: str = "") -> Recipe:
    """A recipe from its TOML text; every error starts with `where` and the place in the file. What it extends is
    looked for from the folder of the file `name`."""
    tables = extended(strict_toml.parse(text, where), name, where, _base)
    try:
        found = msgspec.convert(tables, _File)
    except msgspec.ValidationError as error:
        raise UsageError(f"{where}: {printable(plain(error))}") from error
    if not found.stage:
        raise UsageError(f"{where}: has no [[stage]]")
    described = [
        parse_description(table, f"{where}: structure[{number}].") for number, table in enumerate(found.structure)
    ]
    stages: list[Item] = []
    problems: list[CompressorError] = []
    wrong = set[str]()  # of a repetition the first round that is wrong is enough
    for place, table in unrolled(found.stage, f"{where}: "):
        if place in wrong:
            continue
        try:
            stages.append(stage_from_table(table, place, teacher, described))
        except CompressorError as error:
            problems.extend(problems_of(error))
            wrong.add(place)
    raise_all(problems)
    recipe = recipe_of(stages, f"{where}: ", found.name, found.description)
    budget = None if found.budget is None else parse_budget(found.budget, f"{where}: budget.")
    recipe = replace(recipe, budget=budget)
    return replace(recipe, stats=found.stats, gates=_gates(found.gate, where), report=_report(found.report, where))


def ready_recipes() -> dict[str, str]:
    """The recipes that ship with the package: name → TOML text."""
    folder = resources.files("compressor") / "recipe" / "ready"
    files = sorted((entry for entry in folder.iterdir() if entry.name.endswith(".toml")), key=lambda e: e.name)
    return {entry.name.removesuffix(".toml"): entry.read_text(encoding="utf-8") for entry in files}


def effective(recipe: Recipe) -> str:
    """The TOML of a recipe that does what this one does, everything that was left open filled in."""
    tables: Tables = {key: value for key in ("name", "description") if (value := getattr(recipe, key))}
    cuts = [cut for leg in recipe.legs for cut in leg.cuts]
    described = [cut.described for cut in cuts if isinstance(cut, StructuredCut) and cut.described is not None]
    if described:
        tables["structure"] = [one.describe() for one in dict.fromkeys(described)]
    if recipe.gates != Gates():
        tables["gate"] = {key: value for key, value in vars(recipe.gates).items() if value is not None}
    if recipe.budget is not None:
        tables["budget"] = recipe.budget.to_table()
    if recipe.report:
        tables["report"] = dict(recipe.report)
    tables["stage"] = [table for leg in recipe.legs for table in _stages(leg)]
    return strict_toml.text_of(tables)


def _stages(leg: Recipe) -> list[Tables]:
    cuts = [{key: value for key, value in cut.describe().items() if key != "axes"} for cut in leg.cuts]
    trained = [] if leg.training is None else [leg.training.to_table()]
    return [*cuts, *trained, *(stage.to_table() for stage in leg.stages)]


# ---- texts and their places ----------------------------------------------------------------------------


def _text(name: str) -> tuple[str, str]:
    """The text of a recipe, and what errors call it."""
    if not _is_path(name):
        ready = ready_recipes()
        if name not in ready:
            close = get_close_matches(name, ready, 1)
            raise UsageError(
                f"there is no recipe '{printable(name, 60)}'",
                remedy=(f"Did you mean {close[0]}? " if close else "")
                + "`compressor pipeline --list` shows the ready ones; a file ends in .toml",
            )
        return ready[name], f"recipe {name}"
    where = f"recipe {printable(name)}"
    return strict_toml.read_stream(name, where), where


def _is_path(name: str) -> bool:
    return "/" in name or name.endswith(".toml")


def _base(base: str, name: str) -> tuple[Tables, str]:
    """What the recipe `name` extends."""
    found = str(Path(name).parent / base) if _is_path(base) and _is_path(name) else base
    text, where = _text(found)
    return strict_toml.parse(text, where), found


def _gates(found: _Gates, where: str) -> Gates:
    size = size_of(found.max_size) if isinstance(found.max_size, str) else found.max_size
    if found.max_size is not None and (size is None or size < 0):
        raise UsageError(f"{where}: gate.max_size: must be a size such as 300MB, not {found.max_size!r}")
    for key, most in (("max_error", None), ("min_ratio", None), ("min_sparsity", 1.0)):
        value = getattr(found, key)
        if value is not None and not 0 <= value <= (sys.float_info.max if most is None else most):
            raise UsageError(
                f"{where}: gate.{key}: must be at least 0{' and finite' if most is None else ' and at most 1'}"
            )
    return Gates(found.max_error, found.min_ratio, size, found.min_sparsity)


def _report(found: Mapping[str, Any], where: str) -> dict[str, Any]:
    kinds = {
        "format": (found.get("format") in ("table", "json"), "table or json"),
        "top": (type(found.get("top")) is int and found["top"] >= 0, "an integer of at least 0"),
        "quiet": (type(found.get("quiet")) is bool, "true or false"),
    }
    for key in found:
        if key not in kinds:
            raise UsageError(f"{where}: report.{printable(key, 40)}: is not known; there are {', '.join(kinds)}")
        if not kinds[key][0]:
            raise UsageError(f"{where}: report.{key}: must be {kinds[key][1]}")
    return dict(found)
