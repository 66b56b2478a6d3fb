"""What the forms of `delta` share: the difference from a base, and that its decoder gives no more than that."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import inf
from typing import Any, ClassVar

from compressor.core.errors import InputError
from compressor.core.floats import add_base, settle
from compressor.core.lazy import np
from compressor.core.metrics import count_zeros, dot
from compressor.core.tensor import DTYPES, TensorSpec
from compressor.core.workspace import Array, Workspace
from compressor.methods.contract import Block, Decoder, Encoder, Scheme
from compressor.methods.parts import Part

BASE = "base"  # the partner's role


@dataclass(frozen=True)
class Difference(Decoder):
    """A difference from a base, stored in the form that the method `asked` has. `note` is for the user."""

    verb: ClassVar[str] = "distill"
    id: ClassVar[str] = "delta"

    asked: Scheme
    note: str = field(compare=False)

    @property
    def scheme(self) -> Scheme:
        return self.asked

    @property
    def on_base(self) -> bool:
        return True

    def describe(self) -> dict[str, Any]:
        return self.asked.describe()

    def bound(self, largest: float, spec: TensorSpec) -> float:
        """How far a tensor is from its base, its own largest number does not say."""
        return inf

    def remark(self, spec: TensorSpec) -> str:
        said = "differences from the base, without which they are nothing: `restore` takes both"
        return "; ".join(filter(None, (said, self.note)))


@dataclass(frozen=True)
class Differing(Encoder):
    """Stores differences so that `read_by` reads them."""

    read_by: Difference

    @property
    def decoder(self) -> Difference:
        return self.read_by

    @abstractmethod
    def store(self, block: Block, difference: Array) -> Mapping[str, Array]:
        """The parts of a block of differences [rows, columns], of the block's own type."""

    def encode(self, block: Block, parts: Mapping[str, Array] | None, restored: Array) -> None:
        stored = self.store(block, difference(block))
        self.read_by.decode(stored, block.spec, restored, block.start, block.work)
        add_base(restored, block.partners[BASE], block.spec.dtype)
        for suffix, part in (parts or {}).items():
            np.copyto(part, stored[suffix].reshape(part.shape))

    def measured(self, block: Block, parts: Mapping[str, Array]) -> tuple[float, int]:
        """As of what is restored, in the tensor's dtype: its rounding is as large as a small difference."""
        work, dtype = block.work, block.spec.dtype
        restored = work.array("method.restored", block.values.shape, block.values.dtype.str)
        self.encode(block, parts, restored)
        rounded = settle(restored, dtype, work.array("delta.rounded", restored.shape, DTYPES[dtype].storage), work)
        zeros = count_zeros(rounded, work)
        np.subtract(block.values, rounded, out=restored)
        with np.errstate(all="ignore"):  # as `dot` wants it
            return dot(restored, restored), zeros


@dataclass(frozen=True)
class Unchanged(Difference):
    """Nothing: the tensor is the base's."""

    @property
    def label(self) -> str:
        return "unchanged"

    def parts(self, spec: TensorSpec) -> tuple[Part, ...]:
        return (Part(".unchanged", "U8", (1,), every=0, value=(1,)),)

    def decode(self, parts: Mapping[str, Array], spec: TensorSpec, out: Array, start: int, work: Workspace) -> None:
        out[...] = 0


@dataclass(frozen=True)
class Leaving(Differing):
    """Takes the base's numbers."""

    def store(self, block: Block, difference: Array) -> Mapping[str, Array]:
        return {".unchanged": np.ones(1, np.uint8)}


def difference(block: Block) -> Array:
    """What a block differs in from its base, in the type that is computed in. InputError where that leaves its
    range."""
    with np.errstate(over="ignore"):
        found: Array = np.subtract(block.values, block.partners[BASE], dtype=np.float64)
        found = found.astype(block.values.dtype, copy=False)
    if not np.isfinite(found).all():
        raise InputError(
            "the difference from the base leaves the range of floats",
            tensor=block.spec.name,
            remedy="Exclude it, or see whether the base is the right one",
        )
    return found
