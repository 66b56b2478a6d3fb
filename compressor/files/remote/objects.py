"""Files in object stores, and wherever else fsspec reads: `s3://bucket/folder`, `gs://…`.

Each is read through fsspec's own file of it, which for S3 asks for the very version that was seen first. So does
what is asked of Google's store, past its file, which would ask for whichever is the newest.
"""

from __future__ import annotations

import errno
import os
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from compressor.core.errors import InputError
from compressor.core.text import printable, without_secrets
from compressor.files.input_file import InputFile
from compressor.files.remote.packages import filesystem
from compressor.files.remote.ranged import Ranged
from compressor.files.remote.tree import RemoteTree
from compressor.files.remote.trying import Passing, tried
from compressor.files.remote.web import identity
from compressor.files.suffixes import READERS
from compressor.files.tree import Tree

# What stores call the version of a file, the surest first
_TAGS = ("VersionId", "ETag", "etag", "generation", "md5Hash", "content_md5", "mtime", "LastModified", "created")
_CHANGED = "Run again when nothing writes to it"
_IDLE = 16
_PASSING = (408, 425, 429, 500, 502, 503, 504)


def tag_of(info: Mapping[str, Any]) -> str:
    """What a store says of the version of a file."""
    return " ".join(str(info[name]) for name in _TAGS if info.get(name))


@dataclass
class ObjectFile:
    """A file in a store, as it was when first seen. `url` is its address."""

    url: str
    path: str
    size: int
    tag: str
    generation: str = ""  # what Google's store calls it
    idle: deque[Any] = field(default_factory=lambda: deque(maxlen=_IDLE), compare=False)

    def __getstate__(self) -> dict[str, Any]:
        """For a process elsewhere, which has its own way to the store."""
        return {**self.__dict__, "idle": deque(maxlen=_IDLE)}

    def check_unchanged(self) -> None:
        """InputError if the file was replaced since it was first seen."""
        store, name = filesystem(self.url)

        def look() -> Any:
            with failing(self.path):
                store.invalidate_cache()
                return store.info(name)

        info = tried(look, self.path)
        if (info.get("size"), tag_of(info)) != (self.size, self.tag):
            raise self._changed()

    def fetch_into(self, buffer: memoryview, offset: int) -> None:
        """Fill a buffer from an offset. InputError if that cannot be, or the file was changed."""

        def fetch() -> None:
            file = None
            with failing(self.path):
                if self.generation:
                    found = self._of_generation(offset, offset + len(buffer))
                else:
                    file = self._opened()
                    file.seek(offset)
                    found = file.read(len(buffer))
            if len(found) != len(buffer):
                raise Passing(f"{len(found)} bytes came where {len(buffer)} were asked for")
            buffer[:] = found
            if file is not None:
                self.idle.append(file)

        if len(buffer):
            tried(fetch, self.path)

    def _of_generation(self, start: int, stop: int) -> bytes:
        """Bytes of the very object that was seen first."""
        store, name = filesystem(self.url)
        try:
            found: bytes = store.cat_file(name, start=start, end=stop, generation=self.generation)
        except FileNotFoundError as error:
            raise self._changed() from error
        return found

    def _opened(self) -> Any:
        try:
            return self.idle.pop()
        except IndexError:
            store, name = filesystem(self.url)
            file = store.open(name, "rb", cache_type="none")
            info = getattr(file, "details", None) or store.info(name)
            if info.get("size") != self.size or tag_of(info) != self.tag:
                raise self._changed() from None
            return file

    def _changed(self) -> InputError:
        return InputError("was changed while it was read", file=self.path, remedy=_CHANGED)


def refuses(error: Exception) -> bool:
    """Whether a store says that somebody may not do this."""
    if isinstance(error, PermissionError) or getattr(error, "code", None) in (401, 403):
        return True
    return type(error) is OSError and error.errno is None  # what gcsfs makes of 403


def passes(error: Exception) -> bool:
    """Whether the next attempt may succeed: nobody was reached, or who was is busy."""
    if isinstance(error, OSError) or getattr(error, "code", None) in _PASSING:
        return True
    return type(error).__module__.startswith("aiohttp.")  # as a connection that was closed


class failing:  # noqa: N801 - it is used like a function
    """Turns what a store fails with into what may pass, or into the InputError that the user sees."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __enter__(self) -> None:
        """Nothing is needed before."""

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if error is None or isinstance(error, InputError | Passing) or not isinstance(error, Exception):
            return
        raise self._meaning(error) from error

    def _meaning(self, error: Exception) -> Exception:
        if isinstance(error, FileNotFoundError):
            return InputError("is not there", file=self.path, remedy="Look at the address again")
        if refuses(error):
            remedy = "Log in as the store's own tools do, or ask for access"
            return InputError("may not be read", file=self.path, remedy=remedy)
        if isinstance(error, OSError) and error.errno == errno.EBUSY:  # what s3fs says of another version
            return InputError("was changed while it was read", file=self.path, remedy=_CHANGED)
        if passes(error):
            return Passing(f"the store cannot be reached ({type(error).__name__})")
        said = printable(str(error).partition("\n")[0], 200)
        return InputError(f"cannot be read: {type(error).__name__}: {said}", file=self.path)


def found(url: str) -> tuple[Tree, str]:
    """The folder that an address names with "", or the folder that a file is in with its name there."""
    store, path = filesystem(url)
    scheme = url.partition("://")[0]
    path = path.rstrip("/")
    shown, folder, name = without_secrets(url).rstrip("/"), path, os.path.basename(path)
    if os.path.splitext(name)[1].lower() in READERS:
        folder, shown = path.rpartition("/")[0], shown.rpartition("/")[0]
    else:
        name = ""

    def list_files() -> dict[str, Any]:
        with failing(shown):
            store.invalidate_cache()
            if name and "-of-" not in name:
                return {path: store.info(path)}
            found: dict[str, Any] = store.find(folder, maxdepth=1 if name else None, detail=True)
            return found

    infos = {key[len(folder) + 1 :]: info for key, info in tried(list_files, shown).items()}
    if not infos:
        raise InputError("is not there", file=shown, remedy="Look at the address again")

    def fetch(file: str) -> InputFile:
        return _seen(store, f"{folder}/{file}", f"{scheme}://{folder}/{file}", f"{shown}/{file}")

    return RemoteTree(shown, infos, fetch), name


def opened(url: str) -> InputFile:
    """The one file that an address names, whatever its suffix. InputError where it is not there."""
    store, path = filesystem(url)
    store.invalidate_cache()
    return _seen(store, path, url, without_secrets(url))


def _seen(store: Any, path: str, address: str, shown: str) -> InputFile:
    def look() -> Any:
        with failing(shown):
            return store.info(path)  # a listing may know less

    info = tried(look, shown)
    generation = info.get("generation") if address.partition("://")[0].lower() in ("gs", "gcs") else None
    known = ObjectFile(address, shown, info["size"], tag_of(info), str(generation or ""))
    return InputFile(known.path, known.size, identity(known.size, known.tag), origin=Ranged(known))
