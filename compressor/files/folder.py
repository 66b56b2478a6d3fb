"""A Hugging Face folder: one file of weights, or shards with an index.

The weights of transformers are called `model`, those of a component of diffusers `diffusion_pytorch_model`; a
variant stands before the suffix (`model.fp16.safetensors`), and in the index's name before its last one. Where
an index is there it says which shards are read; without one, shards whose names form one set
(`…-00001-of-00002…`). What an index says beyond that is not believed but noted where it is wrong, as loaders
do, which read whole shards: the output's index is true. A stale index beside a whole file of weights is passed
over.

Shard names come from a stranger's index: each must be a plain path of components within the folder. The links
of a Hugging Face cache are followed for reading; files that are only carried along must lie in the folder or in
the blobs of its cache, wherever a link leads.

What goes along unchanged: every other regular file, also in sub-folders; not the weights in other formats,
which would be the uncompressed model once more, except inside the module folders of sentence-transformers
(`2_Dense/model.safetensors`), which belong to it, and the adapter that an `adapter_config.json` describes.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from compressor.core.errors import InputError, UsageError
from compressor.core.text import printable
from compressor.files.containers import read_file
from compressor.files.input_file import InputFile
from compressor.files.source import Source, SourceFile, assemble
from compressor.files.strict_json import read_object
from compressor.files.suffixes import READERS
from compressor.files.tree import Tree

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
SHARDED = "model-00001-of-00002.safetensors"
TORCH_SINGLE, TORCH_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
CONFIG = "config.json"
PIPELINE = "model_index.json"  # of diffusers: what each sub-folder holds
ADAPTER_CONFIG = "adapter_config.json"

# Weights in formats that we neither read nor carry: they would be the uncompressed model once more.
_OTHER_WEIGHTS = re.compile(
    r".*\.(safetensors|bin|pt|pth|ckpt|gguf|ggml|h5|msgpack|onnx|onnx_data|ot|npz|npy|pkl|tflite|mlmodel)$"
    r"|.*\.(bin|safetensors|h5|msgpack)\.index(\.\w+)?\.json$",
    re.IGNORECASE,
)
_MODULE = re.compile(r"\d+_\w+/")  # what sentence-transformers calls the folder of a further module
_ADAPTERS = re.compile(r"adapter_model\.(safetensors|bin)")
_DEEPEST = 32  # folders in folders
_WITHIN, _LOOKED_AT, _NAMED = 3, 64, 3  # of sub-folders that a message names: how deep, of how many, how many
_STEMS = ("model", "diffusion_pytorch_model")
_VARIANT = r"(?:\.(?P<variant>[A-Za-z0-9_]+))?"
_WHOLE = re.compile(rf"(?P<stem>{'|'.join(_STEMS)}){_VARIANT}\.safetensors")
_INDEXED = re.compile(rf"(?P<stem>{'|'.join(_STEMS)})\.safetensors\.index{_VARIANT}\.json")
_SHARD = re.compile(
    r"(?P<stem>[\w.-]+?)-(?P<number>\d{5})-of-(?P<count>\d{5})"
    rf"{_VARIANT}\.(?P<suffix>safetensors|bin)"
)


@dataclass(frozen=True)
class _Weights:
    """The files of weights that are read: one, or `shards` with the name of their index, the map in it (None where
    there was none) and its metadata."""

    shards: tuple[str, ...]
    index: str = ""
    weight_map: Mapping[str, str] | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def open_folder(tree: Tree, component: str) -> Source:
    """Read the index (or the single file), every header, and the list of the other files.

    Of a pipeline of diffusers `component` names the sub-folder whose weights are read; everything else goes along,
    the weights of other components too. InputError where there are no weights, a shard is missing, or a file is
    damaged; UsageError where there is no such component.
    """
    names, inside = tree.names(), ""
    if component:
        inside = _component(tree, names, component)
        names = tree.names(inside)
    weights = _weights(tree, inside, names)
    files = []
    for shard in weights.shards:
        suffix = ".bin" if shard.endswith(".bin") else ".safetensors"
        files.append(SourceFile(_converted(f"{inside}{shard}"), *read_file(tree.open(f"{inside}{shard}"), suffix)))
    read = {*(f"{inside}{name}" for name in (*weights.shards, weights.index, CONFIG))}
    carried, left, linked, others = _others(tree, read, component)
    if weights.index in names and _torch(weights):  # that of the output is another
        others[f"{inside}{weights.index}"] = partial(tree.open, f"{inside}{weights.index}")
    config = None
    if CONFIG in names:
        carried[f"{inside}{CONFIG}"] = tree.open(f"{inside}{CONFIG}")
        config = read_object(carried[f"{inside}{CONFIG}"], lenient=True)
    source = assemble(
        tree.path,
        "folder",
        tuple(files),
        config=config,
        carried=carried,
        left=left,
        others=others,
        index=f"{inside}{_converted(weights.index)}" if weights.index else "",
        index_metadata=weights.metadata,
        own_index=tree.open(f"{inside}{weights.index}") if weights.index in names and not _torch(weights) else None,
        linked=linked,
        inside=inside,
    )
    notes = weights.notes
    if weights.weight_map is not None:
        told = {name: f"{inside}{_converted(shard)}" for name, shard in weights.weight_map.items()}
        notes += tuple(_compared(source, told))
    return replace(source, notes=notes)


def _torch(weights: _Weights) -> bool:
    return _converted(weights.index) != weights.index


def _components(tree: Tree, names: Sequence[str]) -> list[str]:
    """The sub-folders of a pipeline that are models."""
    return [name for name in names if tree.has(f"{name}/{CONFIG}")]


def _component(tree: Tree, names: Sequence[str], component: str) -> str:
    """The sub-folder of this name, with a slash."""
    known = _components(tree, names) if PIPELINE in names else []
    if component not in known:
        there = (
            f"There are {', '.join(map(printable, known))}" if known else "The input is no pipeline of diffusers"
        )
        raise UsageError(f"--component {printable(component, 60)}: there is none of this name", remedy=there)
    return f"{component}/"


def _converted(name: str) -> str:
    """What a file of PyTorch's weights, or its index, is called as safetensors."""
    stem, bin_, rest = name.partition(".bin")
    return f"{stem.replace('pytorch_model', 'model', 1)}.safetensors{rest}" if bin_ else name


