"""What a survey has written, as a line or as JSON."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from compressor.core.text import printable, without_secrets
from compressor.core.version import __version__

if TYPE_CHECKING:
    from compressor.workflows.survey import SurveyReport


def render_survey(report: SurveyReport, style: str) -> str:
    """One line, or one JSON object, and a newline."""
    number, count = report.part
    if style == "json":
        from compressor.reports.json import SCHEMA

        said = {
            "schema": SCHEMA,
            "tool": f"compressor {__version__}",
            "verb": "survey",
            "output": without_secrets(report.output),
            "part": list(report.part),
            "passes": report.passes,
            "complete": report.complete,
        }
        return json.dumps(said, indent=1) + "\n"
    if report.complete:
        left = "nothing is left to survey"
    elif number:
        left = "merge it with those of the other jobs"
    else:
        left = "survey with it again, until nothing is left, or run with it"
    done = f"{report.passes} pass{'' if report.passes == 1 else 'es'} finished"
    which = f"job {number} of {count}" if number else f"{count} job{'' if count == 1 else 's'}"
    return f"wrote {printable(report.output)}, {which}: {done}, {left}\n"
