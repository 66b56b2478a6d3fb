"""Where the output goes and what container that means. Nothing here writes."""

from __future__ import annotations

import os
from difflib import get_close_matches

from compressor.core.errors import UsageError
from compressor.core.text import printable
from compressor.files.layout import Container
from compressor.files.source import Source
from compressor.files.suffixes import PICKLES

_FILES = {".npy": "npy", ".safetensors": "safetensors", ".npz": "npz", ".gguf": "gguf"}
_AS_THEY_WERE = ((".npz",), PICKLES)  # suffixes of which only an archive's very file is written
_OTHER = (
    *PICKLES,
    ".onnx",
    ".h5",
    ".msgpack",
    ".pkl",
    ".zip",
    ".toml",
    ".json",
)


def container_of(output: str, source: Source, *, as_it_was: bool = False) -> Container:
    """The container that the output's suffix decides; a `file` where what an archive is of may come back
    `as_it_was`. UsageError for a suffix that means something else."""
    suffix = os.path.splitext(output.rstrip("/"))[1].lower()
    if as_it_was and source.kind != "folder" and not output.endswith("/"):
        was = source.files[0].file.stands_for
        if any(was in kind and suffix in kind for kind in _AS_THEY_WERE):
            return "file"
    if suffix in _FILES and not output.endswith("/"):
        return _FILES[suffix]  # type: ignore[return-value]  # the values are Containers
    if suffix in _FILES:
        raise UsageError(
            f"-o {printable(output)}: is a folder with the suffix of a file",
            remedy="Drop the slash, or name the folder otherwise",
        )
    close = get_close_matches(suffix, _FILES, 1, cutoff=0.75) if suffix else []
    if suffix in _OTHER or close or (suffix and source.kind != "folder" and not output.endswith("/")):
        raise UsageError(
            f"-o {printable(output)}: {suffix} is not a container that is written here",
            remedy=f"Did you mean {close[0]}?"
            if close
            else "End it in .safetensors, .gguf, .npy or .npz, or name a folder",
        )
    return "folder"


def check_container(output: str, container: str) -> None:
    """UsageError where the output's suffix is of another container than what is to be written there."""
    suffix = os.path.splitext(output.rstrip("/"))[1].lower()
    if container == "file":
        if not any(suffix in kind for kind in _AS_THEY_WERE):
            raise UsageError(
                f"-o {printable(output)}: the parts are of a file that comes back as it was",
                remedy="Let it end as that file did",
            )
    elif _FILES.get(suffix, "folder") != container:
        what = "a folder" if container == "folder" else f"an .{container}"
        remedy = "Name a folder" if container == "folder" else f"End it in .{container}"
        raise UsageError(f"-o {printable(output)}: the parts are of {what}", remedy=remedy)


def check_apart(output: str, *inputs: str, option: str = "-o", of: str = "input") -> None:
    """UsageError when the output, which `option` names, is an input, lies inside one, or holds one: by any path,
    link or hard link. `of`: what the others are to the user."""
    if "\0" in output:
        raise UsageError(f"{option} {printable(output)}: is not a file name")
    place, another = os.path.realpath(output), f"Name another {'output' if option == '-o' else 'place'}"
    for path in inputs:
        if "\0" in path:
            continue  # opening it says so
        found = os.path.realpath(path)
        if place == found or _same(output, path):
            raise UsageError(f"{option} {printable(output)}: is the {of} itself", remedy=another)
        # an output that is not there yet may become a folder
        if (of != "input" or os.path.isdir(found)) and place.startswith(found.rstrip("/") + "/"):
            raise UsageError(f"{option} {printable(output)}: lies inside the {of} folder", remedy=another)
        if found.startswith(place.rstrip("/") + "/"):
            raise UsageError(f"{option} {printable(output)}: holds the {of}", remedy=another)


def _same(a: str, b: str) -> bool:
    try:
        return os.path.samefile(a, b)
    except (OSError, ValueError):
        return False
