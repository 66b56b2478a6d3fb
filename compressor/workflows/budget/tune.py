"""The smallest output at which the user's own measure holds.

The points of the curve are tried by bisection: the best one first (if that does not hold, none will), then the
middle between the largest that failed and the smallest that held. Each is written to a hidden folder beside the
output, the command is run on it, and what it printed is logged at once; an interrupted search goes on where it was.
Nothing depends on a clock or on chance.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from compressor.core.errors import CommandFailed, InputError, NothingWritten, UsageError
from compressor.core.plain_number import is_number
from compressor.core.text import printable, size_text
from compressor.files.input_file import InputFile
from compressor.files.staging import Staging
from compressor.files.strict_json import parse_object
from compressor.files.text_files import append_line
from compressor.workflows.budget.choice import Evaluation
from compressor.workflows.budget.fit import Fitting
from compressor.workflows.budget.user_command import run_command

FORMAT, VERSION = "compressor-tune", 1
PLACE = "{path}"


@dataclass(frozen=True)
class Search:
    """What is asked: the command (with `{path}` where the output goes), the name of its metric in a JSON line, the
    least that it must be, how many outputs may be tried, seconds for each, and the log."""

    command: str
    metric: str
    minimum: float
    evaluations: int = 10
    timeout: float = 3600.0
    log: str = ""

    def arguments(self, path: str) -> list[str]:
        """The command for an output. UsageError where it is no command, or has no place for the path."""
        try:
            words = shlex.split(self.command)
        except ValueError as error:
            raise UsageError(f"--evaluate: {printable(str(error))}: {printable(self.command, 100)}") from error
        if not any(PLACE in word for word in words):
            raise UsageError(
                f"--evaluate has no {PLACE}, so that it would not see what to measure",
                remedy=f"For example --evaluate 'python score.py {PLACE}'",
            )
        return [word.replace(PLACE, path) for word in words]


def tuned(
    found: Fitting,
    search: Search,
    identity: Any,
    tell: Callable[[Evaluation], None] | None = None,
) -> tuple[list[int], list[Evaluation]]:
    """The choice of the smallest point that holds, and everything that was tried, in order.

    `identity` (JSON) is what the curve is of; `tell` is given each point as soon as it is known. NothingWritten
    when not even the best point holds.
    """
    search.arguments("")
    points = found.points()
    log = _Log(search, _key(identity, search, [found.bytes_of(point) for point in points]))
    tried: list[Evaluation] = []

    def holds(point: int) -> bool:
        known = log.known.get(point)
        if known is None:
            known = _evaluate(found, points[point], point, search)
            log.add(known)
        tried.append(known)
        if tell is not None:
            tell(known)
        return known.metric >= search.minimum

    failed, held = -1, len(points) - 1
    if not holds(held):
        best = tried[-1]
        raise NothingWritten(
            f"--min-metric {search.minimum:g}: even the best that the candidates allow "
            f"({size_text(best.size)}) has {printable(search.metric, 60)} {best.metric:g}"
        )
    while held - failed > 1 and len(tried) < search.evaluations:
        middle = (failed + held) // 2
        if holds(middle):
            held = middle
        else:
            failed = middle
    return points[held], tried


def _evaluate(found: Fitting, picked: list[int], point: int, search: Search) -> Evaluation:
    place = found.errand.place
    staging = Staging(f"{place}.candidate", folder=True, replace=False)
    try:
        path = os.path.join(staging.path, os.path.basename(place))
        size = found.errand.trial(found.recipe_for(picked), path).plan.size_after
        printed = run_command(search.arguments(path), search.timeout)
    except CommandFailed as error:
        error.reason = f"--evaluate: {error.reason}"
        raise
    finally:
        staging.discard()
    return Evaluation(point, size, metric_of(printed, search.metric))


def metric_of(printed: str, name: str) -> float:
    """The number that a command printed: the last line that is one, or a JSON object that has it by this name."""
    for line in reversed(printed.splitlines()):
        number: Any = None
        text = line.strip()
        try:
            number = parse_object(text.encode(), "").get(name) if text.startswith("{") else float(text)
        except (ValueError, InputError):
            continue
        if is_number(number):
            return float(number)
    last = printed.strip().splitlines()[-1:] or ["nothing"]
    raise UsageError(
        f"--evaluate: the command printed no number and no JSON line with '{printable(name, 60)}'; "
        f"the last it said is: {printable(last[0], 120)}"
    )


# ---- the log -------------------------------------------------------------------------------------------


def _key(identity: Any, search: Search, sizes: list[int]) -> str:
    """What a log's numbers hold for: the input, its curve, the command and the metric; not the limit."""
    said = json.dumps([identity, search.command, search.metric, sizes], sort_keys=True)
    return hashlib.sha256(said.encode()).hexdigest()


class _Log:
    """Lines of JSON: the key, then every evaluation. A last line that was cut off is as good as none."""

    def __init__(self, search: Search, key: str) -> None:
        self.path, self.known = search.log, dict[int, Evaluation]()
        head = {"format": FORMAT, "version": VERSION, "key": key}
        if not os.path.lexists(self.path):
            append_line(self.path, json.dumps(head))
            return
        file = InputFile.open(self.path)
        lines = file.read(0, min(file.size, 1 << 24)).split(b"\n")
        try:
            found = parse_object(lines[0], self.path)
        except InputError:
            found = {}
        if found.get("format") != FORMAT:
            raise InputError("is no log of tune", file=self.path, remedy="Name another file for --log")
        if found != head:
            raise InputError(
                "is the log of another search (input, candidates, command or metric)",
                file=self.path,
                remedy="Name another file for --log, or delete it",
            )
        for line in lines[1:-1]:
            row = parse_object(line, self.path) if line else {}
            point, size, metric = (row.get(name) for name in ("point", "size", "metric"))
            if type(point) is int and type(size) is int and is_number(metric):
                self.known[point] = Evaluation(point, size, float(metric))
        if lines[-1]:
            append_line(self.path, "")  # so that the next one begins a line

    def add(self, one: Evaluation) -> None:
        append_line(self.path, json.dumps({"point": one.point, "size": one.size, "metric": one.metric}))


def with_log(search: Search, output: str) -> Search:
    """The search with its log beside the output, where none is named."""
    return search if search.log else replace(search, log=f"{output.rstrip('/')}.tune.jsonl")
