"""What a run writes about itself beside its output: a report to look at, gates and a summary for a CI."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from compressor.cli.streams import emit
from compressor.core.errors import CompressorError, OutputError, Problems, UsageError
from compressor.core.text import printable

if TYPE_CHECKING:
    from compressor.workflows.compare import ComparisonReport
    from compressor.workflows.results import Report

report_option = click.option(
    "--report",
    "report_file",
    metavar="FILE.html",
    help="Write a report to look at in a browser. One file that loads nothing.",
)
junit_option = click.option("--junit", metavar="FILE.xml", help="Write the gates as JUnit XML, for a CI to show.")
summary_option = click.option(
    "--summary",
    type=click.Choice(["markdown"]),
    help="Also tell it in Markdown: at the end of $GITHUB_STEP_SUMMARY, or printed where there is none.",
)
card_option = click.option(
    "--card", is_flag=True, help="Of an output folder: README.md becomes a model card, above what INPUT's says."
)
_SUMMARY = "GITHUB_STEP_SUMMARY"
_ENDS = {"--report": ".html", "--junit": ".xml"}


@dataclass(frozen=True)
class Documents:
    """Paths of what is written when the run is done; `summary` is a style, "" for none."""

    report: str | None
    junit: str | None
    summary: str | None
    replace: bool

    @classmethod
    def taken(cls, values: dict[str, Any]) -> Documents:
        """Take the options of documents out of `values`. UsageError or OutputError for a place where one cannot be
        written, before anything is done."""
        paths = values.pop("report_file"), values.pop("junit")
        found = cls(*paths, values.pop("summary"), bool(values["force"]))
        for option, path in (("--report", found.report), ("--junit", found.junit)):
            if path is not None:
                found._check(option, path)
        place = os.environ.get(_SUMMARY, "") if found.summary is not None else ""
        if place and (os.path.isdir(place) or not os.path.isdir(os.path.dirname(place) or ".")):
            raise OutputError(
                f"${_SUMMARY} is no file that could be written", file=place, remedy="Unset it to have it printed"
            )
        return found

    def _check(self, option: str, path: str) -> None:
        from compressor.files.staging import check_place

        if not path.endswith(_ENDS[option]):
            raise UsageError(f"{option} writes {_ENDS[option]}", remedy=f"End its name in {_ENDS[option]}")
        check_place(path, folder=False, replace=self.replace)

    def check_apart(self, source: str, output: str) -> None:
        """UsageError where one would be the input or the output of the run."""
        from compressor.files.destination import check_apart

        for option, path in (("--report", self.report), ("--junit", self.junit)):
            if path is not None:
                check_apart(path, source, option=option)
                check_apart(path, output, option=option, of="output")

    def write(self, report: Report) -> None:
        """All that were asked for. OutputError where some could not be written, once the others are; the run is
        done all the same."""
        problems = []
        for write in (self._write_report, self.write_junit, self._tell):
            try:
                write(report)
            except OutputError as error:
                if report.changes is not None and not report.failures:
                    error.remedy = f"{printable(report.output)} is complete all the same"
                problems.append(error)
        if problems:
            raise problems[0] if len(problems) == 1 else Problems(problems)

    def _write_report(self, report: Report) -> None:
        if self.report is not None:
            from compressor.files.text_files import write_document
            from compressor.reports.html.document import Origin, render_html

            text = render_html(report, Origin(_command(), list(_hashes(report))))
            write_document(self.report, text.encode(), replace=self.replace)

    def write_junit(self, report: Report | ComparisonReport) -> None:
        """The gates alone, where they were asked for. OutputError when they cannot be written."""
        if self.junit is not None:
            from compressor.files.text_files import write_document
            from compressor.reports.junit import render_junit

            write_document(self.junit, render_junit(report).encode(), replace=self.replace)

    def _tell(self, report: Report) -> None:
        if self.summary is None:
            return
        from compressor.files.text_files import append_line
        from compressor.reports.markdown import render_markdown

        place, text = os.environ.get(_SUMMARY, ""), render_markdown(report)
        if place:
            append_line(place, text.rstrip("\n"))
        else:
            emit(text, essential=False)


def _command() -> str:
    """The command line that is carried out, as a shell takes it."""
    context = click.get_current_context(silent=True)
    arguments = context.find_root().obj if context is not None else None
    return shlex.join(["compressor", *arguments]) if arguments else ""


def _hashes(report: Report) -> Iterator[tuple[str, str]]:
    """What input and output are known by, as far as they are there."""
    from compressor.checkpoint.checkpoint import open_checkpoint
    from compressor.files.identity import identity_of

    done = report.changes is not None and not report.failures and report.part is None
    for said, path in (("input", report.input), *([("output", report.output)] if done else ())):
        try:
            kind, digest = identity_of(open_checkpoint(path).source)
        except CompressorError:  # an adapter, say, which is no checkpoint
            continue
        yield f"{said}, {'SHA-256' if kind == 'sha256' else 'SHA-256 of a sample (docs/formats.md)'}", digest
