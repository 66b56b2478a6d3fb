"""An S3 server (moto) and one of Google's store (gcp-storage-emulator), on loopback, as the places of inputs and
outputs, through s3fs and gcsfs."""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file
from support import gcs_server

from compressor import api
from compressor.core.errors import InputError, OutputError
from compressor.files.opening import open_source
from compressor.files.remote import trying

pytestmark = [
    pytest.mark.interop,
    pytest.mark.filterwarnings("ignore::DeprecationWarning:google.*"),
    pytest.mark.filterwarnings("ignore::FutureWarning:google.*"),
]
fsspec = pytest.importorskip("fsspec")
TINY = Path(__file__).parents[2] / "sample_weights" / "tiny-llama"


@dataclass
class Store:
    """A store that has the bucket `bucket`, and in it the tiny llama, as `scheme`; none of the `secrets` may be
    shown."""

    files: Any
    scheme: str
    secrets: list[str] = field(default_factory=list)

    def at(self, path: str) -> str:
        return f"{self.scheme}://{path}"

    def find(self, path: str) -> list[str]:
        self.files.invalidate_cache()
        try:
            return list(self.files.find(path))
        except FileNotFoundError:
            return []

    def remove(self, path: str) -> None:
        for one in self.find(path):
            self.files.rm_file(one)


@pytest.fixture(scope="module")
def amazon() -> Iterator[str]:
    pytest.importorskip("s3fs")
    moto = pytest.importorskip("moto.server")
    server = moto.ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture(scope="module")
def google(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[gcs_server.Google, Path, str]]:
    os.environ["GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT"] = "false"  # as the tool has it, before the import below
    pytest.importorskip("gcsfs")
    pytest.importorskip("gcp_storage_emulator")
    with gcs_server.google() as server:
        account = tmp_path_factory.mktemp("account") / "key.json"
        yield server, account, server.log_in(account)


