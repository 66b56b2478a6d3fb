"""Recipes: TOML, `--stage` texts and Python keywords, all turned into the same frozen dataclasses.

`recipe_file.py` reads and writes the files. Nothing here is lenient: unknown keys, wrong types and values out of
range are errors that name the place in the recipe. Text from the command line is converted by the type of the
option it is for.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from typing import Any, Literal, get_args

import msgspec

from compressor.budget.request import Budget
from compressor.conditions import Conditions
from compressor.errors import UsageError
from compressor.method import SELECTOR, VERBS, Encoder, Method, methods_of, options_of
from compressor.options import STAGE_KEYS, flag, with_scores
from compressor.options import make_method as make_method
from compressor.presets import PRESETS
from compressor.reshape import Reshape
from compressor.results import Gates
from compressor.selection import Kept, kept, matches, pattern
from compressor.structure.request import Description, Request, is_request, make_request
from compressor.tensor import TensorSpec
from compressor.text import printable
from compressor.training.request import Training, is_training, training_stage
from compressor.training.sequential import Sequential

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
    when: Conditions | None = None

    @property
    def adapts(self) -> bool:
        """Whether it makes an adapter for what the stages before it leave."""
        return isinstance(self.method, Encoder) and self.method.adapter

    @property
    def statistics(self) -> Method | None:
        """The first of its methods that goes by statistics of layer inputs."""
        return next((one for one in (self.method, *(made for _, made in self.rules)) if one.statistics), None)

    @property
    def balances(self) -> bool:
        """Whether any of its methods has the model's inputs scaled, which goes by what the stages before left."""
        return any(one.balances for one in (self.method, *(made for _, made in self.rules)))

    def leaves(self, spec: TensorSpec) -> Kept | None:
        """Why the stage leaves this tensor alone; None when it is to be treated."""
        why = kept(spec, self.method.verb, self.include, self.exclude)
        return self.when.kept(spec) if why is None and self.when is not None else why

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
            table[next(iter(self.method.partners)) if self.method.id == "mask" else "teacher"] = self.teacher
        if self.stats is not None:
            table["scores" if self.scored else "stats"] = self.stats
        return table

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
        if self.when is not None:
            found["when"] = self.when.describe()
        if self.rules:
            found["rule"] = [{"match": text, **method.describe()} for text, method in self.rules]
        return found


@dataclass(frozen=True)
class Recipe:
    """Structured cuts, then a training, then stages, in the order in which they are applied; before them all comes
    what was `earlier` (see `relay`)."""

    stages: tuple[Stage, ...]
    name: str = ""
    description: str = ""
    cuts: tuple[Request | Reshape, ...] = ()
    stats: str | None = None
    gates: Gates = field(default_factory=Gates)
    report: Mapping[str, Any] = field(default_factory=dict)  # how to print: format, top, quiet
    budget: Budget | None = None
    training: Training | Sequential | None = None
    earlier: Recipe | None = None

    @property
    def legs(self) -> tuple[Recipe, ...]:
        """The recipe in parts that are each one pass, the first one first."""
        return (*(self.earlier.legs if self.earlier is not None else ()), replace(self, earlier=None))


Item = Stage | Request | Training | Sequential


def recipe_of(stages: Iterable[Item], where: str = "", name: str = "", description: str = "") -> Recipe:
    """A recipe of these stages; UsageError where a structured cut would follow another stage."""
    cuts: list[Request | Reshape] = []
    others: list[Stage] = []
    training: Training | Sequential | None = None
    earlier: Recipe | None = None
    for number, stage in enumerate(stages):
        if isinstance(stage, Stage) and stage.adapts and (others or cuts or training is not None):
            earlier = Recipe(tuple(others), cuts=tuple(cuts), training=training, earlier=earlier)
            cuts, others, training = [], [], None
        if isinstance(stage, Training | Sequential):
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
        elif isinstance(cut, Request | Reshape):
            cuts.append(cut)
    return Recipe(tuple(others), name, description, tuple(cuts), training=training, earlier=earlier)


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
    name: str = ""
    when: Conditions | None = None


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
    when: Conditions | None = None,
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
        named = ("include", include), ("exclude", exclude), ("rule", made), ("when", when)
        besides = *named, ("stats", stats), ("scores", scores)
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
    return Stage(method, include, exclude, made, store or "auto", teacher, fallback, preset, stats, scored, when)


def _preset(verb: str, preset: str, where: str, *, text: bool) -> dict[str, Any]:
    """The options that a preset gives where the user leaves them open."""
    if verb != "quantize" or preset not in PRESETS:
        close = get_close_matches(preset, PRESETS, 1)
        raise UsageError(
            f"{where}{flag('preset', where)}: there is no {verb} preset '{printable(preset, 40)}'",
            remedy=f"{f'Did you mean {close[0]}? ' if close else ''}There are {', '.join(PRESETS)}",
        )
    return {key: str(value) if text else value for key, value in PRESETS[preset].items()}


