"""Tensors of which only some rows and columns are read, as if the file held no others."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod

from compressor.checkpoint.checkpoint import Checkpoint, Tensor
from compressor.checkpoint.rows import Rows, check_computable
from compressor.core.errors import InputError
from compressor.core.floats import narrow, settle, widen
from compressor.core.lazy import np
from compressor.core.tensor import DTYPES, TensorSpec
from compressor.core.workspace import Array, Workspace
from compressor.files.source import StoredTensor

_DECODED = 1 << 19  # elements decoded at a time


@dataclass(frozen=True, eq=False)
class SelectedTensor(StoredTensor):
    """`origin` read through an index along some axes: new position → position in the origin, ascending."""

    origin: Tensor
    index: Mapping[int, Array]

    @property
    def contiguous(self) -> bool:
        return False

    def read_rows(self, columns: int, start: int, stop: int, work: Workspace, key: str) -> Array:
        shape, old = self.spec.shape, self.origin.spec.shape
        out = work.array(key, (stop - start, columns), np.dtype(DTYPES[self.spec.dtype].storage).str)
        if not out.size:
            return out
        lead = next(k for k in range(min(1, len(shape) - 1), len(shape) + 1) if prod(shape[k:]) == columns)
        rows = self._origin_rows(lead, start, stop)
        held = self._read(rows, prod(old[lead:]), work, f"{key}.origin").reshape(len(rows), *old[lead:])
        cut = [axis for axis in sorted(self.index) if axis >= lead]
        target = out.reshape(len(rows), *shape[lead:])
        for axis in cut[:-1]:
            held = np.take(held, self.index[axis], axis=axis - lead + 1)
        if cut:
            np.take(held, self.index[cut[-1]], axis=cut[-1] - lead + 1, out=target, mode="clip")  # no copy between
        else:
            np.copyto(target, held)
        return out

    def read_bytes(self, start: int, stop: int, work: Workspace, key: str) -> Array:
        raise NotImplementedError  # nothing that is not contiguous is read so

    def read_columns(self, start: int, stop: int, work: Workspace, key: str) -> Array:
        raise NotImplementedError  # parts of encoders are never gathered

    def _origin_rows(self, lead: int, start: int, stop: int) -> Array:
        """The rows of the origin, its first `lead` axes flattened, that rows [start, stop) are."""
        rows = np.arange(start, stop)
        if not any(axis < lead for axis in self.index):
            return rows
        places = np.unravel_index(rows, self.spec.shape[:lead])
        found = [self.index[axis][place] if axis in self.index else place for axis, place in enumerate(places)]
        flat: Array = np.ravel_multi_index(found, self.origin.spec.shape[:lead])
        return flat

    def _read(self, rows: Array, width: int, work: Workspace, key: str) -> Array:
        """These rows of the origin: with what lies between them where that is little, else run by run."""
        first, last = int(rows[0]), int(rows[-1]) + 1
        if last - first <= 2 * len(rows):
            held = self._stored(width, first, last, work, key)
            return held if last - first == len(rows) else held[rows - first]
        out = work.array(f"{key}.runs", (len(rows), width), np.dtype(DTYPES[self.spec.dtype].storage).str)
        edges = np.flatnonzero(np.diff(rows) != 1) + 1
        for begin, end in zip([0, *edges.tolist()], [*edges.tolist(), len(rows)], strict=True):
            out[begin:end] = self._stored(width, int(rows[begin]), int(rows[end - 1]) + 1, work, key)
        return out

    def _stored(self, width: int, start: int, stop: int, work: Workspace, key: str) -> Array:
        """Consecutive rows of the origin in its storage type, decoded where it is stored as parts."""
        tensor = self.origin
        if tensor.encoder is None:
            return tensor.whole.read_rows(width, start, stop, work, key)
        first = start // tensor.align * tensor.align
        last = min(-(-stop // tensor.align) * tensor.align, tensor.spec.matrix[0])
        out = work.array(key, (last - first, width), np.dtype(DTYPES[self.spec.dtype].storage).str)
        step = max(_DECODED // max(width, 1) // tensor.align, 1) * tensor.align
        for begin in range(first, last, step):
            end = min(begin + step, last)
            numbers = Rows(tensor, width, begin, end, work, f"{key}.codes").block(begin, end)
            narrow(numbers, self.spec.dtype, out[begin - first : end - first])
        return out[start - first : stop - first]


def gathered(tensor: Tensor, name: str, keep: Mapping[int, Array]) -> Tensor:
    """The tensor under a name with those positions of each axis that `keep` [bool, of the axis' size] has; itself,
    perhaps renamed, where that is all of them."""
    index = {axis: np.flatnonzero(mask) for axis, mask in keep.items() if not mask.all()}
    spec = tensor.spec
    shape = tuple(len(index[axis]) if axis in index else size for axis, size in enumerate(spec.shape))
    renamed = TensorSpec(name, spec.dtype, shape)
    if not index:
        return replace(tensor, spec=renamed)
    if not DTYPES[spec.dtype].storage:
        raise InputError(
            f"is {spec.dtype}, whose elements are no whole bytes: it cannot be cut",
            file=next(iter(tensor.parts.values())).file.path,
            tensor=spec.name,
        )
    first = next(iter(tensor.parts.values()))
    placed = replace(first.placed, spec=renamed, fortran=False, big_endian=False, strides=None)
    return Tensor(renamed, {"": SelectedTensor(first.file, placed, tensor, index)}, tensor.file)


@dataclass(frozen=True, eq=False)
class ScaledTensor(StoredTensor):
    """`origin`, which need not be stored so, with other numbers, rounded to its dtype."""

    origin: StoredTensor

    @abstractmethod
    def multiply(self, held: Array, start: int, out: Array) -> None:
        """The numbers of rows from `start` on, into `out`, of the same float type."""

    @abstractmethod
    def refusal(self) -> tuple[str, str]:
        """What numbers beyond the dtype's range are called, and what to do about them."""

    @property
    def contiguous(self) -> bool:
        return False

    def read_rows(self, columns: int, start: int, stop: int, work: Workspace, key: str) -> Array:
        check_computable(self)
        dtype = self.spec.dtype
        raw = self.origin.read_rows(columns, start, stop, work, f"{key}.unscaled")
        held = widen(raw, dtype, work, f"{key}.wide")
        scaled = work.array(f"{key}.scaled", held.shape, held.dtype.str)
        out = work.array(key, held.shape, DTYPES[dtype].storage)
        with np.errstate(over="ignore", invalid="ignore"):
            self.multiply(held, start, scaled)
        if not np.isfinite(settle(scaled, dtype, out, work)).all() and np.isfinite(held).all():
            reason, remedy = self.refusal()
            raise InputError(f"leaves the range of {dtype} {reason}", tensor=self.spec.name, remedy=remedy)
        return out

    def read_bytes(self, start: int, stop: int, work: Workspace, key: str) -> Array:
        raise NotImplementedError  # nothing that is not contiguous is read so

    def read_columns(self, start: int, stop: int, work: Workspace, key: str) -> Array:
        raise NotImplementedError  # parts of encoders are never multiplied


@dataclass(frozen=True, eq=False)
class ReplacedTensor(StoredTensor):
    """A tensor with other numbers than the file's, already in its storage type."""

    numbers: Array

    @property
    def contiguous(self) -> bool:
        return False

    def read_rows(self, columns: int, start: int, stop: int, work: Workspace, key: str) -> Array:
        out = work.array(key, (stop - start, columns), self.numbers.dtype.str)
        np.copyto(out, self.numbers.reshape(-1, columns)[start:stop])
        return out

    def read_bytes(self, start: int, stop: int, work: Workspace, key: str) -> Array:
        raise NotImplementedError  # nothing that is not contiguous is read so

    def read_columns(self, start: int, stop: int, work: Workspace, key: str) -> Array:
        raise NotImplementedError  # it is no part of an encoder


def holding(checkpoint: Checkpoint, name: str, array: Array) -> Tensor:
    """The tensor `name` with the numbers of `array` [its shape] in the place of the file's."""
    tensor = checkpoint.tensors[name]
    spec = tensor.spec
    numbers = np.empty(spec.shape, DTYPES[spec.dtype].storage)
    narrow(array.astype(DTYPES[spec.dtype].compute, copy=False), spec.dtype, numbers)
    check_finite(numbers, spec.dtype, checkpoint.path, name)
    first = next(iter(tensor.parts.values()))
    placed = replace(first.placed, spec=spec, fortran=False, big_endian=False, strides=None)
    return Tensor(spec, {"": ReplacedTensor(first.file, placed, numbers)}, tensor.file)


def check_finite(numbers: Array, dtype: str, path: str, tensor: str) -> None:
    """InputError where training left numbers (stored, of this `dtype`) that are not finite."""
    if not np.isfinite(widen(numbers, dtype, Workspace(), "narrowed")).all():
        raise InputError(
            f"was trained to numbers beyond {dtype}", file=path, tensor=tensor, remedy="Lower --learning-rate"
        )
