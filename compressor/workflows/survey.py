"""Passes over a whole model by several jobs: each its share of the next one, merged, and then the one after."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from compressor.core.errors import InputError, UsageError
from compressor.core.text import printable
from compressor.engine.execution.parts import inputs_of
from compressor.engine.execution.survey_book import Paused, to_json
from compressor.files.destination import check_apart
from compressor.files.removing import remove_output
from compressor.files.survey_file import SurveyFile, read_survey, write_survey
from compressor.files.writing import check_output
from compressor.workflows.one_pass import open_input
from compressor.workflows.part import numbers_of
from compressor.workflows.run_options import RunOptions


@dataclass(frozen=True)
class SurveyReport:
    """What was written of a survey: by job `part` (number, of how many), or merged of `part[1]` jobs' (0, of how
    many). `passes` are those that are finished; `complete`: none is left."""

    output: str
    part: tuple[int, int]
    passes: int
    complete: bool


def survey_path(output: str, part: str) -> str:
    """Where a job's survey for an output goes: beside its place."""
    number, count = numbers_of(part)
    return f"{output.rstrip('/')}.survey-{number}-of-{count}"


def run_survey(
    source: str, output: str, options: RunOptions, run: Callable[[RunOptions], object], teachers: Sequence[str] = ()
) -> SurveyReport:
    """Do one job's share of the next pass over all tensors that a run would make, by starting that `run` and
    leaving it there. UsageError, InputError and OutputError as the run itself, and for a survey of other inputs."""
    part = options.part or "1/1"
    path = survey_path(output, part)
    check_apart(path, source)
    check_output(path, folder=False, replace=options.force)
    opened = [open_input(source, options), *(open_input(teacher, options) for teacher in teachers)]
    inputs, times = inputs_of(opened, ())
    known = None if options.surveyed is None else read_survey(options.surveyed)
    stages, passes = (known.stages, known.passes) if known is not None else ((), {})
    key, stats = "", None
    try:
        run(replace(options, surveys_only=True, dry_run=True, part=part))
    except Paused as paused:
        key, stats = paused.key, to_json(paused.stats)
        stages = stages or paused.plan.stages
    for one in opened:
        one.source.check_unchanged()
    found = SurveyFile(inputs, times, numbers_of(part), list(stages), passes, key, stats)
    write_survey(path, found, replace=options.force)
    return SurveyReport(path, found.part, len(passes), complete=not key)


def merge_surveys(
    paths: Sequence[str], output: str, *, force: bool = False, copies: bool = False, remove_parts: bool = False
) -> SurveyReport:
    """Merge what all jobs gathered in a pass, and with `remove_parts` remove their files. UsageError for jobs that
    are missing or given twice, InputError for surveys of other inputs, or that know other passes."""
    check_apart(output, *paths)
    surveys = [(path, read_survey(path)) for path in paths]
    (first_path, first), *others = surveys
    by_number: dict[int, tuple[str, SurveyFile]] = {}
    for path, one in surveys:
        if one.part == (0, 0):
            raise UsageError(f"{printable(path)} is merged already", remedy="Give it to --surveyed")
        if one.part[1] != first.part[1]:
            said = f"is of {one.part[1]} jobs, and {printable(first_path)} of {first.part[1]}"
            raise InputError(said, file=path, remedy="Give those of one survey")
        if one.part[0] in by_number:
            both = f"{printable(by_number[one.part[0]][0])} and {printable(path)}"
            raise UsageError(f"job {one.part[0]}/{one.part[1]} is given twice: {both}", remedy="Give each once")
        by_number[one.part[0]] = path, one
    for path, one in others:
        said = f"than {printable(first_path)}"
        if one.inputs != first.inputs:
            raise InputError(f"was made of other inputs {said}", file=path)
        if one.times != first.times and not copies:
            remedy = "Where they are copies of the same files, say so with --copies"
            raise InputError(f"was made of files of other times {said}", file=path, remedy=remedy)
        if one.key != first.key or one.passes.keys() != first.passes.keys():
            raise InputError(f"is of another pass {said}", file=path, remedy="Make all by one command")
    missing = [number for number in range(1, first.part[1] + 1) if number not in by_number]
    if missing:
        told = ", ".join(f"{number}/{first.part[1]}" for number in missing[:10])
        raise UsageError(
            f"what job {told} surveyed is missing",
            remedy=f"Run the same command with --part {missing[0]}/{first.part[1]}",
        )
    passes = dict(first.passes)
    if first.key:
        passes[first.key] = [by_number[number][1].stats for number in sorted(by_number)]
    merged = SurveyFile(first.inputs, first.times, (0, 0), first.stages, passes, "", None)
    write_survey(output, merged, replace=force)
    if remove_parts:
        for path in paths:
            remove_output(path, folder=False)
    return SurveyReport(output, (0, first.part[1]), len(passes), complete=not first.key)
