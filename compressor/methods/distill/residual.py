"""What a pruned or quantized student lost, as a low-rank adapter that PEFT loads on top of it (LoRA).

    S + B·A ≈ T,   B·A = argmin ‖T − S − D‖ over matrices D of rank r

S is the student as its loader sees it: decoded, where it is quantized. How large r is one option says: `rank`,
the same for every tensor; `error`, the smallest that leaves ‖T − S − B·A‖ ≤ error · ‖T‖; `energy`, the smallest
that holds this share of ‖T − S‖². What is left is measured against the teacher's norm, and a note says what it was
without the adapter. Tensors that lost nothing, or no more than `error`, get no adapter. With
`--stats` the outputs' error is minimised, over the inputs that they are of (as in `low_rank.py`), and `error` and
`energy` are of outputs. The idea of giving back a
quantization error this way is LoftQ's and LQ-LoRA's (arXiv 2310.08659, 2311.12023); there the adapter is then
trained. With `alternate` the base is quantized anew against its adapter so many times, and written too.

Stored: for `MODULE.weight` [out, in] `base_model.model.MODULE.lora_B.weight` [out, r] and
`base_model.model.MODULE.lora_A.weight` [r, in] in the student's dtype (BF16 for FP8), `adapter_model.safetensors`
beside an `adapter_config.json` with a scaling of 1 (lora_alpha = r). Nothing else of the student is written.
Error: the adapter stands for a difference, of which the weights' largest number says nothing: there is no bound.

    T = [[1, 2], [2, 4]], S = 0, rank = 1: B·A is T; the adapter restores the teacher
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf, sqrt
from typing import Any, ClassVar, Literal, NamedTuple

from compressor.architectures.roles import is_embedding
from compressor.core.errors import InputError
from compressor.core.lazy import np
from compressor.core.metrics import count_zeros, dot, relative
from compressor.core.tensor import DTYPES, TensorSpec
from compressor.core.workspace import Array
from compressor.methods.contract import Block, ByTensor, Method, Skip, Survey
from compressor.methods.distill._factored import Factored, Factoring, Factors, seed_of
from compressor.methods.distill._ranks import Looking, by_energy, by_error
from compressor.methods.numerics import svd
from compressor.methods.options import option
from compressor.methods.parts import Part

_LARGEST = 1 << 13  # rank: PEFT keeps factors in float32, and beyond this the tensor itself is smaller


class Seen(NamedTuple):
    """Of one tensor over 2^exponent: Σ (T − S)², Σ T², and where ranks need them the singular values of T − S with
    the norm of T, both weighed by the inputs where statistics are given."""

    exponent: int
    lost: float
    energy: float
    values: Array | None = None
    norm: float = 0.0


@dataclass(frozen=True)
class Residual(Factored):
    """The difference from the teacher, cut to a low rank, as a PEFT adapter."""

    id: ClassVar[str] = "residual"
    partners: ClassVar[tuple[str, ...]] = ("teacher",)
    alternatives: ClassVar[tuple[str, ...]] = ("rank", "error", "energy")
    adapter: ClassVar[bool] = True
    norm_partner: ClassVar[str] = "teacher"

    rank: int | None = option(None, help="of every adapter, at most the smaller side", low=1, high=_LARGEST)
    error: float | None = option(None, help="relative error that may stay of a tensor", low=0)
    energy: float | None = option(
        None, help="share of the squared difference to give back", low=0, high=1, open_low=True
    )
    base: str | None = option(
        None,
        help="what the adapter names as its base, a path or a name on the Hub; unset: the student folder's name",
    )
    alternate: int | None = option(
        None, help="rounds of quantizing the base anew against the adapter", low=1, high=1000
    )
    svd: Literal["auto", "exact", "randomized"] = option("auto", help="how singular vectors are found")
    seed: int = option(0, help="of what randomised ones begin with", low=0, high=2**63)

    @property
    def reach(self) -> Literal["tensor", "model"]:
        return "model"

    @property
    def rounds(self) -> int:
        return self.alternate or 0

    def decoder_for(self, spec: TensorSpec) -> None:
        """What was lost of the teacher tells the rank."""

    def skip(self, spec: TensorSpec) -> Skip | None:
        if len(spec.shape) != 2:
            return Skip("no matrix: adapters are for linear layers")
        if is_embedding(spec.name):
            return Skip("embedding: adapters are for linear layers")
        if not spec.name.removesuffix(".weight") or not spec.name.endswith(".weight"):
            return Skip("no module's .weight, so it can have no adapter")
        return None

    def seed_for(self, spec: TensorSpec, rank: int) -> bytes | None:
        return seed_of(self.svd, self.seed, spec, rank)

    def memory(self, spec: TensorSpec) -> int:
        return super().memory(spec) + 2 * spec.size * int(DTYPES[spec.dtype].compute[-1])

    # ---- ranks by what was lost ----------------------------------------------------------------------

    def prepare(self, specs: Sequence[TensorSpec]) -> Survey[Any]:
        return Looking(self, tuple(specs))

    def of_rank(self, rank: int, note: str = "") -> Adapting:
        """What makes adapters of this rank; 0 for a tensor that needs none."""
        return Adapting(Adapter(self, note, rank))

    def wants(self, spec: TensorSpec) -> bool:
        return True

    def look(self, block: Block) -> Seen:
        lost = difference(block)
        _, exponent = svd.scaled(lost)
        teacher, least = svd.scaled(block.partners["teacher"])
        exponent = max(exponent, least)
        lost, teacher = np.ldexp(lost, -exponent), np.ldexp(teacher, least - exponent)
        seen = Seen(exponent, dot(lost, lost), dot(teacher, teacher))
        if self.rank is not None:
            return seen
        gram, wide = self.gram(block), DTYPES[block.spec.dtype].compute == "<f8"
        norm = seen.energy if gram is None else dot(teacher.astype(np.float64) @ gram, teacher.astype(np.float64))
        return seen._replace(values=svd.spectrum(lost, gram, wide=wide), norm=sqrt(norm))

    def rank_all(self, seen: Mapping[str, Seen], specs: Sequence[TensorSpec]) -> AdapterByTensor:
        """The rank of each adapter, from what was seen of what its tensor lost."""
        top = max((tensor.exponent for tensor in seen.values()), default=0)
        lost, energy = (
            sum(float(np.ldexp(getattr(tensor, key), 2 * (tensor.exponent - top))) for tensor in seen.values())
            for key in ("lost", "energy")
        )
        note = f"without the adapter the student's relative error is {relative(lost, energy):.4g}"
        ranks = {name: self._rank(tensor) if tensor.lost > 0 else 0 for name, tensor in seen.items()}
        return AdapterByTensor(ranks, note)

    def _rank(self, tensor: Seen) -> int:
        if self.rank is not None or tensor.values is None:
            return self.rank or 0
        if self.energy is not None:
            return by_energy(tensor.values, self.energy)
        return by_error(tensor.values, (self.error or 0) * tensor.norm)


@dataclass(frozen=True)
class Adapter(Factors):
    """PEFT's factors of a LoRA layer, of rank `found`; 0 where the tensor needs none."""

    id: ClassVar[str] = "residual"
    left: ClassVar[str] = ".lora_B.weight"
    right: ClassVar[str] = ".lora_A.weight"

    asked: Residual
    found: int

    @property
    def scheme(self) -> Factored:
        return self.asked

    @property
    def label(self) -> str:
        return f"adapter {self.found}"

    @property
    def base_name(self) -> str | None:
        return self.asked.base

    def rank_of(self, spec: TensorSpec) -> int:
        return min(max(self.found, 1), *spec.matrix)

    def part(self, spec: TensorSpec, suffix: str, shape: tuple[int, int]) -> Part:
        return replace(super().part(spec, suffix, shape), stem=True, prefix="base_model.model.")

    def bound(self, largest: float, spec: TensorSpec) -> float:
        return inf


