"""Signals in the middle of a run: nothing half-written stays, and what is published stays."""

from __future__ import annotations

import errno
import os
import runpy
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from support.staged import fail, put

from compressor import __main__ as entry
from compressor.cli import main as command_line
from compressor.cli import signals
from compressor.core import cleanup
from compressor.files import staging as atomic
from compressor.files.staging import Staging


class Left(BaseException):
    """Stands for the end of the process."""


@pytest.fixture
def leave(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    codes: list[int] = []

    def leaving(code: int) -> None:
        codes.append(code)
        raise Left

    monkeypatch.setattr(signals.os, "_exit", leaving)
    monkeypatch.setattr(signals, "_stopping", False)
    monkeypatch.setattr(signals, "_ignored", 0)
    return codes


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_removes_what_is_half_written(
    tmp_path: Path, leave: list[int], number: int, capfd: pytest.CaptureFixture[str]
) -> None:
    for folder in (False, True):
        put(Staging(str(tmp_path / f"x{folder}"), folder=folder, replace=False))
    with pytest.raises(Left):
        signals._stop(number, None)
    assert leave == [128 + number]
    assert os.listdir(tmp_path) == []
    assert capfd.readouterr().err == f"error: stopped by {signal.Signals(number).name}; nothing was written\n"


def test_a_signal_before_anything_is_imported(leave: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "compressor.files.staging")
    with pytest.raises(Left):
        signals._stop(signal.SIGTERM, None)
    assert leave == [143]


def test_a_signal_during_publishing_comes_too_late(tmp_path: Path, leave: list[int]) -> None:
    staging = Staging(str(tmp_path / "x"), folder=False, replace=False)
    staging._entry.publishing = True
    signals._stop(signal.SIGTERM, None)
    signals._stop(signal.SIGTERM, None)  # not yet published: it may still fail
    assert leave == []
    assert not cleanup.run()
    staging._entry.publishing = False
    staging.publish()
    with pytest.raises(Left):
        signals._stop(signal.SIGTERM, None)
    assert leave == [0]
    assert os.listdir(tmp_path) == ["x"]


def test_after_publishing_a_second_signal_cuts_the_report_short(
    tmp_path: Path, leave: list[int], capfd: pytest.CaptureFixture[str]
) -> None:
    Staging(str(tmp_path / "x"), folder=False, replace=False).publish()
    signals._stop(signal.SIGINT, None)
    assert leave == []
    with pytest.raises(Left):
        signals._stop(signal.SIGINT, None)
    assert leave == [0]
    assert capfd.readouterr().err == "warning: the report was cut short; the output is complete\n"


def test_a_signal_during_the_removal_waits_for_it(
    tmp_path: Path, leave: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = atomic.remove

    def interrupted(path: str) -> None:
        signals._stop(signal.SIGINT, None)
        real(path)

    monkeypatch.setattr(atomic, "remove", interrupted)
    put(Staging(str(tmp_path / "x"), folder=True, replace=False))
    with pytest.raises(Left):
        signals._stop(signal.SIGTERM, None)
    assert leave == [143]
    assert os.listdir(tmp_path) == []


def test_the_cursor_that_a_progress_bar_hid_comes_back(leave: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    import rich.progress  # noqa: F401 - a bar was shown

    written: list[bytes] = []
    monkeypatch.setattr(signals.os, "isatty", lambda fd: True)
    monkeypatch.setattr(signals.os, "write", lambda fd, data: written.append(data))
    with pytest.raises(Left):
        signals._stop(signal.SIGINT, None)
    assert b"\x1b[?25h" in written[0]
    assert written[1].startswith(b"error: ")


def test_a_stderr_that_is_gone_does_not_keep_a_signal(leave: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals.os, "write", fail(errno.EPIPE))
    with pytest.raises(Left):
        signals._stop(signal.SIGINT, None)
    assert leave == [130]


def test_ignored_signals_stay_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []
    monkeypatch.setattr(signals.signal, "getsignal", lambda n: signal.SIG_IGN if n == signal.SIGHUP else None)
    monkeypatch.setattr(signals.signal, "signal", lambda number, handler: taken.append(number))
    signals.install()
    assert taken == [signal.SIGINT, signal.SIGTERM, signal.SIGXCPU]


@pytest.mark.parametrize(
    ("limits", "told"),
    [((20, 20), [(19, 20)]), ((-1, 20), [(19, 20)]), ((5, 20), []), ((-1, -1), []), ((1, 1), [])],
)
def test_a_limit_of_processor_time_stops_a_second_early(
    limits: tuple[int, int], told: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[tuple[int, int]] = []
    monkeypatch.setattr(signals.signal, "signal", lambda number, handler: None)
    monkeypatch.setattr(signals.resource, "getrlimit", lambda _: limits)
    monkeypatch.setattr(signals.resource, "setrlimit", lambda _, both: taken.append(both))
    signals.install()
    assert taken == told


def test_the_module_runs_the_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    import gc

    seen: list[Any] = []
    monkeypatch.setattr(command_line, "run", lambda arguments: seen.append(arguments) or 3)
    monkeypatch.setattr(sys, "argv", ["compressor", "x"])
    for module in (signals, entry):
        monkeypatch.setattr(module, "install", lambda: seen.append("signals"))
        monkeypatch.setattr(module, "ignore", lambda: seen.append("ignored"))
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "1")
    monkeypatch.setattr(sys, "setswitchinterval", lambda seconds: None)
    monkeypatch.setattr(gc, "set_threshold", lambda *_: None)
    with pytest.raises(SystemExit) as end:
        entry.main()
    assert (end.value.code, seen) == (3, ["signals", ["x"], "ignored"])
    monkeypatch.delitem(sys.modules, "compressor.__main__")
    with pytest.raises(SystemExit):
        runpy.run_module("compressor", run_name="__main__")
    assert len(seen) == 6


def test_at_the_end_signals_are_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    set_to: dict[int, Any] = {}
    monkeypatch.setattr(signals.signal, "signal", set_to.__setitem__)
    signals.ignore()
    assert set_to == dict.fromkeys((signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGXCPU), signal.SIG_IGN)
