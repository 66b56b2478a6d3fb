"""Passes over the whole model that several jobs make: the run that goes by them writes the very same bytes."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file
from support.console import LLAMA
from support.console import compressor as command
from support.fault_injection import tree

from compressor import api
from compressor.core.errors import InputError, UsageError
from compressor.engine.execution import units
from compressor.engine.execution.runner import Runner
from compressor.files.sealed_json import sealed

N = 3


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of weights, many of which have the same magnitude, with tensors that make a task each."""
    monkeypatch.setattr(units, "BATCH", 1)
    rng = np.random.default_rng(0)
    tensors = {f"layers.{n}.mlp.up_proj.weight": rng.integers(-9, 9, (64, 64)).astype(np.float32) for n in range(5)}
    save_file(tensors, tmp_path / "in.safetensors")
    return tmp_path / "in.safetensors"


def files_of(out: Path, count: int = N) -> list[Path]:
    return [out.with_name(f"{out.name}.survey-{number}-of-{count}") for number in range(1, count + 1)]


RUNS: dict[str, tuple[str, dict[str, Any], int]] = {
    "pruned over all": ("prune", {"sparsity": 0.45, "scope": "global"}, 2),
    "pruned layer by layer": ("prune", {"method": "layer-adaptive", "sparsity": 0.5}, 1),
    "nvfp4": ("quantize", {"scheme": "nvfp4"}, 1),
    "a budget": ("quantize", {"target_bits": 5.0}, 1),
    "no pass": ("quantize", {"bits": 4}, 0),
}


