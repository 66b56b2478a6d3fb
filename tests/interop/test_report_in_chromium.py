"""The HTML report in headless Chromium (Debian's package `chromium`): what a reader has of it, at a narrow and a
wide screen, light and dark, with the keyboard and without scripts."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file
from support.clock import HANGS
from support.console import compressor

pytestmark = pytest.mark.interop

# What the page is like is written where the document's title is, which `--dump-dom` prints.
_PROBE = """<script>
function cell(row, column) { return row.cells[column].textContent; }
var rows = document.getElementById("all").tBodies[0].rows, heads = document.querySelectorAll("#all thead button");
var svg = document.querySelector("#all svg").getBoundingClientRect();
var first = rows[0].cells[0].textContent, sizes = [], names = [];
if (heads.length) {
  heads[3].focus(); var focused = document.activeElement === heads[3];
  heads[3].click(); for (var row of rows) sizes.push(cell(row, 3));
  heads[0].click(); for (var row of rows) names.push(cell(row, 0));
  var input = document.querySelector("input[type=search]");
  input.value = "layers.1.mlp"; input.dispatchEvent(new Event("input"));
}
document.title = JSON.stringify({
  wide: [document.documentElement.scrollWidth, window.innerWidth], first: first,
  sizes: sizes, names: names, focused: focused,
  sorted: document.querySelector("#all [aria-sort]") && document.querySelector("#all [aria-sort]").textContent,
  shown: Array.from(rows).filter(function (row) { return !row.hidden; }).length, count: rows.length,
  picture: [svg.width, svg.height], paper: getComputedStyle(document.body).backgroundColor,
  ink: getComputedStyle(document.body).color, pictures: document.querySelectorAll("svg").length,
  alerted: window.alerted === true
});
</script>"""


def chromium(*arguments: str) -> str:
    found = shutil.which("chromium")
    assert found is not None, "these tests need Debian's package chromium (apt-get install chromium)"
    command = [found, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANGS, check=True)
    return done.stdout


def probed(page: Path, *arguments: str) -> dict[str, Any]:
    """What the page says of itself in a window of these arguments."""
    copy = page.with_name("probed.html")
    copy.write_text(page.read_text(encoding="utf-8").replace("</body>", f"{_PROBE}</body>"), encoding="utf-8")
    title = re.search("<title>(.*?)</title>", chromium("--dump-dom", *arguments, f"file://{copy}"), re.DOTALL)
    assert title is not None
    found: dict[str, Any] = json.loads(unescape(title[1]))
    return found


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a small model under a budget, with a name that a browser would obey if it could."""
    folder, random = tmp_path_factory.mktemp("report"), np.random.default_rng(4)
    tensors: dict[str, Any] = {"<script>window.alerted = true</script>.weight": random.standard_normal((64, 64))}
    for layer in range(6):
        for role, rows in (("self_attn.q_proj", 64), ("mlp.up_proj", 192), ("mlp.down_proj", 128)):
            tensors[f"model.layers.{layer}.{role}.weight"] = random.standard_normal((rows, 64)) * (1 + layer)
        tensors[f"model.layers.{layer}.input_layernorm.weight"] = np.ones(64)
    save_file({name: one.astype(np.float32) for name, one in tensors.items()}, folder / "m.safetensors")
    options = ("--target-bits", "5", "--max-error", "0.3", "--report", folder / "r.html", "-q")
    done = compressor("quantize", folder / "m.safetensors", "-o", folder / "q.safetensors", *options)
    assert done.code == 0, done.err
    return folder / "r.html"


@pytest.mark.parametrize("width", [500, 1200])  # Chromium's windows are not narrower than 500
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_it_fits_every_screen(page: Path, width: int, dark: bool) -> None:
    scheme = f"--blink-settings=preferredColorScheme={0 if dark else 1}"
    found = probed(page, f"--window-size={width},900", scheme)
    assert found["wide"][0] <= found["wide"][1] == width
    paper, ink = (max(map(int, re.findall(r"\d+", found[key])[:3])) for key in ("paper", "ink"))
    assert (paper < 40 < 200 < ink) if dark else (ink < 40 < 200 < paper)
    assert min(found["picture"]) >= 25
    picture = page.with_name(f"{width}-{dark}.png")
    chromium(f"--screenshot={picture}", f"--window-size={width},3000", scheme, f"file://{page}")
    assert picture.stat().st_size > 50_000  # a blank page takes 10,000


def test_the_table_sorts_and_finds(page: Path) -> None:
    found = probed(page)
    assert not found["alerted"]
    assert found["focused"]
    units = {"B": 1, "kB": 1e3, "MB": 1e6}
    sizes = [float(size.split()[0]) * units[size.split()[1]] for size in found["sizes"]]
    assert sizes == sorted(sizes, reverse=True)
    assert found["names"][1:] == sorted(found["names"][1:])
    assert found["sorted"] == "tensor"
    assert (found["count"], found["shown"]) == (25, 2)


def test_all_is_there_without_scripts(page: Path) -> None:
    plain = page.with_name("plain.html")
    text = page.read_text(encoding="utf-8")
    plain.write_text(text.replace("script-src 'unsafe-inline'", "script-src 'none'"), encoding="utf-8")
    dom = chromium("--dump-dom", f"file://{plain}")
    assert "<button" not in dom
    assert dom.count("model.layers.5.mlp.up_proj.weight</th>") == 1
    assert dom.count("<svg") == text.count("<svg")


def test_it_prints(page: Path, tmp_path: Path) -> None:
    chromium(f"--print-to-pdf={tmp_path / 'r.pdf'}", "--no-pdf-header-footer", f"file://{page}")
    assert (tmp_path / "r.pdf").read_bytes().startswith(b"%PDF")
