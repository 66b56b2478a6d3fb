"""What schemes with an even step share: planes of codes, steps, factors, and the pass that finds these."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from compressor.core.errors import InputError
from compressor.core.floats import epsilon, smallest
from compressor.core.floats import largest as limit
from compressor.core.lazy import np
from compressor.core.tensor import DTYPES, TensorSpec
from compressor.core.workspace import Array
from compressor.methods.contract import Block, Prepared, Survey
from compressor.methods.numerics.factors import FAR, Factors, Sizes, may_have
from compressor.methods.parts import Part

CodeBytes = Literal[1, 2]
BYTE, WIDE = 127, 32_639  # the largest codes that one byte and two planes hold on both sides
_CHUNK = 1 << 20  # weights that an archive codes with one table
_TABLE = 2400  # bits of such a table and the states of its coder, with what surrounds them, about
_AROUND = 4000  # bits that a tensor adds to an archive's directory, and its share of the header, about
_CODED = 2e-4  # share of a stream that its coder takes beyond the entropy, at most, about
_SIDE = 0.02  # share of the bits that is reserved for all this and for steps, at most


def entropy_for(bits: float, spec: TensorSpec, steps: int, factors: Factors | None) -> float:
    """The entropy of codes that, with their tables, so many steps and the factors, take `bits` in an archive."""
    side = (_AROUND + _TABLE * -(-spec.size // _CHUNK) + 28 * steps) / max(spec.size, 1)
    more = 0.0 if factors is None else factors.bits / max(spec.size, 1)
    return bits * (1 - _CODED) - min(side, _SIDE * bits) - min(more, bits / 2)


# ---- parts ---------------------------------------------------------------------------------------------


def code_parts(spec: TensorSpec, width: CodeBytes, *, factors: bool) -> tuple[Part, ...]:
    """The planes of codes and, if there are such, the factors of all rows and columns."""
    planes = (Part(".codes", "I8", spec.shape), Part(".high", "I8", spec.shape))[:width]
    return (*planes, Part(".factors", "I8", (sum(spec.matrix),), every=0)) if factors else planes


def step_dtype(spec: TensorSpec) -> str:
    """What steps are stored in."""
    return "F64" if DTYPES[spec.dtype].compute == "<f8" else "F32"


def read_factors(parts: Mapping[str, Array], spec: TensorSpec) -> Factors | None:
    """The factors among the parts. InputError where one is none."""
    stored = parts.get(".factors")
    if stored is None:
        return None
    if stored.size and (int(stored.max()) > FAR or int(stored.min()) < -FAR):
        raise InputError("has a factor that is out of range", tensor=spec.name)
    return Factors(stored.tobytes(), spec.matrix[0])


def check_steps(steps: Array, factors: Factors | None, spec: TensorSpec) -> None:
    """InputError where a step is none, or leaves the range with its factors."""
    if not (np.isfinite(steps) & (steps > 0)).all():
        raise InputError("has a step that is not positive and finite", tensor=spec.name)
    if factors is not None and not float(steps.max(initial=0)) * factors.largest <= limit(step_dtype(spec)):
        raise InputError("has a step that leaves the range with its factors", tensor=spec.name)


def split(codes: Array, low: Array, high: Array, wide: Array) -> None:
    """Codes as two planes of bytes: the low one is in [−128, 128). `wide` is int16 to work in."""
    np.copyto(wide, codes, casting="unsafe")
    np.copyto(low, wide.view("<u2") & 255, casting="unsafe")
    np.subtract(wide, low, out=wide)
    np.right_shift(wide, 8, out=wide)
    np.copyto(high, wide, casting="unsafe")


def restore(codes: Array, by_row: Array, by_column: Array | None, spec: TensorSpec, out: Array, width: int) -> None:
    """codes · by_row · by_column into `out`, kept within the dtype's range."""
    with np.errstate(over="ignore"):
        np.multiply(codes, by_row, out=out)
        if by_column is not None:
            np.multiply(out, by_column, out=out)
    keep_in_range(by_row, by_column, spec, out, width)


def keep_in_range(by_row: Array, by_column: Array | None, spec: TensorSpec, out: Array, width: int) -> None:
    """Keep what codes of so many bytes stand for within the dtype's range, which one rounded up may leave."""
    top = limit(spec.dtype)
    reach = float(by_row.max(initial=0)) * (1.0 if by_column is None else float(by_column.max(initial=0)))
    if reach >= top / (1 << 8 * width):
        np.clip(out, -top, top, out=out)


def error_bound(step: float, largest: float, spec: TensorSpec) -> float:
    """What a step may cost a weight, with what computing and storing adds."""
    return step + (2.0**-21 + 2 * epsilon(spec.dtype)) * (largest + step) + smallest(spec.dtype)


# ---- the pass that finds factors -----------------------------------------------------------------------

Found = Mapping[str, Factors]


@dataclass(frozen=True)
class Norming(Survey[dict[str, Sizes]]):
    """Sums up rows and columns of tensors that may have factors; `after` makes the next pass of those that have
    some. With `always` factors that are all 1 count too; `costs` tells what errors in columns of a block cost."""

    specs: tuple[TensorSpec, ...]
    always: bool
    costs: Callable[[Block], Array | None]
    after: Callable[[Found], Prepared]

    def start(self) -> dict[str, Sizes]:
        return {}

    def wants(self, spec: TensorSpec) -> bool:
        return may_have(spec)

    def observe(self, block: Block, stats: dict[str, Sizes]) -> dict[str, Sizes]:
        if may_have(block.spec) and block.values.size:
            stats.setdefault(block.spec.name, Sizes()).add(block.values, block.start, self.costs(block))
        return stats

    def merge(self, stats: dict[str, Sizes], more: dict[str, Sizes]) -> dict[str, Sizes]:
        for name, sizes in more.items():
            if name in stats:
                stats[name].merge(sizes)
            else:
                stats[name] = sizes
        return stats

    def conclude(self, stats: dict[str, Sizes]) -> Prepared:
        found = {
            spec.name: stats.get(spec.name, Sizes()).factors(spec)
            for spec in self.specs
            if self.always or spec.name in stats
        }
        return self.after({name: one for name, one in found.items() if self.always or not one.trivial})


def normed(block: Block, factors: Factors | None) -> Array:
    """The block's weights over their factors."""
    values = block.values
    if factors is None or not values.size:
        return values
    kind = values.dtype.str
    out = block.work.array("even.normed", values.shape, kind)
    np.divide(values, factors.by_row(block.start, len(values), kind), out=out)
    np.divide(out, factors.by_column(kind), out=out)
    return out


def squares(block: Block) -> Array | None:
    """The mean squares of a block's inputs [columns]; None where nothing is known of them."""
    return None if block.inputs is None else block.inputs.square


def with_factors(
    specs: Sequence[TensorSpec],
    *,
    always: bool,
    after: Callable[[Found], Prepared],
    costs: Callable[[Block], Array | None] = squares,
) -> Prepared:
    """The pass that finds the factors of these tensors, or what comes after it where none can have any."""
    if always or any(may_have(spec) for spec in specs):
        return Norming(tuple(specs), always, costs, after)
    return after({})