@dataclass(frozen=True)
class Adapting(Factoring):
    """The best adapter of its rank for what a tensor lacks of its teacher."""

    read_by: Adapter

    def matrix(self, block: Block) -> Array:
        return difference(block)

    def leaves(self, spec: TensorSpec) -> Skip | None:
        error = self.read_by.asked.error
        if self.read_by.found:
            return None
        return Skip("nothing was lost" if error is None else f"its error is at most {error:g} as it is")

    def measured(self, block: Block, parts: Mapping[str, Array]) -> tuple[float, int]:
        """What is lost of the teacher, and the zeros of student and adapter together."""
        restored = block.work.array("method.restored", block.values.shape, block.values.dtype.str)
        self.encode(block, parts, restored)
        np.add(block.values, restored, out=restored)
        zeros = count_zeros(restored, block.work)
        np.subtract(block.partners["teacher"], restored, out=restored, casting="same_kind")
        return dot(restored, restored), zeros


@dataclass(frozen=True)
class AdapterByTensor(ByTensor):
    """The rank that each tensor's adapter was found to need, by name."""

    ranks: Mapping[str, int]
    note: str

    def of(self, spec: TensorSpec, own: Method) -> Adapting:
        assert isinstance(own, Residual)  # noqa: S101 - it equals the one that was surveyed
        return own.of_rank(self.ranks[spec.name], self.note)


def difference(block: Block) -> Array:
    """T − S, in the type that the student is computed in. InputError where that leaves its range."""
    found: Array = np.subtract(block.partners["teacher"], block.values, dtype=np.float64)
    found = found.astype(block.values.dtype)
    if not np.isfinite(found).all():
        raise InputError(
            "the difference from the teacher leaves the range of floats",
            tensor=block.spec.name,
            remedy="Exclude it, or see whether the teacher is the right one",
        )
    return found


METHOD = Residual
