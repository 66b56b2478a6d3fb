"""Gates as JUnit XML: a test case for each, so that a CI shows which one does not hold."""

from __future__ import annotations

from compressor.reports.markup import told
from compressor.workflows.compare import ComparisonReport
from compressor.workflows.merge_report import MergeReport
from compressor.workflows.results import Report


def render_junit(report: Report | ComparisonReport | MergeReport) -> str:
    """One suite with a case for each gate that was judged."""
    if isinstance(report, ComparisonReport):
        what = f"compare {report.a} {report.b}"
    else:
        what = f"{report.verb if isinstance(report, Report) else 'merge'} {report.output}"
    name = told(f"compressor {what}")
    cases = "".join(
        f'  <testcase classname="{name}" name="{told(one.gate)}">'
        + (f'<failure message="{told(one.failure, 2000)}"/>' if one.failure else "")
        + f"<system-out>{told(one.measured, 2000)}</system-out></testcase>\n"
        for one in report.gates
    )
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        f'<testsuite name="{name}" tests="{len(report.gates)}" failures="{len(report.failures)}" errors="0" '
        f'skipped="0">\n{cases}</testsuite>\n'
    )