@pytest.fixture
def s3(amazon: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """Credentials and endpoint are where the libraries look for them."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", amazon)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "verysecretid")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "verysecret")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    store = Store(fsspec.filesystem("s3"), "s3", ["verysecret"])
    yield from filled(store, monkeypatch)


@pytest.fixture
def gs(google: tuple[gcs_server.Google, Path, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """The same of Google's, which sees a token that comes of a service account's key."""
    server, account, secret = google
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", server.url)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(account))
    store = Store(fsspec.filesystem("gs"), "gs", [gcs_server.TOKEN, secret])
    yield from filled(store, monkeypatch)


def filled(store: Store, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    monkeypatch.setattr(trying, "FIRST", 0.001)
    store.files.invalidate_cache()
    if not store.files.exists("bucket"):
        store.files.mkdir("bucket")
    for path in TINY.iterdir():
        store.files.pipe_file(f"bucket/tiny/{path.name}", path.read_bytes())
    yield store
    store.remove("bucket/tiny")
    store.remove("bucket/out")


@pytest.fixture(params=["s3", "gs"])
def store(request: pytest.FixtureRequest) -> Store:
    found = request.getfixturevalue(request.param)
    assert isinstance(found, Store)
    return found


def hashes(path: Path) -> dict[str, str]:
    files = sorted(one for one in path.rglob("*") if one.is_file())
    return {str(one.relative_to(path)): hashlib.sha256(one.read_bytes()).hexdigest() for one in files}


def test_a_folder_gives_the_bytes_of_a_local_one(store: Store, tmp_path: Path) -> None:
    api.quantize(store.at("bucket/tiny"), tmp_path / "away", bits=4)
    api.quantize(TINY, tmp_path / "here", bits=4)
    for out in ("away", "here"):
        (tmp_path / out / "README.md").unlink()  # names the input
    assert hashes(tmp_path / "away") == hashes(tmp_path / "here")


def test_an_object_that_is_replaced(store: Store, tmp_path: Path) -> None:
    name = "model-00001-of-00002.safetensors"
    source = open_source(store.at("bucket/tiny"))
    file = source.files[0].file
    file.read(0, 100)
    before = store.files.cat_file(f"bucket/tiny/{name}")
    store.files.pipe_file(f"bucket/tiny/{name}", before[:-1] + bytes([before[-1] ^ 1]))
    with pytest.raises(InputError, match="was changed while it was read"):
        file.read(200, 100)
    with pytest.raises(InputError, match="was changed while it was read"):
        source.check_unchanged()


def test_a_bucket_that_is_not_there(store: Store) -> None:
    for address in ("nobucket/a", "bucket/nothing", "bucket/nothing.safetensors"):
        with pytest.raises(InputError, match="is not there"):
            open_source(store.at(address))


def test_an_output_in_a_bucket_that_is_not_there(store: Store) -> None:
    with pytest.raises(OutputError, match="its bucket is not there"):
        api.quantize(TINY, store.at("nobucket/a"), bits=4)


def test_secrets_are_nowhere(store: Store, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "compressor", "quantize", store.at("bucket/tiny"), "--bits", "4"]
    command += ["--format", "json", "-o", store.at("bucket/out")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    failed = subprocess.run(command, capture_output=True, text=True, check=False)
    assert failed.returncode == 4
    assert "exists already" in failed.stderr
    for secret in store.secrets:
        assert secret not in done.stdout + done.stderr + failed.stderr
        assert not [one for one in store.find("bucket/out") if secret.encode() in store.files.cat_file(one)]


def visible(store: Store) -> dict[str, str]:
    """What loaders see of the output."""
    names = [path for path in store.find("bucket/out") if ".compressor-" not in path]
    return {
        path.removeprefix("bucket/out/"): hashlib.sha256(store.files.cat_file(path)).hexdigest() for path in names
    }


def test_outputs_and_runs_that_are_killed(store: Store, tmp_path: Path) -> None:
    """Killed at random moments, without and with a work folder: nothing that is taken for a model, or all of it."""
    api.pipeline(TINY, tmp_path / "here", stages=["quantize:bits=4"])
    whole = hashes(tmp_path / "here")
    chance = random.Random(17)
    command = [sys.executable, "-m", "compressor", "pipeline", str(TINY), "-o", store.at("bucket/out"), "-q"]
    command += ["--stage", "quantize:bits=4"]
    killed = 0
    for number in range(12):
        work = ["--work", str(tmp_path / "work")] if number % 2 else []
        run = subprocess.Popen([*command, *work], stderr=subprocess.DEVNULL)
        # from when it begins to send, which is not the same moment on every machine
        deadline = 400
        while run.poll() is None and deadline and not store.find("bucket/out"):
            deadline -= 1
            time.sleep(0.02)
        time.sleep(chance.uniform(0, 0.5 if store.scheme == "s3" else 0.15))
        run.kill()
        killed += run.wait() != 0
        seen = visible(store)
        if "config.json" in seen:
            assert seen == whole
            store.remove("bucket/out")
        subprocess.run([*command, *work], check=True)
        assert visible(store) == whole
        assert not [path for path in store.find("bucket/out") if ".compressor-" in path]
        store.remove("bucket/out")
    assert killed > 3


def test_a_large_shard_is_sent_in_parts(store: Store, tmp_path: Path) -> None:
    array = np.random.default_rng(0).normal(size=(10_000, 1024)).astype(np.float32)
    save_file({"layers.0.weight": array}, tmp_path / "a.safetensors")
    api.prune(tmp_path / "a.safetensors", store.at("bucket/out/b.safetensors"), sparsity=0.5)
    api.prune(tmp_path / "a.safetensors", tmp_path / "b.safetensors", sparsity=0.5)
    store.files.invalidate_cache()
    assert store.files.cat_file("bucket/out/b.safetensors") == (tmp_path / "b.safetensors").read_bytes()


# ---- Google's alone --------------------------------------------------------------------------------------------


def test_ranges_of_one_generation_are_asked_for(
    gs: Store, google: tuple[gcs_server.Google, Path, str], tmp_path: Path
) -> None:
    server = google[0]
    server.asked.clear()
    api.quantize("gs://bucket/tiny", tmp_path / "out", bits=4)
    reads = [one for one in server.asked if "alt=media" in one[1]]
    assert reads
    assert all("generation=" in address and said.startswith("bytes=") for _, address, said in reads)
    api.quantize(TINY, "gs://bucket/out", bits=4)
    sent = [address for _, address, said in server.asked if said.startswith("bytes ")]
    assert sent
    assert all("/.compressor-upload-" in address for address in sent)
    copies = [address.partition("/rewriteTo/")[2] for _, address, _ in server.asked if "/rewriteTo/" in address]
    assert [one.rpartition("%2F")[2] for one in copies[-2:]] == ["model.safetensors.index.json", "config.json"]


def test_what_google_s_store_fails_with(
    gs: Store, google: tuple[gcs_server.Google, Path, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from gcsfs import retry

    monkeypatch.setattr(retry.random, "random", lambda: -1.0)  # waits of 0, 1, 3 … seconds
    server, counts = google[0], Counter[str]()

    def drop(handler: Any, method: str, path: str) -> bool:
        counts[method] += 1
        if counts[method] % 5:
            return False
        handler.connection.close()  # nothing is answered
        return True

    def refuse(code: int) -> Any:
        def fault(handler: Any, method: str, path: str) -> bool:
            gcs_server.refuse(handler, code)
            return True

        return fault

    try:
        server.fault = drop
        api.quantize("gs://bucket/tiny", "gs://bucket/out", bits=4, card=False)
        server.fault = lambda handler, method, path: False
        api.quantize(TINY, tmp_path / "here", bits=4, card=False)
        assert visible(gs) == hashes(tmp_path / "here")
        for code in (401, 403):
            server.fault = refuse(code)
            with pytest.raises(InputError, match="may not be read"):
                open_source("gs://bucket/tiny")
            with pytest.raises(OutputError, match="may not be written"):
                api.quantize(TINY, "gs://bucket/other", bits=4)
    finally:
        server.fault = lambda handler, method, path: False


def test_a_marker_of_a_folder_is_no_file_of_it(gs: Store) -> None:
    gs.files.pipe_file("bucket/tiny/", b"")
    source = open_source("gs://bucket/tiny")
    assert sorted(source.carried) == sorted(open_source(TINY).carried)
