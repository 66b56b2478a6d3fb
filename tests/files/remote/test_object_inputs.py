"""Inputs in what fsspec reads, here its own store in memory; an S3 server is in
`tests/interop/test_object_stores.py`."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from compressor import api
from compressor.core.errors import InputError
from compressor.files.opening import open_source
from compressor.files.remote import trying

fsspec = pytest.importorskip("fsspec")
TINY = Path(__file__).parents[3] / "sample_weights" / "tiny-llama"


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setattr(trying, "FIRST", 0.001)
    store = fsspec.filesystem("memory")
    for path in TINY.iterdir():
        store.pipe_file(f"/bucket/tiny/{path.name}", path.read_bytes())
    yield store
    store.rm("/bucket", recursive=True)


def hashes(path: Path) -> dict[str, str]:
    """Of all files but for the card, which names the input."""
    files = sorted(one for one in path.iterdir() if one.name != "README.md")
    return {one.name: hashlib.sha256(one.read_bytes()).hexdigest() for one in files}


def test_a_folder_gives_the_bytes_of_a_local_one(store: Any, tmp_path: Path) -> None:
    api.quantize("memory://bucket/tiny", tmp_path / "away", bits=4)
    api.quantize(TINY, tmp_path / "here", bits=4)
    assert hashes(tmp_path / "away") == hashes(tmp_path / "here")


def test_a_file_of_a_folder(store: Any) -> None:
    source = open_source("memory://bucket/tiny/model-00001-of-00002.safetensors")
    assert source.files[0].name == "model-00001-of-00002.safetensors"
    assert source.nbytes == (TINY / "model-00001-of-00002.safetensors").stat().st_size


def test_a_file_that_is_replaced(store: Any) -> None:
    source = open_source("memory://bucket/tiny")
    store.pipe_file("/bucket/tiny/model-00001-of-00002.safetensors", b"another")
    with pytest.raises(InputError, match="was changed while it was read"):
        source.check_unchanged()


def test_failures_that_pass_and_others(store: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    plain, count = type(store).open, 0

    def open_sometimes(self: Any, *args: Any, **keywords: Any) -> Any:
        nonlocal count
        count += 1
        if count % 3:
            raise ConnectionResetError("reset by peer")
        return plain(self, *args, **keywords)

    monkeypatch.setattr(type(store), "open", open_sometimes)
    api.quantize("memory://bucket/tiny", tmp_path / "away", bits=4)
    refused = RuntimeError("odd")
    refused.code = 401  # type: ignore[attr-defined]  # as gcsfs says it
    for error, said in (
        (PermissionError("no"), "may not be read"),
        (OSError("Forbidden: bucket"), "may not be read"),
        (refused, "may not be read"),
        (RuntimeError("odd"), "RuntimeError: odd"),
    ):

        def fails(self: Any, *args: Any, error: Exception = error, **keywords: Any) -> Any:
            raise error

        monkeypatch.setattr(type(store), "open", fails)
        with pytest.raises(InputError, match=said):
            open_source("memory://bucket/tiny")


def test_what_is_not_there(store: Any) -> None:
    for address in (
        "memory://bucket/nothing",
        "memory://bucket/nothing.npy",
        "memory://bucket/m-00001-of-00002.gguf",
    ):
        with pytest.raises(InputError, match=r"is not there|holds no m-"):
            open_source(address)


def test_a_local_run_imports_nothing_of_it(tmp_path: Path) -> None:
    script = (
        "import sys\nfrom compressor import api\n"
        "api.quantize(sys.argv[1], sys.argv[2], bits=4)\n"
        "away = ('fsspec', 'huggingface_hub', 's3fs', 'compressor.files.remote', 'http.client', 'ssl')\n"
        "print([name for name in away if name in sys.modules])"
    )
    command = [sys.executable, "-c", script, str(TINY), str(tmp_path / "out")]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "[]\n"


def test_addresses_that_nothing_here_knows() -> None:
    with pytest.raises(InputError, match="nosuch:// is an address that nothing here knows"):
        open_source("nosuch://a/b")
    for address in ("file:///tmp/a.npy", "simplecache::s3://a/b"):
        with pytest.raises(InputError, match=r"is no address that is read here|cannot be opened"):
            open_source(address)


@pytest.mark.parametrize(
    ("address", "package", "missing"),
    [("s3://a/b", "s3fs", "s3fs"), ("gs://a/b", "gcsfs", "gcsfs"), ("s3://a/b", "fsspec", "fsspec.core")],
)
def test_packages_that_are_missing(
    monkeypatch: pytest.MonkeyPatch, address: str, package: str, missing: str
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(InputError, match=f"takes the package {package}") as caught:
        open_source(address)
    assert ("compressor[remote]" if package == "fsspec" else package) in caught.value.remedy
