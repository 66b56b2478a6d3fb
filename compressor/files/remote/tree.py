"""A folder that is elsewhere: what is known to be in it, by a listing or by looking for names."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from compressor.core.errors import InputError
from compressor.files.input_file import InputFile
from compressor.files.tree import Entry


class RemoteTree:
    """A folder whose files are `listed` by their paths within it; `fetch` gives one of them to be
    read, and `notes` are what to tell of it."""

    def __init__(
        self, path: str, listed: Iterable[str], fetch: Callable[[str], InputFile], notes: tuple[str, ...] = ()
    ) -> None:
        self.path, self.notes = path, notes
        self._fetch = fetch
        self._inside: dict[str, dict[str, Entry]] = {"": {}}
        for name in listed:
            self._add(name)

    def _add(self, name: str) -> None:
        """List a file, unless its name would lead out of the folder, or is no path at all."""
        parts = name.split("/")
        if any(part in ("", ".", "..") for part in parts) or any(c in name for c in "\\\0"):
            return
        inside = ""
        for part in parts[:-1]:
            self._inside[inside].setdefault(part, Entry(part, "folder"))
            inside = f"{inside}{part}/"
            self._inside.setdefault(inside, {})
        self._inside[inside].setdefault(parts[-1], Entry(parts[-1], "file"))

    def names(self, inside: str = "") -> list[str]:
        """What lies in it, or in a folder within, in order."""
        return sorted(self._inside.get(inside, ()))

    def has(self, name: str) -> bool:
        """Whether something of this name is there."""
        inside, _, last = name.rstrip("/").rpartition("/")
        return last in self._inside.get(f"{inside}/" if inside else "", ())

    def open(self, name: str) -> InputFile:
        """A file of it. InputError where it is missing or cannot be read."""
        if not self.has(name):
            raise InputError(f"holds no {name}", file=self.path)
        return self._fetch(name)

    def entries(self, inside: str) -> list[Entry]:
        """What lies in a folder within ("" or a name with a slash), in order."""
        found = self._inside.get(inside, {})
        return [found[name] for name in sorted(found)]
