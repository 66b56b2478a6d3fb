"""`compressor merge`."""

from __future__ import annotations

from typing import Any

import click

from compressor.cli import documents, options
from compressor.cli.help import Command
from compressor.cli.streams import emit


@click.command(
    cls=Command,
    examples=(
        "compressor quantize MODEL -o SMALL --bits 4 --part 1/2",
        "compressor quantize MODEL -o SMALL --bits 4 --part 2/2",
        "compressor merge SMALL.part-*-of-2 -o SMALL --remove-parts",
    ),
)
@click.argument("parts", nargs=-1, required=True, metavar="PART...")
@options.output_option
@click.option("--force", is_flag=True, help="Replace OUTPUT if it exists, whole and at the end.")
@click.option(
    "--copies", is_flag=True, help="Inputs whose files differ in their times are copies of the same files."
)
@click.option("--remove-parts", is_flag=True, help="Remove the parts when OUTPUT has its name.")
@documents.report_option
@documents.junit_option
@options.workers
@options.output_format
@options.top
@options.wide
@options.quiet
@options.verbose
@options.debug
def command(parts: tuple[str, ...], output: str, **values: Any) -> int:
    """Put the parts together that several jobs wrote with --part K/N, into the output of one run, byte for byte.

    All of them must be there, of one plan, of the same inputs and of one version of compressor. Gates that were
    given with --part are judged here. What `compressor survey` wrote is merged too, into a file for --surveyed.
    """
    from compressor import api
    from compressor.cli.report import progress, render
    from compressor.cli.report.survey import render_survey
    from compressor.files.survey_file import is_survey
    from compressor.workflows.merge_report import MergeGateFailed
    from compressor.workflows.survey import SurveyReport

    beside = documents.Documents.taken(values)
    beside.check_apart(*parts, output=output)
    if is_survey(parts[0]):
        beside.refuse("is of an output, and these are parts of a survey")
    style, rows, hush = values.pop("style"), values.pop("top"), values.pop("quiet")
    wide, verbose = values.pop("wide"), values.pop("verbose")
    failed: MergeGateFailed | None = None
    with progress.bar(enabled=not hush, verbose=verbose) as advance:
        try:
            report = api.merge(parts, output, progress=advance, **values)
        except MergeGateFailed as error:
            report, failed = error.report, error
    if isinstance(report, SurveyReport):
        emit(render_survey(report, style or "table"), essential=False)
        return 0
    emit(render(report, style or "table", top=rows, quiet=hush, wide=wide), essential=False)
    beside.conclude(report, failed)
    return 0
