"""Repositories of the hub as inputs, from a hub on loopback and from the local cache."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from compressor import api
from compressor.core.errors import InputError
from compressor.files.opening import open_source
from compressor.files.remote import hub as reading

if TYPE_CHECKING:
    from support.hub_server import Hub

pytest.importorskip("huggingface_hub")
CONSTANTS = pytest.importorskip("huggingface_hub.constants")
TOKEN = "hf_verysecret"  # noqa: S105 - of the hub here
TINY = Path(__file__).parents[3] / "sample_weights" / "tiny-llama"
NAME = "some-org/tiny.llama"


def hashes(path: Path) -> dict[str, str]:
    """Of all files but for the card, which names the input."""
    files = sorted(one for one in path.rglob("*") if one.is_file() and one.name != "README.md")
    return {str(one.relative_to(path)): hashlib.sha256(one.read_bytes()).hexdigest() for one in files}


@pytest.mark.parametrize("address", [f"hf://{NAME}", f"hf://{NAME}@main", NAME, f"{NAME}@main"])
def test_a_repository_gives_the_bytes_of_a_local_folder(server: Hub, tmp_path: Path, address: str) -> None:
    report = api.quantize(address, tmp_path / "away", bits=4)
    api.quantize(TINY, tmp_path / "here", bits=4)
    assert hashes(tmp_path / "away") == hashes(tmp_path / "here")
    assert f'base_model: "{NAME}"\n' in (tmp_path / "away" / "README.md").read_text()
    commit = server.revisions[NAME, "main"]
    assert f"read from the hub, at commit {commit}" in report.plan.notes
    assert not (tmp_path / "home").exists()  # nothing of it is on the disk


def test_a_revision_is_pinned_when_it_is_first_met(server: Hub, tmp_path: Path) -> None:
    source = open_source(f"hf://{NAME}")
    server.commit(NAME, {"config.json": b"{}", "model.safetensors": b"another"})
    source.check_unchanged()
    api.quantize(f"hf://{NAME}", tmp_path / "away", bits=4)
    api.quantize(TINY, tmp_path / "here", bits=4)
    assert hashes(tmp_path / "away") == hashes(tmp_path / "here")


def test_revisions_folders_and_files(server: Hub) -> None:
    files = {f"inside/{path.name}": path.read_bytes() for path in TINY.iterdir()}
    commit = server.commit(NAME, files, "refs/pr/7")
    for address in (
        f"hf://{NAME}@refs/pr/7/inside",
        f"hf://{NAME}@{commit}/inside/",
        f"hf://{NAME}@refs/pr/7/inside/model-00001-of-00002.safetensors",
    ):
        assert open_source(address).tensors
    with pytest.raises(InputError, match="holds no elsewhere"):
        open_source(f"hf://{NAME}/elsewhere")


def test_names_that_lead_out_are_not_carried(server: Hub, tmp_path: Path) -> None:
    server.listed[NAME] = ["../evil.txt", "/evil.txt", "a/../../evil.txt", "a//evil.txt", "..", "a\\evil.txt"]
    assert not [name for name in open_source(f"hf://{NAME}").carried if "evil" in name]
    api.quantize(f"hf://{NAME}", tmp_path / "away", bits=4)
    assert not list(tmp_path.rglob("*evil*"))


def test_what_is_not_there_or_not_allowed(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="is not on the hub, or may not be read"):
        open_source("hf://some-org/nothing")
    with pytest.raises(InputError, match="is not on the hub, or may not be read"):
        open_source("some-org/nothing")
    with pytest.raises(InputError, match="has no such revision"):
        open_source(f"hf://{NAME}@v9")
    for address in ("hf://", "hf://a", "hf://datasets/a/b", "hf://../a/b"):
        with pytest.raises(InputError, match="repository"):
            open_source(address)
    server.token = TOKEN
    reading._snapshot.cache_clear()
    with pytest.raises(InputError, match="HF_TOKEN"):
        open_source(f"hf://{NAME}")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert open_source(f"hf://{NAME}").tensors


def test_the_token_goes_to_the_hub_alone(server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server.token = TOKEN
    environment = {
        "HF_TOKEN": TOKEN,
        "HF_ENDPOINT": server.front.url,
        "HF_HOME": str(tmp_path / "home"),
        "PATH": "/usr/bin:/bin",
    }
    command = [sys.executable, "-m", "compressor", "quantize", NAME, "--bits", "4", "-o", str(tmp_path / "out")]
    command += ["--format", "json"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert server.store.headers
    assert not [one for one in server.store.headers if "Authorization" in one]
    assert "secret" not in done.stdout + done.stderr
    assert not [path for path in (tmp_path / "out").iterdir() if b"secret" in path.read_bytes()]


def test_signatures_that_run_out_are_asked_for_anew(server: Hub, tmp_path: Path) -> None:
    """Of every fifth request the store says that its signature has run out."""

    def expired(handler: object, path: str, number: int) -> bool:
        if number % 5 == 0:
            handler.status(403)  # type: ignore[attr-defined]
        return number % 5 == 0

    server.store.fault = expired
    api.quantize(f"hf://{NAME}", tmp_path / "away", bits=4)
    api.quantize(TINY, tmp_path / "here", bits=4)
    assert hashes(tmp_path / "away") == hashes(tmp_path / "here")


# ---- the local cache -----------------------------------------------------------------------------------


def cached(home: Path, leave_out: str = "") -> str:
    """The tiny llama in a cache, as huggingface_hub lays it out."""
    commit, place = "c" * 40, home / "hub" / "models--some-org--tiny.llama"
    snapshot = place / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (place / "blobs").mkdir()
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text(commit)
    for number, path in enumerate(TINY.iterdir()):
        if path.name != leave_out:
            (place / "blobs" / str(number)).write_bytes(path.read_bytes())
            (snapshot / path.name).symlink_to(Path("..") / ".." / "blobs" / str(number))
    return commit


def test_the_local_cache_comes_first(server: Hub, tmp_path: Path) -> None:
    commit = cached(tmp_path / "home")
    report = api.quantize(NAME, tmp_path / "away", bits=4)
    api.quantize(TINY, tmp_path / "here", bits=4)
    assert hashes(tmp_path / "away") == hashes(tmp_path / "here")
    assert f"read from the hub's local cache, at commit {commit}" in report.plan.notes
    assert server.front.asked == []
    open_source(f"{NAME}@{commit}")
    assert server.front.asked == []


def test_a_cache_without_all_shards_is_passed_over(server: Hub, tmp_path: Path) -> None:
    cached(tmp_path / "home", "model-00002-of-00002.safetensors")
    assert open_source(NAME).path == f"hf://{NAME}"


def test_offline_is_honoured(server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CONSTANTS, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="is not in the local cache, and HF_HUB_OFFLINE is set"):
        open_source(NAME)
    cached(tmp_path / "home")
    assert open_source(NAME).tensors
    assert server.front.asked == []


def test_a_path_of_this_disk_is_no_repository(server: Hub, tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    for path in ("models/lama", "missing/a.npy", "missing/model.safetensors", "a/b/c"):
        with pytest.raises(InputError, match="cannot be opened: No such file"):
            open_source(path)
    assert server.front.asked == []


def test_without_the_package(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(InputError, match="takes the package huggingface_hub") as caught:
        open_source(f"hf://{NAME}")
    assert "pip install 'compressor[remote]'" in caught.value.remedy
    with pytest.raises(InputError, match="cannot be opened: No such file or directory") as caught:
        open_source(NAME)
    assert "pip install 'compressor[remote]'" in caught.value.remedy


def test_a_hub_that_cannot_be_reached(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CONSTANTS, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(InputError, match="is not there, and the hub cannot be reached"):
        open_source(NAME)
    with pytest.raises(InputError, match=r"the hub cannot be reached \(.*\), 7 times in a row"):
        open_source(f"hf://{NAME}")
