"""What a user may say of norms matched with a teacher's: the options of `distill --method batch-norm`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from compressor.core.errors import CompressorError
from compressor.methods.options import option, options_of, parse_options
from compressor.recipe.sequential_refit import lacking

METHOD = "batch-norm"
FILES = ("inputs", "network")  # that options name, beside the teacher


@dataclass(frozen=True)
class MatchedNorms:
    """How a student's batch norms and biases are matched with its teacher's, and by which files."""

    linear_algebra: ClassVar[bool] = True  # as in `methods/contract.py`

    teacher: str  # empty in a recipe: what the whole pipeline begins with
    inputs: str  # empty in a recipe: what is given for all of its stages
    network: str | None = None
    rehearsal: bool = False  # all but the matching itself
    divide: float | None = option(None, help="divide the inputs by this, such as 255", low=1e-30, high=1e30)

    @property
    def label(self) -> str:
        """What notes and errors call the method."""
        return METHOD

    @property
    def files(self) -> tuple[str, ...]:
        """The files that it reads, as far as they are known."""
        return tuple(path for path in (self.teacher, self.inputs) if path)

    def to_table(self) -> dict[str, Any]:
        """The stage as a recipe gives it, with the paths of other files."""
        paths = {key: getattr(self, key) for key in ("teacher", *FILES)}
        return self.describe() | {key: path for key, path in paths.items() if path}

    def describe(self) -> dict[str, Any]:
        """The stage as it is recorded; paths are not part of what was done."""
        given = {name: getattr(self, name) for name in options_of(MatchedNorms)}
        return {"kind": "distill", "method": METHOD, **{k: v for k, v in given.items() if v is not None}}


def make_matched_norms(
    options: Mapping[str, Any], paths: Mapping[str, str | None], *, text: bool = False, where: str = ""
) -> MatchedNorms:
    """The matching that a user's options ask for, with the `paths` of `teacher`, `inputs` and `network`; UsageError
    with all that is wrong at once, each with `where` in front."""
    owner = f"method {METHOD}"
    problems = list[CompressorError](lacking(paths, f"{where}{owner}", where))
    return parse_options(
        MatchedNorms, options, where, owner=owner, text=text, wrong=problems, **dict[str, Any](paths)
    )
