"""Reading arrays of samples in blocks of float32, and choosing some of many."""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import sha256
from math import prod

from compressor.core.errors import InputError
from compressor.core.floats import widen
from compressor.core.lazy import np
from compressor.core.tensor import DTYPES
from compressor.core.workspace import Array, Workspace
from compressor.files.source import StoredTensor
from compressor.networks.kinds import Shape
from compressor.networks.network import Network

_BLOCK = 1 << 19  # numbers that are read at a time
_WHOLE = ("I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8", "BOOL")


def choose(count: int, wanted: int | None, seed: int) -> list[int]:
    """Which of `count` samples are taken: all, or `wanted` of them by the seed, in their order. Hashes choose, so
    that it is the same everywhere."""
    if wanted is None or wanted >= count:
        return list(range(count))
    ranked = sorted(range(count), key=lambda number: (sha256(f"{seed}:{number}".encode()).digest(), number))
    return sorted(ranked[:wanted])


def is_whole(tensor: StoredTensor) -> bool:
    """Whether the stored array holds whole numbers."""
    return tensor.spec.dtype in _WHOLE


def check_samples(tensor: StoredTensor, name: str) -> None:
    """InputError unless these are samples of one or more numbers, of a type that can be read."""
    spec = tensor.spec
    if not spec.is_float and not is_whole(tensor):
        raise InputError(f"is {spec.dtype}, where numbers belong", file=tensor.file.path, tensor=name)
    if len(spec.shape) < 2 or 0 in spec.shape[1:]:
        raise InputError(
            f"has the shape {list(spec.shape)}, where [samples, features] belongs",
            file=tensor.file.path,
            tensor=name,
        )


def blocks(tensor: StoredTensor, work: Workspace, most: int = 1 << 30) -> Iterator[tuple[int, Array]]:
    """Blocks of samples [n, numbers of one] in float32, each with the number of its first; valid until the next.
    InputError where any number is NaN, infinite or beyond float32."""
    shape = tensor.spec.shape
    columns = prod(shape[1:])
    step = max(1, min(most, _BLOCK // columns))
    for start in range(0, shape[0], step):
        stop = min(start + step, shape[0])
        raw = tensor.read_rows(columns, start, stop, work, "samples")
        found = work.array("samples.numbers", raw.shape, "<f4")
        with np.errstate(all="ignore"):
            if is_whole(tensor):
                np.copyto(found, raw, casting="unsafe")
            else:
                dtype = tensor.spec.dtype
                assert DTYPES[dtype].compute  # noqa: S101 - `check_samples` looked
                np.copyto(found, widen(raw, dtype, work, "samples.wide"), casting="unsafe")
            if not np.isfinite(found.sum(dtype=np.float64)):
                first, *_ = np.flatnonzero(~np.isfinite(found).all(axis=1)).tolist()
                bad = found.size - int(np.isfinite(found).sum())
                raise InputError(
                    f"holds NaN or infinite values: {bad} in samples {start} to {stop - 1}, the first in sample "
                    f"{start + first}",
                    file=tensor.file.path,
                    remedy="Leave such samples out",
                )
        yield start, found


def check_shape(array: StoredTensor, made: Network) -> None:
    """Inputs may be flat, or lack axes of 1; what has the channels elsewhere is not guessed at."""
    shape = array.spec.shape[1:]
    bare: tuple[Shape, Shape] = (tuple(n for n in shape if n != 1), tuple(n for n in made.input if n != 1))
    flat = len(shape) == 1 or len(made.input) == 1
    if bare[0] != bare[1] and not (flat and prod(shape) == prod(made.input)):
        raise InputError(
            f"has samples of the shape {list(shape)}, and the network takes {list(made.input)}",
            file=array.file.path,
        )


def scaling(array: StoredTensor, by: float, *, asked: bool, offered: float) -> str:
    """How samples of the array's dtype are scaled, in words, where they are divided by `by`."""
    dtype = array.spec.dtype
    if asked:
        return f"{dtype}, divided by {by:g} as asked"
    if by != 1:
        return f"{dtype}, divided by {by:g} as the network's description says"
    hint = " (--divide 255 if the network was trained on numbers up to 1)" if is_whole(array) else ""
    besides = f"; only whole numbers are divided by {offered:g}" if offered != 1 and not is_whole(array) else ""
    return f"{dtype}, taken as they are{hint}{besides}"
