"""Solve what is free in a compressed student so that every layer's outputs are nearest to its teacher's.

    W', b' = argmin E ‖(T x + t) − (W' x + b')‖²     over the inputs x of the layer, by their statistics

T, t are the teacher's weight and bias. Free is what the student's form leaves free:

* of a student stored as numbers, the weights that are not zero: what was pruned stays zero (`_masked.py`);
* of one stored as integer codes, the scales, and with `zero_points` the zero points too; of a codebook, its
  entries. The codes stay (`_codes.py`). A row, or a codebook, that would lose more once its numbers are rounded
  stays as it is;
* the bias of a layer that has one: b' = t + (T − W') E[x]. Then W' is solved for the inputs less their mean, which
  is the best for both together.

The gram E[x xᵀ] is damped (`_hessian.py`): `damp` times its mean diagonal is added, and weights of inputs that were
never active are the teacher's. Statistics are best taken from the teacher, whose inputs these are; a few thousand
rows of them do. Layers without a bias are solved once; with one twice, because the bias waits for the weights.

Stored: as the student is. Error: zeros stay zero, and beyond that nothing bounds the weights themselves.

    T = [[2, 1]], student [[2, 0]], inputs that are always alike: x₂ = x₁. W' is [[3, 0]]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import inf
from typing import Any, ClassVar, Literal

from compressor.architectures.roles import is_embedding
from compressor.core.errors import UsageError
from compressor.core.floats import largest, narrow, widen
from compressor.core.lazy import np
from compressor.core.metrics import Change
from compressor.core.tensor import DTYPES, TensorSpec
from compressor.core.tensor_names import weight_of
from compressor.core.workspace import Array, Workspace
from compressor.methods.contract import Block, Encoder, Method, Skip, Survey
from compressor.methods.distill import _codes
from compressor.methods.distill._masked import masked
from compressor.methods.numerics.hessian import Conditioned, conditioned, conditioned_memory
from compressor.methods.options import option
from compressor.methods.parts import Part

_DEAD = 1e-6  # what an input that is never active weighs in mean diagonals, beside the damping


@dataclass(frozen=True)
class Refit(Encoder):
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

    # what the planner and a survey tell of one tensor; the tensors of a layer are surveyed together all the same
    stored: Encoder | None = field(default=None, compare=False)  # by which the student's codes are stored
    vector: bool = field(default=False, compare=False)  # it is a bias
    shifts: Mapping[str, Array] | None = field(default=None, compare=False, repr=False)  # by weight, once surveyed
    shift: Array | None = field(default=None, compare=False, repr=False)  # of this bias
    centred: bool = field(default=False, compare=False)  # the layer's bias is solved too

    # ---- what it is for a tensor -----------------------------------------------------------------------

    def upon(self, spec: TensorSpec, encoder: Encoder | None) -> Refit:
        if len(spec.shape) < 2:
            return replace(self, vector=True, stored=None)
        exact = encoder is not None and encoder.exact  # a sparse layout of floats: they are refit as numbers
        return replace(self, stored=None if exact else encoder, vector=False)

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
        return self.stored is not None and _codes.shared(self.stored)

    @property
    def written(self) -> Encoder:
        return self if self.stored is None else self.stored

    def skip(self, spec: TensorSpec) -> Skip | None:
        if not self.vector and is_embedding(spec.name):
            return Skip("embedding: its rows are looked up, and no input weighs them")
        if self.stored is not None and not _codes.knows(self.stored):
            raise UsageError(
                f"is stored as {self.stored.label}, whose parts cannot be refit",
                tensor=spec.name,
                remedy="Exclude it, or restore it first; integers of the schemes int (not in MLX's layout) and "
                "codebook can",
            )
        return None

    def parts(self, spec: TensorSpec) -> tuple[Part, ...]:
        return (Part("", spec.dtype, spec.shape),) if self.stored is None else self.stored.parts(spec)

    def codes(self, spec: TensorSpec) -> Encoder | None:
        inner = None if self.stored is None else self.stored.codes(spec)
        return None if inner is None else replace(self, stored=inner)

    def config(self, spec: TensorSpec) -> dict[str, Any] | None:
        return None if self.stored is None else self.stored.config(spec)

    def dialect(self, spec: TensorSpec) -> str:
        return "" if self.stored is None else self.stored.dialect(spec)

    def memory(self, spec: TensorSpec) -> int:
        """The gram and its factor; and some whole rows, or where they share their numbers all, in float64."""
        if self.vector:
            return 0
        held = spec.size if self.whole else min(spec.size, max(self.at_once, spec.matrix[1]))
        return conditioned_memory(spec.matrix[1]) + 6 * 8 * held

    def bound(self, largest: float, spec: TensorSpec) -> float:
        return inf

    def warning(self, change: Change) -> str | None:
        if self.stored is None and not self.vector and change.size and not change.zeros_before:
            return "no weight of the student is zero, so all are free, and become the teacher's"
        return None

    # ---- solving ---------------------------------------------------------------------------------------

    def encode(self, block: Block, parts: Mapping[str, Array] | None, restored: Array) -> None:
        teacher = block.partners["teacher"].astype(np.float64)
        if self.vector:
            self._settle(teacher if self.shift is None else teacher + self.shift, block, parts, restored)
            return
        of = self._gram(block)
        of.tell(block)
        if block.coded is not None and not block.coded.encoder.exact:
            _codes.refit(block, teacher, of.gram, self.stored, parts, restored, zero_points=self.zero_points)
            return
        power = np.frexp(np.abs(teacher).max(axis=1, keepdims=True))[1]
        found = masked(np.ldexp(teacher, -power), block.values != 0, of.gram)
        with np.errstate(over="ignore"):  # it is held at the dtype's largest number
            found = np.ldexp(found, power)
        self._settle(found, block, parts, restored)

    def _gram(self, block: Block) -> Conditioned:
        layer, key = block.inputs, ("refit.gram", self.damp, self.centred)
        assert layer is not None  # noqa: S101 - the method asked for it
        return block.work.once(
            "refit.gram",
            (id(layer), *key),
            lambda: conditioned(layer, self.damp, block.spec.name, centred=self.centred, dead=_DEAD),
        )

    @staticmethod
    def _settle(found: Array, block: Block, parts: Mapping[str, Array] | None, restored: Array) -> None:
        """Numbers of the tensor's dtype; +0 for −0."""
        dtype, top = block.spec.dtype, largest(block.spec.dtype)
        np.clip(found, -top, top, out=found)
        np.add(found, 0.0, out=restored, casting="same_kind")
        stored = block.work.array("refit.settled", found.shape, DTYPES[dtype].storage)
        narrow(restored, dtype, stored)
        np.copyto(restored, widen(stored, dtype, block.work, "refit.wide"))
        if parts is not None:
            np.copyto(parts[""], stored.reshape(parts[""].shape))

    def decode(self, parts: Mapping[str, Array], spec: TensorSpec, out: Array, start: int, work: Workspace) -> None:
        if self.stored is not None:
            self.stored.decode(parts, spec, out, start, work)
        else:
            np.copyto(out, widen(parts[""], spec.dtype, work, "refit.wide"))

    # ---- biases ----------------------------------------------------------------------------------------

    @property
    def reach(self) -> Literal["tensor", "model"]:
        return "model" if self.shifts is None else "tensor"

    def survey(self, specs: Sequence[TensorSpec]) -> Survey[Any] | None:
        if self.shifts is not None:
            return None
        names = {spec.name for spec in specs}
        found = frozenset(weight_of(name) for name in names if weight_of(name) in names)
        return Shifts(self, found) if found else None

    def for_tensor(self, name: str, own: Method) -> Method:
        assert isinstance(own, Refit)  # noqa: S101 - it equals this one
        shifts = self.shifts or {}
        return replace(own, shifts={}, shift=shifts.get(weight_of(name)), centred=name in shifts)


