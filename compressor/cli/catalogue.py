"""What is told of methods, schemes, layouts and presets: prose by hand, measured figures, options from code."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from compressor.methods.options import SELECTOR, VERBS, describe, flag, options_of, required_options
from compressor.methods.registry import methods_of
from compressor.recipe.matched_norms import METHOD as MATCHED
from compressor.recipe.presets import MIXTURES, PRESETS
from compressor.recipe.training import METHOD as TRAINED

# Of what is no method, the option that names it
OTHERS = {
    "way": "quantize --method",
    "layout": "quantize --layout",
    "store": "--store",
    "preset": "quantize --preset",
}


PLURALS = {"ways": "way", "layouts": "layout", "stores": "store", "presets": "preset"}


@dataclass(frozen=True)
class Entry:
    """One thing that can be chosen: `kind` is a verb or of OTHERS, `given` what selects it, `figures` settings with
    stored bits a weight and relative error on normal weights."""

    kind: str
    name: str
    given: str
    summary: str
    loads: str
    when: str
    figures: tuple[tuple[str, float, float], ...] = ()

    @property
    def options(self) -> Iterator[tuple[str, str]]:
        """Each option of a method as flag and what it is; nothing of others."""
        if self.kind not in VERBS or self.name not in methods_of(self.kind):
            return
        method = methods_of(self.kind)[self.name]
        for key, (hint, declared) in options_of(method).items():
            default = getattr(method, key, None)
            said = "required" if key in required_options(method) else _default(key, default, declared.off)
            text = f"{declared.help[0].upper()}{declared.help[1:]}"
            off = f" / --{declared.off or 'no-' + key.replace('_', '-')}" if default in (True, False) else ""
            value = "" if off else f" ({describe(hint, declared)})"
            yield f"{flag(key, '')}{off}", f"{text}{value}{f'; {said}' if said else ''}."


def _default(key: str, value: Any, off: str) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return f"by default {key if value else off or 'no-' + key}".replace("_", "-")
    return f"by default {value}"


@cache
def entries() -> tuple[Entry, ...]:
    """All there is, by kinds."""
    told, figures = _table("catalogue"), _figures()
    found = []
    for verb in VERBS:
        known = methods_of(verb)
        for name in dict.fromkeys((*_FIRST.get(verb, ()), *known, *told[verb])):
            prose = told[verb].get(name, {})
            summary = (known[name].__doc__ or "").split("\n")[0] if name in known else _OF_NETWORKS[name]
            given = f"{verb} --{SELECTOR[verb]} {name}"
            measured = figures.get(name, ()) if verb == "quantize" else ()
            found.append(_entry(verb, name, given, summary, prose, measured))
    for kind, option in OTHERS.items():
        found += [_entry(kind, name, f"{option} {name}", "", prose) for name, prose in told[kind].items()]
    for name in PRESETS:
        if name in MIXTURES:
            prose = {
                "loads": "llama.cpp (.gguf)",
                "when": f"llama.cpp's own mixture of types around {MIXTURES[name]}.",
            }
            found.append(_entry("preset", name, f"quantize --preset {name}", "", prose))
    return tuple(found)


_FIRST = {"prune": ("magnitude",), "quantize": ("int",)}  # what most take
_OF_NETWORKS = {
    TRAINED: "Training on the teacher's outputs for unlabelled inputs.",
    MATCHED: "Batch norms and biases matched with the teacher's, on unlabelled inputs or without any.",
}


def _entry(
    kind: str,
    name: str,
    given: str,
    summary: str,
    prose: Mapping[str, str],
    figures: tuple[tuple[str, float, float], ...] = (),
) -> Entry:
    # what another package brings has no prose of ours
    return Entry(kind, name, given, summary, prose.get("loads", ""), prose.get("when", ""), figures)


def _table(name: str) -> dict[str, Any]:
    folder = resources.files("compressor") / "cli"
    entry = folder / f"{name}.toml"
    return tomllib.loads(entry.read_text(encoding="utf-8"))


def _figures() -> dict[str, tuple[tuple[str, float, float], ...]]:
    found: dict[str, tuple[tuple[str, float, float], ...]] = {}
    for said, bits, error in _table("measured")["figures"]:
        name = said.split(" ")[0]
        found[name] = (*found.get(name, ()), (said, bits, error))
    return found