def _weights(tree: Tree, inside: str, names: Sequence[str]) -> _Weights:
    """Which files hold the weights: of plain names before variants, what an index says before a whole file."""
    found: list[tuple[tuple[bool, str, int], str]] = []
    for name in names:
        if match := _INDEXED.fullmatch(name) or _WHOLE.fullmatch(name):
            variant = match["variant"] or ""
            found.append(((variant != "", variant, _STEMS.index(match["stem"])), name))
    stale: tuple[str, ...] = ()
    for _, name in sorted(found, key=lambda one: (one[0], not one[1].endswith(".json"))):
        if not name.endswith(".json"):
            return _Weights((name,), notes=stale)
        weights = _indexed(tree, inside, name)
        missing = [shard for shard in weights.shards if not tree.has(f"{inside}{shard}")]
        if not missing:
            return weights
        whole = name.partition(".index")[0]
        if whole not in names:
            raise _missing(_shown_path(tree, inside), missing)
        stale = (f"{name} names shards that are not there: {whole} was read, as loaders do",)
    return _unindexed(tree, inside, names)


def _shown_path(tree: Tree, inside: str) -> str:
    return os.path.join(tree.path, inside.rstrip("/")) if inside else tree.path


def _indexed(tree: Tree, inside: str, name: str) -> _Weights:
    """The shards that an index names, and those of their set that it leaves out."""
    file = tree.open(f"{inside}{name}")
    index = read_object(file, lenient=True)
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise InputError("has no weight_map", file=file.path, remedy="Fetch the index again")
    for tensor, shard in weight_map.items():
        if not isinstance(shard, str) or not _is_plain(shard, os.path.splitext(name.partition(".index")[0])[1]):
            raise InputError(
                f"the shard name {printable(str(shard), 80)!r} is not a plain file name",
                file=file.path,
                tensor=tensor,
            )
    named = sorted(set(weight_map.values()))
    notes: tuple[str, ...] = ()
    # of their set those that are not there were left out when the folder was written, as shards that a cut emptied
    there = {shard for shard in _set_of(named) if tree.has(f"{inside}{shard}")}
    whole = sorted({*named, *there})
    if len(whole) > len(named):
        left_out = len(whole) - len(named)
        notes = (
            f"the index leaves out {left_out} of the {len(whole)} shards that their names speak of; all are read",
        )
    if any("/" in shard for shard in whole):
        notes += ("the index names shards in sub-folders: they were read, as loaders do, and stay there",)
    metadata = index.get("metadata")
    return _Weights(tuple(whole), name, weight_map, metadata if isinstance(metadata, dict) else {}, notes)


def _set_of(named: Sequence[str]) -> set[str]:
    """All names of the set of shards that these belong to; none where they say nothing of a set."""
    parts = [_SHARD.fullmatch(os.path.basename(name)) for name in named]
    if not parts or None in parts:
        return set()
    sets = {
        (os.path.dirname(name), part["stem"], part["count"], part["variant"], part["suffix"])
        for name, part in zip(named, parts, strict=True)
        if part
    }
    return set(_members(named, *sets.pop())) if len(sets) == 1 else set()


