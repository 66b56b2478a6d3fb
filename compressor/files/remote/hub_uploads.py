"""Files on their way into a repository of the hub: in a branch of their own, until one commit has them all.

The hub copies large files from one branch to another by their names alone, and a commit is there whole or not at
all: nothing that a loader reads is ever half of a model.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from compressor.core.errors import InputError, OutputError
from compressor.files.remote import packages
from compressor.files.remote.hub import found, parsed, refusal
from compressor.files.remote.trying import Passing, tried
from compressor.files.remote.uploads import check_replaceable

T = TypeVar("T")

_KEPT = (".gitattributes", ".gitignore")  # what is a repository's own


class HubUploads:
    """Files on their way to `hf://org/name@branch/folder`, in a branch named by the `key` of what makes them."""

    def __init__(self, address: str, key: str) -> None:
        place = parsed(address)
        self.address, self.shown = address, f"hf://{place['repository']}"
        self.repository, self.revision = place["repository"], place["revision"] or "main"
        inside = (place["inside"] or "").strip("/")
        self.prefix = f"{inside}/" if inside else ""
        self.branch = f"compressor-upload-{key}"
        self.package = packages.hub(address)
        self.errors = packages.hub(address, "errors")
        self.api = self.package.HfApi()
        self.base = ""  # the commit that the new one follows

    def _asked(self, call: Callable[[], T]) -> T:
        """The result of a call of the hub, made again after what may pass. OutputError when it does not."""

        def attempt() -> T:
            try:
                return call()
            except self.errors.HfHubHTTPError as error:
                raise refusal(error, self.errors) from error
            except (InputError, OutputError):
                raise
            except Exception as error:  # of whichever client the package has
                raise Passing(f"the hub cannot be reached ({type(error).__name__})") from error

        try:
            return tried(attempt, self.shown)
        except InputError as error:
            raise OutputError(error.reason, file=self.shown, remedy=error.remedy) from error

    def check(self, *, replace: bool, recorded: bool) -> None:
        """OutputError where there is no such repository, or something in it that may not be replaced."""
        if not self._there():
            return
        address = f"{self.shown}@{self.base}/{self.prefix}"
        check_replaceable(self.shown, found(address)[0], replace=replace, recorded=recorded)

    def _there(self) -> list[str]:
        """The files of the output's place, and which commit has them."""
        info: Any = self._asked(lambda: self.api.repo_info(self.repository, revision=self.revision))
        self.base = info.sha
        names = [one.rfilename for one in info.siblings or ()]
        return [name for name in names if name.startswith(self.prefix) and name not in _KEPT]

    def put(self, name: str, path: str) -> str:
        """Send a finished file: by what `has` knows it later."""
        if not self.base:
            self._there()

        def send() -> None:
            self.api.create_branch(self.repository, branch=self.branch, revision=self.base, exist_ok=True)
            self.api.upload_file(
                path_or_fileobj=path,
                path_in_repo=f"{self.prefix}{name}",
                repo_id=self.repository,
                revision=self.branch,
                commit_message=f"{name}, on its way",
            )

        size = os.path.getsize(path)
        self._asked(send)
        known = self._known(name)
        if known is None or known.split()[0] != str(size):
            raise OutputError("a file did not arrive whole", file=f"{self.shown}/{self.prefix}{name}")
        return known

    def has(self, name: str, known: str) -> bool:
        """Whether a file that was sent is there still."""
        return self._known(name) == known

    def _known(self, name: str) -> str | None:
        def look() -> Any:
            try:
                return self.api.get_paths_info(self.repository, [f"{self.prefix}{name}"], revision=self.branch)
            except self.errors.RevisionNotFoundError:
                return []

        infos = self._asked(look)
        if not infos:
            return None
        found = infos[0]
        return f"{found.size} {found.lfs.sha256 if found.lfs is not None else found.blob_id}"

    def publish(self, names: Sequence[str]) -> None:
        """Make the commit that has all files; what else was there goes with it."""
        before = self.base
        there = self._there()
        if before and before != self.base:
            raise OutputError(
                "was changed by somebody else meanwhile",
                file=self.shown,
                remedy="Run again when nobody writes to it",
            )
        fresh = [f"{self.prefix}{name}" for name in names]
        copy, delete = self.package.CommitOperationCopy, self.package.CommitOperationDelete
        operations = [copy(name, name, src_revision=self.branch) for name in fresh]
        operations += [delete(name, is_folder=False) for name in sorted(set(there) - set(fresh))]
        self._asked(
            lambda: self.api.create_commit(
                self.repository,
                operations,
                commit_message="Weights made by compressor",
                revision=self.revision,
                parent_commit=self.base,
            )
        )
        self.discard()

    def discard(self) -> None:
        """Remove the branch of what was sent."""

        def remove() -> None:
            try:
                self.api.delete_branch(self.repository, branch=self.branch)
            except (self.errors.RevisionNotFoundError, self.errors.RepositoryNotFoundError):
                return
            except self.errors.HfHubHTTPError as error:
                if getattr(error.response, "status_code", None) != 404:
                    raise

        self._asked(remove)
