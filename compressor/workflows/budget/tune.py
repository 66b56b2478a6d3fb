"""The smallest output at which the user's own measure holds.

The points of the curve are tried by bisection: the best one first (if that does not hold, none will), then the
middle between the largest that failed and the smallest that held. Each is written to a hidden folder beside the
output, the command is run on it, and what it printed is logged at once; an interrupted search goes on where it was.
In place of a command a `LossSearch` measures what the outputs lost.
Nothing depends on a clock or on chance.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Protocol

from compressor.core.errors import CommandFailed, InputError, NothingWritten, UsageError
from compressor.core.plain_number import is_number
from compressor.core.text import printable, size_text
from compressor.files.input_file import InputFile
from compressor.files.staging import Staging
from compressor.files.strict_json import parse_object
from compressor.files.text_files import append_line
from compressor.files.writing import place_beside
from compressor.workflows.budget.choice import Evaluation
from compressor.workflows.budget.fit import Fitting
from compressor.workflows.budget.user_command import run_command

FORMAT, VERSION = "compressor-tune", 1
PLACE, RESTORED = "{path}", "{restored}"


class Measure(Protocol):
    """How outputs are measured: `evaluations` of them at most, noted in `log`; `metric` and `limit` in words."""

    @property
    def evaluations(self) -> int: ...
    @property
    def log(self) -> str: ...
    @property
    def metric(self) -> str: ...
    @property
    def limit(self) -> str: ...

    def check(self) -> None:
        """UsageError for what could never measure anything."""

    def check_input(self, source: str) -> None:
        """InputError or UsageError where nothing that is made of the input could be measured."""

    def identity(self) -> list[str]:
        """What the numbers of a log hold for, beside the input and its curve; not the limit."""

    def measure(self, source: str, path: str, restored: str) -> dict[str, float]:
        """What an output of a source has, by name; `restored` is where a dense copy of it lies, if asked for."""

    def metric_of(self, values: dict[str, float]) -> float:
        """The number that is told of it."""

    def holds(self, one: Evaluation) -> bool:
        """Whether that is enough."""

    @property
    def wants_restored(self) -> bool:
        """Whether a dense copy is needed."""


@dataclass(frozen=True)
class Search:
    """What is asked: the command (with `{path}` where the output goes, or `{restored}` where a dense copy of it
    does), the name of its metric in a JSON line, the least that it must be, how many outputs may be tried, seconds
    for each, and the log."""

    command: str
    metric: str
    minimum: float
    evaluations: int = 10
    timeout: float = 3600.0
    log: str = ""

    @property
    def limit(self) -> str:
        """The limit as the command line has it."""
        return f"--min-metric {self.minimum:g} of {self.metric}"

    @property
    def wants_restored(self) -> bool:
        return RESTORED in self.command

    def check(self) -> None:
        self.arguments("", "")

    def check_input(self, source: str) -> None:
        """Only the command can tell."""

    def identity(self) -> list[str]:
        return [self.command, self.metric]

    def measure(self, source: str, path: str, restored: str) -> dict[str, float]:
        try:
            printed = run_command(self.arguments(path, restored), self.timeout)
        except CommandFailed as error:
            error.reason = f"--evaluate: {error.reason}"
            raise
        return {"metric": metric_of(printed, self.metric)}

    def metric_of(self, values: dict[str, float]) -> float:
        return values["metric"]

    def holds(self, one: Evaluation) -> bool:
        return one.metric >= self.minimum

    def arguments(self, path: str, restored: str) -> list[str]:
        """The command for an output. UsageError where it is no command, or has no place for the path."""
        try:
            words = shlex.split(self.command)
        except ValueError as error:
            raise UsageError(f"--evaluate: {printable(str(error))}: {printable(self.command, 100)}") from error
        if not any(PLACE in word or RESTORED in word for word in words):
            raise UsageError(
                f"--evaluate has no {PLACE}, so that it would not see what to measure",
                remedy=f"For example --evaluate 'python score.py {PLACE}', or {RESTORED} for a dense copy",
            )
        return [word.replace(PLACE, path).replace(RESTORED, restored) for word in words]


def tuned(
    found: Fitting,
    search: Measure,
    identity: Any,
    tell: Callable[[Evaluation], None] | None = None,
) -> tuple[list[int], list[Evaluation]]:
    """The choice of the smallest output that holds, and everything that was tried, in order.

    `identity` (JSON) is what the curve is of; `tell` is given each point as soon as it is known. NothingWritten
    when not even the best point holds.
    """
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
        return search.holds(known)

    failed, held = -1, len(points) - 1
    if not holds(held):
        best = tried[-1]
        raise NothingWritten(
            f"{search.limit}: even the best that the candidates allow "
            f"({size_text(best.size)}) has {printable(search.metric, 60)} {best.metric:g}"
        )
    while held - failed > 1 and len(tried) < search.evaluations:
        middle = (failed + held) // 2
        if holds(middle):
            held = middle
        else:
            failed = middle
    # points go by the sizes that were forecast, which of an archive are estimates
    smallest = min((one for one in tried if search.holds(one)), key=lambda one: (one.size, one.point))
    return points[smallest.point], tried


def _evaluate(found: Fitting, picked: list[int], point: int, search: Measure) -> Evaluation:
    place = found.errand.place
    with ExitStack() as stack:

        def hidden(suffix: str) -> str:
            staging = Staging(place_beside(place, suffix), folder=True, replace=False)
            stack.callback(staging.discard)
            return os.path.join(staging.path, os.path.basename(place))

        path, restored = hidden("candidate"), ""
        size = found.errand.trial(found.recipe_for(picked), path).plan.size_after
        if search.wants_restored:
            restored = hidden("restored").removesuffix(".gguf")
            found.errand.restore(path, restored)
        values = search.measure(found.errand.source, path, restored)
    return Evaluation(point, size, search.metric_of(values), values if len(values) > 1 else {})


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


def _key(identity: Any, search: Measure, sizes: list[int]) -> str:
    """What a log's numbers hold for: the input, its curve, the command and the metric; not the limit."""
    said = json.dumps([identity, *search.identity(), sizes], sort_keys=True)
    return hashlib.sha256(said.encode()).hexdigest()


class _Log:
    """Lines of JSON: the key, then every evaluation. A last line that was cut off is as good as none. Without a
    path nothing is kept."""

    def __init__(self, search: Measure, key: str) -> None:
        self.path, self.known = search.log, dict[int, Evaluation]()
        if not self.path:
            return
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
            values = row.get("values", {})
            known = isinstance(values, dict) and all(is_number(value) for value in values.values())
            if type(point) is int and type(size) is int and is_number(metric) and known:
                self.known[point] = Evaluation(point, size, float(metric), values)
        if lines[-1]:
            append_line(self.path, "")  # so that the next one begins a line

    def add(self, one: Evaluation) -> None:
        if not self.path:
            return
        row = {"point": one.point, "size": one.size, "metric": one.metric}
        append_line(self.path, json.dumps(row | ({"values": dict(one.values)} if one.values else {})))
