"""The smallest layout for a tensor, decided from its exact counts; it is never stored itself."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from compressor.core.errors import UsageError
from compressor.core.tensor import TensorSpec
from compressor.core.workspace import Array
from compressor.methods.contract import Decoder, Encoder, Scheme
from compressor.methods.store import Sparse, SparseParts, Storing
from compressor.methods.store.bitmask import BitmaskParts
from compressor.methods.store.csr import Csr, CsrParts
from compressor.methods.store.nm import NMParts
from compressor.methods.unlisted.dense import Dense


@dataclass(frozen=True)
class Smallest(Sparse):
    """Counts for all layouts, and takes the smallest. `inner` in its usual layout is an alternative too; without it
    the numbers as they are."""

    id: ClassVar[str] = "auto"

    def coded(self, spec: TensorSpec) -> Scheme | None:
        return None if self.inner is None else self.inner.codes(spec)

    def as_codes(self, inner: Encoder | None, spec: TensorSpec) -> Encoder | None:
        return None if inner is None else inner.as_codes(spec)

    def check(self, spec: TensorSpec) -> None:
        if self.inner is not None and self.coded(spec) is None:
            raise UsageError(
                f"scheme {self.inner.id} has no integer codes of which some could be left out",
                tensor=spec.name,
                remedy="Use --store packed",
            )
        super().check(spec)

    def counted(self, inner: Encoder | None, spec: TensorSpec, offsets: Array, *, pairs: bool) -> Encoder:
        coded = self.as_codes(inner, spec)
        usual = Dense() if inner is None else inner
        layouts: tuple[type[SparseParts], ...] = (NMParts,) if pairs else ()
        layouts = (*layouts, BitmaskParts, *((CsrParts,) if spec.matrix[1] <= Csr.longest else ()))
        found = [layout(None if coded is None else coded.decoder, offsets) for layout in layouts]
        best = min(found, key=lambda layout: _size(layout, spec))
        return Storing(best, coded) if _size(best, spec) < _size(usual.decoder, spec) else usual


def is_sparse(decoder: Decoder) -> bool:
    """Whether it is one of the sparse layouts, and not what was there already."""
    return isinstance(decoder, SparseParts)


def _size(decoder: Decoder, spec: TensorSpec) -> int:
    return sum(replace(spec, dtype=part.dtype, shape=part.shape).nbytes for part in decoder.parts(spec))
