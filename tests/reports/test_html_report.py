"""The report that `--report` writes: well-formed, bounded, with nothing from outside and nothing obeyed."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file
from support.console import LLAMA, compressor

from compressor import api
from compressor.core.histogram import BINS, Histogram
from compressor.reports.curve import render_curve
from compressor.reports.html.bars import LEVELS, Amount, Scale, heat_map, waterfall
from compressor.reports.html.document import Origin, render_html
from compressor.reports.html.places import layers_of, place_of
from compressor.reports.html.tensors import HIGH, POINTS, picture
from compressor.reports.junit import render_junit
from compressor.reports.markdown import render_markdown
from compressor.workflows.budget.choice import Allocation, Chosen, Point

_VOID = {"meta", "link", "input", "br"}
_ENDED_BY = {  # elements whose end tags may be left out, and what begins in their place
    "td": {"td", "th", "tr", "tbody", "thead"},
    "th": {"td", "th", "tr", "tbody", "thead"},
    "tr": {"tr", "tbody", "thead"},
    "thead": {"tbody"},
    "tbody": set[str](),
    "li": {"li"},
}
EVIL = (
    "</script><script>alert(1)</script>.weight",
    '"><img src=x onerror=alert(1)>.weight',
    "a\x1b[31m\u202eb\x00\n</table>.weight",
    "model.layers.0.<b>.weight",
    "model.layers.1.&lt;.weight",
)


class Checked(HTMLParser):
    """A document that opens and closes its elements as HTML wants it."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.rows = 0
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        while self.open and tag in _ENDED_BY.get(self.open[-1], ()):
            self.open.pop()
        self.seen.append((tag, dict(attrs)))
        self.rows += tag == "tr"
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        while self.open and self.open[-1] != tag and self.open[-1] in _ENDED_BY:
            self.open.pop()
        assert self.open.pop() == tag, self.getpos()

    def handle_data(self, data: str) -> None:
        self.text += data


def checked(page: str) -> Checked:
    found = Checked()
    found.feed(page)
    found.close()
    assert found.open == []
    for tag, attributes in found.seen:
        assert not {"src", "onerror", "onclick", "srcset", "background"} & attributes.keys()
        assert tag not in ("img", "iframe", "object", "embed", "base", "form")
        assert (attributes.get("href") or "#").startswith(("#", "data:,")), tag
    assert sum(tag == "script" for tag, _ in found.seen) == 1
    outside = page.replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r"https?:|//[a-z]|url\(|@import", outside.split("<script>")[0])
    assert not re.search(r"https?:|fetch|XMLHttp|import\(|innerHTML|eval", outside.split("<script>")[1])
    return found


def model(path: Path, layers: int, names: tuple[str, ...] = ()) -> None:
    random, tensors = np.random.default_rng(2), dict[str, Any]()
    for layer in range(layers):
        for role in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"):
            tensors[f"model.layers.{layer}.{role}.weight"] = random.standard_normal((8, 32)).astype("f4")
        for role in ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"):
            tensors[f"model.layers.{layer}.{role}.weight"] = random.standard_normal((8, 32)).astype("f4")
        for role in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"model.layers.{layer}.{role}.weight"] = np.ones(32, "f4")
    tensors |= {name: random.standard_normal((8, 32)).astype("f4") for name in names}
    save_file(tensors, path)


def test_a_thousand_tensors_take_300_kb(tmp_path: Path) -> None:
    model(tmp_path / "m.safetensors", 112)
    report = api.quantize(tmp_path / "m.safetensors", tmp_path / "q.safetensors", bits=4, histograms=True)
    assert len(report.plan.jobs) == 1008
    page = render_html(report, Origin("compressor quantize", [("input", "0" * 64)]))
    assert len(page.encode()) <= 300_000
    found = checked(page)
    assert found.rows > 1008
    assert sum(tag == "svg" for tag, _ in found.seen) > 112 * 7
    for told in (
        "Where the bytes went",
        "Relative error",
        "Stored bits a weight",
        "self_attn.q_proj",
        report.plan.fingerprint,
    ):
        assert told in found.text
    assert page == render_html(report, Origin("compressor quantize", [("input", "0" * 64)]))


