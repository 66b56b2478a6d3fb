"""An S3 server (moto, on loopback) as the place of inputs and outputs, through s3fs."""

from __future__ import annotations

import hashlib
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from compressor import api
from compressor.core.errors import InputError
from compressor.files.opening import open_source
from compressor.files.remote import trying

pytestmark = pytest.mark.interop
fsspec = pytest.importorskip("fsspec")
pytest.importorskip("s3fs")
TINY = Path(__file__).parents[2] / "sample_weights" / "tiny-llama"


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    moto = pytest.importorskip("moto.server")
    server = moto.ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def store(endpoint: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """A bucket with the tiny llama; credentials and endpoint are where the libraries look for them."""
    monkeypatch.setattr(trying, "FIRST", 0.001)
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "verysecretid")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "verysecret")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    store = fsspec.filesystem("s3", skip_instance_cache=False)
    store.invalidate_cache()
    if not store.exists("bucket"):
        store.mkdir("bucket")
    for path in TINY.iterdir():
        store.pipe_file(f"bucket/tiny/{path.name}", path.read_bytes())
    yield store
    store.rm("bucket/tiny", recursive=True)


def hashes(path: Path) -> dict[str, str]:
    files = sorted(one for one in path.rglob("*") if one.is_file())
    return {str(one.relative_to(path)): hashlib.sha256(one.read_bytes()).hexdigest() for one in files}


def test_a_folder_gives_the_bytes_of_a_local_one(store: Any, tmp_path: Path) -> None:
    api.quantize("s3://bucket/tiny", tmp_path / "away", bits=4)
    api.quantize(TINY, tmp_path / "here", bits=4)
    for out in ("away", "here"):
        (tmp_path / out / "README.md").unlink()  # names the input
    assert hashes(tmp_path / "away") == hashes(tmp_path / "here")


def test_an_object_that_is_replaced(store: Any, tmp_path: Path) -> None:
    name = "model-00001-of-00002.safetensors"
    source = open_source("s3://bucket/tiny")
    file = source.files[0].file
    file.read(0, 100)
    before = store.cat_file(f"bucket/tiny/{name}")
    store.pipe_file(f"bucket/tiny/{name}", before[:-1] + bytes([before[-1] ^ 1]))
    with pytest.raises(InputError, match="was changed while it was read"):
        file.read(200, 100)
    with pytest.raises(InputError, match="was changed while it was read"):
        source.check_unchanged()


def test_a_bucket_that_is_not_there(store: Any) -> None:
    for address in ("s3://nobucket/a", "s3://bucket/nothing", "s3://bucket/nothing.safetensors"):
        with pytest.raises(InputError, match="is not there"):
            open_source(address)


def test_secrets_are_nowhere(store: Any, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "compressor", "quantize", "s3://bucket/tiny", "--bits", "4"]
    command += ["--format", "json"]
    done = subprocess.run([*command, "-o", "s3://bucket/out"], capture_output=True, text=True, check=True)
    failed = subprocess.run([*command, "-o", "s3://bucket/out"], capture_output=True, text=True, check=False)
    assert failed.returncode == 4
    assert "exists already" in failed.stderr
    assert "verysecret" not in done.stdout + done.stderr + failed.stderr
    store.invalidate_cache()
    assert not [path for path in store.find("bucket/out") if b"verysecret" in store.cat_file(path)]
    store.rm("bucket/out", recursive=True)


def found(store: Any) -> dict[str, str]:
    """What loaders see of the output."""
    store.invalidate_cache()
    names = [path for path in store.find("bucket/out") if ".compressor-" not in path]
    return {path.removeprefix("bucket/out/"): hashlib.sha256(store.cat_file(path)).hexdigest() for path in names}


def test_outputs_and_runs_that_are_killed(store: Any, tmp_path: Path) -> None:
    """Killed at random moments, without and with a work folder: nothing that is taken for a model, or all of it."""
    api.pipeline(TINY, tmp_path / "here", stages=["quantize:bits=4"])
    whole = hashes(tmp_path / "here")
    chance = random.Random(17)
    command = [sys.executable, "-m", "compressor", "pipeline", str(TINY), "-o", "s3://bucket/out", "-q"]
    command += ["--stage", "quantize:bits=4"]
    killed = 0
    for number in range(12):
        work = ["--work", str(tmp_path / "work")] if number % 2 else []
        run = subprocess.Popen([*command, *work], stderr=subprocess.DEVNULL)
        # from when it begins to send, which is not the same moment on every machine
        deadline = 400
        while run.poll() is None and deadline and not _sending(store):
            deadline -= 1
            time.sleep(0.02)
        time.sleep(chance.uniform(0, 0.5))
        run.kill()
        killed += run.wait() != 0
        visible = found(store)
        if "config.json" in visible:
            assert visible == whole
            store.rm("bucket/out", recursive=True)
        subprocess.run([*command, *work], check=True)
        assert found(store) == whole
        assert not [path for path in store.find("bucket/out") if ".compressor-" in path]
        store.rm("bucket/out", recursive=True)
    assert killed > 3


def _sending(store: Any) -> bool:
    store.invalidate_cache()
    return bool(store.exists("bucket/out") and store.find("bucket/out"))


def test_a_large_shard_is_sent_in_parts(store: Any, tmp_path: Path) -> None:
    array = np.random.default_rng(0).normal(size=(6_000, 1024)).astype(np.float32)
    save_file({"layers.0.weight": array}, tmp_path / "a.safetensors")
    api.prune(tmp_path / "a.safetensors", "s3://bucket/b.safetensors", sparsity=0.5)
    api.prune(tmp_path / "a.safetensors", tmp_path / "b.safetensors", sparsity=0.5)
    store.invalidate_cache()
    assert store.cat_file("bucket/b.safetensors") == (tmp_path / "b.safetensors").read_bytes()
