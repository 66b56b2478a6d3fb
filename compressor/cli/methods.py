"""`compressor methods`: what there is to choose from, what loads it, what it costs, and when to take it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from textwrap import wrap

import click

from compressor.cli import options
from compressor.cli.catalogue import OTHERS, PLURALS, Entry, entries
from compressor.cli.help import Command, heading
from compressor.cli.streams import emit
from compressor.core.errors import UsageError
from compressor.core.text import printable
from compressor.methods.options import VERBS

_WIDE = 80
_NAMES = 15  # columns for names
_KINDS = (*VERBS, *OTHERS)


@click.command(
    cls=Command,
    examples=(
        "compressor methods quantize",
        "compressor methods int",
        "compressor methods layouts",
    ),
)
@click.argument("topic", metavar="[VERB|NAME]", required=False)
@options.output_format
@options.debug
def command(topic: str | None, style: str) -> int:
    """Tell what there is to choose from: what loads it, what it costs, when to take it. VERB is prune, distill,
    quantize, or ways, layouts, stores, presets; NAME is one of what they list.
    """
    kind = PLURALS.get(topic or "", topic or "")
    if kind in _KINDS:
        found = [one for one in entries() if one.kind == kind]
    else:
        found = [one for one in entries() if topic in (None, one.name)]
    if not found:
        _unknown(str(topic))
    if style == "json":
        text = json.dumps([_plain(one) for one in found], indent=1) + "\n"
    elif topic is None:
        text = _lines(_all(found))
    elif kind in _KINDS:
        text = _lines(_listed(kind, found))
    else:
        text = _lines(line for one in found for line in _explained(one))
    return 0 if emit(text, essential=True) else 4


def _unknown(topic: str) -> None:
    known = [*VERBS, *PLURALS, *dict.fromkeys(one.name for one in entries())]
    close = get_close_matches(topic, known, 1)
    hint = f"Did you mean {close[0]}?" if close else "`compressor methods` lists all"
    raise UsageError(f"there is nothing called '{printable(topic, 60)}'", remedy=hint)


def _lines(lines: Iterator[str]) -> str:
    return "\n".join(lines) + "\n"


def _all(found: Sequence[Entry]) -> Iterator[str]:
    """Every name, by kinds."""
    for kind in _KINDS:
        names = ", ".join(one.name for one in found if one.kind == kind)
        plural = next((many for many, one in PLURALS.items() if one == kind), kind)
        yield heading(f"compressor methods {plural}")
        yield from wrap(names, _WIDE, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False)
    yield ""
    yield "`compressor methods NAME` explains one of them and its options."


def _listed(kind: str, found: Sequence[Entry]) -> Iterator[str]:
    """Each of a kind: bits and error, what loads it, when to take it."""
    if kind == "quantize":
        yield "Stored bits a weight and relative error on normal weights; what loads it; when"
        yield "to take it."
        yield ""
    for one in found:
        said = [f"{bits:.4g} bits, error {error:.3g}." for _, bits, error in _typical(one)]
        told = " ".join([*said, *([f"Loads in {one.loads}." if kind in ("quantize", "layout", "preset") else ""])])
        yield from _row(one.name, f"{told} {one.when or one.summary}".strip())
    yield ""
    yield f"More of one of them: compressor methods {found[0].name}"


def _typical(one: Entry) -> Sequence[tuple[str, float, float]]:
    """The figures of the setting that most take."""
    plain = [row for row in one.figures if row[0] in (one.name, _USUAL.get(one.name))]
    return plain[:1] or one.figures[:1]


_USUAL = {"int": "int --bits 4 --group-size 128", "codebook": "codebook --entries 16"}


def _explained(one: Entry) -> Iterator[str]:
    """One of them, with all its figures and options."""
    yield heading(one.given)
    for title, text in (
        ("", one.summary),
        ("Take it: ", one.when),
        ("Loads in: ", f"{one.loads}." if one.loads else ""),
    ):
        if text:
            yield from wrap(f"{title}{text}", _WIDE - 2, initial_indent="  ", subsequent_indent="  ")
    if one.figures:
        yield ""
        yield f"  {'bits':>6} {'error':>7}  measured on normal weights with --scheme"
        yield from (f"  {bits:>6.4g} {error:>7.3g}  {said}" for said, bits, error in one.figures)
    rows = list(one.options)
    if rows:
        yield ""
        yield "  Options:"
        for name, said in rows:
            yield from _row(f"  {name}", said, 26)
    yield ""


def _row(name: str, said: str, wide: int = _NAMES) -> Iterator[str]:
    lines = wrap(said, _WIDE - wide) or [""]
    if len(name) >= wide:
        yield name
    else:
        yield f"{name:<{wide}}{lines.pop(0)}".rstrip()
    yield from (" " * wide + line for line in lines)


def _plain(one: Entry) -> dict[str, object]:
    return {
        "kind": one.kind,
        "name": one.name,
        "given": one.given,
        "summary": one.summary,
        "loads": one.loads,
        "when": one.when,
        "figures": [{"setting": said, "bits": bits, "error": error} for said, bits, error in one.figures],
        "options": [{"option": name, "text": said} for name, said in one.options],
    }
