"""What a run writes about itself beside its output: a report to look at, gates and a summary for a CI."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from compressor.cli.streams import emit, say
from compressor.core.errors import CompressorError, OutputError, Problems, UsageError, problems_of
from compressor.core.text import printable

if TYPE_CHECKING:
    from compressor.workflows.compare import ComparisonReport
    from compressor.workflows.merge_report import MergeReport
    from compressor.workflows.results import Report
    from compressor.workflows.written import WrittenReport

    Judged = Report | ComparisonReport | MergeReport

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
    "--no-card",
    "card",
    flag_value=False,
    default=True,
    help="Leave the README.md of an output folder as INPUT's is.",
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
        found = cls(*paths, values.pop("summary", None), bool(values["force"]))
        found.check()
        place = os.environ.get(_SUMMARY, "") if found.summary is not None else ""
        if place and (os.path.isdir(place) or not os.path.isdir(os.path.dirname(place) or ".")):
            raise OutputError(
                f"${_SUMMARY} is no file that could be written", file=place, remedy="Unset it to have it printed"
            )
        return found

    def check(self) -> None:
        """UsageError or OutputError for a file that could not be written."""
        from compressor.files.staging import check_place

        for option, path in self._files():
            if not path.endswith(_ENDS[option]):
                raise UsageError(f"{option} writes {_ENDS[option]}", remedy=f"End its name in {_ENDS[option]}")
            check_place(path, folder=False, replace=self.replace)

    def _files(self) -> list[tuple[str, str]]:
        """The files that are to be written, by the options that ask for them."""
        files = (("--report", self.report), ("--junit", self.junit))
        return [(option, path) for option, path in files if path is not None]

    def check_apart(self, *sources: str, output: str | None = None) -> None:
        """UsageError where one would be among the inputs or the output of the run."""
        from compressor.files.destination import check_apart

        for option, path in self._files():
            check_apart(path, *sources, option=option)
            if output is not None:
                check_apart(path, output, option=option, of="output")

    def write(self, report: Judged) -> None:
        """All that were asked for. OutputError where some could not be written, once the others are; the run is
        done all the same."""
        problems = []
        for write in (self._write_report, self._write_junit, self._tell):
            try:
                write(report)
            except OutputError as error:
                made = _made(report)
                if made:
                    error.remedy = f"{printable(made)} is complete all the same"
                problems.append(error)
        if problems:
            raise problems[0] if len(problems) == 1 else Problems(problems)

    def conclude(self, report: Judged, failed: CompressorError | None) -> None:
        """Write all that were asked for, and raise `failed`, the gate that does not hold: then what could not be
        written is a warning. OutputError as of `write`."""
        try:
            self.write(report)
        except CompressorError as error:
            if failed is None:
                raise
            for problem in problems_of(error):
                say("warning", str(problem))
        if failed is not None:
            raise failed

    def refuse(self, why: str) -> None:
        """UsageError where a file was asked for, which a run like this cannot write."""
        for option, _ in self._files():
            raise UsageError(f"{option} {why}", remedy="Leave it out")

    def _write_report(self, report: Judged) -> None:
        if self.report is not None:
            write_page(self.report, report, replace=self.replace)

    def _write_junit(self, report: Judged) -> None:
        if self.junit is not None:
            from compressor.files.text_files import write_document
            from compressor.reports.junit import render_junit

            write_document(self.junit, render_junit(report).encode(), replace=self.replace)

    def _tell(self, report: Judged) -> None:
        from compressor.workflows.results import Report

        if self.summary is None or not isinstance(report, Report):
            return
        from compressor.files.text_files import append_line
        from compressor.reports.markdown import render_markdown

        place, text = os.environ.get(_SUMMARY, ""), render_markdown(report)
        if place:
            append_line(place, text.rstrip("\n"))
        else:
            emit(text, essential=False)


def write_page(path: str, report: Judged | WrittenReport, *, replace: bool) -> None:
    """The report to look at. OutputError when it cannot be written."""
    from compressor.files.text_files import write_document
    from compressor.reports.html.document import Origin, render_html

    text = render_html(report, Origin(_command(), list(_hashes(report))))
    write_document(path, text.encode(), replace=replace)


def _command() -> str:
    """The command line that is carried out, as a shell takes it."""
    context = click.get_current_context(silent=True)
    arguments = context.find_root().obj if context is not None else None
    return shlex.join(["compressor", *arguments]) if arguments else ""


def _made(report: Judged) -> str:
    """The output that a run wrote; "" where it wrote none."""
    from compressor.workflows.merge_report import MergeReport
    from compressor.workflows.results import Report

    if isinstance(report, MergeReport) or (isinstance(report, Report) and report.changes is not None):
        return "" if report.failures else report.output
    return ""


def _read(report: Judged | WrittenReport) -> list[tuple[str, str]]:
    """The files that a report is of, by what they are called in it."""
    from compressor.workflows.compare import ComparisonReport
    from compressor.workflows.results import Report
    from compressor.workflows.written import WrittenReport

    if isinstance(report, ComparisonReport):
        return [("A", report.a), ("B", report.b)]
    if isinstance(report, WrittenReport):
        return [("output", report.output)]
    output = _made(report)
    if not isinstance(report, Report):
        return [("output", output)] if output else []
    return [("input", report.input), *([("output", output)] if output and report.part is None else ())]


def _hashes(report: Judged | WrittenReport) -> Iterator[tuple[str, str]]:
    """What input and output are known by, as far as they are there."""
    from compressor.checkpoint.checkpoint import open_checkpoint
    from compressor.files.identity import identity_of

    for said, path in _read(report):
        try:
            kind, digest = identity_of(open_checkpoint(path).source)
        except CompressorError:  # an adapter, say, which is no checkpoint
            continue
        yield f"{said}, {'SHA-256' if kind == 'sha256' else 'SHA-256 of a sample (docs/formats.md)'}", digest
