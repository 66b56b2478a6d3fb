"""How important the units of a group are: sums over the coupled rows and columns, read block by block.

Sums of squares and of magnitudes are taken in float64, tensor by tensor in the order of the rows, so they are the
same whatever the number of workers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, field
from functools import partial
from hashlib import blake2b

from compressor.architectures.groups import Group
from compressor.checkpoint.checkpoint import Tensor
from compressor.checkpoint.finite import count_non_finite
from compressor.checkpoint.rows import CHUNK, Rows
from compressor.core.errors import InputError
from compressor.core.lazy import np
from compressor.core.parallel.threads import in_order
from compressor.core.workspace import Array, Workspace

_LARGEST = 1e290  # of a square: sums of these stay finite


@dataclass(frozen=True)
class Sums:
    """Σ w² (and Σ |w|) of a tensor of so many axes, in all and by position along those asked for."""

    squares: float = 0.0
    magnitudes: float = 0.0
    axes: int = 0
    by_axis: Mapping[int, tuple[Array, Array]] = field(default_factory=dict)


def measure(
    tensors: Mapping[str, Tensor], groups: Iterable[Group], executor: Executor, path: str, *, keep_non_finite: bool
) -> dict[str, Sums]:
    """The sums of every tensor that a group touches. InputError names a tensor with NaN or infinite values; with
    `keep_non_finite` these count as zero."""
    wanted: dict[str, set[int]] = {}
    for group in groups:
        for touch in group.touches:
            wanted.setdefault(touch.tensor, set()).add(touch.axis)
        for name in group.owned:
            wanted.setdefault(name, set())
        for name, axis in group.readers.items():
            wanted.setdefault(name, set()).add(axis)
    names = [name for name in wanted if tensors[name].spec.is_float]
    tasks = (partial(_sums, tensors[name], sorted(wanted[name]), path, keep_non_finite) for name in names)
    return dict(zip(names, in_order(executor, tasks, 8), strict=True))


def total_squares(tensor: Tensor, path: str, *, keep_non_finite: bool) -> float:
    """Σ w² over all weights of a tensor, in float64."""
    return _sums(tensor, [], path, keep_non_finite).squares


def _sums(tensor: Tensor, axes: list[int], path: str, keep_non_finite: bool) -> Sums:
    spec, work = tensor.spec, Workspace()
    columns = spec.shape[-1] if spec.shape and tensor.encoder is None else spec.matrix[1]
    rows = spec.size // columns if spec.size else 0
    last = len(spec.shape) - 1
    by_rows = np.zeros((2, rows))
    by_columns = np.zeros((2, columns))
    step = max(CHUNK // 4 // max(columns, 1) // tensor.align, 1) * tensor.align
    with np.errstate(all="ignore"):
        for start in range(0, rows, step):
            stop = min(start + step, rows)
            values = Rows(tensor, columns, start, stop, work, "sums").block(start, stop)
            numbers = work.array("sums.wide", values.shape, "<f8")
            np.abs(values, out=numbers)
            if not np.isfinite(numbers.sum()) and not np.isfinite(numbers).all():
                if not keep_non_finite:
                    raise InputError(
                        f"holds {count_non_finite(tensor)} NaN or infinite values: what matters cannot be told",
                        file=path,
                        tensor=spec.name,
                        remedy="Mend it, or let them count as zero with --non-finite keep",
                    )
                np.nan_to_num(numbers, copy=False, nan=0.0, posinf=0.0, neginf=0.0)
            for number in (1, 0):
                if number == 0:
                    np.multiply(numbers, numbers, out=numbers)
                    np.minimum(numbers, _LARGEST, out=numbers)
                by_rows[number, start:stop] = numbers.sum(axis=1)
                if last in axes:
                    by_columns[number] += numbers.sum(axis=0)
    found = {}
    for axis in axes:
        if axis == last:
            found[axis] = (by_columns[0], by_columns[1])
        else:
            lead = by_rows.reshape(2, *spec.shape[:last]) if tensor.encoder is None else by_rows
            others = tuple(n for n in range(lead.ndim - 1) if n != axis)
            found[axis] = (lead[0].sum(axis=others), lead[1].sum(axis=others))
    return Sums(float(by_rows[0].sum()), float(by_rows[1].sum()), len(spec.shape), found)


def weights_of(group: Group, sums: Mapping[str, Sums], norm: int) -> Array:
    """How important each unit is: of every coupled matrix its Σ w² (`norm` 2) or Σ |w| (`norm` 1) over the mean
    unit's, and of these the mean.

    So each matrix counts alike, and not the one that happens to have the larger numbers: a ReLU network computes
    the same when what makes a neuron is doubled and what reads it is halved. Vectors count where there are no
    matrices.
    """
    return _mean_share(group.units, _roles(group, sums, norm))


def energies_of(group: Group, sums: Mapping[str, Sums], energy: Mapping[str, Array]) -> Array:
    """How much comes of each unit on data: of every matrix that reads it Σ_i w_ij² · Σ x_j² over its inputs j, and
    where it has matrices of its own, over all inputs of theirs. `energy` is Σ x_j² over all rows, by reader.

    So much its outputs would lose in squares if the inputs were uncorrelated. As above, each matrix counts alike.
    """
    with np.errstate(over="ignore"):
        products = {
            name: np.minimum(sums[name].by_axis[axis][0] * energy[name], _LARGEST)
            for name, axis in group.readers.items()
        }
    return _mean_share(group.units, _read(group, products))


def _mean_share(units: int, roles: Iterable[tuple[Array, Array]]) -> Array:
    """Of every role its numbers over those of the mean unit, and of these the mean."""
    total, count = np.zeros(units), np.zeros(units)
    for has, part in roles:
        mean = part[has].mean() if has.any() else 0.0
        if mean > 0:
            total[has] += part[has] / mean
            count[has] += 1
    found: Array = total / np.maximum(count, 1)
    return found


def _read(group: Group, products: Mapping[str, Array]) -> Iterator[tuple[Array, Array]]:
    """Of each reader (or of each that every unit has for itself): which units have it, and what comes of them."""
    for touch in group.touches:
        if group.readers.get(touch.tensor) == touch.axis and touch.tensor not in group.owned:
            part = products[touch.tensor][touch.offset : touch.offset + group.units * touch.block]
            yield np.ones(group.units, bool), part.reshape(group.units, touch.block).sum(axis=1)
    roles: dict[str, tuple[Array, Array]] = {}
    for name, owned in group.owned.items():
        if name in products:
            has, part = roles.setdefault(owned.after, (np.zeros(group.units, bool), np.zeros(group.units)))
            has[owned.unit] = True
            part[owned.unit] = products[name].sum()
    yield from roles.values()


def gains_of(group: Group, tensors: Mapping[str, Tensor]) -> Array:
    """How much is seen of each channel: the square of every norm's gain over the mean channel's, and of these the
    mean. What comes out of a norm has about this energy, whatever went in."""
    total = np.zeros(group.units)
    for name in group.gains:
        tensor = tensors[name]
        values = Rows(tensor, group.units, 0, 1, Workspace(), "gains").block(0, 1)[0].astype(np.float64)
        with np.errstate(over="ignore"):
            energy = np.minimum(np.nan_to_num(values + group.gain_offset) ** 2, _LARGEST)
        total += energy / (energy.mean() or 1.0)
    return total


def _roles(group: Group, sums: Mapping[str, Sums], norm: int) -> Iterator[tuple[Array, Array]]:
    """Of each matrix (or of each that every unit has for itself): which units have it, and their sums."""
    touches = [touch for touch in group.touches if touch.tensor in sums]
    matrices = [touch for touch in touches if sums[touch.tensor].axes > 1]
    for touch in matrices or touches:
        vector = sums[touch.tensor].by_axis[touch.axis][norm % 2]
        part = vector[touch.offset : touch.offset + group.units * touch.block]
        yield np.ones(group.units, bool), part.reshape(group.units, touch.block).sum(axis=1)
    roles: dict[str, tuple[Array, Array]] = {}
    for name, owned in group.owned.items():
        if name in sums and sums[name].axes > 1:
            has, part = roles.setdefault(owned.after, (np.zeros(group.units, bool), np.zeros(group.units)))
            has[owned.unit] = True
            part[owned.unit] += sums[name].squares if norm == 2 else sums[name].magnitudes
    yield from roles.values()


def draw(seed: int, group: str, units: int) -> Array:
    """A random importance for each unit, from a stream keyed by the seed and the group's name."""
    digest = blake2b(f"{seed}\0{group}".encode(), digest_size=16).digest()
    found: Array = np.random.Philox(key=int.from_bytes(digest, "little")).random_raw(units)
    return found