def test_names_from_outside_are_only_shown(tmp_path: Path) -> None:
    model(tmp_path / "m.safetensors", 1, EVIL)
    output = tmp_path / "<i>q.safetensors"
    report = api.quantize(tmp_path / "m.safetensors", output, include=["*"], bits=4, histograms=True, fallback=True)
    page = render_html(report, Origin("compressor '<b>'"))
    found = checked(page)
    assert "<script>alert(1)</script>" in found.text
    assert "\x1b" not in page
    assert "\u202e" not in page
    assert "\x00" not in page
    assert "<b>.weight" not in page
    ET.fromstring(render_junit(report))  # noqa: S314 - our own
    text = render_markdown(report)
    assert "<script" not in text.replace("\\<script", "")
    assert "\x1b" not in text


def test_the_command_line_writes_it(tmp_path: Path) -> None:
    out, page, cases = tmp_path / "out", tmp_path / "r.html", tmp_path / "gates.xml"
    arguments = (
        "quantize",
        LLAMA,
        "--bits",
        "4",
        "--report",
        page,
        "--junit",
        cases,
        "--summary",
        "markdown",
        "-q",
    )
    done = compressor(*arguments, "-o", out, "--min-ratio", "2")
    assert done.code == 0, done.err
    assert "### compressor quantize" in done.out
    found = checked(page.read_text(encoding="utf-8"))
    assert "The gate holds." in found.text
    assert f"compressor quantize {LLAMA} --bits 4" in found.text
    (case,) = ET.parse(cases).getroot()  # noqa: S314 - our own
    assert case.attrib["name"] == "--min-ratio 2"
    refused = compressor(*arguments, "-o", tmp_path / "other")
    assert (refused.code, (tmp_path / "other").exists()) == (4, False)  # it is there, and is not replaced
    failed = compressor(*arguments, "-o", out, "--max-error", "0", "--force")
    assert failed.code == 1
    assert "Not written, since a gate does not hold" in checked(page.read_text(encoding="utf-8")).text
    (case,) = ET.parse(cases).getroot()  # noqa: S314 - our own
    assert case[0].tag == "failure"


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--report", "r.txt"), "--report writes .html"),
        (("--junit", "r.html"), "--junit writes .xml"),
        (("--report", "q.html", "-o", "q.html"), "--report"),
        (("--report", "r.xml", "--junit", "r.xml"), "is the file of --report itself"),
    ],
)
def test_places_are_judged_first(more: tuple[str, ...], said: str, tmp_path: Path) -> None:
    done = compressor("quantize", LLAMA, "-o", tmp_path / "out", "--bits", "4", *more)
    assert done.code == 2
    assert said in done.err
    assert not list(tmp_path.iterdir())


def test_a_summary_goes_where_github_wants_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary.md"))
    (tmp_path / "summary.md").write_text("before\n")
    done = compressor("prune", LLAMA, "-o", tmp_path / "out", "--sparsity", "0.5", "-q", "--summary", "markdown")
    assert done.code == 0
    assert "###" not in done.out
    text = (tmp_path / "summary.md").read_text(encoding="utf-8")
    assert text.startswith("before\n### compressor prune")
    assert "| zeros | 0 % | " in text


