"""Outputs measured by a function of the caller's, in the place of a command."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from compressor.core.errors import UsageError
from compressor.core.plain_number import is_number
from compressor.core.text import printable
from compressor.workflows.budget.choice import Evaluation


@dataclass(frozen=True)
class FunctionSearch:
    """What is asked: a `function` that is given the path of an output (of a dense copy, with `wants_restored`) and
    returns a number, or a mapping with one under the name of `metric`, which must be at least `minimum`.

    A `log` is kept where one is named. That its numbers are of this function is the caller's word: what a function
    computes cannot be told from outside. What it raises ends the search, and nothing is written."""

    function: Callable[[str], Any]
    metric: str
    minimum: float
    evaluations: int = 10
    log: str = ""
    wants_restored: bool = False

    @property
    def limit(self) -> str:
        """The limit in words."""
        return f"min_metric {self.minimum:g} of {self.metric}"

    def check(self) -> None:
        """Only the function can tell."""

    def check_input(self, source: str) -> None:
        """Only the function can tell."""

    def identity(self) -> list[str]:
        """The function by its name."""
        named = getattr(self.function, "__qualname__", type(self.function).__qualname__)
        return ["function", str(named), self.metric]

    def measure(self, source: str, path: str, restored: str) -> dict[str, float]:
        """What the function says. UsageError where that is no number."""
        found = self.function(restored if self.wants_restored else path)
        number: Any = found.get(self.metric) if isinstance(found, Mapping) else found
        if hasattr(number, "item"):  # a NumPy scalar, or an array of one
            number = number.item()
        if not is_number(number):
            said = printable(repr(found), 120)
            raise UsageError(f"evaluate returned no number, and no mapping with one as '{self.metric}': {said}")
        return {"metric": float(number)}

    def metric_of(self, values: dict[str, float]) -> float:
        """The number."""
        return values["metric"]

    def holds(self, one: Evaluation) -> bool:
        """Whether it is large enough."""
        return one.metric >= self.minimum
