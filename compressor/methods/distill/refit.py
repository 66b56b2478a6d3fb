"""Solve what is free in a compressed student so that every layer's outputs are nearest to its teacher's.

    W', b' = argmin E ‖(T x + t) − (W' x + b')‖²     over the inputs x of the layer, by their statistics

T, t are the teacher's weight and bias. Free is what the student's form leaves free:

* of a student stored as numbers, the weights that are not zero: what was pruned stays zero
  (`masked_least_squares.py`);
* of one stored as integer codes, the scales, and with `zero_points` the zero points too; of a codebook, its
  entries. The codes stay (`refit_codes.py`). A row, or a codebook, that would lose more once its numbers
  are rounded stays as it is;
* the bias of a layer that has one: b' = t + (T − W') E[x]. Then W' is solved for the inputs less their mean, which
  is the best for both together.

The gram E[x xᵀ] is damped (`hessian.py`): `damp` times its mean diagonal is added, and weights of inputs that were
never active are the teacher's. Statistics are best taken from the teacher, whose inputs these are; a few thousand
rows of them do. Layers with a bias are solved in a pass of their own, because the bias waits for the weights; what
that solved is kept up to 256 MB, and what is beyond that is solved again.

Stored: as the student is. Error: zeros stay zero, and beyond that nothing bounds the weights themselves.

    T = [[2, 1]], student [[2, 0]], inputs that are always alike: x₂ = x₁. W' is [[3, 0]]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from math import inf
from typing import ClassVar, Literal

from compressor.architectures.roles import is_embedding
from compressor.core.errors import UsageError
from compressor.core.floats import largest, narrow, widen
from compressor.core.lazy import np
from compressor.core.metrics import Change
from compressor.core.tensor import DTYPES, TensorSpec
from compressor.core.tensor_names import weight_of
from compressor.core.workspace import Array
from compressor.methods.contract import (
    Block,
    ByTensor,
    Decoder,
    Encoder,
    Method,
    Scheme,
    Skip,
    Survey,
    Transform,
    Treatment,
)
from compressor.methods.numerics.hessian import Conditioned, conditioned, conditioned_memory
from compressor.methods.numerics.masked_least_squares import masked
from compressor.methods.options import option
from compressor.methods.unlisted import refit_codes

_DEAD = 1e-6  # what an input that is never active weighs in mean diagonals, beside the damping
_HELD = 1 << 28  # bytes of solved weights that are kept from one pass to the next


@dataclass(frozen=True)
class Refit(Scheme):
    """Free weights, scales, codebooks and biases of a student, solved for its teacher's outputs."""

    verb: ClassVar[str] = "distill"
    id: ClassVar[str] = "refit"
    partners: ClassVar[tuple[str, ...]] = ("teacher",)
    biases: ClassVar[bool] = True
    at_once: ClassVar[int] = 1 << 21
    linear_algebra: ClassVar[bool] = True

    damp: float | None = option(
        None, help="added to the gram, in mean diagonals; unset: 0.01, more where that is too little", low=0
    )
    zero_points: bool = option(
        False, help="refit zero points too, so that zeros may become other numbers", off="fixed-zero-points"
    )

    # what the planner tells of one tensor; the tensors of a layer are surveyed together all the same
    stored: Decoder | None = field(default=None, compare=False)  # what the student's codes are stored as
    vector: bool = field(default=False, compare=False)  # it is a bias

    # ---- what it is for a tensor -----------------------------------------------------------------------

    def for_stored_as(self, spec: TensorSpec, decoder: Decoder | None) -> Refit:
        if len(spec.shape) < 2:
            return replace(self, vector=True, stored=None)
        exact = decoder is not None and decoder.exact  # a sparse layout of floats: they are refit as numbers
        return replace(self, stored=None if exact else decoder, vector=False)

    @property
    def statistics(self) -> Literal["", "gram"]:  # type: ignore[override]
        return "" if self.vector else "gram"

    @property
    def numbers_only(self) -> bool:  # type: ignore[override]
        return self.stored is None

    @property
    def keeps_zeros(self) -> bool:  # type: ignore[override]
        return not self.zero_points and not self.vector

    @property
    def whole(self) -> bool:  # type: ignore[override]
        return self.stored is not None and refit_codes.shared(self.stored)

    def skip(self, spec: TensorSpec) -> Skip | None:
        if not self.vector and is_embedding(spec.name):
            return Skip("embedding: its rows are looked up, and no input weighs them")
        if self.stored is not None and not refit_codes.knows(self.stored):
            raise UsageError(
                f"is stored as {self.stored.label}, whose parts cannot be refit",
                tensor=spec.name,
                remedy="Exclude it, or restore it first; integers of the schemes int (not in MLX's layout) and "
                "codebook can",
            )
        return None

    def decoder_for(self, spec: TensorSpec) -> Decoder | None:
        return self.stored

    def codes(self, spec: TensorSpec) -> Refit | None:
        scheme = None if self.stored is None else self.stored.scheme
        inner = None if scheme is None else scheme.codes(spec)
        return None if inner is None else replace(self, stored=inner.decoder_for(spec))

    def memory(self, spec: TensorSpec) -> int:
        """The gram and its factor; and some whole rows, or where they share their numbers all, in float64."""
        if self.vector:
            return 0
        held = spec.size if self.whole else min(spec.size, max(self.at_once, spec.matrix[1]))
        return conditioned_memory(spec.matrix[1]) + 6 * 8 * held

    def warning(self, change: Change) -> str | None:
        if self.stored is None and not self.vector and change.size and not change.zeros_before:
            return "no weight of the student is zero, so all are free, and become the teacher's"
        return None

    @property
    def reach(self) -> Literal["tensor", "model"]:
        return "model"

    def prepare(self, specs: Sequence[TensorSpec]) -> Shifts | Solved:
        """Layers with a bias are looked at first."""
        sizes = {spec.name: spec.nbytes for spec in specs}
        found = sorted(weight_of(name) for name in sizes if weight_of(name) in sizes)
        ends = accumulate(sizes[name] for name in found)
        held = frozenset(name for name, end in zip(found, ends, strict=True) if end <= _HELD)
        return Shifts(self, frozenset(found), held) if found else Solved({})


