"""Parts, surveys, budgets and statistics in a store of fsspec's: the bytes that they have on a disk."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compressor import api
from compressor.core.errors import InputError, OutputError
from compressor.files.remote import trying

fsspec = pytest.importorskip("fsspec")
SAMPLES = Path(__file__).parents[3] / "sample_weights"
TINY, LENET = SAMPLES / "tiny-llama", SAMPLES / "lenet300_teacher.safetensors"
BUCKET = "memory://bucket"


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """An empty store, and a folder of its own for what is written on the way, which has to be empty in the end."""
    monkeypatch.setattr(trying, "FIRST", 0.0001)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    store = fsspec.filesystem("memory")
    store.store.clear()
    store.pseudo_dirs[:] = [""]
    yield store
    assert list(scratch.iterdir()) == []
    assert not [path for path in store.find("/bucket") if "compressor-" in path]
    store.store.clear()


def there(store: Any, place: str) -> dict[str, str]:
    found = {path: hashlib.sha256(store.cat_file(path)).hexdigest() for path in store.find(f"/bucket/{place}")}
    return {path.removeprefix(f"/bucket/{place}/"): digest for path, digest in found.items()}


def here(path: Path) -> dict[str, str]:
    files = sorted(one for one in path.rglob("*") if one.is_file())
    return {str(one.relative_to(path)): hashlib.sha256(one.read_bytes()).hexdigest() for one in files}


RUNS = {
    "int4": ("quantize", {"bits": 4}),
    "global pruning": ("prune", {"sparsity": 0.5, "scope": "global"}),
    "archive": ("quantize", {"bits": 8, "store": "archive"}),
    "archive as it is": ("pipeline", {"stages": [], "store": "archive"}),
    "budget": ("quantize", {"target_bits": 5.0}),
}


@pytest.mark.parametrize("run", RUNS)
def test_parts_in_a_bucket_are_merged_to_the_bytes_of_one_run(store: Any, tmp_path: Path, run: str) -> None:
    verb, keywords = RUNS[run]
    make = getattr(api, verb)
    make(TINY, tmp_path / "whole", **keywords)
    parts = [f"{BUCKET}/out.part-{number}-of-3" for number in (1, 2, 3)]
    for number in (1, 2, 3):
        make(TINY, f"{BUCKET}/out", **keywords, part=f"{number}/3")
        assert "out/config.json" not in there(store, "")
    with pytest.raises(OutputError, match="exists already"):
        make(TINY, f"{BUCKET}/out", **keywords, part="1/3")
    make(TINY, f"{BUCKET}/out", **keywords, part="1/3", force=True)
    api.merge(parts, tmp_path / "out")
    report = api.merge(parts, f"{BUCKET}/out", remove_parts=True)
    whole = here(tmp_path / "whole")
    assert here(tmp_path / "out") == there(store, "out") == whole
    assert report.size_after == sum(
        path.stat().st_size for path in (tmp_path / "whole").iterdir() if path.suffix == ".safetensors"
    )
    assert there(store, "out.part-1-of-3") == {}


def test_parts_of_a_disk_are_merged_into_a_bucket(store: Any, tmp_path: Path) -> None:
    for number in (1, 2):
        api.quantize(LENET, tmp_path / "out.safetensors", bits=4, granularity="channel", part=f"{number}/2")
    parts = sorted(tmp_path.glob("out.safetensors.part-*"))
    api.merge(parts, f"{BUCKET}/out.safetensors")
    api.quantize(LENET, tmp_path / "out.safetensors", bits=4, granularity="channel")
    assert store.cat_file("/bucket/out.safetensors") == (tmp_path / "out.safetensors").read_bytes()


def test_a_part_that_was_changed_in_the_bucket(store: Any) -> None:
    api.quantize(TINY, f"{BUCKET}/out", bits=4, part="1/1")
    [name] = [path for path in store.find("/bucket") if path.endswith("00001-of-00002.safetensors.part")]
    content = bytearray(store.cat_file(name))
    content[-1] ^= 1
    store.pipe_file(name, bytes(content))
    with pytest.raises(InputError, match="was changed since it was written"):
        api.merge([f"{BUCKET}/out.part-1-of-1"], f"{BUCKET}/out")
    with pytest.raises(InputError, match="is not there"):
        api.merge([f"{BUCKET}/out.part-1-of-2"], f"{BUCKET}/out")
    assert there(store, "out") == {}


@pytest.mark.parametrize(
    "keywords",
    [{"target_bits": 5.0}, {"target_bits": 5.0, "store": "archive"}, {"target_ratio": 2.2, "min_sqnr": 3.0}],
)
def test_budgets_of_inputs_and_outputs_elsewhere(store: Any, tmp_path: Path, keywords: dict[str, Any]) -> None:
    for path in TINY.iterdir():
        store.pipe_file(f"/bucket/tiny/{path.name}", path.read_bytes())
    report = api.quantize(f"{BUCKET}/tiny", f"{BUCKET}/out", **keywords, card=False)
    api.quantize(TINY, tmp_path / "out", **keywords, card=False)
    assert there(store, "out") == here(tmp_path / "out")
    assert report.allocation is not None


def test_tuning_measures_candidates_here(store: Any, tmp_path: Path) -> None:
    seen = []

    def evaluate(path: str) -> float:
        seen.append(path)
        return float(Path(path, "model.safetensors.index.json").stat().st_size > 0)

    api.tune(TINY, f"{BUCKET}/out", evaluate=evaluate, min_metric=0.5, evaluations=2)
    assert seen
    assert "config.json" in there(store, "out")


def test_recipes_of_several_passes(store: Any, tmp_path: Path) -> None:
    inputs = np.random.default_rng(0).random((64, 784)).astype(np.float32)
    np.save(tmp_path / "x.npy", inputs)
    api.calibrate(LENET, tmp_path / "s.safetensors", inputs=tmp_path / "x.npy")
    stages = ["prune:sparsity=0.5", "quantize:bits=4,method=awq,granularity=channel"]
    for place in (f"{BUCKET}/out.safetensors", tmp_path / "out.safetensors"):
        api.pipeline(LENET, place, stages=stages, stats=tmp_path / "s.safetensors")
    assert store.cat_file("/bucket/out.safetensors") == (tmp_path / "out.safetensors").read_bytes()


def test_surveys_in_a_bucket(store: Any, tmp_path: Path) -> None:
    keywords: dict[str, Any] = {"sparsity": 0.5, "scope": "global"}
    api.prune(TINY, tmp_path / "out", **keywords)
    known: dict[str, Any] = {}
    for turn in range(4):
        for part in ("1/2", "2/2"):
            report = api.survey("prune", TINY, f"{BUCKET}/out", **keywords, **known, part=part, force=True)
        if report.complete:
            break
        parts = [f"{BUCKET}/out.survey-{number}-of-2" for number in (1, 2)]
        api.merge(parts, f"{BUCKET}/known-{turn}.json", remove_parts=True)
        known = {"surveyed": f"{BUCKET}/known-{turn}.json"}
    report = api.prune(TINY, f"{BUCKET}/out", **keywords, **known)
    assert not [note for note in report.plan.notes if "was used" in note]
    assert there(store, "out") == here(tmp_path / "out")


def test_statistics_in_a_bucket(store: Any, tmp_path: Path) -> None:
    inputs = np.random.default_rng(0).random((64, 784)).astype(np.float32)
    np.save(tmp_path / "x.npy", inputs)
    for place in (f"{BUCKET}/s.safetensors", tmp_path / "s.safetensors"):
        api.calibrate(LENET, place, inputs=tmp_path / "x.npy")
    assert store.cat_file("/bucket/s.safetensors") == (tmp_path / "s.safetensors").read_bytes()
    with pytest.raises(OutputError, match="exists already"):
        api.calibrate(LENET, f"{BUCKET}/s.safetensors", inputs=tmp_path / "x.npy")
    for place in (f"{BUCKET}/both.safetensors", tmp_path / "both.safetensors"):
        api.merge_statistics([f"{BUCKET}/s.safetensors", tmp_path / "s.safetensors"], place)
    assert store.cat_file("/bucket/both.safetensors") == (tmp_path / "both.safetensors").read_bytes()
    for name, stats in (("away", f"{BUCKET}/s.safetensors"), ("here", tmp_path / "s.safetensors")):
        api.prune(LENET, tmp_path / f"{name}.safetensors", method="wanda", sparsity=0.5, stats=stats)
    assert (tmp_path / "away.safetensors").read_bytes() == (tmp_path / "here.safetensors").read_bytes()
