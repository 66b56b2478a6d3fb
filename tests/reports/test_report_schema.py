"""`--format json` against its documented schema, and what its figures mean."""

from __future__ import annotations

import json
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jsonschema import Draft202012Validator
from safetensors.numpy import save_file
from support.console import LLAMA, compressor

from compressor import api

ROOT = Path(__file__).parents[2]
SCHEMA = json.loads((ROOT / "docs" / "report-schema.json").read_text(encoding="utf-8"))
KINDS = {
    "compare": "comparison",
    "inspect": "inspection",
    "calibrate": "calibration",
    "merge": "merged",
    "survey": "surveyed",
    "report": "written",
}
MODEL = ROOT / "sample_weights" / "lenet300_teacher.safetensors"


def checked(*arguments: object, code: int = 0) -> dict[str, Any]:
    """The report of a run, which must be what the schema says."""
    done = compressor(*arguments, "--format", "json")
    assert done.code == code, done.err
    found: dict[str, Any] = json.loads(done.out)
    kind = KINDS.get(found["verb"], "report")
    Draft202012Validator({**SCHEMA, "oneOf": [{"$ref": f"#/$defs/{kind}"}]}).validate(found)
    Draft202012Validator(SCHEMA).validate(found)
    return found


def test_the_schema_is_one() -> None:
    Draft202012Validator.check_schema(SCHEMA)


def test_reports_are_as_the_schema_says(tmp_path: Path) -> None:
    out = tmp_path / "out"
    report = checked("quantize", LLAMA, "-o", out, "--bits", "4", "--min-ratio", "1.5", "--max-error", "0.5")
    assert [(gate["gate"], gate["kept"]) for gate in report["gates"]] == [
        ("--min-ratio 1.5", True),
        ("--max-error 0.5", True),
    ]
    compared = checked("compare", LLAMA, out, "--max-error", "0.5")
    assert [(gate["gate"], gate["kept"]) for gate in compared["gates"]] == [("--max-error 0.5", True)]
    row = next(one for one in compared["tensors"] if one["name"].endswith("0.mlp.up_proj.weight"))
    assert (row["stored_a"], row["stored_b"], row["dtype_b"]) == ("BF16", "int4", "BF16")
    assert row["size_a"] == 256 * 128 * 2 > 3 * row["size_b"]
    checked("inspect", out, "--stats")
    checked("restore", out, "-o", tmp_path / "again", "-q")
    checked("prune", LLAMA, "-o", tmp_path / "cut", "--structure", "neurons", "--fraction", "0.25")
    failed = checked(
        "quantize", MODEL, "-o", tmp_path / "no.safetensors", "--bits", "4", "--max-error", "0", code=1
    )
    assert len(failed["failed_gates"]) == 1
    assert [gate["kept"] for gate in failed["gates"]] == [False]


def test_other_reports_are_too(tmp_path: Path) -> None:
    budget = checked("quantize", MODEL, "-o", tmp_path / "b.safetensors", "--target-bits", "6", "--dry-run")
    assert budget["dry_run"]
    assert budget["all"] is None
    assert budget["budget"]["curve"]
    checked("quantize", MODEL, "-o", tmp_path / "a.safetensors", "--bits", "4", "--store", "archive")
    checked("inspect", tmp_path / "a.safetensors", "--coding")
    parts = [tmp_path / f"p.safetensors.part-{number}-of-2" for number in (1, 2)]
    for number in (1, 2):
        checked("quantize", MODEL, "-o", tmp_path / "p.safetensors", "--bits", "4", "--part", f"{number}/2")
    merged = checked("merge", *parts, "-o", tmp_path / "p.safetensors")
    whole = checked("quantize", MODEL, "-o", tmp_path / "w.safetensors", "--bits", "4")
    own = [(one["name"], one["size_before"], one["size_after"]) for one in whole["tensors"]]
    assert [(one["name"], one["size_before"], one["size_after"]) for one in merged["tensors"]] == own
    assert (merged["all"], merged["stages"]) == (whole["all"], whole["stages"])
    pruning = ("prune", MODEL, "-o", tmp_path / "s.safetensors", "--sparsity", "0.5", "--scope", "global")
    checked("survey", *pruning)
    checked("merge", tmp_path / "s.safetensors.survey-1-of-1", "-o", tmp_path / "book")


@pytest.mark.parametrize("dtype", ["F32", "BF16", "F64"])
def test_all_is_the_whole_file(dtype: str, tmp_path: Path) -> None:
    """‖W − W'‖ over all tensors against ‖W‖ of all: what is carried over counts among the latter."""
    random = np.random.default_rng(5)
    tensors = {
        "a.weight": random.standard_normal((64, 128)),
        "model.embed_tokens.weight": random.standard_normal((5000, 128)) * 3,  # carried, in more than a block
        "a.bias": np.array([1e3, np.inf, np.nan]),  # what is not finite has no part in a norm
    }
    numbers = {name: one.astype(np.float64 if dtype == "F64" else np.float32) for name, one in tensors.items()}
    source, bits = tmp_path / "m.safetensors", numbers
    if dtype == "BF16":
        import ml_dtypes

        bits = {name: one.astype(ml_dtypes.bfloat16) for name, one in numbers.items()}
        numbers = {name: one.astype(np.float32) for name, one in bits.items()}
    save_file(bits, source)
    report = api.quantize(source, tmp_path / "q.safetensors", bits=4, workers=1)
    assert report.total is not None
    assert report.everything is not None
    squares = {
        name: float(np.square(one[np.isfinite(one)], dtype=np.float64).sum()) for name, one in numbers.items()
    }
    lost = (report.total.error**2) * squares["a.weight"]
    assert report.everything.error == pytest.approx(sqrt(lost / sum(squares.values())), rel=1e-5)
    assert report.everything.error < report.total.error / 5
    assert report.everything.zeros_before == sum(np.count_nonzero(one == 0) for one in numbers.values())
    last = compressor("quantize", source, "-o", tmp_path / "r.safetensors", "--bits", "4", "-q").out.splitlines()[
        -1
    ]
    assert last.endswith(f"relative error {report.everything.error:.3g}")
