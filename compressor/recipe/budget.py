"""What a user asks of a budget: on the command line, as Python keywords, in a recipe's `[budget]`.

At most one target, and limits of the error of every tensor; a target spends its bytes within the limits, limits
alone are met in as few bytes as the candidates allow.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from math import floor, inf
from typing import Any

import msgspec

from compressor.core.elementary import power
from compressor.core.errors import UsageError
from compressor.core.text import printable, size_of, size_text
from compressor.methods.options import flag

SAMPLE = 1 << 22  # weights of a tensor that a survey measures, if nothing else is asked
# Options that the candidates give; a stage under a budget has none of them
CHOSEN = ("scheme", "bits", "granularity", "group_size")
TARGETS = ("target_size", "target_ratio", "target_bits")
LIMITS = ("max_error", "min_sqnr")


@dataclass(frozen=True)
class Budget:
    """`target_size` bytes of the container files, `target_ratio` times smaller, `target_bits` a weight of what is
    decided; `max_error` and `min_sqnr` (dB) of every tensor, unweighted, as the gates of those names mean them.
    `candidates` are names (none: the layout's), `survey` the table's file, `sample` how many weights of a tensor
    are measured (0: all); `text` a file that runs through the model, to weigh errors by what they cost its
    outputs."""

    target_size: int | None = None
    target_ratio: float | None = None
    target_bits: float | None = None
    max_error: float | None = None
    min_sqnr: float | None = None
    candidates: tuple[str, ...] = ()
    survey: str | None = None
    sample: int = SAMPLE
    text: str | None = None

    def __post_init__(self) -> None:
        given = [name for name in TARGETS if getattr(self, name) is not None]
        if len(given) > 1:
            raise UsageError(f"{given[0]} and {given[1]} are two targets; give one")
        for name in (*TARGETS, "max_error"):
            value = getattr(self, name)
            if value is not None and not 0 < value < inf:
                raise UsageError(f"{name} must be above 0, not {value:g}")
        if self.min_sqnr is not None and not -inf < self.min_sqnr < inf:
            raise UsageError("min_sqnr must be a number of decibels")
        if self.sample < 0:
            raise UsageError("sample must be a number of weights, or 0 for all")

    @property
    def asked(self) -> bool:
        """Whether there is anything to meet."""
        return any(getattr(self, name) is not None for name in (*TARGETS, *LIMITS))

    @property
    def limit(self) -> float:
        """The largest relative error that a tensor may have."""
        error = inf if self.max_error is None else self.max_error
        return error if self.min_sqnr is None else min(error, float(power(10.0, -self.min_sqnr / 20)))

    def file_size(self, before: int) -> int | None:
        """The bytes that the files may have, of `before`; None where that is not the target."""
        return floor(before / self.target_ratio) if self.target_ratio is not None else self.target_size

    def to_table(self) -> dict[str, Any]:
        """The request as a recipe gives it."""
        return {
            one.name: list(value) if isinstance(value, tuple) else value
            for one in fields(self)
            if (value := getattr(self, one.name)) != one.default
        }

    @property
    def words(self) -> str:
        """The request as a sentence has it: `--target-bits 4.5, --max-error 0.05`."""
        return self._words(*TARGETS, *LIMITS)

    @property
    def target_words(self) -> str:
        """The target alone, as a sentence has it."""
        return self._words(*TARGETS)

    @property
    def limit_words(self) -> str:
        """The limits alone, as a sentence has them."""
        return self._words(*LIMITS)

    def _words(self, *names: str) -> str:
        return ", ".join(
            f"--{name.replace('_', '-')} {size_text(value) if name == 'target_size' else f'{value:g}'}"
            for name in names
            if (value := getattr(self, name)) is not None
        )


KEYS = tuple(one.name for one in fields(Budget))


def take_budget(options: dict[str, Any], max_error: float | None, *, asked: bool = False) -> Budget | None:
    """Take what makes a budget out of Python keywords; None where nothing asks for one: a target, `scheme="auto"`,
    or the verb (`asked`). `max_error` is a gate of every run, and a limit of the choice as well.

    UsageError where a fixed scheme is given beside it, or what is a budget's and there is none.
    """
    given = {key: value for key in KEYS if (value := options.pop(key, None)) is not None}
    auto = options.get("scheme") == "auto"
    if auto:
        options.pop("scheme")
    if not (asked or auto or any(key in given for key in TARGETS)):
        for key in given:
            raise UsageError(
                f"{flag(key, '')} is for a budget", remedy="Ask for one with scheme='auto', or target_size='300MB'"
            )
        return None
    check_open(options)
    if max_error is not None:
        given["max_error"] = max_error
    given["candidates"] = tuple(given.get("candidates", ()))
    return Budget(**given)


def check_open(options: Mapping[str, Any]) -> None:
    """UsageError where the options of a stage say what a budget chooses."""
    fixed = next((key for key in CHOSEN if options.get(key) is not None), None)
    if fixed is not None:
        raise UsageError(
            f"a budget chooses {fixed} itself", remedy=f"Leave {fixed} out, or give candidates of your own"
        )


class _Table(msgspec.Struct, forbid_unknown_fields=True):
    target_size: int | str | None = None
    target_ratio: float | None = None
    target_bits: float | None = None
    max_error: float | None = None
    min_sqnr: float | None = None
    candidates: list[str] = []
    survey: str | None = None
    sample: int = SAMPLE
    text: str | None = None


def parse_budget(table: Mapping[str, Any], where: str = "") -> Budget:
    """A budget from a recipe's table; every error starts with `where`."""
    try:
        found = msgspec.to_builtins(msgspec.convert(dict(table), _Table))
    except msgspec.ValidationError as error:
        sentence, _, place = str(error).partition(" - at `$.")
        raise UsageError(f"{where}{place.strip('`') + ': ' if place else ''}{printable(sentence)}") from error
    size = found["target_size"]
    if isinstance(size, str):
        found["target_size"] = size_of(size)
        if found["target_size"] is None:
            raise UsageError(f"{where}target_size: '{printable(size, 40)}' is not a size such as 300MB or 1.5GiB")
    try:
        made = Budget(**{**found, "candidates": tuple(found["candidates"])})
    except UsageError as error:
        raise UsageError(f"{where}{error.reason}") from error
    if not made.asked:
        raise UsageError(
            f"{where}gives neither a target nor a limit", remedy=f"One of {', '.join(TARGETS + LIMITS)}"
        )
    return made
