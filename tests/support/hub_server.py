"""A hub on loopback: the endpoints that huggingface_hub asks for a repository's files, large ones by redirects to
another server, as the real one does."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

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
        self.large: dict[str, bytes] = {}  # what was sent, by its SHA-256
        self.received: list[str] = []
        front.fault, front.change = self._answer, self._change

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
        self._json(handler, answer)

    # ---- what is written -------------------------------------------------------------------------------

    def _change(self, handler: Any, method: str, path: str, body: bytes) -> None:
        parts = path.strip("/").split("/")
        if parts[0] == "large":
            self.large[parts[1]] = body
            self.received.append(parts[1])
            handler.status(200)
            return
        if path.endswith("/info/lfs/objects/batch"):
            said: Any = {"transfer": "basic", "objects": [self._wanted(one) for one in json.loads(body)["objects"]]}
        elif parts[:2] == ["api", "validate-yaml"]:
            said = {"errors": [], "warnings": []}
        else:
            said = self._changed(handler, method, "/".join(parts[2:4]), parts[4], "/".join(parts[5:]), body)
        if said is not None:
            self._json(handler, said)

    def _wanted(self, one: dict[str, Any]) -> dict[str, Any]:
        if one["oid"] in self.large:
            return one
        return {**one, "actions": {"upload": {"href": f"{self.front.url}/large/{one['oid']}"}}}

    def _changed(self, handler: Any, method: str, repository: str, what: str, revision: str, body: bytes) -> Any:
        if what == "branch" and method == "POST":
            if (repository, revision) in self.revisions:
                handler.status(409)
                return None
            start = json.loads(body or b"{}").get("startingPoint") or "main"
            self.revisions[repository, revision] = self.revisions[repository, start]
            return {}
        if what == "branch":
            if self.revisions.pop((repository, revision), None) is None:
                handler.status(404, X_Error_Code="RevisionNotFound")
                return None
            return {}
        commit = self.revisions.get((repository, revision))
        if commit is None:
            handler.status(404, X_Error_Code="RevisionNotFound")
            return None
        files = self.commits[repository, commit]
        if what == "preupload":
            return {
                "files": [
                    {
                        "path": one["path"],
                        "uploadMode": "lfs" if one["size"] >= LARGE else "regular",
                        "shouldIgnore": False,
                    }
                    for one in json.loads(body)["files"]
                ]
            }
        if what == "paths-info":
            wanted = json.loads(body)["paths"] if body.startswith(b"{") else parse_qs(body.decode())["paths"]
            return [self._described(name, files[name]) for name in wanted if name in files]
        return self._committed(handler, repository, revision, dict(files), body)

    def _described(self, name: str, data: bytes) -> dict[str, Any]:
        digest = hashlib.sha256(data).hexdigest()
        said: dict[str, Any] = {"type": "file", "path": name, "size": len(data), "oid": digest[:40]}
        if len(data) >= LARGE:
            said["lfs"] = {"oid": digest, "size": len(data), "pointerSize": 130}
        return said

    def _committed(self, handler: Any, repository: str, revision: str, files: dict[str, bytes], body: bytes) -> Any:
        for line in body.splitlines():
            said = json.loads(line)
            value = said["value"]
            if said["key"] == "header" and value.get("parentCommit"):
                if value["parentCommit"] != self.revisions[repository, revision]:
                    handler.status(412)
                    return None
            elif said["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif said["key"] == "lfsFile":
                known = {hashlib.sha256(data).hexdigest(): data for data in self._all()}
                files[value["path"]] = known[value["oid"]]
            elif said["key"] == "deletedFile":
                del files[value["path"]]
        commit = self.commit(repository, files, revision)
        return {"commitUrl": f"{self.front.url}/{repository}/commit/{commit}", "commitOid": commit, "success": True}

    def _all(self) -> list[bytes]:
        return [*self.large.values(), *(data for files in self.commits.values() for data in files.values())]

    def _json(self, handler: Any, said: Any) -> None:
        body = json.dumps(said).encode()
        handler.send_response(200)
        handler.send_header("Content-Type", "application/json")
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    def _file(self, handler: Any, repository: str, commit: str, name: str) -> None:
        commit = self.revisions.get((repository, commit), commit)
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
