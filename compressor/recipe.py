"""Recipes: TOML, `--stage` texts and Python keywords, all turned into the same frozen dataclasses.

Nothing here is lenient: unknown keys, wrong types and values out of range are errors that name the place in
the recipe. Text from the command line is converted by the type of the option it is for.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from importlib import resources
from pathlib import Path
from typing import Any, Literal, get_args

import msgspec

from compressor import strict_toml
from compressor.errors import CompressorError, UsageError, raise_all
from compressor.method import SELECTOR, VERBS, Encoder, Method, methods_of, options_of
from compressor.options import STAGE_KEYS, flag, with_scores
from compressor.options import make_method as make_method
from compressor.presets import PRESETS, rules
from compressor.reshape import Reshape
from compressor.selection import matches, pattern
from compressor.structure.request import Description, Request, is_request, make_request, parse_description
from compressor.text import printable

Store = Literal["auto", "dense", "packed", "codes", "bitmask", "csr", "nm", "smallest", "archive"]
# `auto` is what suits the container for codes, and the smallest for pruned floats.
_STORES: Mapping[str, tuple[str, ...]] = {
    "prune": ("dense", "bitmask", "csr", "nm", "auto", "smallest", "archive"),
    "quantize": get_args(Store),
    "distill": ("auto", "dense", "packed"),
}


@dataclass(frozen=True)
class Stage:
    """One step of a recipe: a method, where it applies, and overrides by tensor name (first match wins). `store`
    auto is what suits the container: numbers of a transform, codes of an encoder. `stats` is the file of statistics
    of layer inputs, or (`scored`) of their scores, that its methods go by."""

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

    @property
    def statistics(self) -> Method | None:
        """The first of its methods that goes by statistics of layer inputs."""
        return next((one for one in (self.method, *(made for _, made in self.rules)) if one.statistics), None)

    def method_for(self, name: str) -> Method:
        """The stage's method with the options of the first rule that matches the tensor."""
        text = matches(name, (rule for rule, _ in self.rules))
        return self.method if text is None else dict(self.rules)[text]

    def describe(self) -> dict[str, Any]:
        """The stage as a recipe would give it; paths of other files are not part of what was done."""
        found: dict[str, Any] = {"kind": self.method.verb, **self.method.describe()}
        for key in ("include", "exclude"):
            if getattr(self, key):
                found[key] = list(getattr(self, key))
        if self.store != "auto":
            found["store"] = self.store
        if self.fallback:
            found["fallback"] = True
        if self.rules:
            found["rule"] = [{"match": text, **method.describe()} for text, method in self.rules]
        return found


@dataclass(frozen=True)
class Recipe:
    """Structured cuts, then stages, in the order in which they are applied."""

    stages: tuple[Stage, ...]
    name: str = ""
    description: str = ""
    cuts: tuple[Request | Reshape, ...] = ()
    stats: str | None = None


def recipe_of(stages: Iterable[Stage | Request], where: str = "", name: str = "", description: str = "") -> Recipe:
    """A recipe of these stages; UsageError where a structured cut would follow another stage."""
    cuts: list[Request | Reshape] = []
    others: list[Stage] = []
    for number, stage in enumerate(stages):
        cut = stage.method if isinstance(stage, Stage) else stage
        if isinstance(stage, Stage) and not isinstance(cut, Reshape):
            others.append(stage)
        elif others:
            raise UsageError(
                f"{where}stage[{number}]: a structured cut must come before all other stages, which then work on "
                "what it leaves"
            )
        elif isinstance(cut, Request | Reshape):
            cuts.append(cut)
    return Recipe(tuple(others), name, description, tuple(cuts))


class _File(msgspec.Struct, forbid_unknown_fields=True):
    stage: list[dict[str, Any]] = []
    structure: list[dict[str, Any]] = []
    name: str = ""
    description: str = ""
    stats: str | None = None


