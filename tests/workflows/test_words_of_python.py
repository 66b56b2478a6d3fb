"""Errors of the Python functions name keywords, those of the command line options."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from support.console import MATRIX
from support.console import compressor as command

import compressor
from compressor.workflows.in_python import in_python


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("exists already. Use --force to replace it", "exists already. Use force=True to replace it"),
        ("--max-error 0.02: it is 0.1", "max_error=0.02: it is 0.1"),
        ("Use --store dense, or write .npz", 'Use store="dense", or write .npz'),
        ("--asymmetric has none", "symmetric=False has none"),
        ("Give --text, --tokens or --inputs", "Give text, tokens or inputs"),
        ("--for vllm: it has none", 'loader="vllm": it has none'),
        ("a name such as x--y stays", "a name such as x--y stays"),
    ],
)
def test_options_become_keywords(said: str, told: str) -> None:
    assert in_python(said) == told


def test_who_asks_is_answered_in_their_words(tmp_path: Path) -> None:
    out = tmp_path / "out.npy"
    compressor.prune(MATRIX, out, sparsity=0.5)
    with pytest.raises(compressor.OutputError, match=r"Use force=True to replace it"):
        compressor.prune(MATRIX, out, sparsity=0.5)
    assert "Use --force to replace it" in command("prune", MATRIX, "-o", out, "--sparsity", "0.5").err
    compressor.prune(MATRIX, out, sparsity=0.5, force=True)  # what it says is so
    with pytest.raises(compressor.UsageError) as problems:
        compressor.quantize(MATRIX, tmp_path / "x.npz", bits=4, store="dense")
    assert "Leave store out" in str(problems.value)
    assert "--" not in str(problems.value)


def test_a_function_is_one_object_with_its_own_signature() -> None:
    assert compressor.prune is compressor.prune
    assert compressor.prune.__name__ == "prune"
    assert np.isfinite(compressor.compare(MATRIX, MATRIX).total.cosine)


def test_gates_are_called_by_their_keywords(tmp_path: Path) -> None:
    out = tmp_path / "out.npy"
    limits = {"max_error": 0.9, "max_size": "300MB", "min_ratio": 0.5}
    report = compressor.prune(MATRIX, out, sparsity=0.5, **limits)  # type: ignore[arg-type]
    assert {one.gate for one in report.gates} == {"max_error=0.9", 'max_size="300 MB"', "min_ratio=0.5"}
    assert "max_error=0.9" in report.to_html()
    assert "--" not in report.to_html().partition("<body>")[2].partition("<script>")[0]
    with pytest.raises(compressor.GateFailed) as failed:
        compressor.prune(MATRIX, tmp_path / "no.npy", sparsity=0.5, max_error=0.01)
    (said,) = failed.value.report.failures  # type: ignore[attr-defined]
    assert said.startswith("max_error=0.01: the relative error of")
    assert compressor.compare(MATRIX, out, max_error=0.01).failures[0].startswith("max_error=0.01: ")
