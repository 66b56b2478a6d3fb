"""Tensors under another shape with the same elements in the same order, as programs for images keep some in GGUF
files: what has more axes than ggml's tensors, and what has rows that blocks would not divide.
`comfy.gguf.orig_shape.NAME` says the shape that a tensor has in its model.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod

from compressor.checkpoint.checkpoint import Checkpoint, Tensor
from compressor.checkpoint.gguf.fields import said
from compressor.checkpoint.gguf.moved import read_origin
from compressor.core.lazy import np
from compressor.core.tensor import DTYPES, TensorSpec
from compressor.core.workspace import Array, Workspace
from compressor.files.source import StoredTensor

SHAPE = "comfy.gguf.orig_shape."
_MOST = 8  # axes of a tensor


@dataclass(frozen=True, eq=False)
class ReshapedTensor(StoredTensor):
    """The numbers of another tensor, decoded where it is codes."""

    origin: Tensor

    @property
    def contiguous(self) -> bool:
        return False

    def read_rows(self, columns: int, start: int, stop: int, work: Workspace, key: str) -> Array:
        out = work.array(key, (stop - start, columns), DTYPES[self.spec.dtype].storage)
        if not out.size:
            return out
        width = self.origin.spec.shape[-1]
        begin, end = start * columns, stop * columns
        first = begin // width
        held = read_origin(self.origin, first, -(-end // width), width, work, f"{key}.flat").reshape(-1)
        np.copyto(out.reshape(-1), held[begin - first * width : end - first * width])
        return out

    def read_bytes(self, start: int, stop: int, work: Workspace, key: str) -> Array:
        raise NotImplementedError  # nothing that is not contiguous is read so

    def read_columns(self, start: int, stop: int, work: Workspace, key: str) -> Array:
        raise NotImplementedError  # it is no part of an encoder


def reshaped(tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The tensor under another shape of as many elements."""
    spec = TensorSpec(tensor.spec.name, tensor.spec.dtype if tensor.encoder is None else "F32", shape)
    first = next(iter(tensor.parts.values()))
    if tensor.encoder is None and tensor.whole.contiguous:
        return Tensor(spec, {"": StoredTensor(first.file, replace(tensor.whole.placed, spec=spec))}, tensor.file)
    placed = replace(first.placed, spec=spec, fortran=False, big_endian=False, strides=None)
    return Tensor(spec, {"": ReshapedTensor(first.file, placed, tensor)}, tensor.file)


def with_original_shapes(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint of a GGUF file with the shapes that its metadata says tensors have in their model."""
    changed: dict[str, Tensor] = {}
    for key in checkpoint.source.fields:
        tensor = checkpoint.tensors.get(key.removeprefix(SHAPE)) if key.startswith(SHAPE) else None
        shape = said(checkpoint.source.fields, key) if tensor is not None else None
        sizes = shape if isinstance(shape, list) else []
        good = 0 < len(sizes) <= _MOST and all(isinstance(size, int) and size > 0 for size in sizes)
        if tensor is not None and good and tensor.spec.shape and prod(sizes) == tensor.spec.size:
            changed[tensor.spec.name] = reshaped(tensor, tuple(sizes))
    if not changed:
        return checkpoint
    return replace(checkpoint, tensors={name: changed.get(name, one) for name, one in checkpoint.tensors.items()})