class _StageKeys(msgspec.Struct):
    kind: str
    include: list[str] = []
    exclude: list[str] = []
    rule: list[dict[str, Any]] = []
    store: Store | None = None
    teacher: str | None = None
    mask: str | None = None
    stats: str | None = None
    scores: str | None = None
    fallback: bool = False
    preset: str = ""


# ---- stages and recipes --------------------------------------------------------------------------------


def make_stage(
    verb: str,
    options: Mapping[str, Any],
    *,
    include: Iterable[str] = (),
    exclude: Iterable[str] = (),
    rules: Iterable[tuple[str, Mapping[str, Any]]] = (),
    store: Store | None = None,
    teacher: str | None = None,
    mask: str | None = None,
    stats: str | None = None,
    scores: str | None = None,
    fallback: bool = False,
    preset: str = "",
    text: bool = False,
    where: str = "",
) -> Stage:
    """Build a stage; rules are (pattern, options that replace the stage's)."""
    if preset:
        options = {**_preset(verb, preset, where, text=text), **options}
    if mask is not None:
        if verb != "prune":
            raise UsageError(f"{where}mask has no meaning for {verb}")
        options, teacher = {SELECTOR[verb]: "mask", **options}, mask
    method = make_method(verb, options, text=text, where=where)
    include, exclude, rules = tuple(include), tuple(exclude), tuple(rules)
    for glob in (*include, *exclude, *(glob for glob, _ in rules)):
        pattern(glob)
    made = tuple(
        (
            glob,
            make_method(
                verb,
                _overridden(verb, options, changed),
                text=text,
                where=f"{where}rule[{number}]." if where else f"--set {printable(glob, 60)}: ",
            ).within(method),
        )
        for number, (glob, changed) in enumerate(rules)
    )
    if isinstance(method, Reshape):
        besides = ("include", include), ("exclude", exclude), ("rule", made), ("stats", stats), ("scores", scores)
        given = [key for key, value in besides if value]
        if given:
            raise UsageError(f"{where}{SELECTOR[verb]} {method.id} cuts whole models, so {given[0]} has no meaning")
    if scores is not None:
        if stats is not None:
            raise UsageError(f"{where}give stats or scores, not both")
        method = with_scores(method, where)
        made, stats = tuple((glob, with_scores(rule, where)) for glob, rule in made), scores
    if method.partners and teacher is None:
        role = method.partners[0]
        raise UsageError(f"{where}{SELECTOR[verb]} {method.id} needs a {role}", remedy=f"Give --{role} PATH")
    if teacher is not None and not method.partners:
        role = "teacher" if mask is None else "mask"
        raise UsageError(f"{where}{SELECTOR[verb]} {method.id} takes no {role}")
    if store is not None and verb == "distill" and not (isinstance(method, Encoder) and not method.adapter):
        raise UsageError(f"{where}store has no meaning for {verb} {method.id}")
    if store is not None and store not in _STORES[verb]:
        said = f"{flag('store', where)} of {verb} must be one of {', '.join(_STORES[verb])}, not '{store}'"
        raise UsageError(f"{where}{said}")
    if verb == "prune" and store is not None:
        store = "smallest" if store == "auto" else store
    if fallback and verb != "quantize":
        raise UsageError(f"{where}fallback has no meaning for {verb}")
    scored = scores is not None
    return Stage(method, include, exclude, made, store or "auto", teacher, fallback, preset, stats, scored)


def _preset(verb: str, preset: str, where: str, *, text: bool) -> dict[str, Any]:
    """The options that a preset gives where the user leaves them open."""
    if verb != "quantize" or preset not in PRESETS:
        close = get_close_matches(preset, PRESETS, 1)
        raise UsageError(
            f"{where}{flag('preset', where)}: there is no {verb} preset '{printable(preset, 40)}'",
            remedy=f"{f'Did you mean {close[0]}? ' if close else ''}There are {', '.join(PRESETS)}",
        )
    return {key: str(value) if text else value for key, value in PRESETS[preset].items()}


