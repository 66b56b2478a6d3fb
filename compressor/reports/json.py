"""Reports as JSON with a schema version, for machines. Non-ASCII and control characters are escaped."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from math import isfinite
from typing import Any

from compressor.calibration.loss import ModelLoss
from compressor.calibration.result import CalibrationReport
from compressor.checkpoint.checkpoint import Tensor
from compressor.core.metrics import Change, Comparison, Moments
from compressor.core.text import without_secrets
from compressor.core.version import __version__
from compressor.engine.plan.plan import Job
from compressor.reports.choice import to_json as allocation_json
from compressor.workflows.archive_contents import CodingGain
from compressor.workflows.compare import ComparedTensor, ComparisonReport
from compressor.workflows.inspect import InspectReport
from compressor.workflows.merge_report import MergeReport
from compressor.workflows.results import Report, Verdict
from compressor.workflows.written import WrittenReport

SCHEMA = 2  # docs/report-schema.json
_LONG = 1000  # characters of a metadata value that are shown


Result = Report | ComparisonReport | InspectReport | CalibrationReport | MergeReport | WrittenReport


def render(report: Result, *, top: int | None = None, quiet: bool = False) -> str:
    """One JSON object and a newline. Complete: `top` does not shorten it; `quiet` leaves the tensors out."""
    text = json.dumps(to_dict(report, quiet=quiet), indent=1, ensure_ascii=True, allow_nan=False) + "\n"
    return text.replace("\x7f", "\\u007f")  # the one control character that ASCII JSON leaves as it is


def to_dict(report: Result, *, quiet: bool = False) -> dict[str, Any]:
    """What the JSON object has, as JSON types: lists, no tuples, and None for infinities and NaN."""
    if isinstance(report, Report):
        content = _report(report, quiet)
    elif isinstance(report, ComparisonReport):
        content = _comparison(report)
    elif isinstance(report, CalibrationReport):
        content = _calibration(report, quiet)
    elif isinstance(report, MergeReport):
        content = _merged(report, quiet)
    elif isinstance(report, WrittenReport):
        content = _written(report, quiet)
    else:
        content = _inspection(report)
    head = {"schema": SCHEMA, "tool": f"compressor {__version__}"}
    return {key: _finite(value) for key, value in {**head, **content}.items()}


def _report(report: Report, quiet: bool) -> dict[str, Any]:
    plan = report.plan
    content: dict[str, Any] = {
        "verb": report.verb,
        "input": without_secrets(report.input),
        "output": without_secrets(report.output),
        **({"part": sorted(report.part)} if report.part is not None else {}),
        "dry_run": report.changes is None and not report.failures,
        "container": plan.container,
        "stages": [dict(stage) for stage in plan.stages],
        "fingerprint": plan.fingerprint,
        "size_before": plan.size_before,
        "size_after": plan.size_after,
        "ratio": report.ratio,
        "bits_per_weight": report.bits_per_weight,
        "treated": _change(report.total),
        "all": _change(report.everything),
        "files": [*plan.to_dict()["files"], *({"name": name, "bytes": size} for name, size in report.beside)],
        "carried": [name for name in plan.carried if name not in dict(report.beside)],
        "left": dict(plan.left),
        "notes": list(plan.notes),
        **({"cuts": [cut.to_dict() for cut in plan.cuts]} if plan.cuts else {}),
        **({"budget": allocation_json(report.allocation)} if report.allocation is not None else {}),
        "warnings": report.warnings,
        "gates": _gates(report.gates),
        "failed_gates": list(report.failures),
    }
    if not quiet:
        changes: Sequence[Change | None] = report.changes or [None] * len(plan.jobs)
        content["tensors"] = [_tensor(job, change) for job, change in zip(plan.jobs, changes, strict=True)]
    return content


def _gates(gates: Sequence[Verdict]) -> list[dict[str, Any]]:
    return [{"gate": one.gate, "kept": not one.failure, "said": one.measured} for one in gates]


def _tensor(job: Job, change: Change | None) -> dict[str, Any]:
    return {
        "name": job.spec.name,
        "shape": list(job.spec.shape),
        "dtype": job.spec.dtype,
        "dtype_after": job.dtype_after,
        **({"stored_as": job.stored_as} if job.stored_as else {}),
        "size_before": job.size_before,
        "size_after": job.size_after,
        "parts": [{"name": s.name, "dtype": s.dtype, "shape": list(s.shape)} for s in job.part_specs],
        "steps": [
            {"stage": step.stage, **step.method.describe(), **({"instead": step.instead} if step.instead else {})}
            for step in job.steps
        ],
        "kept": [why.reason for why in job.left_alone],
        **(_change(change) or {}),
    }


def _change(change: Change | None) -> dict[str, Any] | None:
    if change is None:
        return None
    return {
        "weights": change.size,
        "sparsity_before": change.sparsity_before,
        "sparsity_after": change.sparsity_after,
        "relative_error": change.error,
    }


def _merged(report: MergeReport, quiet: bool) -> dict[str, Any]:
    content: dict[str, Any] = {
        "verb": "merge",
        "output": without_secrets(report.output),
        "parts": report.parts,
        "fingerprint": report.fingerprint,
        "size_before": report.size_before,
        "size_after": report.size_after,
        "ratio": report.size_before / report.size_after,
        "treated": _change(report.total),
        "all": _change(report.everything),
        "stages": [dict(stage) for stage in report.stages],
        "gates": _gates(report.gates),
        "failed_gates": list(report.failures),
    }
    if not quiet:
        content["tensors"] = [
            {
                "name": one.name,
                "shape": list(one.shape),
                "dtype": one.dtype,
                "dtype_after": one.dtype_after,
                "size_before": one.sizes[0],
                "size_after": one.sizes[1],
                "treated": one.treated,
                **(_change(one.change) or {}),
            }
            for one in report.tensors
        ]
    return content


def _comparison(report: ComparisonReport) -> dict[str, Any]:
    return {
        "verb": "compare",
        "a": without_secrets(report.a),
        "b": without_secrets(report.b),
        "size_a": report.sizes[0],
        "size_b": report.sizes[1],
        "gates": _gates(report.gates),
        "failed_gates": list(report.failures),
        **(_tensors(report) if report.loss is None else _loss(report.loss)),
    }


def _loss(loss: ModelLoss) -> dict[str, Any]:
    from compressor.reports.loss import to_json

    return to_json(loss)


def _tensors(report: ComparisonReport) -> dict[str, Any]:
    return {
        "total": _measured(report.total),
        "tensors": [_compared(row, _measured) for row in report.rows],
    }


def _compared(row: ComparedTensor, measured: Callable[[Comparison], dict[str, Any]]) -> dict[str, Any]:
    return {
        "name": row.name,
        "shape": list(row.shape),
        "dtype_a": row.dtypes[0],
        "dtype_b": row.dtypes[1],
        "stored_a": row.stored[0],
        "stored_b": row.stored[1],
        "size_a": row.sizes[0],
        "size_b": row.sizes[1],
        **({"problem": row.problem} if row.problem else {} if row.measured is None else measured(row.measured)),
    }


def _written(report: WrittenReport, quiet: bool) -> dict[str, Any]:
    content: dict[str, Any] = {
        "verb": "report",
        "output": without_secrets(report.output),
        "source": without_secrets(report.source) or None,
        "size_before": report.sizes[0],
        "size_after": report.sizes[1],
        "total": None if report.total is None else _measured(report.total),
        "stages": [dict(stage) for stage in report.stages],
        "fingerprint": report.plan or None,
        "made_of": None if report.made_of is None else dict([report.made_of]),
        "notes": list(report.notes),
    }
    if not quiet:
        measured = _measured if report.total is not None else _counted
        content["tensors"] = [_compared(row, measured) for row in report.rows]
    return content


def _counted(found: Comparison) -> dict[str, Any]:
    return {"weights": found.size, "sparsity_b": found.sparsity_after}


def _measured(found: Comparison) -> dict[str, Any]:
    return {
        "weights": found.size,
        "relative_error": found.error,
        "sqnr_db": found.sqnr,
        "cosine": found.cosine,
        "max_abs_error": found.largest,
        "sparsity_a": found.sparsity_before,
        "sparsity_b": found.sparsity_after,
    }


def _inspection(report: InspectReport) -> dict[str, Any]:
    return {
        "verb": "inspect",
        "input": without_secrets(report.path),
        "kind": report.kind,
        "size": report.size,
        "compression": report.compression,
        "metadata": {key: _shortened(value) for key, value in report.metadata.items()},
        "left": report.left,
        "tensors": [_row(tensor, moments) for tensor, moments in report.rows],
        **({"coding": [_coding(one) for one in report.codings]} if report.codings else {}),
    }


def _coding(found: CodingGain) -> dict[str, Any]:
    return {
        "name": found.name,
        "weights": found.weights,
        "kept": found.kept,
        "original": found.original,
        "before_coding": found.plain,
        "coded": found.coded,
        **{
            key: {"bits_before_coding": plain, "bits_coded": coded}
            for key, (plain, coded) in (
                ("values", found.values),
                ("positions", found.positions),
                ("beside", found.beside),
            )
        },
    }


def _calibration(report: CalibrationReport, quiet: bool) -> dict[str, Any]:
    content: dict[str, Any] = {
        "verb": "calibrate",
        "output": without_secrets(report.output),
        "source": without_secrets(report.source),
        "size": report.size,
        "notes": list(report.notes),
    }
    if not quiet:
        content["layers"] = [
            {"name": one.name, "rows": one.rows, "width": one.width, "gram": one.gram, "size": one.size}
            for one in report.layers
        ]
    return content


def _row(tensor: Tensor, moments: Moments | None) -> dict[str, Any]:
    row: dict[str, Any] = {
        "name": tensor.spec.name,
        "dtype": tensor.spec.dtype,
        "shape": list(tensor.spec.shape),
        "size": tensor.nbytes,
    }
    if tensor.encoder is not None:
        row["stored_as"] = {
            **tensor.encoder.describe(),
            "parts": sorted(p.spec.name for p in tensor.parts.values()),
        }
    if moments is not None:
        row |= {
            "sparsity": moments.zeros / moments.size if moments.size else 0.0,
            "non_finite": moments.non_finite,
            "min": moments.low,
            "max": moments.high,
            "mean": moments.mean,
            "std": moments.deviation,
        }
    return row


def _shortened(text: str) -> str:
    """Metadata may be megabytes: a report shows how it begins."""
    return text if len(text) <= _LONG else f"{text[:_LONG]}… ({len(text)} characters)"


def _finite(value: Any) -> Any:
    """JSON has no infinities: they become null."""
    if isinstance(value, float):
        return value if isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value
