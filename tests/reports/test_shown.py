"""Results that show themselves: in one line, as JSON types, in a notebook, as a document."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from support.console import LLAMA, TEACHER, compressor

from compressor import api
from compressor.core.shown import Shown


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Shown]:
    """One of every kind."""
    folder = tmp_path_factory.mktemp("shown")
    np.save(folder / "x.npy", np.random.default_rng(0).random((64, 784), np.float32))
    for number in (1, 2):
        api.quantize(LLAMA, folder / "whole", bits=4, part=f"{number}/2")
    return {
        "quantize": api.quantize(TEACHER, folder / "q.safetensors", bits=4, granularity="channel"),
        "dry": api.prune(TEACHER, folder / "p.safetensors", sparsity=0.5, dry_run=True),
        "compare": api.compare(TEACHER, folder / "q.safetensors"),
        "outputs": api.compare(TEACHER, folder / "q.safetensors", inputs=folder / "x.npy"),
        "inspect": api.inspect(TEACHER, stats=True),
        "calibrate": api.calibrate(TEACHER, folder / "s.safetensors", inputs=folder / "x.npy"),
        "merge": api.merge([folder / f"whole.part-{n}-of-2" for n in (1, 2)], folder / "whole"),
    }


def test_one_line_says_what_there_is(results: dict[str, Shown]) -> None:
    for name, result in results.items():
        assert len(repr(result)) < 260, name
        assert "\n" not in repr(result)
    found = repr(results["quantize"])
    assert found.startswith("<quantize: ")
    assert found.endswith("written: 1.07 MB → 137 kB, 3 tensors treated, relative error 0.125>")
    assert "a dry run" in repr(results["dry"])


def test_json_types_are_those_of_the_command_line(results: dict[str, Shown], tmp_path: Path) -> None:
    for name, result in results.items():
        found = result.to_dict()
        assert json.loads(json.dumps(found, allow_nan=False)) == found, name
    done = compressor(
        *("quantize", TEACHER, "-o", tmp_path / "q.safetensors", "--bits", "4"),
        *("--granularity", "channel", "--format", "json"),
    )
    printed, own = json.loads(done.out), results["quantize"].to_dict()
    assert {**printed, "output": ""} == {**own, "output": ""}


def test_a_notebook_shows_a_table(results: dict[str, Shown]) -> None:
    for name, result in results.items():
        tree = ET.fromstring(f"<div>{result._repr_html_()}</div>")  # noqa: S314 - our own
        heads = len(tree.findall("./table/thead/tr/th"))
        rows = {len(row.findall("td")) for row in tree.findall("./table/tbody/tr")}
        assert rows == ({heads} if name != "outputs" else set()), name  # a network in NumPy has no blocks


def test_names_of_strangers_are_written_out(tmp_path: Path) -> None:
    save_file({"<b>\x1b[0m&": np.ones((4, 8), np.float32)}, tmp_path / "m.safetensors")
    report = api.prune(tmp_path / "m.safetensors", tmp_path / "o.safetensors", threshold=2.0)
    for text in (report._repr_html_(), report.to_html()):
        assert "<b>\x1b" not in text
        assert "&lt;b&gt;\\x1b[0m&amp;" in text
    assert report.to_html().startswith("<!DOCTYPE html>")
