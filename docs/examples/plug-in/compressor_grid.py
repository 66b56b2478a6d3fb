"""Two methods for compressor from another package: `prune --method small` and `quantize --scheme grid`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from compressor.core.errors import InputError
from compressor.core.tensor import TensorSpec
from compressor.core.workspace import Workspace
from compressor.methods.contract import Block, PlainEncoder, PlainTransform
from compressor.methods.options import option
from compressor.methods.parts import Part

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Small(PlainTransform):
    """Zeroes what is no larger than a limit: the least that a method has to be."""

    verb: ClassVar[str] = "prune"
    id: ClassVar[str] = "small"
    keeps_zeros: ClassVar[bool] = True

    below: float = option(help="magnitudes up to this become zero", low=0)

    def apply(self, block: Block, out: Array) -> None:
        np.multiply(block.values, np.abs(block.values) > self.below, out=out)


@dataclass(frozen=True)
class Grid(PlainEncoder):
    """Stores each weight as a multiple of a step, in 16 bits.

    *Stored:* `.grid`, int16 of the tensor's shape. *Error:* half a step.
    """

    verb: ClassVar[str] = "quantize"
    id: ClassVar[str] = "grid"
    keeps_zeros: ClassVar[bool] = True

    pitch: float = option(0.001, help="distance of two values that can be stored", low=0, open_low=True)

    def parts(self, spec: TensorSpec) -> tuple[Part, ...]:
        return (Part(".grid", "I16", spec.shape),)

    def encode(self, block: Block, parts: Mapping[str, Array] | None, restored: Array) -> None:
        codes = (
            np.rint(block.values.astype(np.float64) / self.pitch) + 0.0
        )  # no negative zeros, which int16 has not
        if np.abs(codes).max(initial=0) > 32767:
            raise InputError("a weight is too large for 16 bits of this pitch", tensor=block.spec.name)
        if parts is not None:
            np.copyto(parts[".grid"].reshape(restored.shape), codes, casting="unsafe")
        np.multiply(codes, self.pitch, out=restored, casting="unsafe")

    def decode(self, parts: Mapping[str, Array], spec: TensorSpec, out: Array, start: int, work: Workspace) -> None:
        codes = parts[".grid"].reshape(out.shape).astype(np.float64)
        np.multiply(codes, self.pitch, out=out, casting="unsafe")

    def bound(self, largest: float, spec: TensorSpec) -> float:
        return 0.5 * self.pitch + largest * 2.0**-3  # the latter is what rounding to the tensor's own dtype may add
