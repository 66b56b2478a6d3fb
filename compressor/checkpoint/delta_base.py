"""The base that tensors of a checkpoint are differences from: which of its tensors, and whether it is the one that
it was.

A base is known by its numbers, whatever they are stored as: the SHA-256 of a line `NAME [SIZES] MARK` for each
tensor of which there are differences, by name (as JSON has it), MARK being the CRC-32 of its numbers row by row as
float32, of float64 tensors as float64, little-endian.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from hashlib import sha256

from compressor.checkpoint.checkpoint import Checkpoint, Tensor, open_checkpoint
from compressor.checkpoint.finite import blocks_of
from compressor.checkpoint.pruning_masks import fold_masks
from compressor.core.errors import InputError
from compressor.core.lazy import np
from compressor.core.parallel.threads import available_workers, in_order, local
from compressor.core.text import printable
from compressor.core.workspace import Workspace


def fingerprint_of(tensors: Mapping[str, Tensor]) -> str:
    """By what a base is known whose tensors these are, by the names of those that are differences from them. They
    are read for it."""
    count = available_workers()
    with local(count) as executor:
        marks = in_order(executor, (partial(_mark, tensors[name]) for name in sorted(tensors)), 2 * count)
        total = sha256()
        for name, mark in zip(sorted(tensors), marks, strict=True):
            total.update(f"{json.dumps(name)} {list(tensors[name].spec.shape)} {mark}\n".encode())
    return total.hexdigest()


def _mark(tensor: Tensor) -> int:
    mark = 0
    for block in blocks_of(tensor, Workspace(), tensor.align):
        mark = zlib.crc32(np.ascontiguousarray(block).data, mark)
    return mark


def differences(checkpoint: Checkpoint) -> list[str]:
    """The names of the tensors that are stored as differences from a base's."""
    return [name for name, one in checkpoint.tensors.items() if one.encoder is not None and one.encoder.on_base]


def has_base(checkpoint: Checkpoint) -> bool:
    """Whether files of it are coded against a base, or tensors are differences from one."""
    return bool(differences(checkpoint)) or any(part.file.base for part in checkpoint.source.files)


def open_with_base(path: str | os.PathLike[str], base: str, component: str = "") -> Checkpoint:
    """Open an input that is coded against the checkpoint at the path `base`, its files or its tensors. UsageError
    where neither are, InputError where that base is another one."""
    checkpoint = open_checkpoint(path, component)
    return on_base(checkpoint, base) if differences(checkpoint) else open_checkpoint(path, component, base=base)


def on_base(checkpoint: Checkpoint, path: str) -> Checkpoint:
    """The checkpoint with the numbers of the base at `path` under its differences. InputError where that base is
    another one: all that is needed of it is read for that."""
    names = differences(checkpoint)
    base = fold_masks(open_checkpoint(path))
    if has_base(base):
        raise InputError(
            "is coded against a base itself",
            file=path,
            remedy="Restore it first: compressor restore UPDATE --base BASE -o OUTPUT",
        )
    lone = len(checkpoint.tensors) == len(base.tensors) == 1
    under = {name: _of_base(checkpoint.tensors[name], base, checkpoint, lone=lone) for name in names}
    known = {record.base for record in checkpoint.records if record.base}
    if known != {fingerprint_of(under)}:
        raise _another(checkpoint, names[0], f"{base.path} has other numbers")
    tensors = {
        name: replace(one, base=under[name]) if name in under else one for name, one in checkpoint.tensors.items()
    }
    return replace(checkpoint, tensors=tensors, base=base.source)


def _of_base(tensor: Tensor, base: Checkpoint, checkpoint: Checkpoint, *, lone: bool) -> Tensor:
    spec = tensor.spec
    found = next(iter(base.tensors.values())) if lone else base.tensors.get(spec.name)
    if found is None or found.spec.shape != spec.shape or not found.spec.is_float:
        has = "none of that name" if found is None else f"{found.spec.dtype} {list(found.spec.shape)} of that name"
        raise _another(checkpoint, spec.name, f"{base.path} has {has}, where {list(spec.shape)} belongs")
    return found


def _another(checkpoint: Checkpoint, name: str, reason: str) -> InputError:
    return InputError(
        f"is a difference from another base: {printable(reason, 300)}",
        file=checkpoint.path,
        tensor=name,
        remedy="Give the base that it was made with",
    )
