"""Files that were written once are still read, and today's bytes are those of then."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from threadpoolctl import threadpool_info

from compressor.checkpoint import record as provenance
from compressor.core import kernels

Array = npt.NDArray[Any]
GOLDEN = Path(__file__).parent / "golden"


def load_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_golden", GOLDEN / "make_golden.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SCRIPT = load_script()


def check(name: str, made: Path, folder: Path) -> None:
    """The golden bytes; of linear algebra on another processor the same form, and values within the tolerance that
    docs/formats.md states."""
    if made.read_bytes() == (GOLDEN / name).read_bytes():
        return
    assert SCRIPT.needs_linear_algebra(name)
    assert SCRIPT.PROCESSOR not in [pool.get("architecture") for pool in threadpool_info()]
    if name.endswith(".safetensors"):
        ours, theirs = (path.read_bytes() for path in (made, GOLDEN / name))
        assert ours[: 8 + int.from_bytes(ours[:8], "little")] == theirs[: 8 + int.from_bytes(theirs[:8], "little")]
    found, expected = SCRIPT.restore(made, folder), np.load(GOLDEN / f"{Path(name).stem}.restored.npy")
    assert close(found, expected)


def close(found: Array, expected: Array) -> bool:
    """Within 1e-5 of the largest, all but one weight in a hundred, and all together within a tenth."""
    apart = np.abs(found - expected)
    off = np.count_nonzero(apart > 1e-5 * np.abs(expected).max())
    return bool(off <= found.size / 100 and np.linalg.norm(apart) <= 0.1 * np.linalg.norm(expected))


@pytest.mark.parametrize("name", SCRIPT.CASES)
def test_todays_bytes_are_the_golden_ones(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "__version__", SCRIPT.VERSION)
    check(name, SCRIPT.produce(name, tmp_path), tmp_path)


@pytest.mark.parametrize("name", SCRIPT.CASES)
def test_compiled_kernels_change_no_byte(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "__version__", SCRIPT.VERSION)
    with_kernels = SCRIPT.produce(name, tmp_path).read_bytes()
    (tmp_path / name).unlink()
    monkeypatch.setattr(kernels, "library", lambda: None)
    assert SCRIPT.produce(name, tmp_path).read_bytes() == with_kernels


def test_who_needs_linear_algebra_says_so() -> None:
    found = {name.rpartition("-")[0] for name in SCRIPT.CASES if SCRIPT.needs_linear_algebra(name)}
    assert found == {
        *("distill-low-rank", "distill-low-rank-dense", "distill-low-rank-energy", "distill-low-rank-randomized"),
        *("distill-low-rank-ratio", "distill-low-rank-stats", "distill-refit", "distill-residual"),
        *("distill-delta-mixed", "distill-residual-error", "prune-alps"),
        *("prune-sparsegpt", "prune-sparsegpt-pattern"),
        *("quantize-int-awq-4", "quantize-int-gptq-method-3-asymmetric", "quantize-int-gptq-method-4"),
        "quantize-nvfp4-gptq",
    }


def test_the_tolerance_sees_what_is_wrong() -> None:
    expected = np.random.default_rng(1).standard_normal((20, 30))
    assert close(expected + 1e-7, expected)
    assert not close(expected + 1e-3, expected)
    assert not close(expected[::-1], expected)
    one = expected.copy()
    one[3, 4] += 0.2
    assert close(one, expected)
    one[3, 4] += 9
    assert not close(one, expected)


@pytest.mark.parametrize("name", SCRIPT.CASES)
def test_golden_bytes_come_back_as_they_did(name: str, tmp_path: Path) -> None:
    found = SCRIPT.restore(GOLDEN / name, tmp_path)
    expected = np.load(GOLDEN / f"{Path(name).stem}.restored.npy")
    assert found.tobytes() == expected.tobytes()


@pytest.mark.parametrize(
    "path", sorted(p for p in SCRIPT.OLD.iterdir() if p.suffix != ".npy"), ids=lambda path: path.name
)
def test_what_0_1_0_wrote_otherwise_comes_back_as_it_did(path: Path, tmp_path: Path) -> None:
    found = SCRIPT.restore(path, tmp_path)
    assert found.tobytes() == np.load(path.with_suffix(".restored.npy")).tobytes()
    if path.name.startswith("quantize-int-"):  # whose scales of float32 weights had 32 bits
        newer = np.load(GOLDEN / f"{path.stem}.restored.npy")
        assert np.linalg.norm(found - newer) <= 0.1 * np.linalg.norm(newer)
        return
    # whose steps are others where an archive takes other bits
    if not path.name.startswith(("quantize-uniform-", "quantize-trellis-")):
        assert close(found, np.load(GOLDEN / f"{path.stem}.restored.npy"))


@pytest.mark.parametrize("style", SCRIPT.REPORTS)
def test_reports_are_what_they_were(style: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "__version__", SCRIPT.VERSION)
    assert SCRIPT.report(style, tmp_path) == (GOLDEN / f"report.{style}").read_text(encoding="utf-8")


def test_every_type_of_ggml_comes_back_as_it_did(tmp_path: Path) -> None:
    found = SCRIPT.restore(SCRIPT.TYPES, tmp_path)
    assert found.astype("<f4").tobytes() == np.load(SCRIPT.TYPES.with_suffix(".restored.npy")).tobytes()


def test_there_is_nothing_else() -> None:
    cases = {name for case in SCRIPT.CASES for name in (case, f"{Path(case).stem}.restored.npy")}
    there = {path.name for path in GOLDEN.iterdir() if not path.name.startswith(("input-", "__"))}
    types = {SCRIPT.TYPES.name, f"{SCRIPT.TYPES.stem}.restored.npy"}
    reports = {f"report.{style}" for style in SCRIPT.REPORTS}
    assert there == cases | reports | {"make_golden.py", SCRIPT.OLD.name, *types}
    old = [path for path in SCRIPT.OLD.iterdir() if path.suffix != ".npy"]
    there = {path.name for path in SCRIPT.OLD.iterdir()}
    assert there == {path.name for path in old} | {f"{path.stem}.restored.npy" for path in old}
    assert {path.name for path in old} <= set(SCRIPT.CASES)
