"""Files on web servers, and folders of them. A web server has no listing, so of a folder those files are looked for
that models have: the index and its shards, or one file of weights, and what stands beside them."""

from __future__ import annotations

import os
from hashlib import sha256
from urllib.parse import quote, unquote, urlsplit

from compressor.core.errors import InputError
from compressor.core.text import without_secrets
from compressor.files.folder import CONFIG, INDEX, SINGLE, TORCH_INDEX, TORCH_SINGLE
from compressor.files.input_file import InputFile
from compressor.files.remote.http import NotThere, Refused, WebFile
from compressor.files.remote.ranged import Ranged
from compressor.files.suffixes import READERS
from compressor.files.tree import Entry

# Files beside the weights that are looked for
BESIDE = (
    CONFIG,
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
    "preprocessor_config.json",
    "processor_config.json",
    "README.md",
    "LICENSE",
)
_INDICES = (INDEX, TORCH_INDEX)
_WEIGHTS = (INDEX, SINGLE, TORCH_INDEX, TORCH_SINGLE)


def identity(size: int, tag: str) -> tuple[int, int, int]:
    """What a file is known by while a run lasts, as numbers like those of a file: its size and a hash of its
    version."""
    return 0, size, int.from_bytes(sha256(tag.encode()).digest()[:8], "big")


class WebTree:
    """A folder on a web server, whose files are looked for by name. The query of its URL goes with each of them."""

    def __init__(self, url: str) -> None:
        self._parts = urlsplit(url)
        self.path = without_secrets(url)
        self.notes: tuple[str, ...] = ()
        self._files: dict[str, InputFile | None] = {}

    def names(self, inside: str = "") -> list[str]:
        """What is looked for and there: the first of the weights that models have, and files beside them."""
        found = [name for name in BESIDE if self.has(f"{inside}{name}")]
        weights = next((name for name in _WEIGHTS if self.has(f"{inside}{name}")), None)
        if weights is None:
            self._look(f"{inside}{SINGLE}")  # says why it is not there
        return sorted([*found, *([] if weights is None else [weights])])

    def has(self, name: str) -> bool:
        """Whether a file of this name is there. InputError where the server does not say."""
        if name not in self._files:
            try:
                self._files[name] = self._look(name)
            except Refused as refusal:
                if refusal.status not in (*NotThere, 403):  # buckets answer 403 for what is not there
                    raise
                self._files[name] = None
        return self._files[name] is not None

    def open(self, name: str) -> InputFile:
        """A file of it. InputError where it is missing or cannot be read."""
        return self._files.get(name) or self._look(name)

    def entries(self, inside: str) -> list[Entry]:
        """The files that are looked for and there."""
        return [Entry(name, "file") for name in self.names(inside)] if not inside else []

    def _look(self, name: str) -> InputFile:
        path = f"{self._parts.path.rstrip('/')}/{quote(name)}"
        url = self._parts._replace(path=path).geturl()
        file = WebFile(url, without_secrets(url))
        file.look()
        return InputFile(file.path, file.size, identity(file.size, file.tag), origin=Ranged(file))


def found(url: str) -> tuple[WebTree, str]:
    """The folder that a URL names with "", or the folder that a file is in with its name there."""
    parts = urlsplit(url)
    if not parts.hostname:
        raise InputError("names no server", file=url)
    folder, _, last = parts.path.rpartition("/")
    name = unquote(last)
    if name in _INDICES:
        return WebTree(parts._replace(path=folder).geturl()), ""
    if os.path.splitext(name)[1].lower() in READERS:
        return WebTree(parts._replace(path=folder).geturl()), name
    return WebTree(url), ""
