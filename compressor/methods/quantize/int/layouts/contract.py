"""What a way of storing scaled integer codes provides: one class each, in the files beside this one.

A layout declares its parts from the tensor's spec and moves (unsigned codes, stored scales, unsigned zero
points) into them and out again. Codes are uint8 [rows, columns], offset by half their range; scales have
their storage type and the part's shape; zero points are uint8 [rows or 1, groups], None where symmetric.
`scheme.py` has the table of the parts of all layouts.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from compressor.core import kernels
from compressor.core.lazy import np
from compressor.core.tensor import TensorSpec
from compressor.core.workspace import Array, Workspace
from compressor.methods.numerics import scales
from compressor.methods.parts import Part


@dataclass(frozen=True)
class CodeLayout(ABC):
    """`bits` a code; `symmetric` codes have no zero points; `whole`: one scale for the tensor."""

    bits: int
    symmetric: bool
    whole: bool
    name: ClassVar[str]  # what the option `layout` calls it
    scale: ClassVar[str] = "_scale"
    dialect: ClassVar[str] = ""  # whose loaders take the layout, where compressed-tensors' do not
    matrices: ClassVar[bool] = True  # whether it holds matrices only
    trains: ClassVar[bool] = False  # whether scales can be changed while the codes stay as they are
    own_scales: ClassVar[bool] = False  # whether the layout alone decides the dtype of scales
    plain: ClassVar[bool] = True  # whether loaders compute s·(q − z), unrounded

    @staticmethod
    def scale_dtype(spec: TensorSpec) -> str:
        """The dtype of the scales of this tensor."""
        return "F32" if spec.dtype.startswith("F8") else spec.dtype

    @staticmethod  # noqa: B027 - most hold any such codes
    def check(bits: int, symmetric: bool, grain: str, group: int) -> None:
        """UsageError where the layout cannot hold such codes of any tensor."""

    def config(self, grain: str, group: int) -> dict[str, Any] | None:
        """What the config.json of the layout's dialect says of such codes, with one scale for each `grain`, groups
        being of `group` weights; None where only `restore` reads them."""
        return None

    @abstractmethod
    def parts(self, spec: TensorSpec, scale_dtype: str, scale_shape: tuple[int, ...]) -> tuple[Part, ...]:
        """The parts that the layout stores of the tensor; `scale_shape` is [rows, groups] or [1]."""

    @abstractmethod
    def pack(
        self,
        codes: Array,
        scale: Array,
        zero: Array | None,
        parts: Mapping[str, Array],
        first: bool,
        work: Workspace,
    ) -> None:
        """Fill the rows of `parts` that belong to these codes; `first`: the tensor's first rows are among them."""

    def settle(self, grouped: Array, scale: Array, zero: Array | None, dtype: str) -> tuple[Array, Array | None]:
        """Chosen scales (of `dtype`, stored type) and zero points as far as the layout's arithmetic allows them,
        for these weights [rows, groups, size]. May change both in place."""
        return scale, zero

    def numbers(self, centred: Array, scale: Array, zero: Array | None, dtype: str, work: Workspace) -> None:
        """What loaders make of q − z, in place [rows, groups, size]; `scale` broadcasts and is of `dtype`."""
        scales.apply(np.multiply, centred, scale, centred)

    @abstractmethod
    def decode(self, parts: Mapping[str, Array], grouped: Array, dtype: str, work: Workspace) -> None:
        """Restore [rows, groups, size] from the parts, whose scales are of `dtype`."""

    def slack(self, weight: float, spec: TensorSpec) -> float:
        """What the layout's arithmetic may add to the error, where no weight of the tensor exceeds `weight`."""
        return 0.0

    def _store_scale(self, scale: Array, parts: Mapping[str, Array], first: bool) -> None:
        if first or not self.whole:
            parts[self.scale][...] = scale.reshape(parts[self.scale].shape)

    def _scale_part(self, dtype: str, shape: tuple[int, ...]) -> Part:
        return Part(self.scale, dtype, shape, every=0 if self.whole else 1)

    def _scheme(self, grain: str, group: int, *, rounds_inputs: bool) -> dict[str, Any]:
        """A scheme of compressed-tensors'; `rounds_inputs`: loaders quantize activations too, token by token."""
        common = {"num_bits": self.bits, "type": "int", "symmetric": self.symmetric}
        weights = {"group_size": group if grain == "group" else None, "strategy": grain, "dynamic": False}
        activations = {**common, "group_size": None, "strategy": "token", "dynamic": True}
        return {
            "format": self.name,
            "weights": {**common, **weights},
            "input_activations": activations if rounds_inputs else None,
            "output_activations": None,
        }


class Scaled(CodeLayout):
    """A layout of codes, scales and zero points that stand for s·(q − z)."""

    trains: ClassVar[bool] = True

    @abstractmethod
    def unpack(self, parts: Mapping[str, Array], codes: Array, work: Workspace) -> Array | None:
        """Fill `codes` and return the zero points."""

    def scales(self, parts: Mapping[str, Array]) -> Array:
        """The stored scales, [rows, groups] or [1]."""
        return parts[self.scale]

    def decode(self, parts: Mapping[str, Array], grouped: Array, dtype: str, work: Workspace) -> None:
        rows, kind = len(grouped), grouped.dtype.type
        codes = work.array("int.codes", (rows, grouped.shape[1] * grouped.shape[2]), "|u1")
        zero = self.unpack(parts, codes, work)
        offset = (
            np.full((1, 1, 1), 1 << (self.bits - 1), kind)
            if zero is None
            else np.ascontiguousarray(zero, kind)[..., None]
        )
        scale = scales.wide_scale(self.scales(parts), dtype).astype(kind, copy=False)
        if kernels.scaled_codes(codes, scale, offset, grouped):
            return
        np.copyto(grouped, codes.reshape(grouped.shape))
        np.subtract(grouped, offset, out=grouped)
        scales.apply(np.multiply, grouped, scale.reshape((1, 1, 1) if self.whole else (*scale.shape, 1)), grouped)
