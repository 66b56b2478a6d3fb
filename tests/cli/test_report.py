"""Reports and progress in terminals of any width."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from support.console import LLAMA

from compressor import api
from compressor.cli.report import page, progress, render, table


class Terminal(io.TextIOWrapper):
    """A stream that says that it is one."""

    def __init__(self) -> None:
        super().__init__(io.BytesIO(), encoding="utf-8", write_through=True)

    def isatty(self) -> bool:
        return True

    def fileno(self) -> int:
        return 1

    def text(self) -> str:
        self.flush()
        return bytes(self.buffer.getvalue()).decode()  # type: ignore[attr-defined]


@pytest.mark.parametrize("columns", [1, 40, 60, 79, 80, 120, 300])
def test_tables_of_any_width(columns: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", Terminal())
    monkeypatch.setattr(os, "get_terminal_size", lambda fd: os.terminal_size((columns, 24)))
    monkeypatch.setenv("TERM", "dumb")
    reports: list[Any] = [
        api.quantize(LLAMA, tmp_path / "q", bits=4),
        api.inspect(LLAMA, stats=True),
        api.compare(LLAMA, tmp_path / "q"),
    ]
    for report in reports:
        lines = render(report, "table").splitlines()
        assert max(map(len, lines)) <= max(columns, 40)
        assert sum(line.startswith("model.la"[: max(4, 8 * (columns >= 80))]) for line in lines) >= 14


def test_a_terminal_of_unknown_size_has_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(fd: int) -> os.terminal_size:
        raise OSError

    monkeypatch.setattr(sys, "stdout", Terminal())
    monkeypatch.setattr(os, "get_terminal_size", unknown)
    assert table.Page().width == 80


@given(st.text(alphabet="ab._漢", max_size=80), st.integers(4, 40))
def test_shortened_names_keep_both_ends(name: str, width: int) -> None:
    found = page.shortened(name, width)
    assert cell_len(found) <= max(width, 7)  # wide characters beside an ellipsis
    if cell_len(name) <= width:
        assert found == name
    else:
        first, _, last = found.partition("…")
        assert name.startswith(first)
        assert name.endswith(last)
        assert first
        assert last


def test_progress_in_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("TERM", "xterm")
    with progress.bar(enabled=True) as advance:
        advance(500_000, 1_000_000)
        advance(1_000_000, 1_000_000)
    assert "1.0/1.0 MB" in stream.text()
