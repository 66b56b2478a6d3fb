"""Foreign strings: nothing that a terminal obeys comes through, and everything else does."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compressor.core.errors import InputError
from compressor.core.text import printable, size_text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        pytest.param("\x1b[31mred\x1b[0m", r"\x1b[31mred\x1b[0m", id="28-ansi"),
        pytest.param("\x1b]0;title\x07", r"\x1b]0;title\x07", id="28-osc-title"),
        pytest.param("\x1b]8;;http://x\x1b\\y", r"\x1b]8;;http://x\x1b" + "\\y", id="28-osc-8"),
        pytest.param("\x9b31m", r"\x9b31m", id="28-c1"),
        pytest.param("\x00\x7f\x80\x9f", r"\x00\x7f\x80\x9f", id="28-c0-c1-ends"),
        pytest.param("a\nerror: forged", r"a\nerror: forged", id="29-newline"),
        pytest.param("a\rb\x08\t", r"a\rb\x08\t", id="29-cr-backspace-tab"),
        pytest.param("\u2028\u2029\x85", r"\u2028\u2029\x85", id="29-separators"),
        pytest.param("\u202egnp.exe\u2066", r"\u202egnp.exe\u2066", id="29-bidi"),
        pytest.param("a\u200bb\ufeff\u00ad", r"a\u200bb\ufeff\xad", id="29-zero-width"),
        pytest.param("\ue000\U000e0041\U0010fffd", r"\ue000\U000e0041\U0010fffd", id="29-private-and-tags"),
        pytest.param("[bold]x[/] :skull: %s {0} <b>", "[bold]x[/] :skull: %s {0} <b>", id="30-markup"),
        pytest.param("\ud800 \udcff", r"\ud800 \udcff", id="32-surrogates"),
        pytest.param("", "", id="33-empty"),
        pytest.param("größe 重み 😀 e\u0301", "größe 重み 😀 e\u0301", id="34-ordinary"),
    ],
)
def test_what_a_terminal_could_obey_is_escaped(text: str, shown: str) -> None:
    assert printable(text) == shown


@given(st.text(st.characters(), max_size=400))
def test_every_text_becomes_one_safe_line(text: str) -> None:
    shown = printable(text)
    shown.encode()  # no lone surrogates
    assert len(shown.splitlines()) <= 1
    assert not {unicodedata.category(c)[0] for c in shown} & {"C"}
    assert printable(shown, 4000) == shown
    if text.isascii() and text.isprintable() and len(text) <= 300:
        assert shown == text


@pytest.mark.parametrize("limit", [10, 60, 300])
def test_long_texts_keep_their_ends(limit: int) -> None:
    """33."""
    text = "begin" + "x" * 10_000 + "end"
    shown = printable(text, limit)
    assert len(shown) == limit
    assert shown.startswith("begin")
    assert shown.endswith("end")
    assert shown.count("…") == 1
    assert printable("x" * limit, limit) == "x" * limit


def test_an_error_is_one_line_whatever_it_names() -> None:
    error = InputError("is bad", file="dir\n/\x1b[2J.npy", tensor="a\u202e\nb", remedy="Mend it")
    assert str(error) == r"dir\n/\x1b[2J.npy: tensor 'a\u202e\nb': is bad. Mend it"


@pytest.mark.parametrize(
    ("nbytes", "shown"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.00 kB"),
        (999_400, "999 kB"),
        (999_600, "1.00 MB"),
        (1_065_984, "1.07 MB"),
        (12_345_678, "12.3 MB"),
        (123_456_789, "123 MB"),
        (2.5e9, "2.50 GB"),
        (7.2e12, "7.20 TB"),
        (9.9e15, "9.90e+03 TB"),
        (-1_500, "-1.50 kB"),
    ],
)
def test_sizes_have_three_figures(nbytes: float, shown: str) -> None:
    assert size_text(nbytes) == shown
