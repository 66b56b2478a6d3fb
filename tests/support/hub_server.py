"""A hub on loopback: the endpoints that huggingface_hub asks for a repository's files, large ones by redirects to
another server, as the real one does."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from support.range_server import Files, served

LARGE = 10_000  # bytes of a file that lies elsewhere


class Hub:
    """Repositories by name, each with its commits: revisions lead to commits, commits have files."""

    def __init__(self, front: Files, store: Files) -> None:
        self.front, self.store = front, store
        self.commits: dict[tuple[str, str], dict[str, bytes]] = {}
        self.revisions: dict[tuple[str, str], str] = {}
        self.listed: dict[str, list[str]] = {}  # more names that a repository says it has
        self.token = ""
        front.fault = self._answer

    def commit(self, repository: str, files: dict[str, bytes], revision: str = "main") -> str:
        """Make a commit of these files, to which the revision leads from now on."""
        text = repr(sorted((name, hashlib.sha256(data).hexdigest()) for name, data in files.items()))
        commit = hashlib.sha1(text.encode()).hexdigest()  # noqa: S324 - as git names them
        self.commits[repository, commit] = files
        self.revisions[repository, revision] = self.revisions[repository, commit] = commit
        return commit

    def commit_folder(self, repository: str, folder: Path, revision: str = "main") -> str:
        files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        return self.commit(repository, files, revision)

    def _answer(self, handler: Any, path: str, number: int) -> bool:
        if self.token and handler.headers.get("Authorization") != f"Bearer {self.token}":
            handler.status(401, X_Error_Code="RepoNotFound")
            return True
        parts = path.strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            revision = unquote("/".join(parts[5:])) if len(parts) > 5 else "main"
            self._info(handler, "/".join(parts[2:4]), revision)
        elif len(parts) > 4 and parts[2] == "resolve":
            self._file(handler, "/".join(parts[:2]), parts[3], "/".join(parts[4:]))
        else:
            handler.status(404)
        return True

    def _info(self, handler: Any, repository: str, revision: str) -> None:
        commit = self.revisions.get((repository, revision))
        if commit is None:
            known = any(name == repository for name, _ in self.revisions)
            handler.status(404, X_Error_Code="RevisionNotFound" if known else "RepoNotFound")
            return
        siblings: list[dict[str, Any]] = []
        for name, data in self.commits[repository, commit].items():
            digest = hashlib.sha256(data).hexdigest()
            one: dict[str, Any] = {"rfilename": name, "size": len(data), "blobId": digest[:40]}
            if len(data) >= LARGE:
                one["lfs"] = {"sha256": digest, "size": len(data), "pointerSize": 130}
            siblings.append(one)
        siblings += [{"rfilename": name, "size": 1, "blobId": "0" * 40} for name in self.listed.get(repository, [])]
        answer = {"id": repository, "sha": commit, "siblings": siblings, "private": False, "tags": []}
        body = json.dumps(answer).encode()
        handler.send_response(200)
        handler.send_header("Content-Type", "application/json")
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    def _file(self, handler: Any, repository: str, commit: str, name: str) -> None:
        data = self.commits.get((repository, commit), {}).get(name)
        if data is None:
            handler.status(404, X_Error_Code="EntryNotFound")
        elif len(data) >= LARGE:
            place = f"/blobs/{hashlib.sha256(data).hexdigest()}"
            self.store.put(place, data)
            handler.status(302, Location=f"{self.store.url}{place}?X-Signature=hubsecret", X_Repo_Commit=commit)
        else:
            at = urlsplit(handler.path).path
            self.front.put(at, data)
            handler.answer(at)


@contextmanager
def hub() -> Iterator[Hub]:
    """A hub, and the store that it sends to."""
    with served() as front, served() as store:
        yield Hub(front, store)
