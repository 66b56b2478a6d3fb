"""A hub on loopback that huggingface_hub takes for the real one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.hub_server import Hub, hub

from compressor.files.remote import hub as reading
from compressor.files.remote import trying

TINY = Path(__file__).parents[3] / "sample_weights" / "tiny-llama"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """A hub that has the tiny llama, nobody logged in and nothing in the cache."""
    constants = pytest.importorskip("huggingface_hub.constants")
    reading._snapshot.cache_clear()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(trying, "FIRST", 0.001)
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    with hub() as found:
        monkeypatch.setattr(constants, "ENDPOINT", found.front.url)
        template = f"{found.front.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        found.commit_folder("some-org/tiny.llama", TINY)
        yield found
    reading._snapshot.cache_clear()
