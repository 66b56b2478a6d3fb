"""The example of docs/plug-ins.md is installed as a package is, found, used, and obeys the laws."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.console import TEACHER

from compressor.core.tensor import TensorSpec
from compressor.methods.contract import Block, PlainTransform
from compressor.testing import check_method

EXAMPLE = Path(__file__).parents[1] / "docs" / "examples" / "plug-in"


def as_installed(folder: Path) -> dict[str, str]:
    """What pip would lay down of the package, and the environment that finds it there."""
    import tomllib

    said = tomllib.loads((EXAMPLE / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    about = folder / f"compressor_grid-{said['version']}.dist-info"
    about.mkdir()
    (folder / "compressor_grid.py").write_bytes((EXAMPLE / "compressor_grid.py").read_bytes())
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {said['name']}\nVersion: {said['version']}\n")
    groups = (
        f"[{group}]\n" + "".join(f"{name} = {value}\n" for name, value in entries.items())
        for group, entries in said["entry-points"].items()
    )
    (about / "entry_points.txt").write_text("\n".join(groups))
    return {**os.environ, "PYTHONPATH": str(folder)}


def test_it_is_found_and_used(tmp_path: Path) -> None:
    environment = as_installed(tmp_path)

    def run(*words: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "compressor", *map(str, words)]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    small, dense = tmp_path / "small.safetensors", tmp_path / "dense.safetensors"
    done = run("quantize", TEACHER, "-o", small, "--scheme", "grid", "--pitch", "0.002")
    assert done.returncode == 0, done.stderr
    assert "F32 → grid" in done.stdout
    assert run("restore", small, "-o", dense).returncode == 0
    assert run("compare", TEACHER, dense, "--max-error", "0.05").returncode == 0
    pruned = run("prune", TEACHER, "-o", tmp_path / "p.safetensors", "--method", "small", "--below", "0.02")
    assert pruned.returncode == 0, pruned.stderr
    (tmp_path / "compressor_grid.py").write_text("import numpi\n")
    broken = run("restore", small, "-o", dense, "--force")
    assert broken.returncode == 3
    assert "the plug-in grid of the package compressor-grid cannot be used: ModuleNotFoundError" in broken.stderr
    assert run("restore", TEACHER, "-o", dense, "--force").returncode == 0


def test_its_own_tests_pass() -> None:
    environment = {**os.environ, "PYTHONPATH": str(EXAMPLE)}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(EXAMPLE / "tests")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


class Wandering(PlainTransform):
    """Breaks a law: what it does depends on how rows are cut into blocks."""

    verb, id = "prune", "wandering"

    def apply(self, block: Block, out: object) -> None:
        out[...] = block.values * (block.start == 0)  # type: ignore[index]


class Shy(PlainTransform):
    """Leaves every tensor alone."""

    verb, id = "prune", "shy"

    def skip(self, spec: TensorSpec) -> object:
        from compressor.core.errors import UsageError

        raise UsageError("no")

    def apply(self, block: Block, out: object) -> None:
        raise NotImplementedError


def test_a_law_that_is_broken_is_named() -> None:
    with pytest.raises(AssertionError, match="breaks law_cuts_and_what_memory_held_do_not_matter on"):
        check_method(Wandering(), "F32")
    with pytest.raises(AssertionError, match="takes none of"):
        check_method(Shy(), "F32")
