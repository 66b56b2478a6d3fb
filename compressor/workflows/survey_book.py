"""The book of passes that a run goes by, out of the file that a survey has written."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from compressor.checkpoint.checkpoint import Checkpoint
from compressor.core.errors import InputError, UsageError
from compressor.core.text import printable
from compressor.engine.execution.parts import inputs_of
from compressor.engine.execution.survey_book import SurveyBook
from compressor.files.survey_file import read_survey
from compressor.workflows.part import share_of
from compressor.workflows.run_options import RunOptions

_DIFFERENCES = 3  # options that a message names


def book_of(options: RunOptions, checkpoints: Iterable[Checkpoint]) -> SurveyBook:
    """What is known already, of these inputs; of a run that surveys, also which share of the next pass is its own,
    of whole tensors, whose sums do not depend on how many jobs there are then. InputError for another's survey."""
    share = share_of(options.part or "1/1", whole=True) if options.surveys_only else None
    if options.surveyed is None:
        return SurveyBook({}, share, "")
    if not options.surveyed:
        raise UsageError("--surveyed names no file", remedy="Give what `compressor merge` made of surveys")
    found = read_survey(options.surveyed)
    if found.part != (0, 0):
        said = f"is of job {found.part[0]} of {found.part[1]} alone"
        raise InputError(said, file=options.surveyed, remedy="Merge those of all jobs first")
    if found.inputs != inputs_of(checkpoints, ())[0]:
        raise InputError("is a survey of other inputs", file=options.surveyed, remedy="Make the survey again")
    return SurveyBook(found.passes, share, options.surveyed)


def differing(path: str, stages: Sequence[Mapping[str, Any]]) -> str:
    """Why a run of these stages has no use for the passes of a survey, in words: which options it has otherwise."""
    found = [
        f"{key} {_shown(there.get(key))}, not {_shown(here.get(key))}"
        for there, here in zip(read_survey(path).stages, stages, strict=False)
        for key in sorted({*there, *here})
        if there.get(key) != here.get(key)
    ]
    if not found:
        return "it is of other stages or statistics"
    more = f" and {len(found) - _DIFFERENCES} more" if len(found) > _DIFFERENCES else ""
    return f"it is of {', '.join(found[:_DIFFERENCES])}{more}"


def _shown(value: Any) -> str:
    return "unset" if value is None else printable(str(value), 40)