def _overridden(verb: str, options: Mapping[str, Any], changed: Mapping[str, Any]) -> dict[str, Any]:
    """A stage's options with a rule's in their place; another method takes only those of them that it has."""
    other = methods_of(verb).get(str(changed.get(SELECTOR[verb])))
    if other is not None:
        options = {key: value for key, value in options.items() if key in options_of(other)}
    for method in methods_of(verb).values():
        if set(method.alternatives) & set(changed):  # one takes the place of another
            options = {key: value for key, value in options.items() if key not in method.alternatives}
    return {**options, **changed}


def parse_stage(text: str, teacher: str | None = None) -> Item:
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
        stats = options.pop("stats", None)
        return make_request(options, text=True, where=where, stats=stats)
    if is_training(verb, options):
        return training_stage(options, teacher, text=True, where=where)
    own: dict[str, Any] = {
        key: options.pop(key) for key in STAGE_KEYS if key in options and key not in ("kind", "rule", "when")
    }
    own |= {key: own[key].split("|") for key in ("include", "exclude") if key in own}
    if own.get("fallback") in ("true", "false"):
        own["fallback"] = own["fallback"] == "true"
    keys = _stage_keys({"kind": verb, **own}, where)
    mentor = keys.teacher or _teacher(verb, options, teacher, text=True, where=where)
    return make_stage(verb, options, **_given(keys), teacher=mentor, text=True, where=where)


def stage_from_table(
    table: dict[str, Any], where: str, teacher: str | None, described: Sequence[Description]
) -> Item:
    if is_training(table.get("kind"), table):
        options = {key: value for key, value in table.items() if key not in ("kind", "name")}
        return training_stage(options, teacher, where=where)
    if is_request(str(table.get("kind")), table):
        options = {key: value for key, value in table.items() if key not in STAGE_KEYS}
        besides = [key for key in table if key in STAGE_KEYS and key not in ("kind", "name", "stats")]
        stats = _stage_keys({key: table[key] for key in ("kind", "stats") if key in table}, where).stats
        return make_request(options, where=where, described=described, stage_keys=besides, stats=stats)
    keys = _stage_keys({key: value for key, value in table.items() if key in STAGE_KEYS}, where)
    _check_verb(keys.kind, where)
    options = {key: value for key, value in table.items() if key not in STAGE_KEYS}
    rules = []
    for number, rule in enumerate(keys.rule):
        if not isinstance(rule.get("match"), str):
            raise UsageError(f"{where}rule[{number}].match: must be a pattern of tensor names")
        rules.append((rule["match"], {key: value for key, value in rule.items() if key != "match"}))
    mentor = keys.teacher or _teacher(keys.kind, options, teacher, where=where)
    return make_stage(keys.kind, options, **_given(keys), rules=rules, teacher=mentor, where=where)


def _teacher(
    verb: str, options: Mapping[str, Any], teacher: str | None, *, text: bool = False, where: str
) -> str | None:
    """Of a stage that names none: the one given beside the recipe; for an adapter else "", the pipeline's input."""
    if verb != "distill":
        return None
    method = make_method(verb, options, text=text, where=where)
    adapts = isinstance(method, Encoder) and method.adapter
    return (teacher or ("" if adapts else None)) if method.partners else None


def stage_of(described: Mapping[str, Any], where: str) -> Stage:
    """A stage from what `Stage.describe` made of one. UsageError where that names files, which are not kept."""
    if "stats" in described or "scores" in described:
        raise UsageError(f"{where}it went by statistics of inputs, which are another file")
    found = stage_from_table(dict(described), where, None, ())
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
        raise UsageError(f"{where}{printable(plain(error))}") from error


def _given(keys: _StageKeys) -> dict[str, Any]:
    """What a stage says beside its kind, rules and teacher, as `make_stage` takes it."""
    names = ("include", "exclude", "store", "mask", "stats", "scores", "fallback", "preset", "when")
    return {name: getattr(keys, name) for name in names}


def _check_verb(verb: str, where: str) -> None:
    if verb not in VERBS:
        close = get_close_matches(verb, VERBS, 1)
        raise UsageError(
            f"{where}kind: must be one of {', '.join(VERBS)}, not '{printable(verb, 40)}'",
            remedy=f"Did you mean {close[0]}?" if close else "",
        )


def plain(error: Exception) -> str:
    """msgspec's sentence with the place in front: `stage[0].bits: Expected int, got str`."""
    sentence, _, place = str(error).partition(" - at `$")
    place = place.strip("`.")
    return f"{place}: {sentence}" if place else sentence
