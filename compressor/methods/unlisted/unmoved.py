"""The codes of a student that was trained without leaving them: its parts go into the output as they then are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf
from typing import Any, ClassVar

from compressor.core.lazy import np
from compressor.core.tensor import TensorSpec
from compressor.core.workspace import Array, Workspace
from compressor.methods.contract import Block, Encoder
from compressor.methods.parts import Part


@dataclass(frozen=True)
class Unmoved(Encoder):
    """What `stored` stored, once more. It is no method that a user names: training leaves it."""

    verb: ClassVar[str] = "distill"
    id: ClassVar[str] = "soft-targets"

    stored: Encoder

    @property
    def written(self) -> Encoder:
        return self.stored

    @property
    def exact(self) -> bool:
        return self.stored.exact

    def parts(self, spec: TensorSpec) -> tuple[Part, ...]:
        return self.stored.parts(spec)

    def config(self, spec: TensorSpec) -> dict[str, Any] | None:
        return self.stored.config(spec)

    def dialect(self, spec: TensorSpec) -> str:
        return self.stored.dialect(spec)

    def bound(self, largest: float, spec: TensorSpec) -> float:
        return inf

    def encode(self, block: Block, parts: Mapping[str, Array] | None, restored: Array) -> None:
        np.copyto(restored, block.values)
        if parts is not None:
            assert block.coded is not None  # noqa: S101 - the planner gives it to no other tensor
            for suffix, part in parts.items():
                np.copyto(part, block.coded.parts[suffix].reshape(part.shape))

    def decode(self, parts: Mapping[str, Array], spec: TensorSpec, out: Array, start: int, work: Workspace) -> None:
        self.stored.decode(parts, spec, out, start, work)
