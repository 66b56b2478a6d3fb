"""Stages from texts, tables of a recipe file, and keywords: checked and made here, whatever they came from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, TypedDict, Unpack, get_args

import msgspec

from compressor.architectures.groups import Description
from compressor.core.errors import UsageError
from compressor.core.text import printable
from compressor.methods.contract import Method, Scheme
from compressor.methods.model_method import Reshape
from compressor.methods.options import SELECTOR, VERBS, flag, options_of
from compressor.methods.registry import STAGE_KEYS, make_method, methods_of, with_scores
from compressor.methods.structured_cut import is_structured_cut, make_structured_cut
from compressor.recipe.model import Item, Stage, Store
from compressor.recipe.presets import PRESETS
from compressor.recipe.selection import pattern
from compressor.recipe.training import is_training, training_stage
from compressor.recipe.when import Conditions

# `auto` is what suits the container for codes, and the smallest for pruned floats.
_STORES: Mapping[str, tuple[str, ...]] = {
    "prune": ("dense", "bitmask", "csr", "nm", "auto", "smallest", "archive"),
    "quantize": get_args(Store),
    "distill": ("auto", "dense", "packed"),
}


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


class StageSays(TypedDict, total=False):
    """What a stage says beside its verb and the options of its method. `rules` are pairs of a pattern and options
    that replace the stage's; None leaves a key as it is by default."""

    include: Iterable[str]
    exclude: Iterable[str]
    rules: Iterable[tuple[str, Mapping[str, Any]]]
    store: Store | None
    teacher: str | None
    mask: str | None
    stats: str | None
    scores: str | None
    fallback: bool
    preset: str
    when: Conditions | None


def make_stage(
    verb: str, options: Mapping[str, Any], *, text: bool = False, where: str = "", **says: Unpack[StageSays]
) -> Stage:
    """Build a stage from the options of its method and what else it `says`; `text`: options are strings from a
    command line. UsageError, with `where` in front, for what does not fit together."""
    preset, mask, scores = says.get("preset") or "", says.get("mask"), says.get("scores")
    if preset:
        options = {**_preset(verb, preset, where, text=text), **options}
    if mask is not None:
        if verb != "prune":
            raise UsageError(f"{where}mask has no meaning for {verb}")
        options = {SELECTOR[verb]: "mask", **options}
    method = make_method(verb, options, text=text, where=where)
    include, exclude = tuple(says.get("include") or ()), tuple(says.get("exclude") or ())
    rules = tuple(says.get("rules") or ())
    _check_patterns((*include, *exclude, *(glob for glob, _ in rules)), where)
    made = tuple(_rules(verb, options, method, rules, text=text, where=where))
    if isinstance(method, Reshape):
        _check_whole(method, {**says, "rule": made}, where)
    stats = says.get("stats")
    if scores is not None:
        if stats is not None:
            raise UsageError(f"{where}give stats or scores, not both")
        method = with_scores(method, where)
        made, stats = tuple((glob, with_scores(rule, where)) for glob, rule in made), scores
    teacher = says.get("teacher") if mask is None else mask
    if method.partner_path is not None:
        if teacher is not None:
            role = method.partners[0]
            raise UsageError(f"{where}{SELECTOR[verb]} {method.id} takes no teacher beside its {role}")
        teacher, method = method.partner_path, method.without_path()
        made = tuple((glob, rule.without_path()) for glob, rule in made)
    _check_partner(method, teacher, "teacher" if mask is None else "mask", where)
    store, fallback = _stored(method, says.get("store"), where), says.get("fallback") or False
    if fallback and verb != "quantize":
        raise UsageError(f"{where}fallback has no meaning for {verb}")
    scored = scores is not None
    return Stage(method, include, exclude, made, store, teacher, fallback, preset, stats, scored, says.get("when"))


def _check_patterns(patterns: Iterable[str], where: str) -> None:
    """UsageError, with its place in the recipe, for what is no regular expression."""
    for text in patterns:
        try:
            pattern(text)
        except UsageError as error:
            place = f"{where.rstrip('.')}: " if where else ""
            raise UsageError(f"{place}{error.reason}", remedy=error.remedy) from error


def _rules(
    verb: str,
    options: Mapping[str, Any],
    method: Method,
    rules: Iterable[tuple[str, Mapping[str, Any]]],
    *,
    text: bool,
    where: str,
) -> Iterator[tuple[str, Method]]:
    """The methods that take the place of the stage's, each with the pattern of the names that it is for."""
    for number, (glob, changed) in enumerate(rules):
        place = f"{where}rule[{number}]." if where else f"--set {printable(glob, 60)}: "
        rule = make_method(verb, _overridden(verb, options, changed), text=text, where=place)
        yield glob, rule.completed_by(method)


def _check_whole(method: Reshape, says: Mapping[str, Any], where: str) -> None:
    """UsageError where a stage that makes a model of another one says what only stages of tensors may."""
    given = [key for key in ("include", "exclude", "rule", "when", "stats", "scores") if says.get(key)]
    if given:
        selector = SELECTOR[method.verb]
        raise UsageError(f"{where}{selector} {method.id} cuts whole models, so {given[0]} has no meaning")


def _check_partner(method: Method, path: str | None, role: str, where: str) -> None:
    """UsageError where a method lacks what it reads beside a tensor, or is given it for nothing."""
    selector = SELECTOR[method.verb]
    if method.partners and path is None:
        needed = method.partners[0]
        raise UsageError(f"{where}{selector} {method.id} needs a {needed}", remedy=f"Give --{needed} PATH")
    if path is not None and not method.partners:
        raise UsageError(f"{where}{selector} {method.id} takes no {role}")


def _stored(method: Method, store: Store | None, where: str) -> Store:
    """How the stage stores what it makes. UsageError where that is not for its verb to say."""
    verb = method.verb
    if store is None:
        return "auto"
    if verb == "distill" and not (isinstance(method, Scheme) and not method.adapter):
        raise UsageError(f"{where}store has no meaning for {verb} {method.id}")
    if store not in _STORES[verb]:
        choices = ", ".join(_STORES[verb])
        raise UsageError(f"{where}{flag('store', where)} of {verb} must be one of {choices}, not '{store}'")
    return "smallest" if verb == "prune" and store == "auto" else store


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
    if is_structured_cut(verb, options):
        stats = options.pop("stats", None)
        return make_structured_cut(options, text=True, where=where, stats=stats)
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
    """The stage that a `[[stage]]` table of a recipe describes, `where` being how errors call it. UsageError."""
    if is_training(table.get("kind"), table):
        options = {key: value for key, value in table.items() if key not in ("kind", "name")}
        return training_stage(options, teacher, where=where)
    if is_structured_cut(str(table.get("kind")), table):
        options = {key: value for key, value in table.items() if key not in STAGE_KEYS}
        besides = [key for key in table if key in STAGE_KEYS and key not in ("kind", "name", "stats")]
        stats = _stage_keys({key: table[key] for key in ("kind", "stats") if key in table}, where).stats
        return make_structured_cut(options, where=where, described=described, stage_keys=besides, stats=stats)
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
    if method.partner_path is not None:
        return None
    adapts = isinstance(method, Scheme) and method.adapter
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
