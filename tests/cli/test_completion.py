"""Completion, in the shells themselves."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from support.clock import HANGS
from support.console import LLAMA, compressor, environment

CASES = [
    ("compressor quan", {"quantize"}),
    ("compressor quantize --sche", {"--scheme", "--scheduler"}),
    ("compressor quantize --scheme nv", {"nvfp4"}),
    ("compressor quantize --layout g", {"gptq"}),
    ("compressor quantize --for v", {"vllm"}),
    ("compressor prune --method wan", {"wanda"}),
    ("compressor pipeline --recipe w4", {"w4a16"}),
    ("compressor quantize MODEL --include model.n", {"model.norm.weight"}),
    ("compressor quantize MODEL -o out --exclude lm", {"lm_head.weight"}),
    ("compressor quantize MODEL -o out --set model.norm", {"model.norm.weight"}),
    ("compressor quantize MODEL -o out --set model.norm.weight:bi", {"model.norm.weight:bits="}),
    ("compressor quantize MODEL -o out --set x:granularity=ch", {"x:granularity=channel"}),
    ("compressor survey pru", {"prune"}),
    ("compressor survey prune --spars", {"--sparsity"}),
    ("compressor survey quantize MODEL --include model.n", {"model.norm.weight"}),
    ("compressor recipes show ny", set()),
    ("compressor methods ssm", set()),
]
BASH = """source <(compressor completion bash)
while read -r -a COMP_WORDS; do
  COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); COMPREPLY=(); _compressor_completion compressor; echo "${COMPREPLY[*]}"
done"""
FISH = """compressor completion fish | source
while read line; echo (complete -C "$line" | string split -f1 \\t); end"""
ZSH = """compdef() { }; compadd() { found+=($completions) }
_describe() { found+=(${completions_with_descriptions%%:*}) }
eval "$(compressor completion zsh)"
while read -r line; do
  words=(${=line}); CURRENT=$#words; found=(); _compressor_completion; print -r -- $found
done"""


def run_in(shell: list[str], script: str, lines: list[str], folder: Path) -> list[str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        [*shell, script],
        input="\n".join(lines) + "\n",
        cwd=folder,
        env=environment(PATH=path, HOME=str(folder)),
        capture_output=True,
        text=True,
        check=False,
        timeout=HANGS,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout.split("\n")


@pytest.mark.parametrize("shell", ["bash", "fish", "zsh"])
def test_what_a_shell_offers(shell: str, tmp_path: Path) -> None:
    if shutil.which(shell) is None:
        assert shell != "bash"
        assert compressor("completion", shell).code == 0  # the script at least; CI has the shells
        return
    (tmp_path / "MODEL").symlink_to(LLAMA)
    start, script = {
        "bash": (["--norc", "-c"], BASH),
        "fish": (["--no-config", "-c"], FISH),
        "zsh": (["-f", "-c"], ZSH),
    }[shell]
    found = run_in([shell, *start], script, [line for line, _ in CASES], tmp_path)
    for (line, expected), said in zip(CASES, found, strict=False):
        assert set(said.split()) == expected, line


def test_what_a_shell_would_carry_out_is_not_offered(tmp_path: Path) -> None:
    save_file(
        {name: np.zeros(1) for name in ("x$(touch it)", "x;y", "x`z`", "x y", "x.ok", "x,y")},
        tmp_path / "m.safetensors",
    )
    (offered, *_) = run_in(["bash", "--norc", "-c"], BASH, ["compressor prune m.safetensors --include x"], tmp_path)
    assert offered == "x.ok"
    assert not (tmp_path / "it").exists()


def test_paths_are_left_to_the_shell(tmp_path: Path) -> None:
    (tmp_path / "weights.npy").touch()
    shown = run_in(
        ["bash", "--norc", "-c"],
        BASH.replace('echo "${COMPREPLY[*]}"', "true")
        .replace("compopt", "echo")
        .replace("while", "compopt() { echo $*; }; while"),
        ["compressor inspect wei", "compressor prune x --stats wei", "compressor prune --include wei"],
        tmp_path,
    )
    assert [line for line in shown if line] == ["-o default", "-o default"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_it_is_put_where_shells_look(shell: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    done = compressor("completion", shell, "--install")
    assert done.code == 0
    (written,) = (path for path in tmp_path.rglob("*") if path.is_file())
    assert str(written) in done.out
    assert written.read_text() == compressor("completion", shell).out
    again = compressor("completion", shell, "--install")
    assert (again.code, "--force" in again.err) == (4, True)
    assert compressor("completion", shell, "--install", "--force").code == 0
