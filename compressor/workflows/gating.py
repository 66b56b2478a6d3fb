"""Whether a plan and a result keep the limits of a recipe."""

from __future__ import annotations

from math import inf, isnan

from compressor.core.text import size_text
from compressor.engine.plan.plan import Plan
from compressor.recipe.gates import Gates
from compressor.workflows.results import Report, Verdict


def judge_plan(gates: Gates, plan: Plan) -> list[Verdict]:
    """What the gates say of the sizes of the plan, and of its cuts."""
    found = []
    worst = max(plan.cuts, key=lambda cut: cut.error, default=None)
    if gates.max_error is not None and worst is not None:
        said = f"the cut's relative error of '{worst.worst}' is {worst.error:.4g}"
        found.append(_verdict(f"--max-error {gates.max_error:g}", said, worst.error <= gates.max_error))
    ratio = plan.size_before / plan.size_after
    if gates.min_ratio is not None:
        said = f"the output is {ratio:.4g} times smaller"
        found.append(_verdict(f"--min-ratio {gates.min_ratio:g}", said, ratio >= gates.min_ratio))
    if gates.max_size is not None:
        said = f"the output has {plan.size_after} bytes ({size_text(plan.size_after)})"
        found.append(_verdict(f"--max-size {size_text(gates.max_size)}", said, plan.size_after <= gates.max_size))
    return found


def judge(gates: Gates, report: Report) -> list[Verdict]:
    """What the gates say of the measured changes."""
    found = []
    measured = [(job, change) for job, change in report.rows if change is not None]
    if gates.max_error is not None and measured:
        # an error that no float holds, of sums that none holds, is not known to be within any limit
        job, change = max(measured, key=lambda row: inf if isnan(row[1].error) else row[1].error)
        said = f"the relative error of '{job.spec.name}' is {change.error:.4g}"
        found.append(_verdict(f"--max-error {gates.max_error:g}", said, change.error <= gates.max_error))
    total = report.total
    if gates.min_sparsity is not None and total is not None:
        said = f"{total.sparsity_after:.4g} of the treated weights are zero"
        kept = total.sparsity_after >= gates.min_sparsity
        found.append(_verdict(f"--min-sparsity {gates.min_sparsity:g}", said, kept))
    return found


def _verdict(gate: str, said: str, kept: bool) -> Verdict:
    return Verdict(gate, said, "" if kept else f"{gate}: {said}")
