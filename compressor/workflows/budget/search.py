"""What a search goes by, out of the options of `tune`: a command or a function of the user's, or what the outputs
lost."""

from __future__ import annotations

import os
from dataclasses import fields
from typing import Any

from compressor.core.errors import UsageError
from compressor.recipe.loss_gates import LossGates, flag_of
from compressor.workflows.budget.tune import Measure, Search
from compressor.workflows.model_loss import LossInput

_INPUT = ("text", "tokens", "inputs", "labels", "network", "divide", "samples", "length")


OPTIONS = (
    *("evaluate", "metric", "min_metric", "timeout", "evaluations", "log"),
    *_INPUT,
    *(one.name for one in fields(LossGates)),
)


def search_of(options: dict[str, Any], output: str) -> Measure:
    """Take what is the search's out of the options; its log lies beside the output where none is named. UsageError
    where there is nothing to measure by, or two things."""
    what = {key: options.pop(key) for key in _INPUT if key in options}
    gates = {one.name: options.pop(one.name) for one in fields(LossGates) if one.name in options}
    evaluations = options.pop("evaluations", None) or 10
    named = options.pop("log", None)
    log = os.fspath(named or f"{output.rstrip('/')}.tune.jsonl")
    restored = bool(options.pop("restored", False))
    command = {key: options.pop(key, None) for key in ("evaluate", "metric", "min_metric", "timeout")}
    given = next((key for key, value in {**what, **gates}.items() if value is not None), None)
    own = next((key for key, value in command.items() if value is not None), None)
    if own is None and given is not None:
        from compressor.workflows.budget.loss_search import LossSearch

        return LossSearch(LossInput(**what), LossGates(**gates), evaluations, log)
    if given is not None:
        raise UsageError(
            f"{flag_of(str(own))} is of a command, and {flag_of(given)} measures without one: give one"
        )
    lacking = [flag_of(key) for key in ("evaluate", "min_metric") if command[key] is None]
    if lacking:
        raise UsageError(
            f"tune needs {' and '.join(lacking)}",
            remedy="Or --text FILE, or --inputs x.npy, with a limit such as --max-kld 0.01",
        )
    if callable(command["evaluate"]):
        return _by_function(command, evaluations, os.fspath(named or ""), restored=restored)
    if restored:
        raise UsageError("restored is for a function", remedy="In a command say {restored} in place of {path}")
    metric, timeout = command["metric"] or "metric", command["timeout"] or 3600.0
    return Search(command["evaluate"], metric, command["min_metric"], evaluations, timeout, log)


def _by_function(command: dict[str, Any], evaluations: int, log: str, *, restored: bool) -> Measure:
    from compressor.workflows.budget.function_search import FunctionSearch

    if command["timeout"] is not None:
        raise UsageError("timeout is for a command: a function cannot be stopped", remedy="Leave it out")
    metric, minimum = command["metric"] or "metric", command["min_metric"]
    return FunctionSearch(command["evaluate"], metric, minimum, evaluations, log, restored)
