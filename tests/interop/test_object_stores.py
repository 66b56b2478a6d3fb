"""An S3 server (moto, on loopback) as the place of inputs and outputs, through s3fs."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

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


def test_memory_and_secrets(store: Any, tmp_path: Path) -> None:
    """200 MB, whose rows come in a row."""
    rows, columns = 25_000, 4096
    header = json.dumps(
        {"a.weight": {"dtype": "BF16", "shape": [rows, columns], "data_offsets": [0, 2 * rows * columns]}}
    ).encode()
    numbers = np.random.default_rng(3).normal(size=(1000, columns)).astype(np.float32).view(np.uint32) >> 16
    piece = numbers.astype(np.uint16).tobytes()
    local = tmp_path / "big.safetensors"
    with local.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for _ in range(rows // 1000):
            file.write(piece)
    store.put_file(str(local), "bucket/big.safetensors")
    script = (
        "import resource, sys\nfrom compressor.__main__ import main\n"
        "sys.argv = ['compressor', *sys.argv[1:]]\ntry:\n    main()\n"
        "except SystemExit as end:\n    assert not end.code\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)\n"
    )
    command = [sys.executable, "-c", script, "quantize", "s3://bucket/big.safetensors", "--bits", "8"]
    command += ["--method", "absmax", "-o", str(tmp_path / "out.safetensors"), "--quiet"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=dict(os.environ))
    assert int(done.stdout.split()[-1]) < 400, done.stdout
    assert "verysecret" not in done.stdout + done.stderr
    api.quantize(local, tmp_path / "here.safetensors", bits=8, method="absmax")
    assert (tmp_path / "out.safetensors").read_bytes() == (tmp_path / "here.safetensors").read_bytes()