# ---- solving -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Solved(ByTensor):
    """What there is to solve for each tensor: `layers` are those with a bias, by weight, whose weights were solved
    once already, block by block."""

    layers: Mapping[str, Mapping[int, Rows]]

    def of(self, spec: TensorSpec, own: Method) -> Treatment:
        assert isinstance(own, Refit)  # noqa: S101 - it equals the one that was surveyed
        if own.vector:
            rows = self.layers.get(weight_of(spec.name))
            return Bias(None if rows is None else np.concatenate([rows[start].shift for start in sorted(rows)]))
        centred = spec.name in self.layers
        if own.stored is not None:
            return Codes(own, centred, own.stored)
        return Numbers(own, centred, self.layers.get(spec.name, {}))


@dataclass(frozen=True)
class Bias(Transform):
    """The bias of a layer: its teacher's, and what the layer's weights lack in the mean."""

    shift: Array | None

    def apply(self, block: Block, out: Array) -> None:
        teacher = block.partners["teacher"].astype(np.float64)
        settle(teacher if self.shift is None else teacher + self.shift, block, out)


@dataclass(frozen=True)
class Numbers(Transform):
    """The weights of a layer that are not zero; `centred` where its bias is solved too. `known` are rows that were
    solved before."""

    asked: Refit
    centred: bool
    known: Mapping[int, Rows] = field(default_factory=dict)

    def apply(self, block: Block, out: Array) -> None:
        known = self.known.get(block.start)
        if known is not None and known.stored is not None and known.stored.shape == out.shape:
            block.remarks.extend(known.remarks)
            np.copyto(out, widen(known.stored, block.spec.dtype, block.work, "refit.wide"))
            return
        teacher, of = block.partners["teacher"].astype(np.float64), gram_of(self.asked, block, centred=self.centred)
        of.tell(block)
        power = np.frexp(np.abs(teacher).max(axis=1, keepdims=True))[1]
        found = masked(np.ldexp(teacher, -power), block.values != 0, of.gram)
        with np.errstate(over="ignore"):  # it is held at the dtype's largest number
            found = np.ldexp(found, power)
        settle(found, block, out)


