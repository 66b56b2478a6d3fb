"""How a method declares its options: fields with a help text and a range, told in words where a value is wrong."""

from __future__ import annotations

from dataclasses import MISSING, dataclass, field
from math import inf
from typing import Any, Literal, get_args


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
