"""Whether a plan and a result keep the limits of a recipe."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf, isnan

from compressor.core.metrics import Change
from compressor.core.text import size_text
from compressor.engine.plan.plan import Plan
from compressor.recipe.gates import Gates
from compressor.workflows.results import Verdict


def judge_plan(gates: Gates, plan: Plan) -> list[Verdict]:
    """What the gates say of the sizes of the plan, and of its cuts."""
    found = []
    worst = max(plan.cuts, key=lambda cut: cut.error, default=None)
    if gates.max_error is not None and worst is not None:
        said = f"the cut's relative error of '{worst.worst}' is {worst.error:.4g}"
        found.append(_verdict(f"--max-error {gates.max_error:g}", said, worst.error <= gates.max_error))
    return [*found, *judge_sizes(gates, plan.size_before, plan.size_after)]


def judge_sizes(gates: Gates, before: int, after: int) -> list[Verdict]:
    """What the gates say of the bytes of container files before and after."""
    found = []
    ratio = before / after
    if gates.min_ratio is not None:
        said = f"the output is {ratio:.4g} times smaller"
        found.append(_verdict(f"--min-ratio {gates.min_ratio:g}", said, ratio >= gates.min_ratio))
    if gates.max_size is not None:
        said = f"the output has {after} bytes ({size_text(after)})"
        found.append(_verdict(f"--max-size {size_text(gates.max_size)}", said, after <= gates.max_size))
    return found


def judge(gates: Gates, measured: Sequence[tuple[str, Change]], total: Change | None) -> list[Verdict]:
    """What the gates say of what was `measured` of the treated tensors, by name, and of all of them together."""
    found = []
    if gates.max_error is not None and measured:
        # an error that no float holds, of sums that none holds, is not known to be within any limit
        name, change = max(measured, key=lambda row: inf if isnan(row[1].error) else row[1].error)
        said = f"the relative error of '{name}' is {change.error:.4g}"
        found.append(_verdict(f"--max-error {gates.max_error:g}", said, change.error <= gates.max_error))
    if gates.min_sparsity is not None and total is not None:
        said = f"{total.sparsity_after:.4g} of the treated weights are zero"
        kept = total.sparsity_after >= gates.min_sparsity
        found.append(_verdict(f"--min-sparsity {gates.min_sparsity:g}", said, kept))
    return found


def _verdict(gate: str, said: str, kept: bool) -> Verdict:
    return Verdict(gate, said, "" if kept else f"{gate}: {said}")
