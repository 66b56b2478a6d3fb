"""The codes of a student that was trained without leaving them: its parts go into the output as they then are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from compressor.core.lazy import np
from compressor.core.tensor import TensorSpec
from compressor.core.workspace import Array
from compressor.methods.contract import Block, Decoder, Encoder, Scheme


@dataclass(frozen=True)
class Unmoved(Scheme, Encoder):
    """What `stored` stored, once more. It is no method that a user names: training leaves it."""

    verb: ClassVar[str] = "distill"
    id: ClassVar[str] = "soft-targets"
    rows_alone: ClassVar[bool] = True

    stored: Decoder

    @property
    def decoder(self) -> Decoder:
        return self.stored

    def decoder_for(self, spec: TensorSpec) -> Decoder:
        return self.stored

    def prepare(self, specs: Sequence[TensorSpec]) -> Unmoved:
        return self

    def encode(self, block: Block, parts: Mapping[str, Array] | None, restored: Array) -> None:
        np.copyto(restored, block.values)
        if parts is not None:
            assert block.coded is not None  # noqa: S101 - the planner gives it to no other tensor
            for suffix, part in parts.items():
                np.copyto(part, block.coded.parts[suffix].reshape(part.shape))
