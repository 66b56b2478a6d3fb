"""Where the elements of a tensor of a Hugging Face folder lie in a GGUF file, and back.

A `Move` is a loop over some axes with a place and strides on both sides, in elements. Renaming, permuting, slicing,
transposing, stacking and splitting are all loops of this kind, and each is its own way back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Side:
    """One side of a move: an element of the tensor `name`, and how far the next one along each axis is."""

    name: str
    offset: int
    strides: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Move:
    """For all indices below `sizes` an element of the folder's tensor is one of the GGUF file's; `added` is added
    on the way there, and taken away on the way back."""

    sizes: Shape
    folder: Side
    gguf: Side
    added: float = 0.0


def contiguous(shape: Sequence[int]) -> Shape:
    """The strides of an array of this shape in C order."""
    return tuple(prod(shape[axis + 1 :]) for axis in range(len(shape)))


def plain(folder: str, gguf: str, shape: Shape, added: float = 0.0) -> Move:
    """A tensor under another name."""
    strides = contiguous(shape)
    return Move(shape, Side(folder, 0, strides), Side(gguf, 0, strides), added)


def paired(folder: str, gguf: str, shape: Shape, head: int) -> Move:
    """Rows of queries or keys by heads of size `head`: transformers rotates the first half of a head's rows against
    the second, llama.cpp's older models each row against its neighbour."""
    rows, width, half = shape[0], prod(shape[1:]), head // 2
    unit = head * width
    return Move(
        (rows // head, 2, half, width),
        Side(folder, 0, (unit, half * width, width, 1)),
        Side(gguf, 0, (unit, width, 2 * width, 1)),
    )


def turned(folder: str, gguf: str, shape: Shape) -> Move:
    """A matrix, or a matrix of each expert, [in, out] in the folder and [out, in] in the GGUF file."""
    *lead, rows, columns = shape
    count, size = prod(lead), rows * columns
    return Move(
        (count, rows, columns),
        Side(folder, 0, (size, columns, 1)),
        Side(gguf, 0, (size, 1, rows)),
    )


def stacked(folder: Sequence[str], gguf: str, shape: Shape) -> list[Move]:
    """Tensors of one shape that are one tensor of the GGUF file, with a first axis more."""
    strides, size = contiguous(shape), prod(shape)
    return [
        Move(shape, Side(name, 0, strides), Side(gguf, number * size, strides))
        for number, name in enumerate(folder)
    ]


def halves(folder: str, gguf: Sequence[str], shape: Shape, *, axis: int, turns: bool, swap: bool) -> list[Move]:
    """A tensor with two along `axis`, one after the other or by `turns`; where `swap` that axis is the last of the
    folder's and the second of the file's."""
    sizes = tuple(size // 2 if number == axis else size for number, size in enumerate(shape))
    strides = list(contiguous(shape))
    step = strides[axis]
    if turns:
        strides[axis] *= 2
    first = step if turns else step * sizes[axis]
    order = list(range(len(shape)))
    if swap:
        order = [*order[:-2], order[-1], order[-2]]
    there = contiguous([sizes[number] for number in order])
    back = tuple(there[order.index(number)] for number in range(len(shape)))
    return [
        Move(sizes, Side(folder, number * first, tuple(strides)), Side(name, 0, back))
        for number, name in enumerate(gguf)
    ]
