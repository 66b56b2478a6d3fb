"""What is shipped beside the package: the GitHub Action's steps, the pre-commit hook, the Dockerfile."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml  # as gguf, of the tests, needs it too
from support.console import TEACHER, compressor

ROOT = Path(__file__).parents[1]
ACTION: dict[str, Any] = yaml.safe_load((ROOT / "action.yml").read_text(encoding="utf-8"))
STEPS = {step["name"]: step["run"] for step in ACTION["runs"]["steps"]}


def step(name: str, folder: Path, **more: str) -> subprocess.CompletedProcess[str]:
    """A step of the action as a runner starts it."""
    return subprocess.run(
        ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", STEPS[name]],  # noqa: S607
        cwd=folder,
        env={**os.environ, "RUNNER_TEMP": str(folder), **more},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def runner(tmp_path: Path) -> Path:
    """A runner where the first step is done: its environment's programs are ours."""
    (tmp_path / "compressor").mkdir()
    (tmp_path / "compressor" / "bin").symlink_to(Path(sys.executable).parent)
    (tmp_path / "a model.safetensors").write_bytes(TEACHER.read_bytes())
    return tmp_path


def test_the_action_runs_a_command_and_tells_of_it(runner: Path) -> None:
    command = "quantize 'a model.safetensors' -o small.safetensors --bits 8 --granularity channel"
    page = runner / "page.md"
    done = step("Run", runner, COMMAND=command, SUMMARY="true", GITHUB_STEP_SUMMARY=str(page))
    assert done.returncode == 0, done.stderr
    assert (runner / "small.safetensors").stat().st_size < 300_000
    assert "small.safetensors" in page.read_text()
    quiet = step("Run", runner, COMMAND=f"{command} --force", SUMMARY="false", GITHUB_STEP_SUMMARY=str(page))
    assert quiet.returncode == 0
    assert "## " not in quiet.stdout


def test_the_action_fails_with_a_gate_and_runs_no_shell(runner: Path) -> None:
    gated = step("Run", runner, COMMAND="prune 'a model.safetensors' -o p.npz --max-size 1kB", SUMMARY="true")
    assert gated.returncode != 0
    foreign = step("Run", runner, COMMAND="inspect nothing; touch here", SUMMARY="true")
    assert foreign.returncode == 2
    assert not (runner / "here").exists()
    told = step("Run", runner, COMMAND="inspect 'a model.safetensors'", SUMMARY="true")
    assert told.returncode == 0, told.stderr


def test_every_input_of_the_action_is_used() -> None:
    text = (ROOT / "action.yml").read_text(encoding="utf-8")
    used = set(re.findall(r"\$\{\{ inputs\.(\w+) \}\}", text))
    assert used == set(ACTION["inputs"])
    assert all("${{" not in run for run in STEPS.values()), "an input in a script would be run by the shell"


def test_the_hook_refuses_what_is_too_large(tmp_path: Path) -> None:
    (hook,) = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text(encoding="utf-8"))
    program, *words = shlex.split(hook["entry"])
    assert program == "compressor"
    large, small = tmp_path / "large.gguf", tmp_path / "small.npy"
    large.write_bytes(b"")
    os.truncate(large, 60_000_000)
    small.write_bytes(b"x")
    assert all(re.search(hook["files"], path.name) for path in (large, small))
    assert not re.search(hook["files"], "notes.npy.md")
    assert compressor(*words, small).code == 0
    done = compressor(*words, small, large)
    assert done.code == 1
    assert done.out == f"60.0 MB  {large}\n"
    assert "1 of 2 files is larger" in done.err
    assert compressor(*words, "--max-size=70MB", small, large).code == 0  # what `args` add comes last
    assert compressor("limit", "--max-size", "1MB", tmp_path / "absent.npy").code == 3


def test_the_image_copies_what_there_is_and_does_not_run_as_root() -> None:
    lines = (ROOT / "Dockerfile").read_text(encoding="utf-8").splitlines()
    copied = [
        word for line in lines if line.startswith("COPY ") and "--from" not in line for word in line.split()[1:-1]
    ]
    assert copied
    allowed = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    for name in copied:
        assert (ROOT / name).exists(), name
        assert f"!{name}" in allowed
    (user,) = [line for line in lines if line.startswith("USER")]
    assert user != "USER root"
