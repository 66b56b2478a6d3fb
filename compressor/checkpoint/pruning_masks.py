"""What `torch.nn.utils.prune` leaves in a checkpoint, `weight_orig` beside `weight_mask`, seen as the weight.

The weight is the original where the mask is 1, and 0 where it is 0: what the model computes with, and all that its
file has to say once pruning is over (`torch.nn.utils.prune.remove` writes the same).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from compressor.checkpoint.checkpoint import Checkpoint, Tensor
from compressor.core.errors import InputError
from compressor.core.floats import widen
from compressor.core.lazy import np
from compressor.core.tensor import DTYPES, TensorSpec
from compressor.core.text import printable
from compressor.core.workspace import Array, Workspace
from compressor.files.source import StoredTensor

# Of `torch.nn.utils.prune`; and of `torch.ao.pruning`, whose masks are parametrizations
_ORIGINAL = re.compile(r"(?P<weight>.+)_orig|(?P<layer>.*)parametrizations\.(?P<name>[^.]+)\.original")


@dataclass(frozen=True, eq=False)
class Masked(StoredTensor):
    """`original` where `mask`, of the same shape, is 1, and 0 where it is 0. InputError for other numbers in it."""

    original: StoredTensor
    mask: StoredTensor

    @property
    def contiguous(self) -> bool:
        return False

    def read_rows(self, columns: int, start: int, stop: int, work: Workspace, key: str) -> Array:
        raw = self.original.read_rows(columns, start, stop, work, f"{key}.original")
        mask, dtype = self.mask.read_rows(columns, start, stop, work, f"{key}.mask"), self.mask.spec.dtype
        numbers = widen(mask, dtype, work, f"{key}.ones") if self.mask.spec.is_float else mask
        if not ((numbers == 0) | (numbers == 1)).all():
            raise InputError(
                "its pruning mask holds other numbers than 0 and 1",
                tensor=self.spec.name,
                remedy="Call torch.nn.utils.prune.remove before saving, or leave the mask out",
            )
        out = work.array(key, raw.shape, raw.dtype.str)
        np.copyto(out, np.where(numbers == 1, raw, np.zeros((), raw.dtype)))
        return out

    def read_bytes(self, start: int, stop: int, work: Workspace, key: str) -> Array:
        raise NotImplementedError  # nothing that is not contiguous is read so

    def read_columns(self, start: int, stop: int, work: Workspace, key: str) -> Array:
        raise NotImplementedError  # it is no part of an encoder


def fold_masks(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint with a weight in place of each original and its mask, which a note tells."""
    tensors = dict(checkpoint.tensors)
    folded = []
    for name in checkpoint.tensors:
        weight, beside = _names(name)
        original, mask = tensors[name], tensors.get(beside)
        if mask is None or weight in tensors or not _pair(original, mask):
            continue
        spec = TensorSpec(weight, original.spec.dtype, original.spec.shape)
        placed = replace(original.whole.placed, spec=spec, fortran=False, big_endian=False, strides=None)
        masked = Masked(original.whole.file, placed, original.whole, mask.whole)
        tensors[weight] = Tensor(spec, {"": masked}, original.file)
        del tensors[name], tensors[mask.spec.name]
        folded.append(weight)
    if not folded:
        return checkpoint
    note = (
        f"{len(folded)} pruning mask{'s are' if len(folded) > 1 else ' is'} folded into the weights: "
        f"'{printable(folded[0], 100)}' is its original where its mask is 1, else 0"
    )
    return replace(
        checkpoint, tensors={name: tensors[name] for name in sorted(tensors)}, notes=(*checkpoint.notes, note)
    )


def _names(original: str) -> tuple[str, str]:
    """What the weight of an original is called, and its mask; "" where the name is no original's."""
    found = _ORIGINAL.fullmatch(original)
    if found is None:
        return "", ""
    if found["weight"] is not None:
        return found["weight"], f"{found['weight']}_mask"
    return found["layer"] + found["name"], f"{original.removesuffix('original')}0.mask"


def _pair(original: Tensor, mask: Tensor) -> bool:
    """Whether both are stored as numbers, of one shape, the mask's of a kind that 0 and 1 can be."""
    plain = original.encoder is None and mask.encoder is None and original.spec.is_float
    ones = mask.spec.is_float or DTYPES[mask.spec.dtype].storage in ("|b1", "|u1", "|i1", "<i4", "<i8")
    return plain and ones and original.spec.shape == mask.spec.shape
