"""One even step for a whole tensor, with codes that are meant to be entropy-coded.

    code = ⌊w/Δ + r⌋,   back: code · Δ

No scheme of fixed width comes near: for a fine step the codes' entropy is within 0.25 bits of what any quantizer
needs for that error (Gish and Pierce 1968), and an archive (`--store archive`) stores them within a hundredth of
their entropy. r is ½, or, by default, raised where the lower code is cheaper: the code is the one of the two
neighbours with the least (w/Δ − code)² + (ln 2 / 6) · bits(code), the bits by the tensor's own codes
(`even_steps.py`).

`step = auto` finds the least Δ whose codes take `bits` a weight in an archive: for each tensor by itself, or with
`scope = model` for all treated tensors together, every Δ being the same share of its tensor's root mean square, so
that all lose about the same share and those with long tails get more bits. With `step_rows` so many rows have one
Δ, the same share of theirs. Without the archive a code takes one byte, or two where one does not hold them.

Matrices have factors before a step that is found (`numerics/factors.py`): what is rounded is a weight over the
factor of its row and that of its column, and the step of each weight is Δ times these, so that noise falls where it
matters least, as norms of rows and columns tell, or with `--stats` the inputs of the layer. Where all factors would
be 1, with `sparsity` and with `step_rows`, there are none.

`method = gptq` chooses codes column by column for the least error of the layer's outputs on the inputs of `--stats`
(`_even_compensated.py`), with the same step: later columns make up for what earlier ones lost.

Stored, for `NAME` [rows, columns]: `NAME.codes` I8 [rows, columns]; where codes need two bytes also `NAME.high` I8
[rows, columns], code = codes + 256 · high, two planes that entropy coding takes apart; `NAME.step` F32 (F64 of a
float64 tensor) [1], or [⌈rows/r⌉]. With `sparsity` at least that share of the weights, the smallest, become zero.
Error: half a step, or up to 0.95 of one where rounding goes by rate, times the factors; by gptq eight times the
largest weight more, at most.

    step = 0.5, rounding = nearest: [[0.2, -0.3, 1.1]] becomes the codes [[0, -1, 2]], back [[0, -0.5, 1]]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, Literal

from compressor.core.errors import InputError, UsageError
from compressor.core.floats import largest as limit
from compressor.core.floats import smallest
from compressor.core.lazy import np
from compressor.core.tensor import DTYPES, TensorSpec
from compressor.core.workspace import Array, Workspace
from compressor.methods.contract import Block, ByTensor, Decoder, Encoder, Method, Prepared, Survey
from compressor.methods.counted_scheme import CountedScheme
from compressor.methods.numerics.compensated import REACH, costs_of
from compressor.methods.numerics.even_steps import (
    FAR,
    LARGEST,
    Classes,
    Coding,
    Points,
    forecast,
    in_float,
    root_of,
    shared_factor,
    step_for,
)
from compressor.methods.numerics.factors import FAR as FAR_FACTOR
from compressor.methods.numerics.factors import Factors, power_of
from compressor.methods.numerics.hessian import compensation_memory
from compressor.methods.options import option
from compressor.methods.parts import Part
from compressor.methods.quantize._compensating import ACT_ORDER_HELP, DAMP_HELP
from compressor.methods.quantize._even_parts import (
    BYTE,
    WIDE,
    CodeBytes,
    Found,
    check_steps,
    code_parts,
    entropy_for,
    error_bound,
    normed,
    read_factors,
    restore,
    split,
    squares,
    step_dtype,
    with_factors,
)

DEFAULT_BITS = 4.5
_SETTLED = 3  # turns after which a step and what its codes take more by gptq agree
_LEAST_AIM = 0.1  # of the bits that are asked for: what codes of weights alone take at least


@dataclass(frozen=True)
class Uniform(CountedScheme):
    """An even step for a tensor, rounding by rate and error, codes for an archive."""

    verb: ClassVar[str] = "quantize"
    id: ClassVar[str] = "uniform"

    step: float | None = option(
        None, help="distance of neighbouring codes, or auto: by bits", low=0, open_low=True, auto=True
    )
    bits: float | None = option(
        None, help=f"bits a weight in an archive that step auto aims at, unset: {DEFAULT_BITS}", low=0.01, high=14
    )
    rounding: Literal["rate", "nearest"] = option("rate", help="to which of the two codes beside a weight")
    scope: Literal["tensor", "model"] = option("tensor", help="what step auto gives the bits to")
    step_rows: int | None = option(None, help="rows that share a step; unset: all of the tensor", low=1, high=2**31)
    sparsity: float = option(0.0, help="least share of weights, the smallest, that become zero", low=0, high=1)
    code_bytes: Literal[1, 2] | None = option(
        None, help="bytes of a code where it is not coded; unset: by the data"
    )
    factors: Literal["both", "none"] | None = option(
        None, help="factors of rows and columns before the step; unset: where they differ"
    )
    method: Literal["search", "gptq"] = option(
        "search", help="codes by each weight alone, or for the least error on the inputs of --stats (gptq)"
    )
    damp: float | None = option(None, help=DAMP_HELP, low=0)
    act_order: bool = option(False, help=ACT_ORDER_HELP, off="plain-order")
    informed: bool = False  # factors of columns go by the layers' inputs

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.by_inputs and (self.step is not None or self.step_rows is not None or self.sparsity):
            raise UsageError("method gptq is for one step that is found: leave out step, step_rows and sparsity")
        if not self.by_inputs and (self.damp is not None or self.act_order):
            raise UsageError("damp and act_order hold for method gptq only")
        if self.factors == "both" and (self.step is not None or self.step_rows is not None or self.sparsity):
            raise UsageError("factors are for one step that is found: leave out step, step_rows and sparsity")
        if self.step is not None:
            for name in ("bits", "step_rows"):
                if getattr(self, name) is not None:
                    raise UsageError(f"{name} is for a step that is found: leave step out, or auto")
            if self.scope == "model":
                raise UsageError("scope model is for a step that is found: leave step out, or auto")
        if self.scope == "model" and self.step_rows is not None:
            raise UsageError("scope model gives every tensor one step, and step_rows several: give one of them")

    @property
    def reach(self) -> Literal["tensor", "model"]:
        return self.scope

    def decoder_for(self, spec: TensorSpec) -> EvenCodes | None:
        return None if self.code_bytes is None else even_codes(self, self.code_bytes)

    def check(self, spec: TensorSpec) -> None:
        """Any tensor has steps."""

    def align(self, spec: TensorSpec) -> int:
        return self.step_rows or 1

    # ---- what the weights tell ---------------------------------------------------------------------

    @property
    def by_inputs(self) -> bool:
        """Whether codes go by the layer's inputs."""
        return self.method == "gptq"

    def describe(self) -> dict[str, Any]:
        """Without what is off by default: as records of files before there was another method."""
        off = {"method": "search", "damp": None, "act_order": False}
        return {key: said for key, said in super().describe().items() if key not in off or said != off[key]}

    @property
    def statistics(self) -> Literal["", "square", "gram"]:  # type: ignore[override]
        return "gram" if self.by_inputs else "square" if self.informed else ""

    def with_statistics(self) -> Uniform | None:
        return replace(self, informed=True) if self.seeks_factors and not self.by_inputs else None

    @property
    def linear_algebra(self) -> bool:  # type: ignore[override]
        return self.by_inputs

    @property
    def at_once(self) -> int:  # type: ignore[override]
        return 1 << 21 if self.by_inputs else 0

    def memory(self, spec: TensorSpec) -> int:
        return compensation_memory(spec, max(self.at_once, spec.matrix[1])) if self.by_inputs else 0

    @property
    def further(self) -> float:
        """By how much an error may exceed that of rounding, in units of the largest weight."""
        return REACH if self.by_inputs else 0

    def costs(self, block: Block) -> Array | None:
        """What a square of an error costs in each column of a block; None where nothing is known of its inputs."""
        if self.by_inputs:
            return costs_of(block, damp=self.damp, act_order=self.act_order)
        return squares(block)

    @property
    def seeks_factors(self) -> bool:
        """Whether factors are looked for. What names its bytes says all that is stored by its options."""
        if self.step is not None or self.step_rows is not None or self.sparsity:
            return False
        return self.factors == "both" or (self.factors is None and self.code_bytes is None)

    def prepare(self, specs: Sequence[TensorSpec]) -> Prepared:
        if not self.seeks_factors:
            return Counting(self, tuple(specs), {})
        return with_factors(
            specs,
            always=self.factors == "both",
            costs=self.costs,
            after=lambda found: Counting(self, tuple(specs), found),
        )

    def aim(self, spec: TensorSpec, factors: Factors | None = None) -> float:
        """The entropy of codes that, with all that is stored beside them, take `bits` in an archive."""
        groups = 1 if self.step_rows is None else -(-spec.matrix[0] // self.step_rows)
        return entropy_for(self.bits or DEFAULT_BITS, spec, groups, factors)

    def step_of(
        self,
        points: Points,
        spec: TensorSpec,
        factors: Factors | None = None,
        factor: float | None = None,
        excess: float = 0.0,
    ) -> tuple[Coding, CodeBytes]:
        """The step for a tensor of these weights over their `factors`, or this `factor` of their root mean square,
        and bytes of its codes, which take `excess` bits more than weights tell. InputError where none hold them."""
        by_rate, zeroed = self.rounding == "rate", points.smallest_share(self.sparsity)
        least = points.least
        if self.step is not None:
            step = self.step
        elif not points.top:
            step = 1.0
        elif factor is not None:
            step = max(factor * root_of(points), least)
        else:
            aim, high = self.aim(spec, factors), min(2 * points.top, limit("F64"))
            aim = max(aim - excess, _LEAST_AIM * aim)
            step = step_for(
                aim,
                lambda one: points.coding(one, by_rate=by_rate, zeroed=zeroed).entropy,
                least,
                high,
                root_of(points),
            )
        step = in_float(step, spec.dtype)
        most = points.top / step + 1
        if not most <= WIDE:
            raise InputError(
                f"a code reaches {most:.4g}, more than two bytes hold",
                tensor=spec.name,
                remedy=f"Use a --step of at least {points.top / LARGEST:.3g}, or --step auto",
            )
        if self.code_bytes == 1 and most > BYTE:
            raise InputError(
                f"a code reaches {most:.4g}, more than a byte holds",
                tensor=spec.name,
                remedy="Leave --code-bytes out, or use a larger step",
            )
        return points.coding(step, by_rate=by_rate, zeroed=zeroed), self.code_bytes or (1 if most <= BYTE else 2)

    # ---- what counts alone tell --------------------------------------------------------------------

    @property
    def aimed_bits(self) -> float | None:
        return None if self.step is not None else self.bits or DEFAULT_BITS

    @property
    def one_step_each(self) -> bool:
        return self.step_rows is None and self.scope == "tensor"

    def aiming_at(self, bits: float | None) -> Uniform:
        return replace(self, bits=bits)

    def in_bytes(self) -> Uniform:
        return replace(self, code_bytes=1)

    def forecasts(self, classes: Classes, spec: TensorSpec, bits: Sequence[float]) -> list[tuple[float, float]]:
        points = classes.points(DTYPES[spec.dtype].compute)
        aims = [self.aiming_at(each).aim(spec) for each in bits]
        forecast_of = forecast(points, aims, by_rate=self.rounding == "rate", sparsity=self.sparsity)
        return [
            (entropy + each - aim, lost) for (entropy, lost), aim, each in zip(forecast_of, aims, bits, strict=True)
        ]


@dataclass(frozen=True)
class EvenCodes(Decoder):
    """Codes of one or two bytes, and steps; `asked` says how many bytes."""

    verb: ClassVar[str] = "quantize"
    id: ClassVar[str] = "uniform"

    asked: Uniform
    code_bytes: CodeBytes

    @property
    def scheme(self) -> Uniform:
        return self.asked

    def describe(self) -> dict[str, Any]:
        return self.asked.describe()

    @property
    def label(self) -> str:
        return f"uniform{self.asked.bits:g}" if self.asked.bits is not None else self.id

    def parts(self, spec: TensorSpec) -> tuple[Part, ...]:
        rows = self.asked.step_rows
        codes, dtype = code_parts(spec, self.code_bytes, factors=self.asked.factors == "both"), step_dtype(spec)
        if rows is None:
            return (*codes, Part(".step", dtype, (1,), every=0))
        return (*codes, Part(".step", dtype, (-(-spec.matrix[0] // rows),), every=rows))

    def bound(self, largest: float, spec: TensorSpec) -> float:
        """No step is longer than twice the largest weight, or what that is over its factors."""
        range_ = power_of(4 * FAR_FACTOR) if self.asked.factors == "both" else 1.0
        return error_bound(2 * largest * range_, largest, spec) + self.asked.further * largest

    def decode(self, parts: Mapping[str, Array], spec: TensorSpec, out: Array, start: int, work: Workspace) -> None:
        """Raises InputError where a step is none."""
        steps, factors = parts[".step"].reshape(-1, 1), read_factors(parts, spec)
        check_steps(steps, factors, spec)
        by_row = steps if self.asked.step_rows is None else _by_row(steps, self.asked.step_rows, len(out))
        by_column = None
        if factors is not None:
            by_row = steps * factors.by_row(start, len(out), steps.dtype.str)
            by_column = factors.by_column(steps.dtype.str)
        x = work.array("uniform.x", out.shape, out.dtype.str)
        np.copyto(x, parts[".codes"].reshape(out.shape), casting="unsafe")
        width = self.code_bytes
        if width == 2:
            np.copyto(out, parts[".high"].reshape(out.shape), casting="unsafe")
            np.multiply(out, 256, out=out)
            np.add(x, out, out=x)
        restore(x, by_row, by_column, spec, out, width)


@dataclass(frozen=True)
class Steps(Encoder):
    """A tensor whose step, and how codes are rounded to, is known; with `step_rows` the step is in units of a
    group's root mean square."""

    asked: Uniform
    coding: Coding
    code_bytes: CodeBytes
    factors: Factors | None = None

    @property
    def decoder(self) -> EvenCodes:
        asked = self.asked if self.factors is None else replace(self.asked, factors="both")
        return even_codes(replace(asked, informed=False), self.code_bytes)

    def bound(self, largest: float, spec: TensorSpec) -> float:
        """A step, as the survey found it, or as many as become zero. No group's root mean square exceeds its
        largest weight, and its step is longer than its share of that by what rounding makes of it."""
        tiny = smallest(step_dtype(spec))
        unit = self.coding.step if self.asked.step_rows is None else 1.02 * self.coding.step * largest
        unit *= 1.0 if self.factors is None else self.factors.largest
        found = error_bound((unit + tiny) * max(1.0, self.coding.zeroed), largest, spec)
        return found + self.asked.further * largest

    def encode(self, block: Block, parts: Mapping[str, Array] | None, restored: Array) -> None:
        values, work, kind = block.values, block.work, restored.dtype
        steps = np.array([[self.coding.step]], kind)
        by_column, factors = None, self.factors
        if self.asked.step_rows is not None:
            steps = self.group_steps(values)
        if parts is not None and (self.asked.step_rows is not None or block.start == 0):
            parts[".step"].reshape(-1)[...] = steps[:, 0]
        by_row = steps if self.asked.step_rows is None else _by_row(steps, self.asked.step_rows, len(values))
        x = work.array("uniform.x", values.shape, kind.str)
        if not self.asked.by_inputs:
            np.divide(normed(block, factors), by_row, out=x)
        if factors is not None:
            by_row = steps * factors.by_row(block.start, len(values), kind.str)
            by_column = factors.by_column(kind.str)
            if parts is not None and block.start == 0:
                parts[".factors"].reshape(-1)[...] = factors.stored
        width = self.code_bytes
        below = work.array("uniform.below", values.shape, f"<i{width}")
        if self.asked.by_inputs:
            self._compensate(block, by_row, by_column, x)
        else:
            self._round(x, restored, below, work)
        if parts is not None:
            codes = parts[".codes"].reshape(values.shape)
            if width == 1:
                np.copyto(codes, x, casting="unsafe")
            else:
                split(x, codes, parts[".high"].reshape(values.shape), below)
        restore(x, by_row, by_column, block.spec, restored, width)

    def _compensate(self, block: Block, by_row: Array, by_column: Array | None, codes: Array) -> None:
        """The codes of a block by the layer's inputs. InputError where the gram of these cannot be used."""
        from compressor.methods.quantize._even_compensated import Columns, compensated

        rows, columns = block.values.shape
        of_rows = np.broadcast_to(by_row.astype(np.float64)[:, 0], rows)
        of_columns = np.ones(columns) if by_column is None else by_column.astype(np.float64)
        top = BYTE if self.code_bytes == 1 else WIDE
        asked = self.asked
        compensated(
            block, Columns(self.coding, of_rows, of_columns, top, codes), damp=asked.damp, act_order=asked.act_order
        )

    def _round(self, x: Array, restored: Array, below: Array, work: Workspace) -> None:
        """Weights over their steps to codes, in place; `restored` and `below` are memory to work in."""
        coding, width, kind = self.coding, self.code_bytes, x.dtype
        table = work.once(
            "uniform.rounds", (coding.rounds, width, kind.str), lambda: _table(coding, width, kind.str)
        )
        if coding.zeroed >= 0:
            np.abs(x, out=restored)
            small = np.less_equal(restored, coding.zeroed, out=work.array("uniform.small", x.shape, "|b1"))
            np.copyto(x, 0, where=small)
        np.floor(x, out=restored)
        np.copyto(below, restored, casting="unsafe")
        table.take(below.view(f"<u{width}"), out=restored, mode="wrap")
        np.add(x, restored, out=x)
        np.floor(x, out=x)

    def group_steps(self, values: Array) -> Array:
        """The steps [groups, 1] of whole groups of rows: the coding's is in units of their root mean square."""
        roots, peaks = group_roots(values, self.asked.step_rows or 1)
        least = np.maximum(roots * self.coding.step, peaks / (BYTE - 2 if self.code_bytes == 1 else LARGEST))
        least = np.maximum(least, smallest("F64"))
        steps = least.astype(values.dtype)
        steps = np.where(steps < least, np.nextafter(steps, np.inf, dtype=values.dtype), steps)
        return steps[:, None]


@dataclass(frozen=True)
class Counting(Survey[dict[str, Classes]]):
    """Counts the weights of every tensor, those of groups of rows in units of their root mean square."""

    method: Uniform
    specs: tuple[TensorSpec, ...]
    factors: Found

    def start(self) -> dict[str, Classes]:
        return {}

    def observe(self, block: Block, stats: dict[str, Classes]) -> dict[str, Classes]:
        rows, spec, factors = self.method.step_rows, block.spec, self.factors.get(block.spec.name)
        values = normed(block, factors)
        held = stats.setdefault(spec.name, Classes.of(spec, scaled=rows is not None or factors is not None))
        if rows is not None and values.size:
            roots = group_roots(values, rows)[0][:, None]
            scaled = block.work.array("uniform.x", values.shape, values.dtype.str)
            values = np.divide(values, _by_row(roots, rows, len(values)), out=scaled, casting="same_kind")
        held.add(values, block.work)
        return stats

    def merge(self, stats: dict[str, Classes], more: dict[str, Classes]) -> dict[str, Classes]:
        for name, classes in more.items():
            if name in stats:
                stats[name].merge(classes)
            else:
                stats[name] = classes
                classes.settle()
        return stats

    def conclude(self, stats: dict[str, Classes]) -> Prepared | StepsByTensor:
        """Raises InputError where no code holds a weight."""
        points = {
            spec.name: stats.get(spec.name, Classes.of(spec)).points(DTYPES[spec.dtype].compute)
            for spec in self.specs
        }
        return self._prepared(points, {}, _SETTLED if self.method.by_inputs else 0)

    def _prepared(
        self, points: Mapping[str, Points], excess: Mapping[str, float], turns: int
    ) -> Prepared | StepsByTensor:
        """Steps for codes that take this much more than their weights alone tell, or, for some more turns, what
        counts how much that is."""
        found = self._found(points, excess)
        if turns:
            from compressor.methods.quantize._even_compensated import Settling

            asked = self.method
            again = partial(self._prepared, points, turns=turns - 1)
            return Settling(found, asked.damp, asked.act_order, again)
        return found[self.specs[0].name] if self.method.reach == "tensor" else StepsByTensor(found)

    def _found(self, points: Mapping[str, Points], excess: Mapping[str, float]) -> dict[str, Steps]:
        """The steps of all tensors."""
        method, factors = self.method, self.factors
        factor = None
        if method.reach == "model":
            total = sum(spec.size for spec in self.specs) or 1
            aim = sum(method.aim(spec, factors.get(spec.name)) * spec.size for spec in self.specs) / total
            more = sum(excess.get(spec.name, 0.0) * spec.size for spec in self.specs) / total
            aim = max(aim - more, _LEAST_AIM * aim)
            factor = shared_factor(aim, points, by_rate=method.rounding == "rate", sparsity=method.sparsity)
        found = {}
        for spec in self.specs:
            own = factors.get(spec.name)
            coding, width = method.step_of(points[spec.name], spec, own, factor, excess.get(spec.name, 0.0))
            found[spec.name] = Steps(method, coding, width, own)
        return found


@dataclass(frozen=True)
class StepsByTensor(ByTensor):
    """The steps of all tensors of a stage, by name."""

    found: Mapping[str, Steps]

    def of(self, spec: TensorSpec, own: Method) -> Steps:
        return self.found[spec.name]


# ---- arrays --------------------------------------------------------------------------------------------


def even_codes(asked: Uniform, code_bytes: CodeBytes) -> EvenCodes:
    """What reads codes of so many bytes."""
    return EvenCodes(replace(asked, code_bytes=code_bytes), code_bytes)


def group_roots(values: Array, rows: int) -> tuple[Array, Array]:
    """The root mean square of every `rows` rows, and their largest magnitude, float64 [groups] both; 1 of a group
    that is zero."""
    if not values.size:
        ones = np.ones(-(-len(values) // rows))
        return ones, ones
    starts = np.arange(0, len(values), rows)
    peaks = np.maximum.reduceat(np.abs(values).max(axis=1), starts).astype(np.float64)
    peaks[peaks == 0] = 1
    unit = np.square(values / _by_row(peaks[:, None], rows, len(values)))
    sizes = np.diff(np.append(starts, len(values))) * values.shape[1]
    means = np.add.reduceat(unit.sum(axis=1), starts) / sizes
    return np.maximum(peaks * np.sqrt(means), smallest("F64")), peaks


def _by_row(steps: Array, rows: int, count: int) -> Array:
    return steps.repeat(rows, axis=0)[:count]


def _table(coding: Coding, width: int, kind: str) -> Array:
    """What is added above every code, by the code's bits: [2^8], or [2^16]."""
    found = np.full(1 << 8 * width, 0.5, kind)
    found[np.arange(-FAR, FAR)] = coding.rounds
    return found


METHOD = Uniform