@pytest.mark.parametrize("name", RUNS)
def test_a_run_goes_by_what_jobs_have_surveyed(
    tmp_path: Path, model: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    verb, options, least = RUNS[name]
    one, out, book = tmp_path / "one.safetensors", tmp_path / "out.safetensors", tmp_path / "book"
    run = getattr(api, verb)
    run(model, one, **options)
    known: dict[str, Any] = {}
    while True:
        told = [api.survey(verb, model, out, part=f"{k}/{N}", force=True, **options, **known) for k in (2, 1, 3)]
        assert [report.part for report in told] == [(2, N), (1, N), (3, N)]
        merged = api.merge(files_of(out), book, force=True)
        if merged.complete:
            break
        known = {"surveyed": book}
    assert merged.passes >= least
    assert not out.exists()
    looked = []
    monkeypatch.setattr(Runner, "_looks", lambda *_: looked.append(1))
    run(model, out, surveyed=book, **options)
    assert tree(out) == tree(one)
    assert not looked  # nothing is left that the run would have to look at itself
    out.unlink()
    for number in (1, 2):
        run(model, out, surveyed=book, part=f"{number}/2", **options)
    api.merge([out.with_name(f"{out.name}.part-{number}-of-2") for number in (1, 2)], out)
    assert tree(out) == tree(one)


PRUNE: dict[str, Any] = {"sparsity": 0.45, "scope": "global"}


@pytest.fixture
def surveyed(model: Path, tmp_path: Path) -> Path:
    """The place of an output for which three jobs have surveyed."""
    for number in range(1, N + 1):
        api.survey("prune", model, tmp_path / "out.safetensors", part=f"{number}/{N}", **PRUNE)
    return tmp_path / "out.safetensors"


def test_surveys_that_do_not_go_together(model: Path, surveyed: Path, tmp_path: Path) -> None:
    first, second, third = files = files_of(surveyed)
    book = tmp_path / "book"
    with pytest.raises(UsageError, match="what job 2/3 surveyed is missing"):
        api.merge([first, third], book)
    with pytest.raises(UsageError, match="job 1/3 is given twice"):
        api.merge([first, second, first], book)
    with pytest.raises(InputError, match="nothing that compressor survey has written"):
        api.merge([first, second, model], book)
    api.survey("prune", model, surveyed, part="2/2", **PRUNE)
    with pytest.raises(InputError, match="is of 2 jobs"):
        api.merge([first, second, files_of(surveyed, 2)[1]], book)
    api.survey("prune", model, surveyed, part="3/3", force=True, sparsity=0.5, scope="global")
    with pytest.raises(InputError, match="is of another pass"):
        api.merge(files, book)
    later = model.stat().st_mtime_ns + 1
    os.utime(model, ns=(later, later))
    api.survey("prune", model, surveyed, part="3/3", force=True, **PRUNE)
    with pytest.raises(InputError, match="was made of files of other times"):
        api.merge(files, book)
    api.merge(files, book, copies=True)
    with pytest.raises(UsageError, match="is merged already"):
        api.merge([book, first], tmp_path / "other")
    with pytest.raises(UsageError, match="restore makes no survey"):
        api.survey("restore", model, surveyed)
    with pytest.raises(UsageError, match="--sparsty: is no option of prune"):
        api.survey("prune", model, tmp_path / "x.npy", sparsty=0.5)
    assert sorted(entry.name for entry in tmp_path.iterdir() if "book" in entry.name) == ["book"]


def test_surveys_that_a_run_does_not_go_by(model: Path, surveyed: Path, tmp_path: Path) -> None:
    out, book = tmp_path / "pruned.safetensors", tmp_path / "book"
    with pytest.raises(InputError, match="is of job 1 of 3 alone"):
        api.prune(model, out, surveyed=files_of(surveyed)[0], **PRUNE)
    api.merge(files_of(surveyed), book)
    other = tmp_path / "other.safetensors"
    shutil.copy(model, other)
    with other.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x40")
    with pytest.raises(InputError, match="is a survey of other inputs"):
        api.prune(other, out, surveyed=book, **PRUNE)
    said = json.loads(book.read_text())
    (key,) = said["passes"]
    book.write_text(json.dumps(said | {"content": "0"}, separators=(",", ":")))
    with pytest.raises(InputError, match="is damaged"):
        api.prune(model, out, surveyed=book, **PRUNE)
    del said["content"]
    odd = [{"a": ["|O", [1], ""]}], [{"c": ["os", "system", {}]}], [{"l": 4}], [{"f": "x"}], [{"f": "0x1p9999"}]
    for value in (3, [[]], *odd):
        book.write_bytes(sealed(said | {"passes": {key: value}}))
        with pytest.raises(InputError, match="is damaged"):
            api.prune(model, out, surveyed=book, **PRUNE)
    book.write_text(json.dumps(said | {"tool": "0.0.1"}, separators=(",", ":")))
    with pytest.raises(InputError, match="is of another version of compressor"):
        api.prune(model, out, surveyed=book, **PRUNE)
    assert not out.exists()


def test_the_command_line_surveys(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    run = ["prune", model, "-o", out, "--sparsity", ".45", "--scope", "global"]
    for number in (1, 2):
        told = command("survey", *run, "--part", f"{number}/2")
        assert told.code == 0, told.err
        assert f"job {number} of 2: 0 passes finished, merge it" in told.out
    told = command("merge", *files_of(out, 2), "-o", tmp_path / "book", "--format", "json")
    assert json.loads(told.out)["complete"] is False
    assert command(*run, "-q", "--surveyed", tmp_path / "book").code == 0
    assert command("survey", *run, "--dry-run").err.startswith("error: --dry-run is for the run itself")
    log, second = tmp_path / "log", files_of(out, 2)[1]
    for place, said in ((tmp_path / "book", "input"), (second, "output"), (tmp_path, "holds")):
        told = command("survey", *run, "--part", "2/2", "--surveyed", tmp_path / "book", "--log-file", place)
        assert (told.code, said in told.err) == (2, True), told.err
    assert command("survey", *run, "--part", "2/2", "--force", "-q", "--log-file", log).code == 0
    assert len(log.read_text().splitlines()) == 2
    assert command("merge", *files_of(out, 2), "-o", tmp_path / "book", "--force", "--remove-parts").code == 0
    assert not any(file.exists() for file in files_of(out, 2))
    assert "Usage: compressor prune" in command("survey", "prune", "--help").out
    api.prune(model, tmp_path / "one.safetensors", sparsity=0.45, scope="global")
    assert tree(out) == tree(tmp_path / "one.safetensors")
    assert "Usage: compressor survey" in command("survey", "--help").out
    assert command("survey", "restore", model, "-o", out).code == 2


def test_a_survey_that_no_pass_takes_is_said(model: Path, surveyed: Path, tmp_path: Path) -> None:
    book = tmp_path / "book"
    api.merge(files_of(surveyed), book)
    said = "was used: nothing in this run looks at the whole model first"
    done = api.prune(model, tmp_path / "alone", surveyed=book, sparsity=0.5)
    assert any(said in note for note in done.plan.notes)
    done = api.prune(model, tmp_path / "global", surveyed=book, **PRUNE)
    assert not any(said in note for note in done.plan.notes)


def test_a_survey_of_other_options_is_said(model: Path, surveyed: Path, tmp_path: Path) -> None:
    """The passes are made again, and a note names what differs."""
    book = tmp_path / "book"
    api.merge(files_of(surveyed), book)
    other = {**PRUNE, "sparsity": 0.25}
    done = api.prune(model, tmp_path / "a.safetensors", surveyed=book, **other)
    (said,) = [note for note in done.plan.notes if "no pass of" in note]
    assert f"was used: it is of sparsity {PRUNE['sparsity']}, not 0.25, so that this run looked" in said
    api.prune(model, tmp_path / "b.safetensors", **other)
    assert tree(tmp_path / "a.safetensors") == tree(tmp_path / "b.safetensors")
    done = api.quantize(model, tmp_path / "c.safetensors", surveyed=book, target_bits=5.0)
    assert any("was used: it is of" in note for note in done.plan.notes)
    planned = api.prune(model, tmp_path / "d.safetensors", surveyed=book, dry_run=True, **other)
    assert not any("no pass of" in note for note in planned.plan.notes)


def test_a_budget_that_goes_by_a_survey_has_no_note(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "o.safetensors"
    api.survey("quantize", model, out, part="1/1", target_bits=5.0)
    book = tmp_path / "book"
    api.merge(files_of(out, 1), book)
    done = api.quantize(model, out, surveyed=book, target_bits=5.0)
    assert not any("no pass of" in note for note in done.plan.notes)


def test_surveys_say_how_far_they_are(tmp_path: Path) -> None:
    done = command("prune", LLAMA, "-o", tmp_path / "out", "--sparsity", "0.5", "--scope", "global", "-v")
    assert done.code == 0, done.err
    lines = [line.removeprefix("progress: ") for line in done.err.splitlines() if line.startswith("progress: ")]
    assert lines[0] == "survey of the whole model"
    assert lines[1].startswith("survey of the whole model: 100 % of ")
    assert lines[-1].startswith("weights: 100 % of ")
