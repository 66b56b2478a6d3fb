"""Which methods there are, and making one from options."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from difflib import get_close_matches
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from compressor.core.errors import UsageError
from compressor.core.text import printable
from compressor.methods.contract import Method, TensorMethod
from compressor.methods.options import SELECTOR, flag, options_of, parse_options, required_options


@cache
def methods_of(verb: str) -> dict[str, type[Method]]:
    """Every method of a verb by its id: the modules of `compressor.methods.VERB`, those that treat tensors before
    those that make models; then installed entry points of the group `compressor.VERB`. Never code named by a data
    file. A module has one `METHOD`, or is a family of them, `METHODS` by their ids."""
    package = importlib.import_module(f"compressor.methods.{verb}")
    found: dict[str, type[Method]] = {}
    for info in sorted(pkgutil.iter_modules(package.__path__), key=lambda info: info.name):
        if not info.name.startswith("_"):
            module = importlib.import_module(f"{package.__name__}.{info.name}")
            family = getattr(module, "METHODS", None)
            found |= {info.name.replace("_", "-"): module.METHOD} if family is None else family
    found = dict(sorted(found.items(), key=lambda item: not issubclass(item[1], TensorMethod)))
    for entry in entry_points(group=f"compressor.{verb}"):
        if entry.name not in found:
            made = _installed(entry, verb)
            found |= {} if isinstance(made, str) else {entry.name: made}
    return found


def _installed(entry: EntryPoint, verb: str) -> type[Method] | str:
    """The method of an installed package; or why it is none, as a sentence. Whatever a package does when it is
    imported breaks its own method, and nothing else."""
    try:
        made = entry.load()
        if not (isinstance(made, type) and issubclass(made, Method)):
            return f"{printable(entry.value, 100)} is no class that derives from a Method"
        if (made.verb, made.id) != (verb, entry.name):
            return f"its class says {printable(f'{made.verb} {made.id}', 60)}, its entry point {verb} {entry.name}"
        options_of(made)
    except Exception as error:
        return f"{type(error).__name__}: {printable(str(error), 200)}"
    return made


def broken_of(verb: str) -> dict[str, str]:
    """Installed methods of a verb that cannot be used, by their names: of which package, and why."""
    found = {}
    known = methods_of(verb)
    for entry in entry_points(group=f"compressor.{verb}"):
        if entry.name not in known:
            package = "" if entry.dist is None else f" of the package {entry.dist.name}"
            found[entry.name] = f"the plug-in {entry.name}{package} cannot be used: {_installed(entry, verb)}"
    return found


# What a recipe says of a stage beside the options of its method
STAGE_KEYS = (
    "kind",
    "include",
    "exclude",
    "rule",
    "store",
    "teacher",
    "mask",
    "stats",
    "scores",
    "fallback",
    "preset",
    "name",
    "when",
)  # of recipes, no options


_DEFAULT = {"prune": "magnitude", "distill": "blend", "quantize": "int"}  # where the options leave it open


def make_method(verb: str, options: Mapping[str, Any], *, text: bool = False, where: str = "") -> Method:
    """Build a method from its options; `text`: values are strings from a command line.

    The selector may be left out where the other options belong to one method only. Raises UsageError that
    starts with `where`; all wrong options at once.
    """
    selector = SELECTOR[verb]
    given = dict(options)
    known = methods_of(verb)
    chosen = _choose(verb, given, known, where)
    given.pop(selector, None)
    method = known[chosen]

    def unknown(name: str) -> UsageError:
        return _unknown(method, chosen, name)

    return parse_options(method, given, where, owner=f"{selector} {chosen}", text=text, unknown=unknown)


def _choose(verb: str, given: Mapping[str, Any], known: Mapping[str, type[Method]], where: str) -> str:
    selector = SELECTOR[verb]
    chosen = given.get(selector)
    if selector not in given:
        # a mask's method is chosen by who gives the mask, and what needs statistics by its name, never for want of
        # options
        open_to = {
            name: method
            for name, method in known.items()
            if "mask" not in method.partners and method.statistics not in ("square", "gram")
        }
        fits = [name for name, method in open_to.items() if set(given) <= set(options_of(method))]
        ready = [name for name in fits if set(required_options(known[name])) <= set(given)]
        for pool in (ready, fits):
            if len(pool) == 1:
                return pool[0]
            if _DEFAULT[verb] in pool:
                break
        return _DEFAULT[verb]
    if not isinstance(chosen, str) or chosen not in known:
        broken = broken_of(verb).get(str(chosen))
        if broken is not None:
            raise UsageError(f"{where}{flag(selector, where)}: {broken}", remedy="Mend it, or uninstall it")
        close = get_close_matches(str(chosen), known, 1)
        hint = f"Did you mean {close[0]}? " if close else ""
        raise UsageError(
            f"{where}{flag(selector, where)}: there is no {verb} {selector} '{printable(str(chosen), 40)}'",
            remedy=f"{hint}There are {', '.join(known)}",
        )
    return chosen


def _unknown(method: type[Method], chosen: str, name: str) -> UsageError:
    """What to say of an option that a method does not have: who has it, or what it may have meant."""
    verb, selector = method.verb, SELECTOR[method.verb]
    owners = [other for other, cls in methods_of(verb).items() if name in options_of(cls)]
    if owners:
        remedy = f"Give {' or '.join(f'{selector} {owner}' for owner in owners)}, or leave it out"
        return UsageError(f"is no option of {selector} {chosen}", remedy=remedy)
    known = {selector, *options_of(method), *STAGE_KEYS} - {name}
    close = get_close_matches(name, sorted(known), 1)
    return UsageError("is not known", remedy=f"Did you mean {close[0]}?" if close else "")


def with_scores(method: Method, where: str) -> Method:
    """The method going by scores of inputs; UsageError where it cannot."""
    try:
        found = method.with_scores()
    except UsageError as error:
        raise UsageError(f"{where}{error.reason}", remedy=error.remedy) from error
    if found is None:
        raise UsageError(
            f"{where}{flag('scores', where)} has no meaning for {method.verb} {method.id}",
            remedy="It is for prune --method magnitude",
        )
    return found