def with_presets(recipe: Recipe, names: Sequence[str]) -> Recipe:
    """The recipe with its presets turned into rules for tensors of these names, after the user's own."""
    stages = []
    for stage in recipe.stages:
        if stage.preset:
            layout = str(getattr(stage.method, "layout", ""))
            added = rules(stage.preset, names, layout)
            made = tuple((glob, replace(stage.method, **options)) for glob, options in added)
            stage = replace(stage, rules=stage.rules + made, preset="")
        stages.append(stage)
    return replace(recipe, stages=tuple(stages))


def _overridden(verb: str, options: Mapping[str, Any], changed: Mapping[str, Any]) -> dict[str, Any]:
    """A stage's options with a rule's in their place; another method takes only those of them that it has."""
    other = methods_of(verb).get(str(changed.get(SELECTOR[verb])))
    if other is not None:
        options = {key: value for key, value in options.items() if key in options_of(other)}
    for method in methods_of(verb).values():
        if set(method.alternatives) & set(changed):  # one takes the place of another
            options = {key: value for key, value in options.items() if key not in method.alternatives}
    return {**options, **changed}


def parse_stage(text: str, teacher: str | None = None) -> Stage | Request:
    """A stage from `prune:method=magnitude,sparsity=0.5`. Stage keys (include, store, …) are accepted too."""
    verb, _, rest = text.partition(":")
    where = f"--stage {printable(text, 60)}: "
    _check_verb(verb, where)
    options: dict[str, str] = {}
    for item in filter(None, rest.split(",")):
        key, equals, value = item.partition("=")
        key = key.strip().replace("-", "_")
        if not equals or key in options:
            raise UsageError(f"{where}expected key=value, each key once, got '{printable(item, 40)}'")
        options[key] = value.strip()
    if is_request(verb, options):
        return make_request(options, text=True, where=where)
    own: dict[str, Any] = {
        key: options.pop(key) for key in STAGE_KEYS if key in options and key not in ("kind", "rule")
    }
    own |= {key: own[key].split("|") for key in ("include", "exclude") if key in own}
    if own.get("fallback") in ("true", "false"):
        own["fallback"] = own["fallback"] == "true"
    keys = _stage_keys({"kind": verb, **own}, where)
    needs = verb == "distill" and make_method(verb, options, text=True, where=where).partners
    return make_stage(
        verb,
        options,
        **_given(keys),
        teacher=keys.teacher or (teacher if needs else None),
        text=True,
        where=where,
    )


def load_recipe(name: str, teacher: str | None = None) -> Recipe:
    """A recipe from a TOML file, or a ready one by its name."""
    path = Path(name)
    if "/" not in name and not name.endswith(".toml"):
        ready = ready_recipes()
        if name not in ready:
            close = get_close_matches(name, ready, 1)
            raise UsageError(
                f"there is no recipe '{printable(name, 60)}'",
                remedy=(f"Did you mean {close[0]}? " if close else "")
                + "`compressor pipeline --list` shows the ready ones; a file ends in .toml",
            )
        return parse_recipe(ready[name], f"recipe {name}", teacher)
    try:
        with path.open("rb") as file:
            raw = file.read(strict_toml.LIMIT + 1)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise UsageError(f"recipe {printable(name)}: cannot be read: {reason}") from error
    if len(raw) > strict_toml.LIMIT:
        raise UsageError(f"recipe {printable(name)}: is larger than {strict_toml.LIMIT} bytes")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"recipe {printable(name)}: is not UTF-8 text") from error
    return parse_recipe(text, f"recipe {printable(name)}", teacher)


def parse_recipe(text: str, where: str, teacher: str | None = None) -> Recipe:
    """A recipe from its TOML text; every error starts with `where` and the place in the file."""
    try:
        found = msgspec.convert(strict_toml.parse(text, where), _File)
    except msgspec.ValidationError as error:
        raise UsageError(f"{where}: {printable(_plain(error))}") from error
    if not found.stage:
        raise UsageError(f"{where}: has no [[stage]]")
    described = [
        parse_description(table, f"{where}: structure[{number}].") for number, table in enumerate(found.structure)
    ]
    stages: list[Stage | Request] = []
    problems: list[CompressorError] = []
    for number, table in enumerate(found.stage):
        try:
            stages.append(_stage(table, f"{where}: stage[{number}].", teacher, described))
        except CompressorError as error:
            problems.extend(getattr(error, "problems", [error]))
    raise_all(problems)
    return replace(recipe_of(stages, f"{where}: ", found.name, found.description), stats=found.stats)


