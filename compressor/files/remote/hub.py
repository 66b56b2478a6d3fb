"""Repositories of models on the Hugging Face hub: `hf://org/name@revision/path`, or by their bare names.

A revision is resolved to its commit once in a process, and everything is read at that. What huggingface_hub says of
endpoint, token and offline mode holds; bytes are fetched by ranges like those of other web servers, with the token
for the hub's own host only.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from compressor.core.errors import InputError
from compressor.core.text import printable
from compressor.files.addresses import REPOSITORY
from compressor.files.folder import INDEX, SINGLE
from compressor.files.input_file import InputFile
from compressor.files.remote import packages
from compressor.files.remote.http import WebFile
from compressor.files.remote.ranged import Ranged
from compressor.files.remote.tree import RemoteTree
from compressor.files.remote.trying import Passing, tried
from compressor.files.remote.web import identity
from compressor.files.strict_json import read_object
from compressor.files.tree import LocalTree, Tree

_ADDRESS = re.compile(
    r"hf://(?P<repository>[^/@]+/[^/@]+)(?:@(?P<revision>refs/(?:pr|convert)/[^/]+|[^/]+))?(?:/(?P<inside>.*))?"
)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_ADDRESSES = "An address of the hub is hf://org/name, hf://org/name@revision or hf://org/name/folder/file.gguf"
_BUSY = {408, 429, 500, 502, 503, 504}


@dataclass(frozen=True)
class _Snapshot:
    """A repository at one commit: its files with their sizes and what they are known by."""

    commit: str
    files: Mapping[str, tuple[int | None, str]]


def found(path: str) -> tuple[Tree, str]:
    """The folder that an address names with "", or the folder that a file is in with its name there."""
    place = parsed(path)
    inside = (place["inside"] or "").strip("/")
    return _located(place["repository"], place["revision"], inside, path)


def parsed(path: str) -> re.Match[str]:
    """The parts of an address of the hub. InputError where it is none, or not of a model."""
    place = _ADDRESS.fullmatch(path)
    if place is None or REPOSITORY.fullmatch(place["repository"]) is None:
        raise InputError("names no repository", file=path, remedy=_ADDRESSES)
    if place["repository"].split("/")[0] in ("datasets", "spaces", "kernels", "buckets"):
        raise InputError("is no repository of a model", file=path, remedy=_ADDRESSES)
    return place


def found_by_name(path: str) -> tuple[Tree, str]:
    """The folder of a repository: its snapshot in the local cache, where that is whole, else on the hub."""
    place = REPOSITORY.fullmatch(path)
    assert place is not None  # noqa: S101 - who calls looked
    repository, revision = place["repository"], place["revision"]
    snapshot = cached(repository, revision or "main")
    if snapshot is not None:
        said = f"read from the hub's local cache, at commit {os.path.basename(snapshot)}"
        return LocalTree(snapshot, (said,)), ""
    try:
        packages.hub(path)
    except InputError as error:
        remedy = "If it is a repository of the hub: pip install 'compressor[remote]'"
        raise InputError("cannot be opened: No such file or directory", file=path, remedy=remedy) from error
    return _located(repository, revision, "", path, by_name=True)


# ---- the local cache -----------------------------------------------------------------------------------


def _cache_folder() -> str:
    """Where huggingface_hub keeps what it has downloaded, found as it does that."""
    for variable in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if os.environ.get(variable):
            return os.path.expanduser(os.environ[variable])
    home = os.environ.get("HF_HOME")
    if not home:
        home = os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.join("~", ".cache"), "huggingface")
    return os.path.join(os.path.expanduser(home), "hub")


def cached(repository: str, revision: str) -> str | None:
    """The snapshot of a revision in the local cache; None where it is not there, or not all of its weights are."""
    place = os.path.join(_cache_folder(), f"models--{repository.replace('/', '--')}")
    commit = revision
    if not _COMMIT.fullmatch(revision):
        try:
            reference = InputFile.open(os.path.join(place, "refs", revision))
            commit = reference.read(0, min(reference.size, 100)).decode("ascii", "replace").strip()
        except InputError:
            return None
    snapshot = os.path.join(place, "snapshots", commit)
    if not _COMMIT.fullmatch(commit) or not os.path.isdir(snapshot):
        return None
    tree = LocalTree(snapshot)
    try:
        if tree.has(INDEX):
            shards = read_object(tree.open(INDEX), lenient=True).get("weight_map")
            whole = isinstance(shards, dict) and all(tree.has(str(shard)) for shard in shards.values())
        else:
            whole = tree.has(SINGLE)
    except InputError:
        return None
    return snapshot if whole else None


# ---- the hub -------------------------------------------------------------------------------------------


def credentials() -> Mapping[str, str]:
    """The header that says who asks, from where huggingface_hub has the token; none where nobody is logged in."""
    headers = packages.hub("hf://", "utils").build_hf_headers()
    return {name: value for name, value in headers.items() if name.lower() == "authorization"}


def _located(
    repository: str, revision: str | None, inside: str, path: str, *, by_name: bool = False
) -> tuple[Tree, str]:
    snapshot = _snapshot(repository, revision, path, by_name)
    name = ""
    if inside in snapshot.files:
        inside, _, name = inside.rpartition("/")
    prefix = f"{inside}/" if inside else ""
    listed = [file.removeprefix(prefix) for file in snapshot.files if file.startswith(prefix)]
    if not listed:
        raise InputError(f"holds no {printable(inside, 100)}", file=f"hf://{repository}", remedy=_ADDRESSES)

    def fetch(file: str) -> InputFile:
        return _file(repository, snapshot, f"{prefix}{file}")

    shown = f"hf://{repository}/{inside}" if inside else f"hf://{repository}"
    return RemoteTree(shown, listed, fetch, (f"read from the hub, at commit {snapshot.commit}",)), name


def _file(repository: str, snapshot: _Snapshot, name: str) -> InputFile:
    size, known = snapshot.files[name]
    shown = f"hf://{repository}"
    endpoint = packages.hub(shown, "constants").ENDPOINT
    url = packages.hub(shown).hf_hub_url(repository, name, revision=snapshot.commit, endpoint=endpoint)
    file = WebFile(url, f"{shown}/{name}", credentials=credentials, pinned=True)
    if size is None:
        file.look()
    else:
        file.size = size
    return InputFile(file.path, file.size, identity(file.size, f"{snapshot.commit} {known}"), origin=Ranged(file))


@cache
def _snapshot(repository: str, revision: str | None, path: str, by_name: bool) -> _Snapshot:
    """What a repository holds at a revision, asked once; `by_name`: the path may be meant for one of this disk."""
    package, errors = packages.hub(path), packages.hub(path, "errors")

    def ask() -> Any:
        try:
            return package.HfApi().repo_info(repository, revision=revision, files_metadata=True, timeout=60)
        except errors.OfflineModeIsEnabled as error:
            remedy = "Unset HF_HUB_OFFLINE, or download it first"
            raise InputError("is not in the local cache, and HF_HUB_OFFLINE is set", remedy=remedy) from error
        except errors.HfHubHTTPError as error:
            raise refusal(error, errors) from error
        except Exception as error:  # of whichever client the package has
            raise Passing(f"the hub cannot be reached ({type(error).__name__})") from error

    try:
        info = ask() if by_name else tried(ask, path)
    except Passing as error:
        raise InputError(
            f"is not there, and {error.reason}", file=path, remedy="Look at the path; hf:// means the hub"
        ) from error
    except InputError as error:
        error.file = error.file or path
        raise
    files = {}
    for one in info.siblings or ():
        known = one.lfs.sha256 if one.lfs is not None else one.blob_id
        files[one.rfilename] = (one.size, known or "")
    return _Snapshot(info.sha, files)


def refusal(error: Any, errors: Any) -> Exception:
    """What the hub's answer is to the user."""
    status = getattr(error.response, "status_code", None)
    if isinstance(error, errors.GatedRepoError):
        said, remedy = "is gated", "Ask for access on its page, then log in with `hf auth login` or set HF_TOKEN"
    elif isinstance(error, errors.RevisionNotFoundError):
        said, remedy = "has no such revision", "Look at its branches and tags on the hub"
    elif isinstance(error, errors.RepositoryNotFoundError):
        said = "is not on the hub, or may not be read"
        remedy = "Look at its name; for a private one log in with `hf auth login` or set HF_TOKEN"
    elif status in _BUSY:
        return Passing(f"the hub answers {status}")
    else:
        said, remedy = f"cannot be read: the hub answers {status}", "Look at its page on the hub"
    return InputError(said, remedy=remedy)
