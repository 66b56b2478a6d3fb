"""Repositories of the hub as outputs: one commit with all files, or none."""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from compressor import api
from compressor.core.errors import GateFailed, OutputError, UsageError

if TYPE_CHECKING:
    from support.hub_server import Hub

TINY = Path(__file__).parents[3] / "sample_weights" / "tiny-llama"
OUT = "some-org/small"
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content:DeprecationWarning")  # the library's own


@pytest.fixture(autouse=True)
def empty(server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The commit of a repository that was just created, and an empty folder for what is written on the way."""
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
    return server.commit(OUT, {".gitattributes": b"*.safetensors filter=lfs"})


def there(server: Hub, revision: str = "main") -> dict[str, str]:
    files = server.commits[OUT, server.revisions[OUT, revision]]
    return {name: hashlib.sha256(data).hexdigest() for name, data in files.items() if name != ".gitattributes"}


def here(path: Path) -> dict[str, str]:
    return {one.name: hashlib.sha256(one.read_bytes()).hexdigest() for one in sorted(path.iterdir())}


def branches(server: Hub) -> list[str]:
    return [name for repository, name in server.revisions if repository == OUT and "upload" in name]


def test_a_repository_has_the_bytes_of_a_local_folder(server: Hub, empty: str, tmp_path: Path) -> None:
    api.quantize(TINY, f"hf://{OUT}", bits=4)
    api.quantize(TINY, tmp_path / "here", bits=4)
    assert there(server) == here(tmp_path / "here")
    assert branches(server) == []
    assert list((tmp_path / "scratch").iterdir()) == []
    with pytest.raises(OutputError, match="exists already"):
        api.quantize(TINY, f"hf://{OUT}", bits=8)
    assert there(server) == here(tmp_path / "here")
    # without cards, which name what they were made of otherwise
    api.quantize("hf://some-org/tiny.llama", f"hf://{OUT}", bits=8, force=True, card=False)
    api.quantize(TINY, tmp_path / "other", bits=8, card=False)
    assert there(server) == here(tmp_path / "other")


def test_files_of_an_archive_come_back_to_the_hub(server: Hub, empty: str, tmp_path: Path) -> None:
    api.prune(TINY, tmp_path / "shards", threshold=0.0001, max_shard_size="300KB", card=False)
    api.pipeline(tmp_path / "shards", tmp_path / "archive", store="archive")
    api.restore(tmp_path / "archive", f"hf://{OUT}")
    assert there(server) == here(tmp_path / "shards")


def test_gates_and_folders_and_refusals(server: Hub, empty: str, tmp_path: Path) -> None:
    with pytest.raises(GateFailed):
        api.quantize(TINY, f"hf://{OUT}", bits=2, max_error=1e-6)
    assert server.revisions[OUT, "main"] == empty
    assert branches(server) == []
    api.quantize(TINY, f"hf://{OUT}/inside", bits=4)
    api.quantize(TINY, tmp_path / "here", bits=4)
    assert there(server) == {f"inside/{name}": data for name, data in here(tmp_path / "here").items()}
    with pytest.raises(OutputError, match="is not on the hub, or may not be read"):
        api.quantize(TINY, "hf://some-org/nothing", bits=4)
    with pytest.raises(UsageError, match="is a file"):
        api.quantize(TINY, f"hf://{OUT}/a.safetensors", bits=4)
    with pytest.raises(OutputError, match="no run of this tool has written"):
        api.quantize(TINY, "hf://some-org/tiny.llama", bits=4, force=True)


class Stop(BaseException):
    """The process ends here."""


def test_a_run_that_is_stopped_leaves_the_branch_and_goes_on_from_it(
    server: Hub, empty: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from compressor.files.remote.hub_uploads import HubUploads

    api.quantize(TINY, tmp_path / "here", bits=4)
    plain, sent = HubUploads.put, []

    def put(self: HubUploads, name: str, path: str) -> str:
        sent.append(name)
        if len(sent) == 2:
            raise Stop
        return plain(self, name, path)

    with monkeypatch.context() as patch:
        patch.setattr(HubUploads, "put", put)
        with pytest.raises(Stop):
            api.quantize(TINY, f"hf://{OUT}", bits=4, work=tmp_path / "work")
    assert server.revisions[OUT, "main"] == empty
    assert len(branches(server)) == 1
    first = sent[0]
    sent.clear()
    sent.append("")
    monkeypatch.setattr(HubUploads, "put", lambda self, name, path: sent.append(name) or plain(self, name, path))
    api.quantize(TINY, f"hf://{OUT}", bits=4, work=tmp_path / "work")
    assert first not in sent
    assert there(server) == here(tmp_path / "here")
    assert branches(server) == []


def test_somebody_else_s_commit_is_not_lost(server: Hub, empty: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from compressor.files.remote.hub_uploads import HubUploads

    plain = HubUploads.publish

    def publish(self: HubUploads, names: list[str]) -> None:
        server.commit(OUT, {"README.md": b"mine"})
        plain(self, names)

    monkeypatch.setattr(HubUploads, "publish", publish)
    with pytest.raises(OutputError, match="was changed by somebody else meanwhile"):
        api.quantize(TINY, f"hf://{OUT}", bits=4)
    assert list(there(server)) == ["README.md"]