def _members(
    there: Sequence[str], inside: str, stem: str, count: str, variant: str | None, suffix: str
) -> list[str]:
    """The names of a set of shards, counted from 1, or from 0 where one that is there says so."""
    middle = f".{variant}" if variant else ""
    names = [f"{stem}-{number:05d}-of-{count}{middle}.{suffix}" for number in range(int(count) + 1)]
    paths = [os.path.join(inside, name) for name in names]
    return paths[:-1] if paths[0] in there else paths[1:]


def _unindexed(tree: Tree, inside: str, names: Sequence[str]) -> _Weights:
    """Shards without an index whose names form one set. InputError where they do not, or nothing is there."""
    sets = {
        (match["stem"], match["count"], match["variant"])
        for name in names
        if (match := _SHARD.fullmatch(name)) and match["stem"] in _STEMS and match["suffix"] == "safetensors"
    }
    if not sets and (weights := _torch_weights(tree, inside, names)) is not None:
        return weights
    chosen = min(
        sets, key=lambda one: (one[2] is not None, _STEMS.index(one[0]), one[2] or "", one[1]), default=None
    )
    if chosen is None:
        raise _no_weights(tree, inside, names)
    shards = _members(names, "", *chosen, "safetensors") if int(chosen[1]) <= 100_000 else []
    missing = [shard for shard in shards if shard not in names]
    if missing or not shards:
        raise InputError(
            f"{len(missing)} of {int(chosen[1])} shards are missing, {printable(missing[0], 100)} first"
            if missing
            else "its shards number none",
            file=_shown_path(tree, inside),
            remedy="Fetch the missing shards",
        )
    stem, _, variant = chosen
    index = f"{stem}.safetensors.index{f'.{variant}' if variant else ''}.json"
    return _Weights(tuple(shards), index, notes=("the shards have no index: all of their set are read",))


def _torch_weights(tree: Tree, inside: str, names: Sequence[str]) -> _Weights | None:
    """Weights as PyTorch pickles them, where there are no others: the whole, or shards with their index."""
    note = ("the weights are pickles of PyTorch: their tensors were read, nothing in them was run",)
    if TORCH_SINGLE in names:
        return _Weights((TORCH_SINGLE,), notes=note)
    if TORCH_INDEX not in names:
        return None
    weights = _indexed(tree, inside, TORCH_INDEX)
    missing = [shard for shard in weights.shards if not tree.has(f"{inside}{shard}")]
    if missing:
        raise _missing(_shown_path(tree, inside), missing)
    return replace(weights, notes=(*note, *weights.notes))


def _missing(path: str, missing: Sequence[str]) -> InputError:
    more = f" (nor {len(missing) - 1} more)" if len(missing) > 1 else ""
    return InputError(
        f"the index names {printable(missing[0], 100)}, which is not there{more}",
        file=path,
        remedy="Fetch the missing shards",
    )


def _is_plain(name: str, suffix: str) -> bool:
    """A path within the folder, ending as shards do."""
    parts = name.split("/")
    return (
        name.endswith(suffix)
        and len(parts) <= _DEEPEST
        and all(part and len(part.encode(errors="replace")) <= 255 and not part.startswith(".") for part in parts)
        and not any(c in name for c in "\\\0")
        and name.isprintable()
    )


def _compared(source: Source, weight_map: Mapping[str, str]) -> list[str]:
    """What an index says otherwise than the shards, in words."""
    notes = []
    nowhere = [name for name in weight_map if name not in source.tensors]
    if nowhere:
        notes.append(f"the index names {_shown(nowhere)}, which no shard holds")
    elsewhere = [
        name
        for name, shard in weight_map.items()
        if name in source.tensors and source.files[source.file_of[name]].name != shard
    ]
    if elsewhere:
        notes.append(f"the index places {_shown(elsewhere)} in other shards than those that hold them")
    unnamed = [name for name in source.tensors if name not in weight_map]
    if unnamed:
        notes.append(f"the index leaves out {_shown(unnamed)}, which a shard holds: read, as loaders do")
    return notes


def _shown(names: Sequence[str]) -> str:
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"{printable(names[0], 100)}{more}"


