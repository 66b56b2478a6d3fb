"""Outputs in a store of fsspec's, here its own in memory: what loaders find there at any moment, and the bytes."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compressor import api
from compressor.core.errors import CompressorError, GateFailed, OutputError, UsageError
from compressor.files.remote import trying
from compressor.files.remote.uploads import last_ones_last

fsspec = pytest.importorskip("fsspec")
SAMPLES = Path(__file__).parents[3] / "sample_weights"
TINY = SAMPLES / "tiny-llama"
OUT = "memory://bucket/out"


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
    store.store.clear()


def there(store: Any, place: str = "/bucket") -> dict[str, str]:
    found = {path: store.cat_file(path) for path in store.find(place)}
    return {path.removeprefix(f"{place}/"): hashlib.sha256(data).hexdigest() for path, data in found.items()}


def here(path: Path) -> dict[str, str]:
    files = sorted(one for one in path.rglob("*") if one.is_file())
    return {str(one.relative_to(path)): hashlib.sha256(one.read_bytes()).hexdigest() for one in files}


def test_a_folder_has_the_bytes_of_a_local_one(store: Any, tmp_path: Path) -> None:
    api.quantize(TINY, OUT, bits=4)
    api.quantize(TINY, tmp_path / "out", bits=4)
    assert there(store, "/bucket/out") == here(tmp_path / "out")
    api.restore(OUT, tmp_path / "back")  # and is an input
    api.restore(tmp_path / "out", tmp_path / "again")
    assert here(tmp_path / "back") == here(tmp_path / "again")


def test_archives_and_single_files(store: Any, tmp_path: Path) -> None:
    api.quantize(TINY, OUT, bits=4, store="archive")
    api.quantize(TINY, tmp_path / "here", bits=4, store="archive")
    assert there(store, "/bucket/out") == here(tmp_path / "here")
    for name in ("one.safetensors", "one.npz", "one.npy"):
        if name == "one.npy":
            api.prune(SAMPLES / "matrix.npy", f"memory://bucket/{name}", sparsity=0.5)
            api.prune(SAMPLES / "matrix.npy", tmp_path / name, sparsity=0.5)
        else:
            api.quantize(SAMPLES / "matrix.npy", f"memory://bucket/{name}", bits=4)
            api.quantize(SAMPLES / "matrix.npy", tmp_path / name, bits=4)
        assert store.cat_file(f"/bucket/{name}") == (tmp_path / name).read_bytes()
    assert not [path for path in store.find("/bucket") if "compressor" in path]


def test_files_of_an_archive_come_back_one_by_one(store: Any, tmp_path: Path) -> None:
    """Each is held against its SHA-256 before it is sent, and is not looked for here afterwards."""
    api.prune(TINY, tmp_path / "shards", threshold=0.0001, max_shard_size="200KB", card=False)
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 3
    api.pipeline(tmp_path / "shards", "memory://bucket/archive", store="archive")
    api.restore("memory://bucket/archive", OUT)
    assert there(store, "/bucket/out") == here(tmp_path / "shards")
    for number in (1, 2):
        api.restore("memory://bucket/archive", "memory://bucket/p", part=f"{number}/2")
    api.merge([f"memory://bucket/p.part-{number}-of-2" for number in (1, 2)], "memory://bucket/p")
    assert there(store, "/bucket/p") == here(tmp_path / "shards")


def test_what_exists_needs_force_and_has_to_be_ours(store: Any, tmp_path: Path) -> None:
    api.quantize(TINY, OUT, bits=4)
    before = there(store)
    with pytest.raises(OutputError, match="exists already") as caught:
        api.quantize(TINY, OUT, bits=8)
    assert "--force" in caught.value.remedy
    assert there(store) == before
    store.pipe_file("/bucket/out/old-leftover.txt", b"of an earlier output")
    api.quantize(TINY, OUT, bits=8, force=True)
    api.quantize(TINY, tmp_path / "here", bits=8)
    assert there(store, "/bucket/out") == here(tmp_path / "here")
    for path in TINY.iterdir():
        store.pipe_file(f"/bucket/theirs/{path.name}", path.read_bytes())
    before = there(store)
    with pytest.raises(OutputError, match="no run of this tool has written"):
        api.quantize(TINY, "memory://bucket/theirs", bits=4, force=True)
    assert there(store) == before


def test_a_gate_that_fails_leaves_what_was_there(store: Any) -> None:
    with pytest.raises(GateFailed):
        api.quantize(TINY, OUT, bits=2, max_error=1e-6)
    assert there(store) == {}
    api.quantize(TINY, OUT, bits=4)
    before = there(store)
    with pytest.raises(GateFailed):
        api.quantize(TINY, OUT, bits=2, max_error=1e-6, force=True)
    assert there(store) == before


class Stop(BaseException):
    """The process ends here."""


def complete(store: Any) -> bool:
    """Whether a loader would take what is there for a model."""
    return store.exists("/bucket/out/config.json")


def stopping(monkeypatch: pytest.MonkeyPatch, store: Any, when: int) -> None:
    """End everything at a call of the store that changes it."""
    calls = 0

    def counted(name: str) -> None:
        plain = getattr(type(store), name)

        def call(self: Any, *args: Any, **keywords: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls >= when:
                raise Stop
            return plain(self, *args, **keywords)

        monkeypatch.setattr(type(store), name, call)

    for name in ("open", "cp_file", "rm_file", "pipe_file"):
        counted(name)


EVERY = [pytest.param(force, 1, marks=pytest.mark.faults) for force in (False, True)]


@pytest.mark.parametrize(("force", "step"), [(False, 3), (True, 4), *EVERY])
def test_wherever_it_stops_nothing_half_is_taken_for_a_model(
    store: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, force: bool, step: int
) -> None:
    api.quantize(TINY, tmp_path / "here", bits=4)
    whole = here(tmp_path / "here")
    for when in range(1, 100, step):
        store.store.clear()
        old: dict[str, str] = {}
        if force:
            api.quantize(TINY, OUT, bits=8)
            old = there(store, "/bucket/out")
        stopped = False
        with monkeypatch.context() as patch:
            stopping(patch, store, when)
            try:
                api.quantize(TINY, OUT, bits=4, force=force)
            except Stop:
                stopped = True
        visible = {name: data for name, data in there(store, "/bucket/out").items() if "compressor-" not in name}
        if complete(store):
            assert visible in (old, whole)
        if not stopped:
            break
        api.quantize(TINY, OUT, bits=4, force=complete(store))
        assert there(store, "/bucket/out") == whole
    assert when > 10


def test_shards_that_were_sent_are_not_sent_again(
    store: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    api.quantize(TINY, tmp_path / "here", bits=4)
    opened: list[str] = []
    plain = type(store).open

    def failing(self: Any, path: str, *args: Any, **keywords: Any) -> Any:
        opened.append(path)
        if "00002-of-00002" in path and not path.startswith("again"):
            raise RuntimeError("the store is full")
        return plain(self, path, *args, **keywords)

    with monkeypatch.context() as patch:
        patch.setattr(type(store), "open", failing)
        with pytest.raises(OutputError, match="RuntimeError: the store is full"):
            api.quantize(TINY, OUT, bits=4, work=tmp_path / "work")
    assert [path for path in store.find("/bucket") if "00001-of-00002" in path]
    assert not complete(store)
    assert [path.name for path in (tmp_path / "work").iterdir()] == ["work.json"]  # no shard is here
    opened.clear()
    monkeypatch.setattr(
        type(store), "open", lambda self, path, *a, **k: opened.append(path) or plain(self, path, *a, **k)
    )
    report = api.quantize(TINY, OUT, bits=4, work=tmp_path / "work")
    assert not [path for path in opened if "00001-of-00002" in path]
    assert there(store, "/bucket/out") == here(tmp_path / "here")
    assert report.total.size
    assert not (tmp_path / "work").exists()


def test_a_shard_that_is_gone_is_sent_again(store: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    api.quantize(TINY, tmp_path / "here", bits=4)
    with monkeypatch.context() as patch:
        stopping(patch, store, 2)
        with pytest.raises(Stop):
            api.quantize(TINY, OUT, bits=4, work=tmp_path / "work")
    store.store.clear()
    api.quantize(TINY, OUT, bits=4, work=tmp_path / "work")
    assert there(store, "/bucket/out") == here(tmp_path / "here")


def test_no_more_than_one_shard_lies_on_the_disk(
    store: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    model = tmp_path / "model"
    model.mkdir()
    from safetensors.numpy import save_file

    array = np.random.default_rng(0).normal(size=(256, 1024)).astype(np.float32)
    save_file({f"layers.{number}.weight": array for number in range(8)}, model / "model.safetensors")
    most, plain = 0, type(store).open

    def looking(self: Any, *args: Any, **keywords: Any) -> Any:
        nonlocal most
        sizes = [path.stat().st_blocks * 512 for path in (tmp_path / "scratch").rglob("*") if path.is_file()]
        most = max(most, sum(sizes))
        return plain(self, *args, **keywords)

    monkeypatch.setattr(type(store), "open", looking)
    size = array.nbytes
    ways: list[dict[str, Any]] = [{}, {"part": "1/1"}, {"store": "archive"}]
    for count, keywords in enumerate(ways):
        most, out = 0, f"memory://bucket/{count}"
        api.prune(model, out, sparsity=0.5, max_shard_size=size, workers=2, **keywords)
        if "part" in keywords:
            api.merge([f"{out}.part-1-of-1"], out)
        assert len([path for path in store.find(f"/bucket/{count}") if path.endswith(".safetensors")]) == 8
        assert "store" in keywords or most >= size
        assert most <= 1.05 * size


def test_addresses_and_options_that_have_no_place(store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for address in ("https://host/out", "http://host/a.npy", "file:///tmp/out"):
        with pytest.raises(UsageError, match="nothing is written to such an address"):
            api.quantize(TINY, address, bits=4)
    with pytest.raises(UsageError, match="a repository of the hub keeps all that was ever in it"):
        api.quantize(TINY, "hf://org/out", bits=4, part="1/2")
    monkeypatch.delenv("TMPDIR", raising=False)
    with pytest.raises(UsageError, match="workers write a shard to a disk that all of them see"):
        api.quantize(TINY, OUT, bits=4, scheduler="tcp://127.0.0.1:1")
    with pytest.raises(UsageError, match="an archive elsewhere has none"):
        api.quantize(TINY, OUT, bits=4, store="archive", work="work")
    with pytest.raises(OutputError, match="is an address, and this is written to a disk"):
        api.prune(TINY, OUT, sparsity=0.5, save_mask="memory://bucket/mask.safetensors")
    with pytest.raises(CompressorError, match="nosuch:// is an address that nothing here knows"):
        api.quantize(TINY, "nosuch://a/b", bits=4)
    assert there(store) == {}


def test_what_loaders_look_for_comes_last() -> None:
    names = ["config.json", "model.safetensors.index.json", "a.safetensors", "tokenizer.json"]
    assert last_ones_last(names) == [
        "a.safetensors",
        "tokenizer.json",
        "model.safetensors.index.json",
        "config.json",
    ]
