"""The smallest layout for a tensor, decided from its exact counts; it is never stored itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from compressor.core.errors import UsageError
from compressor.core.tensor import TensorSpec
from compressor.core.workspace import Array, Workspace
from compressor.methods.contract import Block, Encoder
from compressor.methods.parts import Part
from compressor.methods.store._sparse import Sparse
from compressor.methods.store.bitmask import Bitmask
from compressor.methods.store.csr import Csr
from compressor.methods.store.nm import NM


@dataclass(frozen=True)
class Auto(Sparse):
    """Counts for all layouts. `inner` is the encoder in its usual layout, which is an alternative too."""

    id: ClassVar[str] = "auto"

    def coded(self, spec: TensorSpec) -> Encoder | None:
        return None if self.inner is None else self.inner.codes(spec)

    def check(self, spec: TensorSpec) -> None:
        if self.inner is not None and self.coded(spec) is None:
            raise UsageError(
                f"scheme {self.inner.id} has no integer codes of which some could be left out",
                tensor=spec.name,
                remedy="Use --store packed",
            )
        super().check(spec)

    def choose(self, spec: TensorSpec) -> Sparse | None:
        """The smallest layout, once counted; None where dense (or packed) is as small."""
        coded = self.coded(spec)
        dense = spec.nbytes if self.inner is None else _size(self.inner, spec)
        found = [
            layout(coded, settled=True, offsets=self.offsets)
            for layout in (NM, Bitmask, Csr)
            if (layout is not NM or self.pairs) and (layout is not Csr or spec.matrix[1] <= Csr.longest)
        ]
        best = min(found, key=lambda layout: _size(layout, spec))
        return best if _size(best, spec) < dense else None

    def layout(self, spec: TensorSpec) -> tuple[Part, ...]:
        raise TypeError("a layout has to be chosen first")

    def store(self, elements: Array, parts: Mapping[str, Array], block: Block) -> None:
        raise TypeError("a layout has to be chosen first")

    def load(
        self, parts: Mapping[str, Array], elements: Array, spec: TensorSpec, start: int, work: Workspace
    ) -> None:
        raise TypeError("a layout has to be chosen first")


def _size(encoder: Encoder, spec: TensorSpec) -> int:
    return sum(replace(spec, dtype=part.dtype, shape=part.shape).nbytes for part in encoder.parts(spec))
