"""Patterns of names, and conditions, that no tensor meets: the stage would do something else than was asked."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any

from compressor.core.errors import CompressorError, UsageError
from compressor.core.tensor import TensorSpec
from compressor.core.text import printable
from compressor.recipe.model import Stage
from compressor.recipe.selection import matches, meant, unmatched

_CARRY_ON = "--allow-unmatched takes a recipe as it is"


def check_patterns(stages: Sequence[Stage], first: int, specs: Sequence[TensorSpec]) -> list[CompressorError]:
    """What is wrong with the selection of stages, the first of which has the number `first`, among the tensors
    `specs`: patterns that match no name, and conditions (`when`) that hold for none. A UsageError for each."""
    names = [spec.name for spec in specs]
    problems: list[CompressorError] = [
        UsageError(f"{place} '{printable(text, 100)}' matches no tensor", remedy=_instead(text, names))
        for place, text in _lost(stages, first, names)
    ]
    return problems + [UsageError(text, remedy=_CARRY_ON) for text in _never(stages, first, specs)]


def pattern_notes(stages: Sequence[Stage], first: int, specs: Sequence[TensorSpec]) -> list[str]:
    """The same as notes, for a recipe that many models share."""
    names = [spec.name for spec in specs]
    lost = [f"{place} '{printable(text, 100)}' matches no tensor" for place, text in _lost(stages, first, names)]
    return [*lost, *_never(stages, first, specs)]


def _lost(stages: Sequence[Stage], first: int, names: Collection[str]) -> Iterator[tuple[str, str]]:
    """The option, with the stage where there are several, and its pattern that matches none of the names."""
    for number, stage in enumerate(stages, first):
        groups = (
            ("include", stage.include),
            ("exclude", stage.exclude),
            ("set", [text for text, _ in stage.rules]),
        )
        for option, patterns in groups:
            for text in unmatched(patterns, names):
                yield f"{_where(stages, number)}--{option}", text


def _never(stages: Sequence[Stage], first: int, specs: Sequence[TensorSpec]) -> Iterator[str]:
    """Conditions that hold for no tensor."""
    for number, stage in enumerate(stages, first):
        if stage.when is not None and all(stage.when.leaves(spec) is not None for spec in specs):
            asked = (f"{key} {_shown(value)}" for key, value in stage.when.describe().items())
            yield f"{_where(stages, number)}when: no tensor has {', '.join(asked)}"


def _shown(value: Any) -> str:
    return " or ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _where(stages: Sequence[Stage], number: int) -> str:
    return f"stage {number}: " if len(stages) > 1 or number else ""


def _instead(text: str, names: Collection[str]) -> str:
    near = meant(text, names)
    if near is None and "," in text and not unmatched([one.strip() for one in text.split(",")], names):
        return f"Give each of these patterns by an option of its own; {_CARRY_ON}"
    if near is None:
        return f"`compressor inspect` lists the names; {_CARRY_ON}"
    found = [name for name in names if matches(name, (near,))]
    more = f" and {len(found) - 1} more" if len(found) > 1 else ""
    return f"Did you mean '{printable(near, 100)}' ({printable(found[0], 100)}{more})? {_CARRY_ON}"
