"""Runs on a Dask cluster: the bytes of a run here, whoever of it is killed."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file
from support.clock import HANGS
from support.fault_injection import invoke, strays, tree

from compressor import api
from compressor.core.errors import InputError, OutputError, UsageError
from compressor.core.parallel import cluster as cluster_module


class Cluster:
    """A scheduler and its workers on this machine, each a process of its own; none is started again."""

    def __init__(self, place: Path) -> None:
        self.place, self.killed = place, False
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.address = f"tcp://127.0.0.1:{port}"
        self.scheduler = self._start("dask_scheduler", "--host", "127.0.0.1", "--port", str(port))
        self.workers: list[subprocess.Popen[bytes]] = []
        for _ in range(2):
            self.add()

    def _start(self, module: str, *more: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", f"distributed.cli.{module}", "--no-dashboard", *more]
        with (self.place / "log").open("ab") as log:
            return subprocess.Popen(command, stdout=log, stderr=log, cwd=self.place)

    def add(self) -> None:
        """One worker more, of one thread."""
        more = ("--nthreads", "1", "--no-nanny", "--local-directory", str(self.place))
        self.workers.append(self._start("dask_worker", self.address, *more))

    def kill(self, one: subprocess.Popen[bytes]) -> None:
        self.killed = True
        one.send_signal(signal.SIGKILL)
        one.wait(HANGS)

    def close(self) -> None:
        for one in (*self.workers, self.scheduler):
            self.kill(one)


@contextmanager
def started(place: Path) -> Iterator[Cluster]:
    place.mkdir()
    found = Cluster(place)
    try:
        yield found
    finally:
        found.close()


@pytest.fixture(scope="module")
def clusters() -> Iterator[list[Cluster]]:
    """Those that were started."""
    found: list[Cluster] = []
    yield found
    for one in found:
        one.close()


@pytest.fixture
def cluster(clusters: list[Cluster], tmp_path_factory: pytest.TempPathFactory) -> Cluster:
    """A cluster of two workers: another one only where a test has killed the last, as each start takes seconds."""
    if not clusters or clusters[-1].killed:
        clusters.append(Cluster(tmp_path_factory.mktemp("dask")))
    return clusters[-1]


def make_model(place: Path, layers: int = 4, rows: int = 512) -> Path:
    """A folder of two shards of large tensors and a small one."""
    model, rng = place / "model", np.random.default_rng(0)
    model.mkdir()
    found = {
        f"model.layers.{n}.mlp.up_proj.weight": rng.standard_normal((rows, 512)).astype(np.float32)
        for n in range(layers)
    }
    found["model.norm.weight"] = np.ones(512, np.float32)
    names, of = sorted(found), dict[str, str]()
    for number in range(2):
        file = f"model-0000{number + 1}-of-00002.safetensors"
        save_file({name: found[name] for name in names[number::2]}, model / file, {"format": "pt"})
        of |= dict.fromkeys(names[number::2], file)
    (model / "model.safetensors.index.json").write_text(
        '{"metadata": {}, "weight_map": {' + ", ".join(f'"{name}": "{file}"' for name, file in of.items()) + "}}"
    )
    (model / "config.json").write_text('{"architectures": ["Tiny"], "hidden_size": 512}')
    return model


RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    "int4": ("quantize", {"bits": 4}),
    "pruned over all": ("prune", {"sparsity": 0.5, "scope": "global"}),
    "counted first": ("prune", {"sparsity": 0.5, "store": "csr"}),
    "an archive": ("quantize", {"bits": 4, "store": "archive"}),
}


@pytest.mark.parametrize("name", [*RUNS, pytest.param("a budget", marks=pytest.mark.faults)])
def test_the_bytes_are_those_of_a_run_here(
    tmp_path: Path, cluster: Cluster, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    verb, options = {**RUNS, "a budget": ("quantize", {"target_bits": 5.0})}[name]
    make_model(tmp_path)
    monkeypatch.chdir(tmp_path)  # where no worker is
    here = getattr(api, verb)("model", "here", **options)
    there = getattr(api, verb)("model", "there", scheduler=cluster.address, **options)
    assert tree(tmp_path / "there") == tree(tmp_path / "here")
    assert there.changes == here.changes
    assert strays(tmp_path) == []


def test_parts_of_a_cluster(tmp_path: Path, cluster: Cluster) -> None:
    model, out = make_model(tmp_path), tmp_path / "out"
    for number in (1, 2):
        api.quantize(model, out, bits=4, part=f"{number}/2", scheduler=cluster.address)
    api.merge([f"{out}.part-{number}-of-2" for number in (1, 2)], out)
    api.quantize(model, tmp_path / "here", bits=4)
    assert tree(out) == tree(tmp_path / "here")


def test_what_a_worker_refuses_is_told_here(tmp_path: Path, cluster: Cluster) -> None:
    save_file({"a.weight": np.full((512, 512), np.nan, np.float32)}, tmp_path / "in.safetensors")
    command = ["quantize", str(tmp_path / "in.safetensors"), "-o", str(tmp_path / "out"), "--bits", "4", "-q"]
    code, lines = invoke([*command, "--scheduler", cluster.address])
    assert code == 3
    assert "tensor 'a.weight': holds 262144 NaN or infinite values" in lines[0]
    with pytest.raises(InputError):
        api.quantize(tmp_path / "in.safetensors", tmp_path / "out", bits=4, scheduler=cluster.address)
    assert os.listdir(tmp_path) == ["in.safetensors"]


def test_a_scheduler_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model(tmp_path)
    monkeypatch.setattr(cluster_module, "_WAIT", 0.3)
    for address in ("tcp://127.0.0.1:9", "nonsense://x", "127.0.0.1:9"):
        with pytest.raises(OutputError, match="no scheduler answers there"):
            api.quantize(model, tmp_path / "out", bits=4, scheduler=address)
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(UsageError, match="takes the package distributed"):
        api.quantize(model, tmp_path / "out", bits=4, scheduler="tcp://127.0.0.1:9")
    assert os.listdir(tmp_path) == ["model"]


def test_workers_of_another_version(tmp_path: Path, cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model(tmp_path)
    monkeypatch.setattr(cluster_module, "__version__", "0.0.1")
    with pytest.raises(OutputError, match=r"has compressor .*, and this is 0\.0\.1"):
        api.quantize(model, tmp_path / "out", bits=4, scheduler=cluster.address)
    done, error = cluster_module.run_task("9", cluster_module._Shared("", b""), b"")
    assert not done
    assert "and the run 9" in str(error)


def after(results: int, act: Callable[[], None]) -> Callable[[int, int], None]:
    """A progress that acts when so many results are there."""
    seen = 0

    def progress(done: int, total: int) -> None:
        nonlocal seen
        seen += 1
        if seen == results:
            act()

    return progress


def test_a_killed_worker_and_a_lost_scheduler(tmp_path: Path, cluster: Cluster) -> None:
    model = make_model(tmp_path, layers=10)
    api.quantize(model, tmp_path / "here", bits=4)
    kill = after(2, lambda: cluster.kill(cluster.workers[0]))
    api.quantize(model, tmp_path / "out", bits=4, scheduler=cluster.address, progress=kill)
    assert tree(tmp_path / "out") == tree(tmp_path / "here")
    work = {"work": tmp_path / "work", "stages": ["quantize:bits=4"]}
    shards = after(8, lambda: cluster.kill(cluster.scheduler))
    with pytest.raises(OutputError, match=r"the scheduler at .* was lost"):
        api.pipeline(model, tmp_path / "new", scheduler=cluster.address, progress=shards, **work)
    assert not (tmp_path / "new").exists()
    assert strays(tmp_path) == []
    api.pipeline(model, tmp_path / "new", **work)
    assert tree(tmp_path / "new") == tree(tmp_path / "here")


@pytest.mark.faults
def test_fifty_killed_workers(tmp_path: Path) -> None:
    model, chance = make_model(tmp_path, layers=24, rows=1024), random.Random(0)
    api.quantize(model, tmp_path / "here", bits=4)
    with started(tmp_path / "cluster") as dask:
        for _ in range(50):
            victim = dask.workers.pop(0)
            kill = after(chance.randrange(1, 24), lambda one=victim: dask.kill(one))
            api.quantize(model, tmp_path / "out", bits=4, scheduler=dask.address, progress=kill, force=True)
            assert tree(tmp_path / "out") == tree(tmp_path / "here")
            assert strays(tmp_path) == []
            if victim.poll() is None:
                dask.kill(victim)
            dask.add()


def test_an_output_elsewhere_is_sent_from_a_folder_that_all_see(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsspec = pytest.importorskip("fsspec")
    monkeypatch.delenv("TMPDIR", raising=False)
    model, out = make_model(tmp_path), "memory://dask/out"
    with pytest.raises(UsageError, match="workers write a shard to a disk that all of them see") as caught:
        api.quantize(model, out, bits=4, scheduler=cluster.address)
    assert caught.value.remedy == "Set TMPDIR to a folder that all of them see"
    (tmp_path / "shared").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "shared"))
    monkeypatch.setattr("tempfile.tempdir", None)
    api.quantize(model, out, bits=4, scheduler=cluster.address)
    api.quantize(model, tmp_path / "here", bits=4)
    store = fsspec.filesystem("memory")
    found = {path.rpartition("/")[2]: store.cat_file(path) for path in store.find("/dask/out")}
    assert found == {path.name: path.read_bytes() for path in (tmp_path / "here").iterdir()}
    assert list((tmp_path / "shared").iterdir()) == []
    store.store.clear()
