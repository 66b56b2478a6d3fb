"""A Hugging Face folder: one `model.safetensors`, or shards with `model.safetensors.index.json`.

Shard names come from a stranger's index: each must be one plain component, and is never used as a path
beyond the folder. The links of a Hugging Face cache are followed for reading.

What is read: the index where there is one, also beside a `model.safetensors`, and only the shards that it
names; index and shards must tell the same story, and `total_size` is not believed but counted again. Without
an index `model.safetensors`; other safetensors files need one. What goes along unchanged: every other regular
file, also in sub-folders; not the weights in other formats, which would be the uncompressed model once more,
except inside the module folders of sentence-transformers (`2_Dense/model.safetensors`), which belong to it.
"""

from __future__ import annotations

import json
import os
import re
import stat
from typing import Any

from compressor.core.errors import InputError
from compressor.core.text import printable
from compressor.files import archive
from compressor.files.input_file import InputFile
from compressor.files.safetensors import read_header
from compressor.files.source import Source, SourceFile, assemble
from compressor.files.strict_json import read_object

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
CONFIG = "config.json"

# Weights in formats that we neither read nor carry: they would be the uncompressed model once more.
_OTHER_WEIGHTS = re.compile(
    r".*\.(safetensors|bin|pt|pth|ckpt|gguf|ggml|h5|msgpack|onnx|onnx_data|ot|npz|npy|pkl|tflite|mlmodel)$"
    r"|.*\.(bin|safetensors|h5|msgpack)\.index\.json$",
    re.IGNORECASE,
)
_MODULE = re.compile(r"\d+_\w+/")  # what sentence-transformers calls the folder of a further module
_DEEPEST = 32  # folders in folders


def open_folder(path: str) -> Source:
    """Read the index (or the single file), every header, and the list of the other files."""
    try:
        names = sorted(os.listdir(path))
    except OSError as error:
        raise InputError(f"cannot be listed: {error.strerror}", file=path) from error
    index_name = INDEX if INDEX in names else None
    if index_name:
        weight_map = _weight_map(InputFile.open(os.path.join(path, INDEX)))
        shards = sorted(set(weight_map.values()))
    elif SINGLE in names:
        weight_map, shards = None, [SINGLE]
    else:
        raise _no_weights(path, names)
    missing = [shard for shard in shards if shard not in names]
    if missing:
        raise InputError(
            f"the index names {printable(missing[0], 100)}, which is not there"
            + (f" (nor {len(missing) - 1} more)" if len(missing) > 1 else ""),
            file=path,
            remedy="Fetch the missing shards",
        )
    files = []
    for shard in shards:
        file = InputFile.open(os.path.join(path, shard))
        files.append(SourceFile(shard, *archive.opened(file, read_header(file))))
    carried, left = _others(path, set(shards) | {INDEX, CONFIG})
    config = None
    if CONFIG in names:
        carried[CONFIG] = InputFile.open(os.path.join(path, CONFIG))
        config = read_object(carried[CONFIG])
    source = assemble(
        path, "folder", tuple(files), config=config, carried=carried, left=left, indexed=bool(index_name)
    )
    if weight_map is not None:
        _check_map(source, weight_map)
    return source


def _weight_map(file: InputFile) -> dict[str, str]:
    index = read_object(file)
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise InputError("has no weight_map", file=file.path, remedy="Fetch the index again")
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or not _is_plain(shard):
            raise InputError(
                f"the shard name {printable(str(shard), 80)!r} is not a plain file name",
                file=file.path,
                tensor=name,
            )
    return weight_map


def _is_plain(name: str) -> bool:
    """One component of a path, ending as shards do."""
    return (
        name.endswith(".safetensors")
        and len(name.encode(errors="replace")) <= 255
        and not any(c in name for c in "/\\\0")
        and name.isprintable()
        and not name.startswith(".")
    )


def _check_map(source: Source, weight_map: dict[str, str]) -> None:
    """The index and the shards must tell the same story."""
    for name, shard in weight_map.items():
        index = source.file_of.get(name)
        if index is None or source.files[index].name != shard:
            raise InputError(
                f"the index places it in {printable(shard, 100)}, which does not hold it",
                file=source.path,
                tensor=name,
                remedy="Fetch index and shards of one revision",
            )
    extra = sorted(set(source.tensors) - set(weight_map))
    if extra:
        raise InputError(
            "is in a shard but not in the index",
            file=source.path,
            tensor=extra[0],
            remedy="Loaders would read it all the same; mend the index",
        )


def _others(path: str, known: set[str]) -> tuple[dict[str, InputFile], dict[str, str]]:
    """Files to carry over by their path within the folder, and those left behind with the reason."""
    carried: dict[str, InputFile] = {}
    left: dict[str, str] = {}
    pending = [""]
    while pending:
        inside = pending.pop()
        for entry in _listed(path, inside):
            name = f"{inside}{entry.name}"
            if name in known:
                continue
            if stat.S_ISDIR(_mode(entry, follow=False)):
                if entry.name.startswith("."):
                    left[name] = "hidden folder"
                elif inside.count("/") == _DEEPEST:
                    raise InputError(f"has more than {_DEEPEST} folders inside one another", file=path)
                else:
                    pending.append(f"{name}/")
            elif _OTHER_WEIGHTS.match(entry.name) and not _MODULE.fullmatch(inside):
                left[name] = "weights that the index does not name"
            elif not stat.S_ISREG(_mode(entry, follow=True)):
                left[name] = "not a regular file"
            elif entry.name.startswith(".") and entry.name.endswith(".tmp"):
                left[name] = "temporary file"
            else:
                carried[name] = InputFile.open(entry.path)
    return carried, left


def _listed(path: str, inside: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(os.path.join(path, inside)) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise InputError(f"cannot be listed: {error.strerror}", file=os.path.join(path, inside)) from error


def _mode(entry: os.DirEntry[str], *, follow: bool) -> int:
    try:
        return entry.stat(follow_symlinks=follow).st_mode
    except OSError:  # a link that leads nowhere, or in circles
        return 0


def _no_weights(path: str, names: list[str]) -> InputError:
    lone = [name for name in names if name.endswith(".safetensors")]
    other = [name for name in names if _OTHER_WEIGHTS.match(name)]
    remedy = "Give a folder with model.safetensors, or with shards and their index"
    if lone:
        remedy = f"It holds {printable(lone[0], 60)} without an index: give that file itself"
    elif other:
        remedy = f"It holds {printable(other[0], 60)}: convert it to safetensors first"
    return InputError(f"is a folder without {SINGLE} or {INDEX}", file=path, remedy=remedy)


def index_bytes(weight_map: dict[str, str], total_size: int) -> bytes:
    """The index of a written folder, with the true number of tensor bytes."""
    return json_bytes({"metadata": {"total_size": total_size}, "weight_map": dict(sorted(weight_map.items()))})


def json_bytes(content: Any) -> bytes:
    """JSON as Hugging Face's tools write it."""
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()
