"""Files that were written once are still read, and today's bytes are those of then."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from compressor.checkpoint import record as provenance
from compressor.core import kernels

GOLDEN = Path(__file__).parent / "golden"


def load_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_golden", GOLDEN / "make_golden.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SCRIPT = load_script()


@pytest.mark.parametrize("name", SCRIPT.CASES)
def test_todays_bytes_are_the_golden_ones(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "__version__", SCRIPT.VERSION)
    made = SCRIPT.produce(name, tmp_path)
    assert made.read_bytes() == (GOLDEN / name).read_bytes()


@pytest.mark.parametrize("name", SCRIPT.CASES)
def test_compiled_kernels_change_no_byte(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "__version__", SCRIPT.VERSION)
    monkeypatch.setattr(kernels, "library", lambda: None)
    assert SCRIPT.produce(name, tmp_path).read_bytes() == (GOLDEN / name).read_bytes()


@pytest.mark.parametrize("name", SCRIPT.CASES)
def test_golden_bytes_come_back_as_they_did(name: str, tmp_path: Path) -> None:
    found = SCRIPT.restore(GOLDEN / name, tmp_path)
    expected = np.load(GOLDEN / f"{Path(name).stem}.restored.npy")
    assert found.tobytes() == expected.tobytes()


@pytest.mark.parametrize("style", SCRIPT.REPORTS)
def test_reports_are_what_they_were(style: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "__version__", SCRIPT.VERSION)
    assert SCRIPT.report(style, tmp_path) == (GOLDEN / f"report.{style}").read_text(encoding="utf-8")


def test_there_is_nothing_else() -> None:
    cases = {name for case in SCRIPT.CASES for name in (case, f"{Path(case).stem}.restored.npy")}
    there = {path.name for path in GOLDEN.iterdir() if not path.name.startswith(("input-", "__"))}
    reports = {f"report.{style}" for style in SCRIPT.REPORTS}
    assert there == cases | reports | {"make_golden.py"}
