"""Conv1D weights, which files hold as [in, out], seen as the [out, in] of every other linear layer.

Nothing is read or copied: the matrices lie in the file as before, and are read along their columns.
"""

from __future__ import annotations

from dataclasses import replace

from compressor.architectures.conv1d import conv1d_weights
from compressor.checkpoint.checkpoint import Checkpoint, Tensor
from compressor.core.errors import InputError
from compressor.core.tensor import TensorSpec


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
    if tensor.encoder is not None or not tensor.whole.contiguous:
        raise InputError(
            f"is stored as {'numbers in another order' if tensor.encoder is None else tensor.encoder.label}, and "
            "transposed (Conv1D): no adapter is made on top of that",
            file=checkpoint.path,
            tensor=tensor.spec.name,
            remedy="Run `compressor restore` first, and give its output",
        )
    rows, columns = tensor.spec.shape
    spec = TensorSpec(tensor.spec.name, tensor.spec.dtype, (columns, rows))
    placed = replace(tensor.whole.placed, spec=spec, strides=(1, columns))
    return replace(tensor, spec=spec, parts={"": replace(tensor.whole, placed=placed)})