Seen = dict[str, dict[int, Array]]  # what outputs lack in the mean, by weight and first row of a block


@dataclass(frozen=True)
class Shifts(Survey[Seen]):
    """What the outputs of layers with a bias lack in the mean, once their weights are refit: (T − W') E[x]."""

    method: Refit
    weights: frozenset[str]

    def start(self) -> Seen:
        return {}

    def wants(self, spec: TensorSpec) -> bool:
        return spec.name in self.weights

    def observe(self, block: Block, stats: Seen) -> Seen:
        spec, work = block.spec, block.work
        assert block.inputs is not None  # noqa: S101 - the method asked for them
        restored = work.array("refit.restored", block.values.shape, block.values.dtype.str)
        replace(self.method, vector=False, stored=None, shifts={}, centred=True).encode(block, None, restored)
        stored = work.array("refit.stored", restored.shape, DTYPES[spec.dtype].storage)
        narrow(restored, spec.dtype, stored)  # of codes: as a loader decodes them
        apart = block.partners["teacher"].astype(np.float64) - widen(stored, spec.dtype, work, "refit.wide")
        stats.setdefault(spec.name, {})[block.start] = np.vecdot(apart, block.inputs.mean)
        return stats

    def merge(self, stats: Seen, more: Seen) -> Seen:
        for name, rows in more.items():
            stats.setdefault(name, {}).update(rows)
        return stats

    def conclude(self, stats: Seen) -> Refit:
        shifts = {name: np.concatenate([rows[start] for start in sorted(rows)]) for name, rows in stats.items()}
        return replace(self.method, shifts=shifts)


METHOD = Refit
