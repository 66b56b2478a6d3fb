"""Opening what a user names: a file or a folder, by what it is."""

from __future__ import annotations

import os
import stat
from dataclasses import replace

from compressor.core.errors import InputError, UsageError
from compressor.core.text import printable
from compressor.files.addresses import is_address, is_repository
from compressor.files.containers import read_file
from compressor.files.input_file import InputFile
from compressor.files.source import Source, SourceFile, assemble
from compressor.files.suffixes import READERS
from compressor.files.tree import LocalTree, Tree


def names_in(folder: str) -> list[str]:
    """What lies in a folder, but for hidden files, in order. InputError when it cannot be listed."""
    try:
        return sorted(name for name in os.listdir(folder) if not name.startswith("."))
    except OSError as error:
        raise InputError(f"cannot be listed: {error.strerror}", file=folder) from error


def open_source(path: str | os.PathLike[str], component: str = "") -> Source:
    """Open whatever `path` is; of a pipeline of diffusers one component. InputError when it is missing, unsupported
    or damaged; UsageError where there is no such component."""
    path = os.fspath(path)
    tree, name = _found(path)
    source = _opened(tree, name, path, component)
    return replace(source, notes=(*tree.notes, *source.notes)) if tree.notes else source


def open_file(path: str | os.PathLike[str]) -> InputFile:
    """A single file, whatever its suffix, on a disk or at an address. InputError where it cannot be read."""
    path = os.fspath(path)
    if not is_address(path):
        return InputFile.open(path)
    from compressor.files.remote.opening import opened

    return opened(path)


def _opened(tree: Tree, name: str, path: str, component: str) -> Source:
    if not name:
        from compressor.files.folder import open_folder  # here, like others: a plain file needs none of it

        return open_folder(tree, component)
    if component:
        raise UsageError("--component is for folders that are pipelines of diffusers")
    suffix = os.path.splitext(name)[1].lower()
    if suffix == ".gguf":
        from compressor.files.gguf.split import open_model

        return open_model(tree, name)
    found = tree.open(name)  # what is no file at all is told first
    if suffix not in READERS:
        raise InputError(
            f"is not a container that is read here ({printable(suffix, 40) or 'no suffix'})",
            file=path,
            remedy="Give a .safetensors, .gguf, .npy, .npz or .pt, or a folder with model.safetensors",
        )
    file, header = read_file(found, suffix)
    files = (SourceFile(os.path.basename(name), file, header),)
    if file.stands_for == ".gguf":
        from compressor.files.gguf.split import source_of

        return source_of(found.path, files)
    return assemble(found.path, (file.stands_for or suffix)[1:], files)


def _found(path: str) -> tuple[Tree, str]:
    """The folder that a path names with "", or the folder that a file is in with its name there."""
    if is_address(path):
        from compressor.files.remote.opening import found

        return found(path)
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError) as error:
        if isinstance(error, FileNotFoundError) and _is_of_the_hub(path):
            from compressor.files.remote.hub import found_by_name

            return found_by_name(path)
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise InputError(f"cannot be opened: {reason}", file=path) from error
    if stat.S_ISDIR(mode):
        return LocalTree(path), ""
    folder, name = os.path.split(path)
    return LocalTree(folder), name


def _is_of_the_hub(path: str) -> bool:
    """Whether a path where nothing is names a repository: not a file, and nothing in a folder that is there."""
    suffix = os.path.splitext(path.partition("@")[0])[1].lower()
    return is_repository(path) and suffix not in READERS and not os.path.lexists(os.path.dirname(path))
