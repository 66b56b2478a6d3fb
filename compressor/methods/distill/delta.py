"""A fine-tune as what it differs in from its base, of which one or two bits a weight are enough.

    W' = B + d',   d' ≈ d = W − B

Forms of d':

* `sign`: the sign of each difference times a magnitude of its row, the mean of its |d|, which no other loses less
  than (BitDelta, arXiv 2402.10193); with `bits = 2` the nearer of two magnitudes that Lloyd's iteration finds;
* `base`: nothing, the base's own numbers;
* `auto`: `base` for tensors that are the base's already, which a pass over both finds, `sign` for all others.

Tensors that have no floats of their name and shape in the base stay whole, and so do vectors, as they are.

Stored: for `NAME` [rows, columns] `NAME.signs` U8 [rows, ⌈columns/8⌉], a bit a weight, the first in the lowest bit,
1 for +; with two bits `NAME.larger`, likewise, 1 for the larger magnitude; `NAME.magnitudes` [rows, bits] in the
weights' dtype (F32 for FP8). Of `base` `NAME.unchanged` U8 [1], a 1. Error: there is no bound, the weights' largest
number says nothing of a difference; of normally distributed ones 1 bit leaves 0.60, 2 bits 0.34 of their norm.

    B = [[1, 2]], W = [[1.5, 1]]: d = [[0.5, -1]], which becomes [[+, -]] with a magnitude of 0.75
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from compressor.core.errors import UsageError
from compressor.core.lazy import np
from compressor.core.metrics import dot, relative
from compressor.core.tensor import TensorSpec
from compressor.methods.contract import Block, ByTensor, Encoder, Method, Prepared, Scheme, Survey
from compressor.methods.distill._delta_signs import SignBits, Signing
from compressor.methods.distill._differences import BASE, Difference, Differing, Leaving, Unchanged, difference
from compressor.methods.options import option


@dataclass(frozen=True)
class Delta(Scheme):
    """What a fine-tune differs in from its base, in one or two bits a weight."""

    verb: ClassVar[str] = "distill"
    id: ClassVar[str] = "delta"
    partners: ClassVar[tuple[str, ...]] = (BASE,)
    partner_optional: ClassVar[bool] = True
    keeps_zeros: ClassVar[bool] = False

    form: Literal["auto", "sign", "base"] = option("auto", help="how differences are stored")
    bits: int | None = option(None, help="bits of a difference; unset: 1", low=1, high=2)
    base: str | None = option(None, help="the checkpoint that INPUT was trained from", free=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.form == "base" and self.bits is not None:
            raise UsageError("bits has no meaning for the form base, which stores nothing")

    @property
    def partner_path(self) -> str | None:
        return self.base

    def without_path(self) -> Delta:
        return replace(self, base=None)

    @property
    def reach(self) -> Literal["tensor", "model"]:
        return "model" if self.form == "auto" else "tensor"

    def decoder_for(self, spec: TensorSpec) -> Difference | None:
        if self.form == "auto":
            return None
        return self.encoder_for().decoder

    def prepare(self, specs: Sequence[TensorSpec]) -> Prepared:
        return Changes() if self.form == "auto" else self.encoder_for()

    def encoder_for(self, note: str = "") -> Differing:
        """What stores differences in a form that is settled; `note` is for the user."""
        if self.form == "base":
            return Leaving(Unchanged(self, note))
        bits = self.bits or 1
        return Signing(SignBits(replace(self, bits=bits), note, bits))

    def settled_as(self, *, changed: bool) -> Delta:
        """This method with the form for a tensor that is, or is not, another than the base's."""
        return replace(self, form="sign") if changed else replace(self, form="base", bits=None)


@dataclass(frozen=True)
class Changes(Survey[dict[str, tuple[bool, float, float]]]):
    """Of each tensor, by name: whether it is another than the base's, Σ (W − B)² and Σ W²."""

    def start(self) -> dict[str, tuple[bool, float, float]]:
        return {}

    def observe(self, block: Block, stats: dict[str, tuple[bool, float, float]]) -> Any:
        found = difference(block)
        with np.errstate(all="ignore"):  # as `dot` wants it
            seen = bool(np.any(found)), dot(found, found), dot(block.values, block.values)
        return self.merge(stats, {block.spec.name: seen})

    def merge(self, stats: dict[str, tuple[bool, float, float]], more: Any) -> dict[str, tuple[bool, float, float]]:
        for name, (changed, lost, energy) in more.items():
            before = stats.get(name, (False, 0.0, 0.0))
            stats[name] = before[0] or changed, before[1] + lost, before[2] + energy
        return stats

    def conclude(self, stats: dict[str, tuple[bool, float, float]]) -> FormByTensor:
        lost, energy = (sum(seen[place] for seen in stats.values()) for place in (1, 2))
        changed = tuple(sorted(name for name, seen in stats.items() if seen[0]))
        return FormByTensor(changed, f"without them the base's relative error is {relative(lost, energy):.4g}")


@dataclass(frozen=True)
class FormByTensor(ByTensor):
    """The form of each tensor, by the names of those that `changed`."""

    changed: tuple[str, ...]
    note: str

    def of(self, spec: TensorSpec, own: Method) -> Encoder:
        assert isinstance(own, Delta)  # noqa: S101 - it equals the one that was surveyed
        return own.settled_as(changed=spec.name in self.changed).encoder_for(self.note)


METHOD = Delta