@dataclass(frozen=True)
class Codes(Encoder):
    """The scales, zero points or entries of a layer's codes, which lie as `target` says."""

    asked: Refit
    centred: bool
    target: Decoder

    @property
    def decoder(self) -> Decoder:
        return self.target

    def bound(self, largest: float, spec: TensorSpec) -> float:
        """Scales follow the teacher's weights, not the student's."""
        return inf

    def as_codes(self, spec: TensorSpec) -> Codes | None:
        asked = self.asked.codes(spec)
        return None if asked is None or asked.stored is None else Codes(asked, self.centred, asked.stored)

    def encode(self, block: Block, parts: Mapping[str, Array] | None, restored: Array) -> None:
        teacher, of = block.partners["teacher"].astype(np.float64), gram_of(self.asked, block, centred=self.centred)
        of.tell(block)
        move = self.asked.zero_points
        refit_codes.refit(block, teacher, of.gram, self.target, parts, restored, zero_points=move)


def gram_of(asked: Refit, block: Block, *, centred: bool) -> Conditioned:
    """The damped gram of the block's layer; `centred`: of its inputs less their mean."""
    layer = block.inputs
    assert layer is not None  # noqa: S101 - the method asked for it
    return block.work.once(
        "refit.gram",
        (id(layer), "refit.gram", asked.damp, centred),
        lambda: conditioned(layer, asked.damp, block.spec.name, centred=centred, dead=_DEAD),
    )


def settle(found: Array, block: Block, out: Array) -> None:
    """Numbers (float64) as the tensor's dtype has them; +0 for −0."""
    dtype, top = block.spec.dtype, largest(block.spec.dtype)
    np.clip(found, -top, top, out=found)
    np.add(found, 0.0, out=out, casting="same_kind")
    stored = block.work.array("refit.settled", found.shape, DTYPES[dtype].storage)
    narrow(out, dtype, stored)
    np.copyto(out, widen(stored, dtype, block.work, "refit.wide"))


# ---- biases ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rows:
    """Of some rows of a layer with a bias: what their outputs lack in the mean, once the weights are refit [rows];
    these as they are stored [rows, columns], None where they have to be solved again, and what is to be said."""

    shift: Array
    stored: Array | None
    remarks: list[str]


Seen = dict[str, dict[int, Rows]]  # by weight and first row of a block


@dataclass(frozen=True)
class Shifts(Survey[Seen]):
    """What the outputs of layers with a bias lack in the mean, once their weights are refit: (T − W') E[x]. The
    weights of those that are `held` are kept."""

    method: Refit
    weights: frozenset[str]
    held: frozenset[str]

    def start(self) -> Seen:
        return {}

    def wants(self, spec: TensorSpec) -> bool:
        return spec.name in self.weights

    def observe(self, block: Block, stats: Seen) -> Seen:
        spec, work = block.spec, block.work
        assert block.inputs is not None  # noqa: S101 - the method asked for them
        restored = work.array("refit.restored", block.values.shape, block.values.dtype.str)
        coded = block.coded is not None and not block.coded.decoder.exact
        if block.coded is not None and coded:
            Codes(self.method, True, block.coded.decoder).encode(block, None, restored)
        else:
            Numbers(self.method, True).apply(block, restored)
        stored = work.array("refit.stored", restored.shape, DTYPES[spec.dtype].storage)
        narrow(restored, spec.dtype, stored)  # of codes: as a loader decodes them
        apart = block.partners["teacher"].astype(np.float64) - widen(stored, spec.dtype, work, "refit.wide")
        kept = stored.copy() if spec.name in self.held and not coded else None
        rows = Rows(np.vecdot(apart, block.inputs.mean), kept, list(block.remarks))
        stats.setdefault(spec.name, {})[block.start] = rows
        return stats

    def merge(self, stats: Seen, more: Seen) -> Seen:
        for name, rows in more.items():
            stats.setdefault(name, {}).update(rows)
        return stats

    def conclude(self, stats: Seen) -> Solved:
        return Solved(stats)


METHOD = Refit
