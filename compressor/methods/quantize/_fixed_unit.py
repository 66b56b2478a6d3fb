"""What the document's two rules share: a fixed unit, and codes stored as plain integers."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from compressor.core.errors import InputError
from compressor.core.floats import epsilon, smallest
from compressor.core.lazy import np
from compressor.core.tensor import TensorSpec
from compressor.core.workspace import Array, Workspace
from compressor.methods.contract import Block, PlainEncoder
from compressor.methods.parts import Part

if TYPE_CHECKING:
    from compressor.core.metrics import Change


@dataclass(frozen=True)
class Rule(PlainEncoder):
    """Round to multiples of a unit that does not look at the weights."""

    verb: ClassVar[str] = "quantize"
    elementwise: ClassVar[bool] = True
    unit: ClassVar[str]
    if TYPE_CHECKING:
        code_bits: int

    @property
    @abstractmethod
    def constant(self) -> int:
        """The integer that is stored beside the codes."""

    @property
    @abstractmethod
    def half_unit(self) -> float:
        """Half of what two neighbouring codes differ by: what rounding to a code can cost."""

    @abstractmethod
    def to_codes(self, values: Array, out: Array) -> None:
        """Integer-valued floats of the same type."""

    @abstractmethod
    def from_codes(self, codes: Array, out: Array) -> None:
        """The numbers that codes (integers or integer-valued floats) stand for."""

    def parts(self, spec: TensorSpec) -> tuple[Part, ...]:
        return (
            Part(".codes", f"I{self.code_bits}", spec.shape),
            Part(f".{self.unit}", "I64", (1,), every=0, value=(self.constant,)),
        )

    def encode(self, block: Block, parts: Mapping[str, Array] | None, restored: Array) -> None:
        """Raises InputError naming the tensor when a code does not fit its stored width."""
        codes = block.work.array("rule.codes", restored.shape, restored.dtype.str)
        self.to_codes(block.values, codes)
        np.add(codes, 0, out=codes)  # −0 becomes the +0 that a stored integer gives back
        if parts is not None:
            limit = 2.0 ** (self.code_bits - 1)
            largest = float(np.max(np.abs(codes), initial=0))
            if not largest < limit:
                raise InputError(
                    f"a code reaches {largest:.4g}, more than {self.code_bits} bits hold",
                    tensor=block.spec.name,
                    remedy="Use a wider --code-bits, another unit, --store dense, or --scheme int",
                )
            np.copyto(parts[".codes"].reshape(codes.shape), codes, casting="unsafe")
        self.from_codes(codes, restored)

    def decode(self, parts: Mapping[str, Array], spec: TensorSpec, out: Array, start: int, work: Workspace) -> None:
        wide = work.array("rule.wide", out.shape, out.dtype.str)
        np.copyto(wide, parts[".codes"].reshape(out.shape), casting="unsafe")
        self.from_codes(wide, out)

    def bound(self, largest: float, spec: TensorSpec) -> float:
        """Half a unit, and what computing in floats and storing the result in the tensor's dtype adds."""
        reached = largest + self.half_unit
        return self.half_unit + (2.0**-23 + 2 * epsilon(spec.dtype)) * reached + smallest(spec.dtype)

    def codes(self, spec: TensorSpec) -> Rule:
        return self

    def as_codes(self, spec: TensorSpec) -> Rule:
        return self

    @property
    def code_bits_used(self) -> int | None:
        return self.code_bits

    def warning(self, change: Change) -> str | None:
        lost = change.zeros_after - change.zeros_before
        if change.size and lost > (change.size - change.zeros_before) / 2 and change.size > 1:
            return (
                f"{lost / change.size:.0%} of the weights became zero: the rule's unit is too coarse for them; "
                "--scheme int fits a scale to the weights"
            )
        return None
