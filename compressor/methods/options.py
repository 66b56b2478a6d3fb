"""How a method declares its options: fields with a help text and a range, told in words where a value is wrong."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from difflib import get_close_matches
from functools import cache
from math import inf
from typing import Any, Literal, TypeVar, get_args, get_type_hints

import msgspec

from compressor.core.errors import CompressorError, UsageError, raise_all
from compressor.core.text import printable

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Option:
    """What is known of a field beyond its type: help and range, `[low, high]` unless said to be open."""

    help: str
    low: float = -inf
    high: float = inf
    open_low: bool = False
    open_high: bool = False
    off: str = ""  # of a yes-or-no option: the word of the flag that says no
    free: bool = False  # a text of any alphabet and length, such as a path
    auto: bool = False  # of an option that may be unset: the word `auto` says that it is

    def holds(self, value: float) -> bool:
        """Whether a number is finite and in the range."""
        above = value > self.low if self.open_low else value >= self.low
        below = value < self.high if self.open_high else value <= self.high
        return above and below and abs(value) != inf  # NaN passes no comparison

    @property
    def range(self) -> str:
        """`from 2 to 8`, `at least 0`, …; empty when anything finite goes."""
        low = f"{'above' if self.open_low else 'at least'} {self.low:.10g}"
        high = f"{'below' if self.open_high else 'at most'} {self.high:.10g}"
        if self.low == -inf:
            return "" if self.high == inf else high
        if self.high == inf:
            return low
        if not self.open_low and not self.open_high:
            return f"from {self.low:.10g} to {self.high:.10g}"
        return f"{low} and {high}"


def option(default: Any = MISSING, *, help: str, **range_: Any) -> Any:  # noqa: A002 - as click calls it
    """Declare a dataclass field as an option of the method; without a default it must be given."""
    return field(default=default, metadata={"option": Option(help, **range_)})


def choices_of(hint: Any) -> tuple[Any, ...]:
    """The allowed values of a Literal, also inside `… | None`; empty for other types."""
    found: tuple[Any, ...] = ()
    for part in (hint, *get_args(hint)):
        if getattr(part, "__origin__", None) is Literal:
            found += get_args(part)
        elif part is type(None) and found:
            found += (None,)
    return found


def describe(hint: Any, declared: Option) -> str:
    """What a value must be, in words: `an integer from 2 to 8`."""
    choices = choices_of(hint)
    if choices:
        return "one of " + ", ".join(str(choice) for choice in choices if choice is not None)
    kinds = {part for part in (hint, *get_args(hint)) if isinstance(part, type)}
    if bool in kinds:
        return "true or false"
    noun = "an integer" if int in kinds else "a number" if float in kinds else "a text"
    return f"{noun} {declared.range}".strip() + (", or auto" if declared.auto else "")


_POINT = re.compile(r"^\.(?=[0-9])")  # `.5`, which people write and TOML does not know


def parse_options(
    cls: type[T],
    given: Mapping[str, Any],
    where: str,
    *,
    owner: str,
    text: bool = False,
    wrong: Sequence[CompressorError] = (),
    unknown: Callable[[str], UsageError] | None = None,
    **internal: Any,
) -> T:
    """An instance of a frozen dataclass whose fields are options, from what a user gave.

    `text`: values are strings from a command line. `internal` are fields that are no options. UsageError with all
    that is wrong at once, each with `where` in front: what was found `wrong` before, values of wrong types or out
    of range, names that `cls`, which errors call its `owner`, does not have (`unknown` says more of one), and
    required ones that are missing.
    """
    kind: Any = cls  # by which what is known of a class is cached
    known = options_of(kind)
    values, problems = dict[str, Any](), list(wrong)
    for name, value in given.items():
        try:
            if name not in known:
                raise unknown(name) if unknown is not None else _unknown(name, known, owner, where)
            values[name] = convert(*known[name], value, text=text)
        except UsageError as error:
            problems.append(UsageError(f"{where}{flag(name, where)}: {error.reason}", remedy=error.remedy))
    if given.keys() <= known.keys():  # else one of them may be a misspelt one that is required
        for name in required_options(kind):
            if name not in given:
                hint, declared = known[name]
                what = f"{describe(hint, declared)}; {declared.help}"
                problems.append(UsageError(f"{where}{owner} needs {flag(name, where)} ({what})"))
    raise_all(problems)
    try:
        return cls(**values, **internal)
    except UsageError as error:
        raise UsageError(f"{where}{error.reason}", remedy=error.remedy) from error


def _unknown(name: str, known: Mapping[str, Any], owner: str, where: str) -> UsageError:
    close = get_close_matches(name, known, 1)
    return UsageError(f"is no option of {owner}", remedy=f"Did you mean {flag(close[0], where)}?" if close else "")


def convert(hint: Any, declared: Option, value: Any, *, text: bool) -> Any:
    """A user's value as the option's type; UsageError that says what it must be."""
    if declared.auto and value == "auto":
        return None
    try:
        if text and (not isinstance(value, str) or not (declared.free or (value.isascii() and len(value) <= 100))):
            raise msgspec.ValidationError
        if text and not declared.free:
            value = _POINT.sub("0.", value)
        # A TOML integer stands for a float, never the reverse
        found = msgspec.convert(value, hint, strict=not text)
        if isinstance(found, int | float) and not isinstance(found, bool) and not declared.holds(found):
            raise msgspec.ValidationError
    except (msgspec.ValidationError, OverflowError) as error:
        raise UsageError(f"must be {describe(hint, declared)}, not '{printable(str(value), 40)}'") from error
    return found


def flag(name: str, where: str) -> str:
    """How the user wrote the option: a recipe key, or a flag."""
    return name if where else "--" + name.replace("_", "-")


VERBS = ("prune", "distill", "quantize")


# The option that names the method of a verb: `--scheme int` says what is stored, `--method` how it is chosen.
SELECTOR = {"prune": "method", "distill": "method", "quantize": "scheme", "store": "layout"}


@cache
def options_of(method: type[Any]) -> dict[str, tuple[Any, Option]]:
    """The options of a method: name → (type hint, declaration). Fields without `option(...)` are internal."""
    hints = get_type_hints(method)
    return {f.name: (hints[f.name], f.metadata["option"]) for f in fields(method) if "option" in f.metadata}


@cache
def defaults_of(method: type[Any]) -> dict[str, Any]:
    """The options that may be left out, with what they then are."""
    return {f.name: f.default for f in fields(method) if "option" in f.metadata and f.default is not MISSING}


@cache
def required_options(method: type[Any]) -> tuple[str, ...]:
    """The options without which the method means nothing."""
    declared: tuple[Field[Any], ...] = fields(method)
    return tuple(f.name for f in declared if f.default is MISSING and "option" in f.metadata)


# What help says of options that methods share and describe each in its own way: one text for a user who has not
# chosen a method yet. The methods and their defaults follow it in brackets.
SHARED_HELP: Mapping[tuple[str, str], str] = {
    ("distill", "rank"): "How many columns the left factor (low-rank) or an adapter (residual) has",
    (
        "distill",
        "energy",
    ): "Share of the squared norm that the factors keep (low-rank), or of the squared difference that the "
    "adapter gives back (residual)",
    ("distill", "seed"): "Where random numbers begin",
    ("distill", "base"): "What INPUT was trained from (delta), or what an adapter names as its base. A path, or a "
    "name on the Hub; by default the student folder's name (residual)",
    (
        "quantize",
        "granularity",
    ): "Which weights share a scale. Those of a group, a row (channel), a square block, or "
    "the whole tensor; left out, int below 8 bits and whatever is given --group-size take groups, others rows",
    ("quantize", "group_size"): "Neighbours that share a scale; by default 128. For nf4 64, a power of two",
    (
        "quantize",
        "method",
    ): "How scales are chosen. For the least squared error (search), by the range of the "
    "weights (absmax), half-quadratic (hqq), or for the least error on the inputs of --stats (gptq; awq, which "
    "scales them)",
    (
        "quantize",
        "layout",
    ): "How codes lie in the file; by default as vLLM and transformers load them. Auto is what "
    "compressed-tensors loads, where it has a layout for them; mlx, gptq and compressor are what their "
    "names say; naive-quantized leaves activations alone, "
    "float-quantized has them rounded too; base3 packs five ternary codes into a byte, 2bit four",
    ("quantize", "bits"): "Bits of a code; by default 8. Of step the b of a step of 2^(b-1)",
}