def test_a_summary_that_has_no_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What can be known is said first; what cannot undoes neither the output nor the other documents."""
    given = ("prune", LLAMA, "-o", tmp_path / "out", "--sparsity", "0.5", "-q", "--summary", "markdown")
    for place in (tmp_path, tmp_path / "missing" / "summary.md"):
        monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(place))
        done = compressor(*given)
        assert done.code == 4
        assert "Unset it to have it printed" in done.err
        assert not (tmp_path / "out").exists()
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", "/dev/full")
    done = compressor(*given, "--report", "/proc/r.html", "--junit", tmp_path / "r.xml")
    assert done.code == 4
    assert done.err.count("is complete all the same") == 2
    assert (tmp_path / "out").exists()
    assert (tmp_path / "r.xml").exists()
    done = compressor(*given, "--force", "--max-error", "0.001")
    assert done.code == 1
    assert "warning: /dev/full: cannot be written" in done.err


# ---- pictures ------------------------------------------------------------------------------------------


def test_places() -> None:
    assert place_of("model.layers.7.mlp.experts.3.up_proj.weight", (4, 4)) == (
        ("model.layers", 7),
        "mlp.experts.*.up_proj",
    )
    assert place_of("fc1.weight", (4, 4)) == (None, "fc1")
    assert place_of("lm_head.weight", (4, 4)).role == "output head"
    places = [place_of(f"h.{n}.fc.weight", (4, 4)) for n in (10, 9, 2)]
    assert layers_of(places) == [("h", 2), ("h", 9), ("h", 10)]
    assert layers_of(places[:1]) == []


def test_levels_of_colour() -> None:
    near, far = Scale.of([0.1, 0.2, 0.0]), Scale.of([0.001, 1.0])
    for scale in (near, far):
        assert [scale.level(scale.edge(level) * 1.0001) for level in range(LEVELS)] == list(range(LEVELS))
    assert near.level(0.0) == 0
    assert near.level(float("inf")) == LEVELS - 1
    assert Scale.of([]).level(3.0) in range(LEVELS)


def test_runs_of_cells() -> None:
    drawn = heat_map("t", {"q": {0: 0.1, 1: 0.1, 3: 0.1, 4: 0.9}}, [str(n) for n in range(5)])
    assert 'd="M0 .5h2M3 .5h1"' in drawn
    assert f'<path class=q{LEVELS - 1} d="M4 .5h1"/>' in drawn


def test_a_waterfall_ends_where_it_should() -> None:
    drawn = waterfall({"a": Amount(800, 200), "b": Amount(200, 250)}, 1000, 450)
    bars = [
        (kind, float(x), float(w))
        for kind, x, w in re.findall(r'class="(\w+)" x="([\d.]+)" width="([\d.]+)"', drawn)
    ]
    assert bars == [("all", 0, 1000), ("less", 400, 600), ("more", 400, 50), ("all", 0, 450)]


def test_histograms_are_as_wide_and_high_as_they_should_be() -> None:
    counts = [0] * BINS
    counts[BINS // 2 - 8 : BINS // 2 + 8] = [1, 2, 3, 4, 5, 6, 7, 8, 8, 7, 6, 5, 4, 3, 2, 1]
    drawn = picture(Histogram(0, counts, [4 * count for count in counts]))
    assert len(drawn) < 250
    for path in re.findall(r'd="M0 9([^"]*)"', drawn):
        x, y = 0, HIGH
        for step in re.findall(r"h(\d+)|l1[ ]?(-?\d+)", path.removesuffix("V9z")):
            x, y = (x + int(step[0]), y) if step[0] else (x + 1, y + int(step[1]))
            assert 0 <= y <= HIGH
        assert x == POINTS


def test_a_curve_without_what_stretches_it() -> None:
    curve = (*(Point(size, 3 + size / 10, 0.3 / 2**size) for size in range(12)), Point(99, 32.0, 1e-9))
    uniform = tuple(Point(size, 4 + size / 100, 0.1, f"<int{size}>") for size in range(9))
    chosen = (Chosen("a", (1,), "int4", 1, 4.0, 0.1, 0.1, 0, 0, False),)
    drawn = render_curve(Allocation("--target-bits 4", "", chosen, curve[2], curve, uniform, 10))
    root = ET.fromstring(drawn)  # noqa: S314 - our own
    texts = [
        (float(one.attrib["x"]), float(one.attrib["y"]), one.text or "")
        for one in root.iter()
        if one.tag.endswith("text")
    ]
    assert not any("e-" in text for _, _, text in texts)
    named = [text for _, _, text in texts if text.startswith("all ")]
    assert 1 <= len(named) < 9  # those that have room
    assert "smaller errors are not drawn" in drawn
    assert "<int" not in drawn
