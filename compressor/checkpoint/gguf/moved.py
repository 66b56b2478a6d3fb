"""A tensor whose elements lie in other tensors, in another order: what GGUF and Hugging Face folders call alike.

Rows are read where they lie, block by block; a transposed matrix along its columns. Only small tensors are held
whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from compressor.architectures.gguf.moves import Move, Side
from compressor.checkpoint.checkpoint import Tensor
from compressor.checkpoint.rows import Rows
from compressor.checkpoint.views import ReplacedTensor
from compressor.core.floats import narrow, widen
from compressor.core.lazy import np
from compressor.core.tensor import DTYPES, TensorSpec
from compressor.core.workspace import Array, Workspace
from compressor.files.source import StoredTensor

_SMALL = 1 << 18  # elements of tensors that are put together at once
_AT_ONCE = 1 << 20  # elements of a tensor's rows that are looked at for some of their columns


@dataclass(frozen=True, slots=True)
class _Step:
    """A move into this tensor: a loop over `sizes`, with strides here and in `origin`. `added` to each element."""

    origin: Tensor
    sizes: tuple[int, ...]
    here: Side
    there: Side
    added: float


@dataclass(frozen=True, slots=True)
class _Loop:
    """A step as rows of this tensor see it: `rows` are size, stride here in rows and stride there of each axis that
    goes over rows; `columns` the size, stride here and stride there of the one that goes over columns."""

    step: _Step
    first: int
    rows: tuple[tuple[int, int, int], ...]
    columns: tuple[int, int, int]
    column: int

    @property
    def last(self) -> int:
        """The row behind the last one."""
        return self.first + sum((size - 1) * here for size, here, _ in self.rows) + 1

    def places(self, start: int, stop: int) -> tuple[Array, Array]:
        """Those of the rows [start, stop) that the step fills, from 0, and where in its origin each begins."""
        rows = np.arange(start, stop) - self.first
        good, place, rest = rows >= 0, np.zeros_like(rows), rows.copy()
        for size, here, there in self.rows:
            index = rest // here
            good &= index < size
            place += index * there
            rest -= index * here
        good &= rest == 0
        return np.flatnonzero(good), self.step.there.offset + place[good]


@dataclass(frozen=True, eq=False)
class MovedTensor(StoredTensor):
    """A tensor that steps out of others fill."""

    steps: tuple[_Step, ...]

    @property
    def contiguous(self) -> bool:
        return False

    def read_rows(self, columns: int, start: int, stop: int, work: Workspace, key: str) -> Array:
        out = work.array(key, (stop - start, columns), DTYPES[self.spec.dtype].storage)
        if not out.size:
            return out
        width = self.spec.shape[-1] if self.spec.shape else 1
        if self._small:
            np.copyto(out, self._whole(work, key).reshape(-1, columns)[start:stop])
            return out
        factor = columns // width
        rows = out.reshape(-1, width)
        for loop in self._loops(width):
            if loop.first < stop * factor and start * factor < loop.last:
                self._fill(loop, rows, start * factor, work, f"{key}.moved")
        return out

    def read_bytes(self, start: int, stop: int, work: Workspace, key: str) -> Array:
        raise NotImplementedError  # nothing that is not contiguous is read so

    def read_columns(self, start: int, stop: int, work: Workspace, key: str) -> Array:
        raise NotImplementedError  # it is no part of an encoder

    @property
    def _small(self) -> bool:
        return len(self.spec.shape) < 2 or (
            self.spec.size <= _SMALL and all(step.origin.spec.size <= 4 * _SMALL for step in self.steps)
        )

    def _whole(self, work: Workspace, key: str) -> Array:
        """All of a small tensor."""
        out = work.array(f"{key}.all", (self.spec.size,), DTYPES[self.spec.dtype].storage)
        for number, step in enumerate(self.steps):
            origin = step.origin
            width = origin.spec.shape[-1] if origin.spec.shape else 1
            held = read_origin(origin, 0, origin.spec.size // max(width, 1), width, work, f"{key}.{number}")
            found = self._converted(held, step, work, f"{key}.{number}.as").reshape(-1)
            target = _strided(out, step.here.offset, step.sizes, step.here.strides)
            np.copyto(target, _strided(found, step.there.offset, step.sizes, step.there.strides))
        return out

    def _converted(self, held: Array, step: _Step, work: Workspace, key: str) -> Array:
        """Elements of an origin in this tensor's storage type, with what is added to them."""
        if step.origin.encoder is None and step.origin.spec.dtype == self.spec.dtype and not step.added:
            return held
        numbers = held
        if step.origin.encoder is None:
            numbers = widen(held, step.origin.spec.dtype, work, f"{key}.wide")
        if step.added:
            added = work.array(f"{key}.added", numbers.shape, numbers.dtype.str)
            numbers = np.add(numbers, numbers.dtype.type(step.added), out=added)
        out = work.array(key, numbers.shape, DTYPES[self.spec.dtype].storage)
        narrow(numbers, self.spec.dtype, out)
        return out

    def _loops(self, width: int) -> Iterator[_Loop]:
        for step in self.steps:
            axes = sorted(
                zip(step.sizes, step.here.strides, step.there.strides, strict=True), key=lambda one: -one[1]
            )
            over = [(size, here // width, there) for size, here, there in axes if here >= width and size > 1]
            across = [one for one in axes if one[1] < width and one[0] > 1]
            if len(across) > 1:
                across = [_joined(across)]
            columns = across[0] if across else (1, 1, 1)
            first, column = divmod(step.here.offset, width)
            yield _Loop(step, first, tuple(over), columns, column)

    def _fill(self, loop: _Loop, out: Array, start: int, work: Workspace, key: str) -> None:
        """Put into `out`, the rows from `start` on, what a step has for them."""
        rows, places = loop.places(start, start + len(out))
        if not len(rows):
            return
        count, here, there = loop.columns
        target = slice(loop.column, loop.column + (count - 1) * here + 1, here)
        width = loop.step.origin.spec.shape[-1]
        if there < width:
            column = int(places[0] % width)
            source = slice(column, column + (count - 1) * there + 1, there)
            for begin, end, held in _runs(loop.step.origin, places // width, width, work, key):
                out[rows[begin:end], target] = self._converted(held, loop.step, work, f"{key}.as")[:, source]
            return
        unit = places // width
        edges = [0, *(np.flatnonzero(np.diff(unit)) + 1).tolist(), len(unit)]
        for begin, end in pairwise(edges):
            held = _turned(
                loop.step.origin, int(unit[begin]), count, places[begin:end] % width, there // width, work, key
            )
            out[rows[begin:end], target] = self._converted(held, loop.step, work, f"{key}.as")


def _joined(axes: Sequence[tuple[int, int, int]]) -> tuple[int, int, int]:
    """Several axes over columns that are one: each goes on where the next one ends, on both sides."""
    size, here, there = axes[-1]
    for more, outer, beyond in reversed(axes[:-1]):
        assert (outer, beyond) == (size * here, size * there)  # noqa: S101 - no rule has others in large tensors
        size *= more
    return size, here, there


def _strided(flat: Array, offset: int, sizes: Sequence[int], strides: Sequence[int]) -> Array:
    return np.lib.stride_tricks.as_strided(
        flat[offset:], tuple(sizes), tuple(stride * flat.itemsize for stride in strides)
    )


def read_origin(tensor: Tensor, start: int, stop: int, width: int, work: Workspace, key: str) -> Array:
    """Rows of the length of the tensor's last axis, as they are stored, or decoded into numbers."""
    if tensor.encoder is None:
        return tensor.whole.read_rows(width, start, stop, work, key)
    columns = tensor.spec.matrix[1]
    factor = max(columns // max(width, 1), 1)
    align = tensor.align
    unit = factor * align
    first = start // unit * align
    last = min((stop + unit - 1) // unit * align, tensor.spec.matrix[0])
    held = Rows(tensor, columns, first, last, work, key).block(first, last).reshape(-1, width)
    return held[start - first * factor : stop - first * factor]


def _runs(tensor: Tensor, rows: Array, width: int, work: Workspace, key: str) -> Iterator[tuple[int, int, Array]]:
    """Rows of a tensor in the order that is asked for: [begin, end) of them, and those rows."""
    step = max(_AT_ONCE // max(width, 1), 1)
    begin = 0
    while begin < len(rows):
        end = min(begin + step, len(rows))
        low, high = int(rows[begin:end].min()), int(rows[begin:end].max()) + 1
        while high - low > 4 * (end - begin):  # what lies between would be read in vain
            end = begin + max((end - begin) // 2, 1)
            low, high = int(rows[begin:end].min()), int(rows[begin:end].max()) + 1
        held = read_origin(tensor, low, high, width, work, key)
        wanted = rows[begin:end] - low
        ordered = len(wanted) == len(held) and bool((np.diff(wanted) == 1).all())
        yield begin, end, held if ordered else held[wanted]
        begin = end


def _turned(tensor: Tensor, row: int, count: int, columns: Array, every: int, work: Workspace, key: str) -> Array:
    """`count` rows of a tensor from `row` on, each `every` one, of which some columns: [columns, rows]."""
    width = tensor.spec.shape[-1]
    assert every == 1  # noqa: S101 - no rule skips rows
    step = int(columns[1] - columns[0]) if len(columns) > 1 else 1
    if tensor.seekable and (np.diff(columns) == step).all():
        whole, itemsize = tensor.whole, DTYPES[tensor.spec.dtype].bits // 8
        spec = TensorSpec(tensor.spec.name, tensor.spec.dtype, (len(columns), count))
        offset = whole.placed.offset + (row * width + int(columns[0])) * itemsize
        placed = replace(whole.placed, spec=spec, offset=offset, strides=(step, width))
        return StoredTensor(whole.file, placed).read_rows(count, 0, len(columns), work, key)
    block = max(_AT_ONCE // max(width, 1), 1)
    out: Array | None = None
    for begin in range(0, count, block):
        end = min(begin + block, count)
        held = read_origin(tensor, row + begin, row + end, width, work, key)
        if out is None:
            out = work.array(f"{key}.turned", (len(columns), count), held.dtype.str)
        np.copyto(out[:, begin:end], held[:, columns].T)
    assert out is not None  # noqa: S101 - there are rows
    return out


def moved(
    name: str, dtype: str, shape: tuple[int, ...], moves: Sequence[Move], origins: Mapping[str, Tensor]
) -> Tensor:
    """The tensor that moves out of `origins` make: on the side of the moves on which it has its name."""
    steps = tuple(_step(move, name, origins) for move in moves)
    first = next(iter(steps[0].origin.parts.values()))
    spec = TensorSpec(name, dtype, shape)
    only = steps[0]
    same = len(steps) == 1 and only.origin.encoder is None and not only.added and only.origin.spec.dtype == dtype
    if same and only.here.strides == only.there.strides and only.origin.spec.size == spec.size:
        whole = only.origin.whole  # as it lies there, under another name
        if whole.contiguous:
            return Tensor(spec, {"": StoredTensor(whole.file, replace(whole.placed, spec=spec))}, 0)
    placed = replace(first.placed, spec=spec, fortran=False, big_endian=False, strides=None)
    return Tensor(spec, {"": MovedTensor(first.file, placed, steps)}, 0)


def _step(move: Move, name: str, origins: Mapping[str, Tensor]) -> _Step:
    if move.gguf.name == name:
        return _Step(origins[move.folder.name], move.sizes, move.gguf, move.folder, move.added)
    return _Step(origins[move.gguf.name], move.sizes, move.folder, move.gguf, -move.added)


def constant(name: str, numbers: Sequence[float], like: Tensor) -> Tensor:
    """A vector of float32 that is in no file; `like` lends it one to be named in messages."""
    first = next(iter(like.parts.values()))
    spec = TensorSpec(name, "F32", (len(numbers),))
    placed = replace(first.placed, spec=spec, fortran=False, big_endian=False, strides=None)
    return Tensor(spec, {"": ReplacedTensor(first.file, placed, np.array(numbers, "<f4"))}, 0)
