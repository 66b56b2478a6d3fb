"""`compressor report`, whose printing of results has the name of that module."""

from __future__ import annotations

from typing import Any

import click

from compressor.cli import documents, options
from compressor.cli.help import Command
from compressor.cli.streams import emit
from compressor.core.text import printable


@click.command(
    name="report",
    cls=Command,
    examples=(
        "compressor report SMALL --source MODEL",
        "compressor report small.safetensors -o small.html",
    ),
)
@click.argument("path", metavar="OUTPUT")
@click.option(
    "-o", "--output", metavar="FILE.html", help="Where the report goes; by default beside OUTPUT, under its name."
)
@click.option("--source", metavar="INPUT", help="What OUTPUT was made of, for errors and histograms of before.")
@click.option("--force", is_flag=True, help="Replace the report if it exists.")
@options.workers
@options.output_format
@options.quiet
@options.verbose
@options.debug
def command(path: str, output: str | None, source: str | None, *, force: bool, style: str, **values: Any) -> int:
    """Write the HTML report of an output that is there, from its record and its files.

    What only the run knew (gates, a budget's curve, why tensors were kept) is in the report of the run itself
    (--report). The record names its source by a hash: --source INPUT must be that one, and tells what was lost.
    """
    from compressor import api
    from compressor.cli.report import progress

    place = output or f"{path.rstrip('/')}.html"
    beside = documents.Documents(place, None, None, force)
    beside.check()
    beside.check_apart(*filter(None, (path, source)))
    with progress.bar(enabled=not values["quiet"], verbose=values["verbose"]) as advance:
        report = api.report(path, source=source, workers=values["workers"], progress=advance)
    documents.write_page(place, report, replace=force)
    if style == "json":
        from compressor.reports.json import render

        return 0 if emit(render(report, quiet=values["quiet"]), essential=False) else 4
    emit(f"wrote {printable(place)}\n", essential=False)
    return 0
