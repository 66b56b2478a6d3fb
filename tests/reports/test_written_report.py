"""`compressor report`: an output that is there, told by its record and its files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from support.console import LLAMA, TEACHER, compressor

import compressor as package
from compressor import api


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("written") / "small"
    api.quantize(LLAMA, out, bits=4)
    return out


def test_with_its_source_it_says_what_the_run_said(quantized: Path, tmp_path: Path) -> None:
    own = api.quantize(LLAMA, tmp_path / "again", bits=4, histograms=True)
    told = api.report(quantized, source=LLAMA)
    assert told.plan == own.plan.fingerprint
    assert [dict(stage) for stage in told.stages] == [dict(stage) for stage in own.plan.stages]
    rows = {row.name: row for row in told.rows}
    assert len(rows) == len(own.plan.jobs)
    for job, change in own.rows:
        assert change is not None
        row = rows[job.spec.name]
        assert row.stored == (job.dtype_before, job.dtype_after)
        assert row.sizes == (job.size_before, job.size_after)
        drawn, ran = row.measured.histogram, change.histogram
        assert ran is not None
        assert (drawn.power, drawn.before) == (ran.power, ran.before)
        assert abs(sum(drawn.after) - sum(ran.after)) <= 0.01 * sum(ran.after)
        assert row.measured.error == pytest.approx(change.error, rel=1e-2)  # stored scales are bfloat16
    page, ran = told.to_html(), own.to_html()
    for section in ("Where the bytes went", "Relative error", "Stored bits a weight", "Tensors"):
        assert section in page
        assert section in ran
    assert page.count("<svg><path") == len(own.plan.jobs)


def test_without_its_source_it_says_what_is_missing(quantized: Path) -> None:
    done = compressor("report", quantized, "-o", quantized.with_name("r.html"))
    assert done.code == 0, done.err
    page = quantized.with_name("r.html").read_text(encoding="utf-8")
    assert "its source was not given (--source)" in page
    assert "<th scope=col>error" not in page
    assert "as they are stored" in page  # histograms of what is there
    assert "source, SHA-256" in page
    told = api.report(quantized)
    assert told.total is None
    assert "(source)" in told.to_html()  # keywords, in Python
    assert "relative error" not in repr(told)
    assert all(row.measured.histogram.before == [0] * 128 for row in told.rows)


def test_another_source_is_refused(quantized: Path) -> None:
    place = quantized.with_name("other.html")
    done = compressor("report", quantized, "--source", TEACHER, "-o", place)
    assert done.code == 3
    assert "is not what" in done.err
    assert "compressor compare A B --report FILE.html" in done.err
    assert not place.exists()


def test_its_place(quantized: Path) -> None:
    place = quantized.with_name("small.html")
    done = compressor("report", f"{quantized}/", "--format", "json")
    assert (done.code, place.exists()) == (0, True)
    assert json.loads(done.out)["made_of"].keys() == {"sha256"}
    assert compressor("report", quantized).code == 4  # it is there
    done = compressor("report", quantized, "--force")
    assert done.out == f"wrote {place}\n"
    for wrong in ("r.txt", quantized / "config.json"):
        assert compressor("report", quantized, "-o", wrong).code == 2
    assert compressor("report", quantized.with_name("missing")).code == 3


def test_files_without_a_record(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    np.save(tmp_path / "a.npy", random.standard_normal((16, 32)).astype(np.float32))
    told = api.report(tmp_path / "a.npy")
    assert "has no record" in told.notes[0]
    tensors = {"a": np.full((4, 8), np.nan, np.float32), "b": np.arange(8), "c": np.zeros(0, np.float32)}
    save_file(tensors, tmp_path / "odd.safetensors")
    told = api.report(tmp_path / "odd.safetensors")
    found = {row.name: row.measured for row in told.rows}
    assert found["b"] is None  # no numbers to draw
    assert found["a"].histogram is None
    assert "<svg><path" not in told.to_html()
    assert package.report(tmp_path / "a.npy", source=tmp_path / "a.npy").total.error == 0


def test_compare_and_merge_write_reports(quantized: Path, tmp_path: Path) -> None:
    page = tmp_path / "c.html"
    done = compressor("compare", LLAMA, quantized, "--report", page, "--max-error", "0.01")
    assert done.code == 1
    text = page.read_text(encoding="utf-8")
    assert "A gate does not hold" in text
    assert text.count("<svg><path") == 21
    assert "BF16 → int4" in done.out
    assert compressor("compare", LLAMA, quantized, "--report", page).code == 4  # --force replaces it
    assert compressor("compare", LLAMA, quantized, "--report", page, "--force", "-q").code == 0
    for number in (1, 2):
        given = ("--bits", "4", "--part", f"{number}/2", "--max-error", "0.5", "-q")
        part = compressor("quantize", LLAMA, "-o", tmp_path / "m", *given, "--report", tmp_path / f"{number}.html")
        assert part.code == 0
    parts = sorted(tmp_path.glob("m.part-*"))
    files = ("--report", tmp_path / "m.html", "--junit", tmp_path / "m.xml")
    done = compressor("merge", *parts, "-o", tmp_path / "m", *files)
    assert done.code == 0, done.err
    text = (tmp_path / "m.html").read_text(encoding="utf-8")
    assert "The gate holds." in text
    assert text.count("<svg><path") == 14  # of the tensors that were treated
    assert 'name="--max-error 0.5"' in (tmp_path / "m.xml").read_text(encoding="utf-8")


def test_outputs_have_a_report_too(tmp_path: Path) -> None:
    api.quantize(TEACHER, tmp_path / "q.safetensors", bits=2, granularity="channel")
    np.save(tmp_path / "x.npy", np.random.default_rng(0).random((64, 784), np.float32))
    done = compressor(
        *("compare", TEACHER, tmp_path / "q.safetensors", "--inputs", tmp_path / "x.npy"),
        *("--report", tmp_path / "r.html", "--max-kld", "1e-9"),
    )
    assert done.code == 1
    text = (tmp_path / "r.html").read_text(encoding="utf-8")
    for said in ("What the outputs lost", "KL divergence", "A gate does not hold", "A network"):
        assert said in text
    assert 'href="#tensors"' not in text
