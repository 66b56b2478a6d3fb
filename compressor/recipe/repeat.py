"""`repeat`: stages that are run several times, with options that move from round to round.

    [[stage]]
    repeat = 8
    [[stage.stage]]
    kind = "prune"
    sparsity = {from = 0.5, to = 0.97, shape = "cubic"}
    [[stage.stage]]
    kind = "distill"
    …

Unrolled when the recipe is read, so that a plan, a record and `--show-recipe` show every stage with its numbers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

import msgspec

from compressor.core.errors import UsageError
from compressor.recipe.stages import plain

_ROUNDS = 1000  # of one repetition
_STAGES = 10_000  # of a recipe


class _Schedule(msgspec.Struct, forbid_unknown_fields=True, rename={"start": "from", "end": "to"}):
    start: int | float
    end: int | float
    steps: int | None = None
    shape: Literal["linear", "cubic"] = "linear"


def unrolled(tables: Iterable[Mapping[str, Any]], where: str) -> list[tuple[str, dict[str, Any]]]:
    """Every stage's table in the order of the run, with its place in the recipe; UsageError that names a place."""
    found: list[tuple[str, dict[str, Any]]] = []
    for number, table in enumerate(tables):
        place = f"{where}stage[{number}]."
        if "repeat" not in table:
            found.append((place, _expanded(table, 0, 0, place)))
            continue
        rounds = _rounds(table, place)
        if len(found) + rounds * len(table["stage"]) > _STAGES:
            raise UsageError(f"{place}repeat: makes more than {_STAGES} stages")
        for turn in range(rounds):
            for inner, stage in enumerate(table["stage"]):
                if "repeat" in stage:
                    raise UsageError(f"{place}stage[{inner}].repeat: a repetition has none inside")
                at = f"{place}stage[{inner}]."
                found.append((at, _expanded(stage, turn, rounds, at)))
    return found


def _rounds(table: Mapping[str, Any], place: str) -> int:
    rounds, stages = table["repeat"], table.get("stage")
    if type(rounds) is not int or not 1 <= rounds <= _ROUNDS:
        raise UsageError(f"{place}repeat: must be an integer from 1 to {_ROUNDS}")
    more = sorted(table.keys() - {"repeat", "stage", "name"})
    if more:
        raise UsageError(f"{place}{more[0]}: has no meaning beside repeat; give it to the stages inside")
    if not isinstance(stages, list) or not stages or not all(isinstance(stage, dict) for stage in stages):
        raise UsageError(f"{place}repeat: has nothing to repeat; give [[stage.stage]] tables under it")
    return rounds


def _expanded(table: Mapping[str, Any], turn: int, rounds: int, place: str) -> dict[str, Any]:
    """A stage's table with its schedules turned into this round's numbers; of no repetition where `rounds` is 0."""
    found = {}
    for key, value in table.items():
        if isinstance(value, dict) and "from" in value:
            if not rounds:
                raise UsageError(f"{place}{key}: a schedule belongs into a stage under [[stage]] repeat = N")
            value = _scheduled(value, turn, rounds, f"{place}{key}")
        found[key] = value
    return found


def _scheduled(table: Mapping[str, Any], turn: int, rounds: int, place: str) -> int | float:
    """The number of one round. cubic is Zhu and Gupta's (arXiv 1710.01878): to + (from − to)·(1 − t)³, t from 0 in
    the first round to 1 in the last of `steps`; later rounds stay at `to`."""
    try:
        schedule = msgspec.convert(table, _Schedule)
    except msgspec.ValidationError as error:
        raise UsageError(
            f"{place}: {plain(error)}",
            remedy='A schedule is such as {from = 0.5, to = 0.9, steps = 4, shape = "cubic"}',
        ) from error
    steps = rounds if schedule.steps is None else schedule.steps
    if not 1 <= steps <= rounds:
        raise UsageError(f"{place}.steps: must be from 1 to the {rounds} rounds of its repeat, not {steps}")
    passed = 1.0 if turn >= steps - 1 else turn / (steps - 1)
    if schedule.shape == "cubic":
        left = 1 - passed
        passed = 1 - left * left * left  # `**` is the C library's
    try:
        number = schedule.start * (1 - passed) + schedule.end * passed  # exact at both ends
    except OverflowError as error:  # an integer of hundreds of digits
        raise UsageError(f"{place}: goes beyond any number") from error
    return round(number) if isinstance(schedule.start, int) and isinstance(schedule.end, int) else float(number)
