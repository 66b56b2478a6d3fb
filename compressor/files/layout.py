"""What the container formats have in common: where tensors lie in a file that is read or planned."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from compressor.core.tensor import TensorSpec


@dataclass(frozen=True, slots=True)
class Placed:
    """A tensor in an input file: its bytes begin at `offset` from the start of the file.

    `fortran`: the first axis varies fastest. `big_endian`: each element's bytes are reversed. `strides`: elements
    from one row, and from one column, of the tensor's matrix to the next, where it is a part of what lies there.
    """

    spec: TensorSpec
    offset: int
    fortran: bool = False
    big_endian: bool = False
    strides: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class Header:
    """What a container says of itself: its tensors in the order of their names, and its metadata."""

    tensors: tuple[Placed, ...]
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class FileLayout:
    """A file that is to be written, known to the byte before any data is read.

    `pieces` are fixed bytes (headers) with their offsets; `offsets` tells where each tensor's bytes go.
    Everything between is covered by a tensor, so that writing all pieces and tensors writes the whole file.
    """

    size: int
    pieces: tuple[tuple[int, bytes], ...]
    offsets: Mapping[str, int]
    metadata: Mapping[str, str] = field(default_factory=dict)


# A `file` is one that comes back from an archive as it was, whatever it holds
Container = Literal["npy", "safetensors", "npz", "gguf", "folder", "file"]
