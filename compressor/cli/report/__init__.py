"""Printing results. Nothing here computes; numbers come from `results` and `metrics`."""

from __future__ import annotations

from compressor.calibration.result import CalibrationReport
from compressor.workflows.compare import ComparisonReport
from compressor.workflows.inspect import InspectReport
from compressor.workflows.merge_report import MergeReport
from compressor.workflows.results import Report

Printable = Report | ComparisonReport | InspectReport | CalibrationReport | MergeReport


def render(
    report: Printable, style: str, *, top: int | None = None, quiet: bool = False, wide: bool = False
) -> str:
    """A report as text: `style` is table or json. `wide` tables have all columns, `quiet` ones are a line."""
    if style == "json":
        from compressor.reports import json as reporter

        return reporter.render(report, top=top, quiet=quiet)
    from compressor.cli.report import table

    return table.render(report, top=top, quiet=quiet, wide=wide)
