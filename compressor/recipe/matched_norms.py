"""What a user may say of norms matched with a teacher's: the options of `distill --method batch-norm`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from compressor.core.errors import CompressorError
from compressor.methods.options import option, parse_options
from compressor.recipe.sequential_refit import ByInputs, without_teacher

METHOD = "batch-norm"


@dataclass(frozen=True)
class MatchedNorms(ByInputs):
    """How a student's batch norms and biases are matched with its teacher's; without inputs by its norms alone."""

    method: ClassVar[str] = METHOD
    needs_inputs: ClassVar[bool] = False

    divide: float | None = option(None, help="divide the inputs by this, such as 255", low=1e-30, high=1e30)


def make_matched_norms(
    options: Mapping[str, Any], paths: Mapping[str, str | None], *, text: bool = False, where: str = ""
) -> MatchedNorms:
    """The matching that a user's options ask for, with the `paths` of `teacher`, `inputs` and `network`; UsageError
    with all that is wrong at once, each with `where` in front."""
    owner = f"method {METHOD}"
    problems = list[CompressorError](without_teacher(paths, f"{where}{owner}", where))
    given = {**paths, "inputs": paths.get("inputs") or ""}
    return parse_options(
        MatchedNorms, options, where, owner=owner, text=text, wrong=problems, **dict[str, Any](given)
    )
