"""What weight norm leaves in a checkpoint, a gain beside a direction, seen as the weight that they stand for.

w = v · (g / ‖v‖), the norm over all axes but the one that g has (Salimans and Kingma, 2016; torch._weight_norm).
Torch calls them `weight_g` and `weight_v` (`torch.nn.utils.weight_norm`), or `parametrizations.weight.original0`
and `original1` (`torch.nn.utils.parametrizations.weight_norm`). Norms here are rounded once; torch sums them in the
dtype of the weight and in an order of the processor's, and differs in the last two bits.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from math import prod

from compressor.checkpoint.checkpoint import Checkpoint, Tensor
from compressor.checkpoint.rows import BLOCK
from compressor.core.errors import InputError, UsageError
from compressor.core.floats import narrow, widen
from compressor.core.lazy import np
from compressor.core.sums import dots
from compressor.core.tensor import DTYPES, TensorSpec
from compressor.core.text import printable
from compressor.core.workspace import Array, Workspace
from compressor.files.source import StoredTensor

_DIRECTION = re.compile(
    r"(?P<weight>(?:.*\.)?weight\w*)_v|(?P<layer>.*)parametrizations\.(?P<name>[^.]+)\.original1"
)


@dataclass(frozen=True, eq=False)
class Normed(StoredTensor):
    """`direction` times what makes the norm of each slice along `axis` that of `gain` (of everything, where the
    gain is one number and `axis` is 0). Norms are summed in float64, in an order that depends on the shape alone.
    """

    direction: StoredTensor
    gain: StoredTensor
    axis: int

    @property
    def contiguous(self) -> bool:
        return False

    def read_rows(self, columns: int, start: int, stop: int, work: Workspace, key: str) -> Array:
        spec = self.spec
        which = (self.file.path, spec.name)
        factors = work.once(f"{key}.factors", which, lambda: self._factors(work, f"{key}.norms"))
        raw = self.direction.read_rows(columns, start, stop, work, f"{key}.direction").reshape(-1)
        out = work.array(key, (stop - start, columns), DTYPES[spec.dtype].storage)
        flat, inner = out.reshape(-1), prod(spec.shape[self.axis + 1 :])
        for begin in range(0, flat.size, BLOCK):
            held = widen(raw[begin : begin + BLOCK], spec.dtype, work, f"{key}.wide")
            first = start * columns + begin
            places = np.arange(first, first + held.size) // inner % factors.size
            with np.errstate(all="ignore"):  # what is not finite is looked for by who reads
                scaled = held * factors[places]
            narrow(scaled, spec.dtype, flat[begin : begin + BLOCK])
        return out

    def read_bytes(self, start: int, stop: int, work: Workspace, key: str) -> Array:
        raise NotImplementedError  # nothing that is not contiguous is read so

    def read_columns(self, start: int, stop: int, work: Workspace, key: str) -> Array:
        raise NotImplementedError  # it is no part of an encoder

    def _factors(self, work: Workspace, key: str) -> Array:
        """g / ‖v‖ [slices], in the type that is computed in."""
        spec, gain = self.spec, self.gain.spec
        raw = self.gain.read_rows(gain.size, 0, 1, work, f"{key}.gain").reshape(-1)
        gains = widen(raw, gain.dtype, work, f"{key}.gains").copy()
        rows, columns = spec.matrix
        squares = np.zeros(spec.shape[self.axis] if gain.size > 1 else 1)
        step = max(BLOCK // max(columns, 1), 1)
        for begin in range(0, rows, step):
            end = min(begin + step, rows)
            stored = self.direction.read_rows(columns, begin, end, work, f"{key}.rows")
            numbers = widen(stored, spec.dtype, work, f"{key}.wide").astype(np.float64)
            if gain.size == 1:
                squares += dots(numbers.reshape(1, -1), numbers.reshape(1, -1))
            elif self.axis == 0:
                squares[begin:end] = dots(numbers, numbers)
            else:
                shaped = numbers.reshape(end - begin, *spec.shape[1:])
                slices = np.ascontiguousarray(np.moveaxis(shaped, self.axis, 0)).reshape(squares.size, -1)
                squares += dots(slices, slices)
        if not squares.all():
            raise InputError(
                "a direction of weight norm is all zeros, which has no weight",
                file=self.file.path,
                tensor=self.direction.spec.name,
                remedy="Leave --fold-weight-norm out, or mend the tensor",
            )
        compute = DTYPES[spec.dtype].compute
        with np.errstate(all="ignore"):
            found: Array = gains.astype(compute) / np.sqrt(squares).astype(compute)
        return found


def fold_weight_norm(checkpoint: Checkpoint, asked: bool) -> Checkpoint:
    """The checkpoint with a weight in place of each gain and its direction, which a note tells; where it is not
    `asked` for, the note says how to. UsageError where it is, and there is nothing to fold."""
    pairs = _pairs(checkpoint)
    if not pairs and asked:
        raise UsageError(
            "--fold-weight-norm: no gain (weight_g, original0) stands beside a direction (weight_v, original1)",
            remedy="Leave it out",
        )
    if not pairs:
        return checkpoint
    said = f"weights of weight norm ({len(pairs)}), as '{printable(next(iter(pairs)), 100)}'"
    if not asked:
        note = f"{said}: gains stay, directions are treated as weights; --fold-weight-norm makes one tensor of both"
        return replace(checkpoint, notes=(*checkpoint.notes, note))
    note = f"{said}: gain and direction are folded into one tensor"
    if checkpoint.source.kind == "folder":
        note += "; a loader that expects them apart has to remove weight norm first"
    return replace(folded(checkpoint), notes=(*checkpoint.notes, note))


def folded(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint with a weight in place of each gain and its direction; itself where there are none."""
    pairs, tensors = _pairs(checkpoint), dict(checkpoint.tensors)
    for weight, (direction, gain, axis) in pairs.items():
        spec = TensorSpec(weight, direction.spec.dtype, direction.spec.shape)
        placed = replace(direction.whole.placed, spec=spec, fortran=False, big_endian=False, strides=None)
        normed = Normed(direction.whole.file, placed, direction.whole, gain.whole, axis)
        tensors[weight] = Tensor(spec, {"": normed}, direction.file)
        del tensors[direction.spec.name], tensors[gain.spec.name]
    return replace(checkpoint, tensors={name: tensors[name] for name in sorted(tensors)}) if pairs else checkpoint