def _stage(
    table: dict[str, Any], where: str, teacher: str | None, described: Sequence[Description]
) -> Stage | Request:
    if is_request(str(table.get("kind")), table):
        options = {key: value for key, value in table.items() if key not in STAGE_KEYS}
        besides = [key for key in table if key in STAGE_KEYS and key != "kind"]
        return make_request(options, where=where, described=described, stage_keys=besides)
    keys = _stage_keys({key: value for key, value in table.items() if key in STAGE_KEYS}, where)
    _check_verb(keys.kind, where)
    options = {key: value for key, value in table.items() if key not in STAGE_KEYS}
    rules = []
    for number, rule in enumerate(keys.rule):
        if not isinstance(rule.get("match"), str):
            raise UsageError(f"{where}rule[{number}].match: must be a pattern of tensor names")
        rules.append((rule["match"], {key: value for key, value in rule.items() if key != "match"}))
    needs = keys.kind == "distill" and make_method(keys.kind, options, where=where).partners
    return make_stage(
        keys.kind,
        options,
        **_given(keys),
        rules=rules,
        teacher=keys.teacher or (teacher if needs else None),
        where=where,
    )


def stage_of(described: Mapping[str, Any], where: str) -> Stage:
    """A stage from what `Stage.describe` made of one. UsageError where that names files, which are not kept."""
    if "stats" in described or "scores" in described:
        raise UsageError(f"{where}it went by statistics of inputs, which are another file")
    found = _stage(dict(described), where, None, ())
    if not isinstance(found, Stage):
        raise UsageError(f"{where}it is a structured cut")
    return found


def _stage_keys(table: Mapping[str, Any], where: str) -> _StageKeys:
    if "kind" not in table:
        raise UsageError(f"{where}kind: is missing; give one of {', '.join(VERBS)}")
    try:
        return msgspec.convert(table, _StageKeys)
    except msgspec.ValidationError as error:
        store = table.get("store", "auto")
        if store not in get_args(Store):  # msgspec would not say which there are
            choices, shown = ", ".join(get_args(Store)), printable(str(store), 40)
            raise UsageError(f"{where}store: must be one of {choices}, not '{shown}'") from error
        raise UsageError(f"{where}{printable(_plain(error))}") from error


def _given(keys: _StageKeys) -> dict[str, Any]:
    """What a stage says beside its kind, rules and teacher, as `make_stage` takes it."""
    names = ("include", "exclude", "store", "mask", "stats", "scores", "fallback", "preset")
    return {name: getattr(keys, name) for name in names}


def _check_verb(verb: str, where: str) -> None:
    if verb not in VERBS:
        close = get_close_matches(verb, VERBS, 1)
        raise UsageError(
            f"{where}kind: must be one of {', '.join(VERBS)}, not '{printable(verb, 40)}'",
            remedy=f"Did you mean {close[0]}?" if close else "",
        )


def _plain(error: Exception) -> str:
    """msgspec's sentence with the place in front: `stage[0].bits: Expected int, got str`."""
    sentence, _, place = str(error).partition(" - at `$")
    place = place.strip("`.")
    return f"{place}: {sentence}" if place else sentence


def ready_recipes() -> dict[str, str]:
    """The recipes that ship with the package: name → TOML text."""
    folder = resources.files("compressor") / "recipes"
    files = sorted((entry for entry in folder.iterdir() if entry.name.endswith(".toml")), key=lambda e: e.name)
    return {entry.name.removesuffix(".toml"): entry.read_text(encoding="utf-8") for entry in files}
