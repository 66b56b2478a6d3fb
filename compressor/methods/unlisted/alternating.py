"""Weights that a quantizer and a low-rank adapter share between them: each in turn takes what the other leaves.

    S₀ = q(T),   D_t = the best of rank r for T − S_t,   S_{t+1} = q(T − D_t)

LoftQ's iteration (arXiv 2310.08659). Of all rounds the one with the least ‖T − S_t − D_t‖ is taken, so the result
is never worse than the first, which is a student quantized by itself with its adapter. Given out is what that S_t
was quantized from, for the quantizing stage that follows.

Stored: nothing of it; it is a step on the way.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from compressor.core.floats import settle
from compressor.core.lazy import np
from compressor.core.metrics import dot
from compressor.core.tensor import DTYPES, TensorSpec
from compressor.core.workspace import Array
from compressor.methods.contract import Block, Encoder, PlainTransform, Scheme, Survey
from compressor.methods.distill.residual import Residual


@dataclass(frozen=True)
class Alternating(PlainTransform):
    """`times` quantizing by `inner` what `adapter`, of a given rank, leaves of a tensor."""

    verb: ClassVar[str] = "distill"
    id: ClassVar[str] = "alternating"
    whole: ClassVar[bool] = True
    linear_algebra: ClassVar[bool] = True
    keeps_zeros: ClassVar[bool] = False

    adapter: Residual
    inner: Scheme
    times: int

    @property
    def statistics(self) -> Literal["", "square", "gram"]:  # type: ignore[override]
        return self.adapter.statistics

    def with_statistics(self) -> Alternating:
        return replace(self, adapter=replace(self.adapter, informed=True))

    def describe(self) -> dict[str, Any]:
        return {"method": self.id, "rank": self.adapter.rank, "rounds": self.times}

    def memory(self, spec: TensorSpec) -> int:
        return self.adapter.memory(spec) + 3 * spec.size * int(DTYPES[spec.dtype].compute[-1])

    def apply(self, block: Block, out: Array) -> None:
        best, adapter = float("inf"), self.adapter.of_rank(self.adapter.rank or 1)
        target, given = block.values, np.empty_like(block.values)
        for _ in range(self.times + 1):
            student = self._quantized(target, block)
            pair = Block(student, 0, block.spec, block.work, {"teacher": block.values}, block.inputs)
            adapter.encode(pair, None, given)
            left = block.values - student - given
            gram = self.adapter.gram(block)
            lost = dot(left, left) if gram is None else dot(left @ gram, left.astype(np.float64))
            if not lost >= best:
                best = lost
                np.copyto(out, target)
            target = block.values - given

    def _quantized(self, target: Array, block: Block) -> Array:
        """What comes back of the target from its codes, in the tensor's dtype."""
        spec, work = block.spec, block.work
        whole = Block(target, 0, spec, work, {}, None)
        found = self.inner.prepare([spec])
        while isinstance(found, Survey):
            found = found.conclude(found.observe(whole, found.start()))
        assert isinstance(found, Encoder)  # noqa: S101 - a scheme that looks at one tensor at a time makes one
        restored = np.empty_like(target)
        found.encode(whole, None, restored)
        return settle(restored, spec.dtype, np.empty(target.shape, DTYPES[spec.dtype].storage), work).copy()
