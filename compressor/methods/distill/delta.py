"""A fine-tune as what it differs in from its base, of which one or two bits a weight are enough.

    W' = B + d',   d' ≈ d = W − B

Forms of d':

* `sign`: the sign of each difference times a magnitude of its row, the mean of its |d|, which no other loses less
  than (BitDelta, arXiv 2402.10193); with `bits = 2` the nearer of two magnitudes that Lloyd's iteration finds;
* `mixed`: as many pairs of singular vectors of d as `bits` a weight allow, in codes of 8, 4, 3 and 2 bits, the
  largest in the most (Delta-CoMe, arXiv 2406.08903; `_delta_mixed.py`);
* `base`: nothing, the base's own numbers;
* `auto`: `base` for tensors that are the base's already, which a pass over both finds, `sign` for all others.

Tensors that have no floats of their name and shape in the base stay whole, and so do vectors, as they are.

Stored: for `NAME` [rows, columns] `NAME.signs` U8 [rows, ⌈columns/8⌉], a bit a weight, the first in the lowest bit,
1 for +; with two bits `NAME.larger`, likewise, 1 for the larger magnitude; `NAME.magnitudes` [rows, bits] in the
weights' dtype (F32 for FP8). Of `mixed` for the r vectors of b = 8, 4, 3 and 2 bits `NAME.left8` U8 [rows, ⌈b·r/8⌉]
and `NAME.right8` U8 [r, ⌈b·columns/8⌉], and so on; `NAME.left_steps` and `NAME.right_steps` [all of them] F32, of
F64 F64. Of `base` `NAME.unchanged` U8 [1], a 1. Error: there is no bound, the weights' largest number says nothing
of a difference; of normally distributed ones 1 bit leaves 0.60, 2 bits 0.34 of their norm.

    B = [[1, 2]], W = [[1.5, 1]]: d = [[0.5, -1]], which becomes [[+, -]] with a magnitude of 0.75
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, NamedTuple

from compressor.core.errors import UsageError
from compressor.core.lazy import np
from compressor.core.metrics import dot, relative
from compressor.core.tensor import DTYPES, TensorSpec
from compressor.methods.contract import Block, ByTensor, Encoder, Method, Prepared, Scheme, Survey
from compressor.methods.distill._delta_mixed import WIDTHS, Ranks, RoundingVectors, VectorCodes, ranks_for
from compressor.methods.distill._delta_signs import SignBits, Signing
from compressor.methods.distill._differences import BASE, Difference, Differing, Leaving, Unchanged, difference
from compressor.methods.distill._factored import converging, seed_of
from compressor.methods.numerics import svd
from compressor.methods.options import option


@dataclass(frozen=True)
class Delta(Scheme):
    """What a fine-tune differs in from its base, in one or two bits a weight."""

    verb: ClassVar[str] = "distill"
    id: ClassVar[str] = "delta"
    partners: ClassVar[tuple[str, ...]] = (BASE,)
    partner_optional: ClassVar[bool] = True
    keeps_zeros: ClassVar[bool] = False

    form: Literal["auto", "sign", "mixed", "base"] = option("auto", help="how differences are stored")
    bits: float | None = option(
        None, help="bits of a difference: 1, 2, of mixed any number; unset: 1", low=0, high=8, open_low=True
    )
    ranks: str | None = option(
        None, help="singular vectors of 8, 4, 3 and 2 bits, such as 2,6,20,60; unset: the best of so many bits"
    )
    svd: Literal["auto", "exact", "randomized"] = option("auto", help="how singular vectors are found")
    seed: int = option(0, help="of what randomised ones begin with", low=0, high=2**63)
    base: str | None = option(None, help="the checkpoint that INPUT was trained from", free=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.form == "base" and self.bits is not None:
            raise UsageError("bits has no meaning for the form base, which stores nothing")
        if self.form in ("auto", "sign") and self.bits not in (None, 1, 2):
            raise UsageError(f"the form sign takes 1 or 2 bits, not {self.bits:g}", remedy="Give the form mixed")
        if self.ranks is not None:
            if self.form != "mixed" or self.bits is not None:
                raise UsageError("ranks are those of the form mixed, in the place of bits")
            counts = self.ranks.split(",")
            if len(counts) != len(WIDTHS) or not all(re.fullmatch("[0-9]{1,8}", one) for one in counts):
                raise UsageError("ranks must be four numbers such as 2,6,20,60")
            if not any(map(int, counts)):
                raise UsageError("ranks must not all be 0")

    @property
    def partner_path(self) -> str | None:
        return self.base

    def without_path(self) -> Delta:
        return replace(self, base=None)

    @property
    def counted(self) -> bool:
        """Whether the data tells how a tensor is stored."""
        return self.form == "auto" or (self.form == "mixed" and self.ranks is None)

    @property
    def reach(self) -> Literal["tensor", "model"]:
        return "model" if self.counted else "tensor"

    @property
    def whole(self) -> bool:  # type: ignore[override]
        return self.form == "mixed"

    @property
    def linear_algebra(self) -> bool:  # type: ignore[override]
        return self.form == "mixed"

    def memory(self, spec: TensorSpec) -> int:
        """Of `mixed`: the matrix and the base's, as stored and as numbers, what singular vectors take, and these in
        float64, once as they are and once rounded."""
        if self.form != "mixed":
            return 0
        short, item = min(spec.matrix), int(DTYPES[spec.dtype].compute[-1])
        return 2 * spec.nbytes + spec.size * 5 * item + 8 * (6 * short * short + 4 * sum(spec.matrix) * short)

    def _fitting(self, spec: TensorSpec) -> Ranks:
        """The ranks that are named, as far as the tensor has so many pairs of vectors."""
        left, found = min(spec.matrix), []
        for count in map(int, (self.ranks or "0,0,0,1").split(",")):
            found.append(min(count, left))
            left -= found[-1]
        eight, four, three, two = found
        return eight, four, three, two

    def decoder_for(self, spec: TensorSpec) -> Difference | None:
        return None if self.counted else self.encoder_for(spec).decoder

    def prepare(self, specs: Sequence[TensorSpec]) -> Prepared:
        return Changes(self) if self.counted else self.encoder_for(specs[0])

    def encoder_for(self, spec: TensorSpec, note: str = "") -> Differing:
        """What stores differences in a form that is settled; `note` is for the user."""
        if self.form == "base":
            return Leaving(Unchanged(self, note))
        if self.form == "mixed":
            found = VectorCodes(self, note, self._fitting(spec))
            return RoundingVectors(found, seed_of(self.svd, self.seed, spec, sum(found.ranks)))
        bits = int(self.bits or 1)
        return Signing(SignBits(replace(self, bits=bits), note, bits))

    def settled_as(self, *, ranks: Ranks | None = None, changed: bool) -> Delta:
        """This method with the form for a tensor that is, or is not, another than the base's."""
        if not changed:
            return replace(self, form="base", bits=None)
        if ranks is None:
            return replace(self, form="sign")
        return replace(self, bits=None, ranks=",".join(map(str, ranks)))

    def describe(self) -> dict[str, Any]:
        found = super().describe()
        if self.form != "mixed":
            del found["svd"], found["seed"]
        if self.bits is not None and self.bits == int(self.bits):
            found["bits"] = int(self.bits)
        return found


