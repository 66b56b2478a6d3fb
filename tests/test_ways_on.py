"""No remedy of a message is false: a command reaches it, and what it says is done then, with success.

`support/ways_on.txt` has for each its words, a command that is refused with it, and the command that does what it
says; `support/ways_outside.txt` has those that no command can do, by kind, and `support/ways_elsewhere.txt` those
that tests of their own run. `test_remedies.py` runs messages of several options, and notes.
"""

from __future__ import annotations

import ast
import json
import math
import os
import shlex
import shutil
from glob import glob
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.console import Done, compressor
from support.range_server import served
from support.ways_on import advice, lines_of, pattern_of, ways_on
from support.ways_on_inputs import make_inputs

import compressor as package

TESTS = Path(__file__).parent
Run = tuple[str, str, str]
NOTE = "note: "


def runs(name: str) -> list[Run]:
    """Words of a remedy, the command that is refused with it, and the one that does what it says; of a `note: ` the
    command says it and succeeds."""
    text = (TESTS / "support" / name).read_text()
    blocks = [block.splitlines() for block in text.split("\n\n") if block.strip() and not block.startswith("#")]
    assert all(len(block) == 3 for block in blocks), [block for block in blocks if len(block) != 3]
    return [(says, refused.strip(), does.strip()) for says, refused, does in blocks]


# those that run a language model need torch, and some take minutes
RUNS = {"": runs("ways_on.txt"), "interop": runs("ways_on_interop.txt"), "faults": runs("ways_on_faults.txt")}
CASES = [
    pytest.param(one, id=f"{mark}{number}", marks=[getattr(pytest.mark, mark)] if mark else [])
    for mark, every in RUNS.items()
    for number, one in enumerate(every)
]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("inputs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        make_inputs()
    return place


def damage(part: Path) -> None:
    """Change bytes of the largest file of a part."""
    largest = max((one for one in part.rglob("*") if one.is_file()), key=lambda one: one.stat().st_size)
    data = bytearray(largest.read_bytes())
    data[len(data) // 2 :] = b"x" * (len(data) - len(data) // 2)
    largest.write_bytes(data)


def from_web(name: str, login: str, verb: str, *options: str) -> Done:
    """A command whose input is served on loopback, to who logs in so."""
    with served() as files:
        files.put(f"/{name}", Path(name).read_bytes())
        return compressor(verb, f"{files.url.replace('//', f'//{login}@')}/{name}", *options)


def zeros(name: str, tensors: dict[str, tuple[int, ...]]) -> None:
    """A safetensors file of zeros that lie in a hole."""
    at, said = 0, {}
    for tensor, shape in tensors.items():
        said[tensor] = {"dtype": "F32", "shape": shape, "data_offsets": [at, at := at + 4 * math.prod(shape)]}
    text = json.dumps(said).encode()
    with Path(name).open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + at)


def many(name: str, count: int) -> None:
    zeros(name, {"double_blocks.0.img_attn.proj.weight": (1,), **{f"t{n}": (1,) for n in range(count)}})


def long_names(name: str, count: int, length: int) -> None:
    zeros(name, {f"{n}{'n' * length}.weight": (1, 32) for n in range(count)})


HELPERS = {"zeros": zeros, "from_web": from_web, "many": many, "long_names": long_names}


def python(words: str) -> Done:
    """Words of Python, in which `compressor` is the package."""
    names = {"compressor": package, "run": compressor, "Done": Done, "np": np, "os": os, "Path": Path}
    names |= {"shutil": shutil, "glob": glob, "unescape": unescape}
    try:
        made = eval(words, names | HELPERS)  # noqa: S307 - our own, of support/ways_on.txt
    except package.CompressorError as error:
        return Done(error.exit_code, "", str(error))
    return made if isinstance(made, Done) else Done(0, "")


def run(commands: str) -> tuple[int, str]:
    """The first that fails, or the last one's end and what it said."""
    code, text = 0, ""
    for command in commands.split("; "):
        if command.startswith("damage "):
            damage(Path(command.removeprefix("damage ")))
            continue
        if command.startswith("fails "):  # on the way to what is refused
            assert compressor(*shlex.split(command.removeprefix("fails "))).code != 0
            continue
        called = command.startswith("python ")
        done = python(command.removeprefix("python ")) if called else compressor(*shlex.split(command))
        code, text = done.code, done.out + done.err
        if code:
            break
    return code, text


def test_every_remedy_is_run() -> None:
    """A new remedy, and whatever else advises an option or a command, gets a run, or is of a kind of
    `ways_outside.txt`."""
    run_here = [says.removeprefix(NOTE) for every in RUNS.values() for says, _, _ in every]
    lacking = {text for text in ways_on() if not any(pattern_of(text).fullmatch(says) for says in run_here)}
    lacking |= {text for text in advice() if not any(pattern_of(text).search(says) for says in run_here)}
    outside = lines_of("ways_outside.txt")
    assert len(set(outside)) == len(outside)
    named = {*outside, *(says for _, says in ELSEWHERE)}
    assert named - lacking == set(), "has a run, or is gone: take it off that list"
    assert lacking - named == set(), "a remedy without a run: add one to support/ways_on.txt"


ELSEWHERE: list[Any] = [line.split(" | ") for line in lines_of("ways_elsewhere.txt")]


@pytest.mark.parametrize(("place", "says"), ELSEWHERE)
def test_what_is_run_elsewhere_is_there(place: str, says: str) -> None:
    """The test that is named holds the words of the remedy."""
    path, _, name = place.partition("::")
    source = (TESTS / path).read_text()
    (found,) = (one for one in ast.parse(source).body if isinstance(one, ast.FunctionDef) and one.name == name)
    assert says in (ast.get_source_segment(source, found) or "")


@pytest.mark.parametrize("case", CASES)
def test_what_a_remedy_says_is_done(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: Run
) -> None:
    words, refused, does = case
    for path in inputs.iterdir():
        if path.name in refused + does:
            (shutil.copytree if path.is_dir() else shutil.copy2)(path, tmp_path / path.name)
    monkeypatch.chdir(tmp_path)
    code, text = run(refused)
    assert (code == 0) == words.startswith(NOTE), text
    words = words.removeprefix(NOTE)
    words = words.replace("--", "") if "python " in refused else words  # options are keywords there
    text = text.replace("--", "") if "python " in refused else text
    assert pattern_of(words).search(" ".join(text.split())), text
    code, text = run(does)
    assert code == 0, text
