"""What the command says, where streams are closed, full or gone; and how every error reads."""

from __future__ import annotations

import errno
import io
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from support.fault_injection import invoke

from compressor.cli import main as command_line
from compressor.cli import streams
from compressor.core.errors import InputError, OutputError, Problems, UsageError

# ---- streams ---------------------------------------------------------------------------------------------------


class Broken(io.StringIO):
    """A stream whose other end is gone."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number

    def write(self, text: str) -> int:
        raise OSError(self.number, os.strerror(self.number))


@pytest.mark.parametrize("essential", [True, False])
@pytest.mark.parametrize("number", [errno.EPIPE, errno.ENOSPC])
def test_results_that_cannot_be_printed(
    number: int, essential: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdout", Broken(number))
    assert not streams.emit("x", essential=essential)
    said = capsys.readouterr().err
    if essential:
        assert said.startswith("error: the report could not be printed")
    else:
        assert said.startswith("warning: ") == (number == errno.ENOSPC)


def test_messages_that_cannot_be_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Broken(errno.EIO))
    streams.say("error", "x")
    closed = io.StringIO()
    closed.close()
    monkeypatch.setattr(sys, "stderr", closed)
    streams.say("error", "x")


def test_messages_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    streams.say("error", "a\nb\r\nc\u2028d \x1b[31m\u202e\udcff\x85e")
    assert capsys.readouterr().err == "error: a b c d \\x1b[31m\\u202e\\udcff e\n"


def test_streams_that_the_caller_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    streams.prepare_streams()
    with sys.stdout, sys.stderr:
        assert sys.stdout.write("x") == sys.stderr.write("x") == 1


def test_the_numbers_of_closed_streams_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers, closed = iter([0, 2, 7]), []
    monkeypatch.setattr(streams.os, "open", lambda *_: next(numbers))
    monkeypatch.setattr(streams.os, "close", closed.append)
    streams.prepare_streams()
    monkeypatch.undo()
    assert closed == [7]


def test_a_silenced_stream_writes_nowhere(tmp_path: Path) -> None:
    with (tmp_path / "x").open("w") as stream:
        stream.write("before ")
        streams.silence(stream)
        stream.write("after")
    assert (tmp_path / "x").read_bytes() == b""


def test_a_terminal_that_goes_away_is_not_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    lost: list[Any] = []
    monkeypatch.setattr(streams, "silence", lost.append)
    broken = Broken(errno.EIO)
    monkeypatch.setattr(sys, "__stderr__", broken)
    monkeypatch.setattr(sys, "stderr", broken)
    streams.prepare_streams()
    assert sys.stderr.write("bar") == 3
    sys.stderr.flush()
    assert not sys.stderr.isatty()
    assert lost == [broken]


# ---- the command line's own errors -----------------------------------------------------------------------------


def raising(error: BaseException, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> tuple[int, list[str]]:
    def work(*_: Any, **__: Any) -> Any:
        raise error

    monkeypatch.setattr(command_line.cli, "main", work)
    return invoke(list(arguments))


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (UsageError("x", remedy="y"), 2, "error: x. y"),
        (InputError("x", file="f\x1b", tensor="t\n"), 3, "error: f\\x1b: tensor 't\\n': x"),
        (OutputError("x"), 4, "error: x"),
        (MemoryError(), 4, "error: out of memory; --workers 1 needs less"),
        (
            OSError(errno.ENOSPC, "No space left on device"),
            4,
            "error: input or output failed: No space left on device",
        ),
        (OSError("odd"), 4, "error: input or output failed: odd"),
        (
            RuntimeError("can't start new thread"),
            4,
            "error: no more threads can be started; --workers 1 needs none",
        ),
        (RuntimeError("odd"), 70, "error: a bug in compressor: RuntimeError: odd. Run with --debug and report it"),
        (KeyError("k\n"), 70, "error: a bug in compressor: KeyError: 'k\\n'. Run with --debug and report it"),
        (
            RecursionError("deep"),
            70,
            "error: a bug in compressor: RecursionError: deep. Run with --debug and report it",
        ),
    ],
)
def test_every_error_has_its_code_and_one_line(
    error: BaseException, code: int, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert raising(error, monkeypatch) == (code, [line])


@pytest.mark.parametrize("error", [KeyError("k"), OSError("odd"), RuntimeError("can't start new thread")])
def test_tracebacks_are_for_debugging(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(type(error)):
        raising(error, monkeypatch, "--debug")


def test_many_problems_are_shown_in_part(monkeypatch: pytest.MonkeyPatch) -> None:
    problems = Problems([InputError("bad", tensor=f"t{number}") for number in range(100_000)])
    code, lines = raising(problems, monkeypatch)
    assert code == 3
    assert len(lines) == 21
    assert lines[0] == "error: tensor 't0': bad"
    assert lines[-1] == "error: and 99980 more"


def test_ways_out_of_click(monkeypatch: pytest.MonkeyPatch) -> None:
    assert raising(SystemExit(1), monkeypatch) == (4, [])  # a closed pipe
    monkeypatch.setenv("_COMPRESSOR_COMPLETE", "bash_source")
    assert raising(SystemExit(0), monkeypatch) == (0, [])


@pytest.mark.parametrize(
    "places",
    [
        ("--report", "r.html", "--log-file", "r.html"),
        ("--log-file", "a.xml", "--junit", "./a.xml"),
        ("--save-mask", "m.safetensors", "--log-file", "m.safetensors"),
        ("--save-mask", "out.safetensors"),
    ],
)
def test_two_files_that_would_be_one(
    places: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, lines = invoke(["prune", "in.safetensors", "-o", "out.safetensors", "--sparsity", "0.5", *places])
    assert code == 2
    assert "itself. Name another place" in lines[0]
    assert not list(tmp_path.iterdir())