def _pairs(checkpoint: Checkpoint) -> dict[str, tuple[Tensor, Tensor, int]]:
    """By the names of the weights: direction, gain, and the axis of it."""
    found = (_pair(checkpoint, name) for name in checkpoint.tensors)
    return {pair[0]: pair[1:] for pair in found if pair is not None}


def _pair(checkpoint: Checkpoint, name: str) -> tuple[str, Tensor, Tensor, int] | None:
    """What the weight of a direction is called, the direction, its gain, and the axis of it; None where the name is
    that of no direction, or its gain is none."""
    found = _DIRECTION.fullmatch(name)
    if found is None:
        return None
    if found["weight"] is not None:
        weight, beside = found["weight"], f"{found['weight']}_g"
    else:
        weight, beside = found["layer"] + found["name"], f"{name.removesuffix('1')}0"
    direction, gain = checkpoint.tensors[name], checkpoint.tensors.get(beside)
    if gain is None or weight in checkpoint.tensors or direction.encoder is not None or gain.encoder is not None:
        return None
    if not (direction.spec.is_float and gain.spec.is_float and direction.spec.size):
        return None
    axis = _axis(direction.spec.shape, gain.spec.shape)
    return None if axis is None else (weight, direction, gain, axis)


def _axis(direction: tuple[int, ...], gain: tuple[int, ...]) -> int | None:
    """The axis whose slices have a gain each, 0 where there is one for all; None where shapes do not fit."""
    if prod(gain) == 1:
        return 0 if len(gain) in (0, 1, len(direction)) else None
    if len(gain) != len(direction):
        return None
    long = [axis for axis, size in enumerate(gain) if size != 1]
    return long[0] if len(long) == 1 and gain[long[0]] == direction[long[0]] else None
