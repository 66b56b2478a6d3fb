"""What an encoder stores of a tensor: a part, its place in the file and how it is cut with the tensor's rows."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod

from compressor.core.tensor import TensorSpec
from compressor.core.workspace import Array


@dataclass(frozen=True, slots=True)
class Part:
    """A tensor that an encoder stores. Its name is the source tensor's name followed by `suffix`; with `stem` the
    suffix takes the place of the name's `.weight`, and `prefix` comes first.

    The part lies in as many equal runs as there are `every` rows in the tensor (the last may be fewer): run r
    belongs to the tensor's rows [r·every, (r+1)·every), and encoders see runs as the rows of a matrix, whatever
    the part's shape. `across`: the part is a matrix whose columns those runs are, and encoders see it so
    [part's rows, columns of the block]. `every` 0 means that the part is not cut: it is written with the block
    that starts at row 0 and read whole. `value` is a part whose content the spec already determines.
    `bounds` [runs + 1]: runs of unequal length, run r being the elements [bounds[r], bounds[r + 1]); encoders see
    some of them as one flat array.
    """

    suffix: str
    dtype: str
    shape: tuple[int, ...]
    every: int = 1
    value: tuple[int, ...] | Array | None = field(default=None, compare=False)
    stem: bool = False
    prefix: str = ""
    across: bool = False
    bounds: Array | None = field(default=None, compare=False, repr=False)

    def name(self, tensor: str) -> str:
        """What the part of a tensor of this name is called."""
        return self.prefix + (tensor.removesuffix(".weight") if self.stem else tensor) + self.suffix

    @property
    def size(self) -> int:
        """Elements of the whole part."""
        return prod(self.shape)

    def rows(self, start: int, stop: int) -> tuple[int, int]:
        """The runs that the tensor's rows [start, stop) have."""
        return start // self.every, -(-stop // self.every)

    def width(self, spec: TensorSpec) -> int:
        """Elements of a run of the part of this tensor."""
        return self.size // max(self.rows(0, spec.matrix[0])[1], 1)

    def held(self, spec: TensorSpec, start: int, stop: int) -> tuple[int, ...]:
        """The shape in which encoders see what the rows [start, stop) have of the part."""
        if self.every == 0:
            return self.shape
        first, last = self.rows(start, stop)
        if self.bounds is not None:
            return (int(self.bounds[last] - self.bounds[first]),)
        return (self.shape[0], last - first) if self.across else (last - first, self.width(spec))

    def view(self, held: Array, start: int, stop: int, origin: int = 0) -> Array:
        """Of the runs in `held`, those of the rows [start, stop) after `origin`, the first that it holds."""
        if self.every == 0:
            return held
        first, last = self.rows(start, stop)
        if self.bounds is not None:
            begin, low, high = self.bounds[[origin, origin + first, origin + last]].tolist()
            return held[low - begin : high - begin]
        return held[:, first:last] if self.across else held[first:last]
