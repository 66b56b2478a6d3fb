"""Whether a plan and a result keep the limits of a recipe: what they fail, in words."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf, isnan

from compressor.core.metrics import Change
from compressor.core.text import size_text
from compressor.engine.plan.plan import Plan
from compressor.recipe.gates import Gates


def judge_plan(gates: Gates, plan: Plan) -> list[str]:
    """What the sizes of the plan fail, in words."""
    failures = []
    worst = max(plan.cuts, key=lambda cut: cut.error, default=None)
    if gates.max_error is not None and worst is not None and worst.error > gates.max_error:
        failures.append(
            f"--max-error {gates.max_error:g}: the cut's relative error of '{worst.worst}' is {worst.error:.4g}"
        )
    return [*failures, *judge_sizes(gates, plan.size_before, plan.size_after)]


def judge_sizes(gates: Gates, before: int, after: int) -> list[str]:
    """What bytes of container files before and after fail, in words."""
    failures = []
    ratio = before / after
    if gates.min_ratio is not None and ratio < gates.min_ratio:
        failures.append(f"--min-ratio {gates.min_ratio:g}: the output is {ratio:.4g} times smaller")
    if gates.max_size is not None and after > gates.max_size:
        failures.append(
            f"--max-size {size_text(gates.max_size)}: the output has {after} bytes ({size_text(after)})"
        )
    return failures


def judge(gates: Gates, measured: Sequence[tuple[str, Change]], total: Change | None) -> list[str]:
    """What was `measured` of the treated tensors, by name, and of all of them together fails, in words."""
    failures = []
    if gates.max_error is not None and measured:
        # an error that no float holds, of sums that none holds, is not known to be within any limit
        name, change = max(measured, key=lambda row: inf if isnan(row[1].error) else row[1].error)
        if not change.error <= gates.max_error:
            failures.append(
                f"--max-error {gates.max_error:g}: the relative error of '{name}' is {change.error:.4g}"
            )
    if gates.min_sparsity is not None and total is not None and total.sparsity_after < gates.min_sparsity:
        failures.append(
            f"--min-sparsity {gates.min_sparsity:g}: {total.sparsity_after:.4g} of the treated weights are zero"
        )
    return failures
