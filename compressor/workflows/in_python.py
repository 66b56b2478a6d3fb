"""Messages in the words of the Python functions: they are written for the command line, as most are read there.

`--force` is told as `force=True`, `--store dense` as `store="dense"`, `--bits` as `bits`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from functools import cache, wraps
from typing import Any, TypeVar

from compressor.core.errors import CompressorError, problems_of
from compressor.methods.options import VERBS, choices_of, options_of
from compressor.methods.registry import methods_of
from compressor.workflows.compare import ComparisonReport
from compressor.workflows.merge_report import MergeGateFailed, MergeReport
from compressor.workflows.results import Report, ReportedGateFailed

F = TypeVar("F", bound=Callable[..., Any])

# Keywords that are called otherwise than their options
_CALLED = {"for": "loader", "set": "rules", "candidate": "candidates"}
_FLAGS = (
    *(
        "force",
        "dry_run",
        "strict",
        "allow_unmatched",
        "fallback",
        "requantize",
        "no_tokenizer",
        "fold_weight_norm",
    ),
    *("fold_weight_norm", "per_tensor", "keep_work", "sequential", "copies", "remove_parts", "coding"),
)
_OPTION = re.compile(r"(?<![\w`-])--([a-z][a-z0-9-]*)(?: ([A-Za-z0-9_.:+-]*[A-Za-z0-9]))?")
_NUMBER = re.compile(r"[0-9][0-9.e+-]*")


@cache
def _known() -> tuple[dict[str, str], frozenset[str]]:
    """What flags of the command line are in Python, and the words that are values of options."""
    flags = {name.replace("_", "-"): f"{name}=True" for name in _FLAGS}
    words = {"vllm", "transformers", "mlx", "llama.cpp", "archive", "packed", "dense", "codes", "error", "keep"}
    for verb in VERBS:
        words |= methods_of(verb).keys()
        for method in methods_of(verb).values():
            for key, (hint, declared) in options_of(method).items():
                words |= {str(choice) for choice in choices_of(hint)}
                if hint is bool:
                    flags[key.replace("_", "-")] = f"{key}=True"
                    flags[declared.off or f"no-{key.replace('_', '-')}"] = f"{key}=False"
    return flags, frozenset(words)


def in_python(text: str) -> str:
    """A message that names options, with the keywords in their place."""
    flags, words = _known()

    def keyword(found: re.Match[str]) -> str:
        option, value = found[1], found[2] or ""
        beside = f" {value}" if value else ""
        if option in flags:
            return flags[option] + beside
        name = _CALLED.get(option, option.replace("-", "_"))
        if _NUMBER.fullmatch(value):
            return f"{name}={value}"
        return f'{name}="{value}"' if value in words else f"{name}{beside}"

    return _OPTION.sub(keyword, text)


def _gate(gate: str) -> str:
    """`--max-size 300 MB` as `max_size="300 MB"`."""
    option, _, limit = gate.partition(" ")
    if not option.startswith("--"):
        return gate
    return f"{option[2:].replace('-', '_')}={limit if _NUMBER.fullmatch(limit) else json.dumps(limit)}"


def _with_gates(result: Any) -> Any:
    """The result, whose gates are called by their keywords."""
    if not isinstance(result, Report | ComparisonReport | MergeReport):
        return result
    gates = tuple(
        replace(one, gate=_gate(one.gate), failure=one.failure.replace(one.gate, _gate(one.gate), 1))
        for one in result.gates
    )
    return replace(result, gates=gates)


def speaking_python(verb: F) -> F:
    """The function, whose errors and gates name keywords."""

    @wraps(verb)
    def called(*args: Any, **keywords: Any) -> Any:
        try:
            return _with_gates(verb(*args, **keywords))
        except CompressorError as error:
            for one in problems_of(error):
                one.reason, one.remedy = in_python(one.reason), in_python(one.remedy)
            if isinstance(error, ReportedGateFailed | MergeGateFailed):
                error.report = _with_gates(error.report)
            raise

    return called  # type: ignore[return-value]
