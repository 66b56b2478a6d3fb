"""Lines about the progress: on stderr without a terminal, and in a log."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from support.console import MATRIX, TEACHER, compressor

from compressor.cli.report import progress

if TYPE_CHECKING:
    import pytest

LINE = r"\d+ % of \d[^,]*(, about .* left)?"


def test_lines_where_there_is_no_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = ("prune", TEACHER, "--sparsity", "0.5", "-o")
    assert "progress:" not in compressor(*run, tmp_path / "a.safetensors").err
    monkeypatch.setattr(progress, "EVERY", 0.0)
    told = compressor(*run, tmp_path / "b.safetensors").err.splitlines()
    assert re.fullmatch(f"progress: {LINE}", told[0])
    assert told[-1].startswith("progress: 100 % of ")
    assert compressor(*run, tmp_path / "c.safetensors", "-q").err == ""


def test_what_is_left_is_told_once_it_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    clock = iter((0.0, 30.0, 60.0, 90.0, 100.0))
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    lines = progress.Lines(1.0, told.append)
    for done in (64, 128, 3_200_128, 6_400_000):  # the first bytes came after a long look at the whole
        lines(done, 6_400_000)
    assert told == [
        "0 % of 6.40 MB",
        "0 % of 6.40 MB",
        "50 % of 6.40 MB, about 0:01:00 left",
        "100 % of 6.40 MB, about 0:00:00 left",
    ]


def test_a_log_tells_how_runs_went(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "EVERY_LOG", 0.0)
    log, run = (
        tmp_path / "log",
        ("prune", MATRIX, "-q", "--sparsity", "0.5", "-o", tmp_path / "a.npy", "--log-file"),
    )
    assert compressor(*run, log).code == 0
    assert compressor(*run, log).code == 4
    lines = [line.partition(" ")[2] for line in log.read_text().splitlines()]
    assert lines[0] == "begun"
    assert re.fullmatch(LINE, lines[1])
    done = lines.index("done")
    assert lines[done + 1 :] == ["begun", f"ended: {tmp_path / 'a.npy'}: exists already. Use --force to replace it"]
    assert compressor(*run, tmp_path / "a.npy").code == 2
    assert compressor(*run, MATRIX).code == 2
    assert compressor(*run, tmp_path / "none" / "log").code == 4
