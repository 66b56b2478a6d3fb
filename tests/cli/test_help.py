"""Help: two screens in groups, all of it when asked, and examples that do what they say."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import numpy as np
import pytest
from support.console import LLAMA, TEACHER, compressor, environment, terminal

from compressor.cli.help import GROUPS, Command
from compressor.cli.main import _COMMANDS, EXAMPLES, cli

SCREENS = 64  # lines: two screens of 32
HEADING = re.compile(r"^([A-Z][^:]*):$", re.MULTILINE)


def commands() -> dict[str, click.Command]:
    context = click.Context(cli)
    found = {name: cli.get_command(context, name) for name in _COMMANDS}
    recipes = found.pop("recipes")
    assert isinstance(recipes, click.Group)
    inner = {f"recipes {name}": one for name, one in recipes.commands.items()}
    return {name: one for name, one in found.items() if one is not None} | inner


@pytest.mark.parametrize("name", sorted(commands()))
def test_help_is_two_screens_in_groups(name: str) -> None:
    short = compressor(*name.split(), "--help").out
    assert len(short.splitlines()) <= SCREENS
    assert max(map(len, short.splitlines())) <= 80
    assert "\x1b" not in short
    if name == "survey":  # whose options are those of other commands
        return
    whole = compressor(*name.split(), "--help-all").out
    assert set(re.findall(r"^  (?:-\w, )?(--[a-z-]+)", short, re.MULTILINE)) <= set(re.findall(r"--[a-z-]+", whole))
    command = commands()[name]
    for option in command.params:
        if isinstance(option, click.Option):
            assert re.search(rf"(?<![a-z-]){option.opts[-1]}(?![a-z-])", whole), option.opts
    titles = [title for title in HEADING.findall(short) if title in GROUPS]
    assert titles == [title for title in GROUPS if title in titles]
    assert "--help-all" in short


def test_every_command_has_examples_that_begin_with_it() -> None:
    for name, command in commands().items():
        if name == "survey":
            continue
        assert isinstance(command, Command)
        assert 1 <= len(command.examples) <= 3
        assert any(f"compressor {name}" in one for one in command.examples), name
        assert all(len(line) <= 78 for one in command.examples for line in one.splitlines())


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the files that the examples name."""
    monkeypatch.chdir(tmp_path)
    for name in ("MODEL", "BASE"):
        Path(name).symlink_to(LLAMA)
    assert compressor("pipeline", "MODEL", "-o", "update", "--base", "BASE", "-q").code == 0
    Path("model.safetensors").write_bytes(TEACHER.read_bytes())
    np.save("x.npy", np.random.default_rng(0).random((64, 784), dtype=np.float32))
    Path("score.py").write_text("print('{\"accuracy\": 0.98}')\n")
    small = ("--bits", "4", "--granularity", "channel", "-q")
    assert compressor("quantize", "model.safetensors", "-o", "first.safetensors", *small).code == 0
    for name in "ab":
        assert (
            compressor("calibrate", "model.safetensors", "-o", f"{name}.safetensors", "--inputs", "x.npy").code == 0
        )
    return tmp_path


def test_examples_do_what_they_say(desk: Path) -> None:
    # those of other commands make what these read; a text through a model needs torch
    order = [
        "quantize",
        "prune",
        "compare",
        "inspect",
        "restore",
        "distill",
        "pipeline",
        "calibrate",
        "merge",
        "methods",
    ]
    done = [("the group", EXAMPLES), *((name, commands()[name].examples) for name in order)]  # type: ignore[attr-defined]
    done += [(name, commands()[name].examples) for name in ("tune", "recipes list", "recipes show")]  # type: ignore[attr-defined]
    for name, examples in done:
        for example in examples:
            words = shlex.split(example.replace("\\\n", " "))
            words = [
                found for word in words for found in (sorted(map(str, desk.glob(word))) if "*" in word else [word])
            ]
            if "--text" in words or "compressor restore SMALL" in example:
                continue  # the second needs a tokenizer
            force = ["--force"] if words[1] not in _NOTHING_MADE and "--help" not in words else []
            ran = compressor(*words[1:], *force)
            assert ran.code == 0, (name, example, ran.err)


_NOTHING_MADE = ("inspect", "compare", "methods", "recipes")


def test_headings_are_bold_where_somebody_looks() -> None:
    bright = terminal(80, "quantize", "--help").out
    assert "\x1b[1mBudget" in bright
    assert not re.search(r"\x1b\[[0-9;]*[34][0-9]m", bright)  # no colour that a background could swallow
    assert "\x1b" not in terminal(80, "quantize", "--help", env=environment(NO_COLOR="1", TERM="xterm")).out
    assert "\x1b" not in terminal(80, "quantize", "--help", env=environment(TERM="dumb")).out
    narrow = [line for line in terminal(70, "quantize", "--help").out.splitlines() if not line.startswith("  comp")]
    assert max(map(len, narrow)) <= 70 + len("\x1b[1m\x1b[0m")  # examples stay as they are


def test_help_all_needs_nothing_else() -> None:
    done = compressor("quantize", "--help-all")
    assert "Of single methods:" in done.out
    assert "[factor: required]" in done.out


def test_help_waits_for_nothing() -> None:
    """What help of all commands together imports: modules are counted, as seconds are those of a busy machine."""
    code = (
        "import contextlib, io, sys\n"
        "from compressor.cli.main import _COMMANDS, run\n"
        "for name in ('', *_COMMANDS):\n"
        "    with contextlib.redirect_stdout(io.StringIO()):\n"
        "        assert run([name, '--help'] if name else ['--help']) == 0, name\n"
        "print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    found = done.stdout.split()
    slow = ("numpy._core", "rich", "safetensors", "compressor.engine")
    slow += ("compressor.checkpoint", "compressor.files.safetensors", "compressor.reports", "compressor.api")
    assert [name for name in found if name.startswith(slow)] == []
    assert len(found) < 420
