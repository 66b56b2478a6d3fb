"""The numbers of a tensor as they are: what is stored where nothing else is smaller, or nothing is to be done."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from compressor.core.floats import epsilon, narrow, smallest, widen
from compressor.core.lazy import np
from compressor.core.tensor import TensorSpec
from compressor.core.workspace import Array, Workspace
from compressor.methods.contract import Block, Decoder, Encoder
from compressor.methods.parts import Part


@dataclass(frozen=True)
class Dense(Decoder, Encoder):
    """The numbers of a tensor as they are, in its dtype."""

    verb: ClassVar[str] = "store"
    id: ClassVar[str] = "dense"

    @property
    def decoder(self) -> Dense:
        return self

    def describe(self) -> dict[str, Any]:
        return {"layout": self.id}

    @property
    def exact(self) -> bool:
        return True

    @property
    def plain(self) -> bool:
        return True

    def parts(self, spec: TensorSpec) -> tuple[Part, ...]:
        return (Part("", spec.dtype, spec.shape),)

    def bound(self, largest: float, spec: TensorSpec) -> float:
        """One rounding, where the numbers are not of the tensor's dtype already."""
        return 2 * epsilon(spec.dtype) * largest + smallest(spec.dtype)

    def encode(self, block: Block, parts: Mapping[str, Array] | None, restored: Array) -> None:
        np.copyto(restored, block.values)
        if parts is not None:
            narrow(block.values, block.spec.dtype, parts[""].reshape(restored.shape))

    def decode(self, parts: Mapping[str, Array], spec: TensorSpec, out: Array, start: int, work: Workspace) -> None:
        np.copyto(out, widen(parts[""].reshape(out.shape), spec.dtype, work, "dense.wide"))
