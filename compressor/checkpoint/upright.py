"""Conv1D weights, which files hold as [in, out], seen as the [out, in] of every other linear layer.

Nothing is read or copied: the matrices lie in the file as before, and are read along their columns.
"""

from __future__ import annotations

from dataclasses import replace

from compressor.architectures.conv1d import conv1d_weights
from compressor.checkpoint.checkpoint import Checkpoint, Tensor
from compressor.checkpoint.pruning_masks import Masked
from compressor.core.errors import InputError
from compressor.files.source import StoredTensor


def upright(checkpoint: Checkpoint, like: Checkpoint | None = None) -> Checkpoint:
    """The checkpoint with its Conv1D weights [out, in], named in `Checkpoint.upright`; they are those of `like`,
    where another checkpoint of the same model is given. InputError for one that is stored as codes."""
    shapes = {name: tensor.spec.shape for name, tensor in checkpoint.tensors.items()}
    turned = conv1d_weights(checkpoint.source.config, shapes) if like is None else like.upright & shapes.keys()
    if not turned:
        return checkpoint
    tensors = {
        name: _turned(tensor, checkpoint) if name in turned else tensor
        for name, tensor in checkpoint.tensors.items()
    }
    return replace(checkpoint, tensors=tensors, upright=turned)


def _turned(tensor: Tensor, checkpoint: Checkpoint) -> Tensor:
    if tensor.encoder is not None:
        raise InputError(
            f"is stored as {tensor.encoder.label}, and transposed (Conv1D): no adapter is made on top of that",
            file=checkpoint.path,
            tensor=tensor.spec.name,
            remedy="Run `compressor restore` first, and give its output",
        )
    stored = _upright(tensor.whole)
    return replace(tensor, spec=stored.spec, parts={"": stored})


def _upright(stored: StoredTensor) -> StoredTensor:
    """A matrix [in, out] in a file as [out, in]; where a mask is folded into it, both."""
    rows, columns = stored.spec.shape
    by_row, by_column = stored.placed.strides or (columns, 1)
    strides = None if (by_column, by_row) == (rows, 1) else (by_column, by_row)
    placed = replace(stored.placed, spec=replace(stored.spec, shape=(columns, rows)), strides=strides)
    if isinstance(stored, Masked):
        return Masked(stored.file, placed, _upright(stored.original), _upright(stored.mask))
    return replace(stored, placed=placed)