def _others(
    tree: Tree, known: set[str], component: str
) -> tuple[dict[str, InputFile], dict[str, str], tuple[str, ...], dict[str, Callable[[], InputFile]]]:
    """Files to carry over by their path within the folder, those left behind with the reason, where links lead that
    are not followed, and what opens those left behind that an archive of the folder as it is takes along."""
    linked: list[str] = []
    carried: dict[str, InputFile] = {}
    left: dict[str, str] = {}
    others: dict[str, Callable[[], InputFile]] = {}
    pending = [""]
    while pending:
        inside = pending.pop()
        entries = tree.entries(inside)
        adapted = any(entry.name == ADAPTER_CONFIG for entry in entries)
        for entry in entries:
            name = f"{inside}{entry.name}"
            if name in known:
                continue
            if entry.kind == "folder":
                if entry.name.startswith("."):
                    left[name] = "hidden folder"
                elif inside.count("/") == _DEEPEST:
                    raise InputError(f"has more than {_DEEPEST} folders inside one another", file=tree.path)
                else:
                    pending.append(f"{name}/")
            elif (
                _OTHER_WEIGHTS.match(entry.name)
                and not (component and not inside.startswith(f"{component}/"))
                and not _MODULE.fullmatch(inside)
                and not (adapted and _ADAPTERS.fullmatch(entry.name))
            ):
                left[name] = "weights that the index does not name"
                if entry.kind == "file" and not entry.strays:
                    others[name] = partial(tree.open, name)
            elif entry.kind != "file":
                left[name] = "not a regular file"
            elif entry.name.startswith(".") and entry.name.endswith(".tmp"):
                left[name] = "temporary file"
            elif entry.strays:
                left[name] = "a link that leads out of the folder"
                linked.append(entry.strays)
            else:
                carried[name] = tree.open(name)
        if adapted and not any(_ADAPTERS.fullmatch(entry.name) for entry in entries):
            name = f"{inside}{ADAPTER_CONFIG}"
            if carried.pop(name, None) is not None:
                others[name] = partial(tree.open, name)
            left[name] = "describes an adapter whose weights are not there"
    return carried, left, tuple(linked), others


def _no_weights(tree: Tree, inside: str, names: Sequence[str]) -> InputError:
    path = _shown_path(tree, inside)
    lone = [name for name in names if name.endswith(".safetensors")]
    other = [name for name in names if _OTHER_WEIGHTS.match(name)]
    remedy = "Give a folder with model.safetensors, or with shards and their index"
    if PIPELINE in names:
        parts = ", ".join(map(printable, _components(tree, names)[:8]))
        remedy = f"It is a pipeline of diffusers: say which of its components, --component {parts}"
        return InputError("holds no weights itself", file=path, remedy=remedy)
    inner = [] if lone or other else _models_within(tree, inside)
    if inner:
        where, shown = printable(os.path.join(path, inner[0]), 200), [printable(one, 100) for one in inner[:_NAMED]]
        remedy = f"Its sub-folder {shown[0]} has weights: give {where}"
        if len(inner) > 1:
            remedy = f"Of its sub-folders {', '.join(shown)} have weights: give one of them, such as {where}"
    elif len(lone) == 1:
        remedy = f"It holds {printable(lone[0], 60)} without an index: give that file itself"
    elif lone and all(_SHARD.fullmatch(name) for name in lone):
        remedy = f"Its shards have no index: name them {SHARDED}, and so on"
    elif lone:
        remedy = f"It holds {printable(lone[0], 60)} and {len(lone) - 1} more without an index: give one of them"
    elif other and other[0].endswith(tuple(READERS)):
        remedy = f"It holds {printable(other[0], 60)}: give that file itself"
    elif other:
        remedy = f"It holds {printable(other[0], 60)}: convert it to safetensors first"
    return InputError(f"is a folder without {SINGLE} or {INDEX}", file=path, remedy=remedy)


def _models_within(tree: Tree, inside: str) -> list[str]:
    """The sub-folders, at most three deep, with weights under the names that loaders look for: their paths from the
    folder `inside` on."""
    found, waiting, looked = [], [(inside, 0)], 0
    while waiting and looked < _LOOKED_AT:
        place, depth = waiting.pop(0)
        entries, looked = tree.entries(place), looked + 1
        if depth and any(_INDEXED.fullmatch(one.name) or _WHOLE.fullmatch(one.name) for one in entries):
            found.append(place[len(inside) :].rstrip("/"))
        elif depth < _WITHIN:
            folders = (one.name for one in entries if one.kind == "folder" and not one.strays)
            waiting += [(f"{place}{name}/", depth + 1) for name in folders if not name.startswith(".")]
    return found


def stem_of(name: str) -> str:
    """What weights are called of which one file has this name (a path within the folder): `model` where it is none
    that loaders look for."""
    inside, _, file = name.rpartition("/")
    stem = next((stem for stem in reversed(_STEMS) if file.startswith(stem)), _STEMS[0])
    return f"{inside}/{stem}" if inside else stem


def index_bytes(weight_map: Mapping[str, str], total_size: int, metadata: Mapping[str, Any] | None = None) -> bytes:
    """The index of a written folder, with the true number of tensor bytes, and what else one said before."""
    said = {**(metadata or {}), "total_size": total_size}
    return json_bytes({"metadata": said, "weight_map": dict(sorted(weight_map.items()))})


def json_bytes(content: Any) -> bytes:
    """JSON as Hugging Face's tools write it."""
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()