class Seen(NamedTuple):
    """Of one tensor: whether it is another than the base's, Σ (W − B)² and Σ W², and of `mixed` its ranks."""

    changed: bool
    lost: float
    energy: float
    ranks: Ranks | None = None


@dataclass(frozen=True)
class Changes(Survey[dict[str, Seen]]):
    """What each tensor differs in from its base, by name."""

    asked: Delta

    def start(self) -> dict[str, Seen]:
        return {}

    def observe(self, block: Block, stats: dict[str, Seen]) -> dict[str, Seen]:
        found, ranks = difference(block), None
        changed = bool(np.any(found))
        if changed and self.asked.form == "mixed":
            small, _ = svd.scaled(found)
            with converging(block.spec):
                values = svd.spectrum(small, wide=DTYPES[block.spec.dtype].compute == "<f8")
            ranks = ranks_for(values, block.spec, self.asked.bits or 1)
        with np.errstate(all="ignore"):  # as `dot` wants it
            seen = Seen(changed, dot(found, found), dot(block.values, block.values), ranks)
        return self.merge(stats, {block.spec.name: seen})

    def merge(self, stats: dict[str, Seen], more: dict[str, Seen]) -> dict[str, Seen]:
        for name, one in more.items():
            other = stats.get(name)
            if other is not None:  # never of `mixed`, which sees a tensor whole
                one = Seen(one.changed or other.changed, other.lost + one.lost, other.energy + one.energy)
            stats[name] = one
        return stats

    def conclude(self, stats: dict[str, Seen]) -> FormByTensor:
        total = relative(sum(one.lost for one in stats.values()), sum(one.energy for one in stats.values()))
        forms = {name: self.asked.settled_as(changed=one.changed, ranks=one.ranks) for name, one in stats.items()}
        return FormByTensor(forms, f"without them the base's relative error is {total:.4g}")


@dataclass(frozen=True)
class FormByTensor(ByTensor):
    """The method with a form that is settled, for each tensor by name."""

    forms: Mapping[str, Delta]
    note: str

    def of(self, spec: TensorSpec, own: Method) -> Encoder:
        return self.forms[spec.name].encoder_for(spec, self.note)


METHOD = Delta
