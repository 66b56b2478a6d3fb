"""The pass that measures every candidate on every tensor, reading each once.

For a row w of a tensor and w' as a candidate restores it, with what is known of the inputs x of its layer:

    loss of a row   (w − w')ᵀ G (w − w'),   energy of a row   wᵀ G w

with G = E[x xᵀ] where statistics have grams, its diagonal where they do not, and the identity without statistics. A
tensor's error is the sum of the losses over that of the energies. With statistics a row counts by one over its
energy (and a little of the block's mean, so that rows which are nearly zero do not outweigh the rest): the error is
then the mean over the outputs of their relative squared errors. Few outputs may have nearly all of the energy, of
inputs that hardly change, and what the others lose must not vanish beside it.

Of a tensor of more than `sample` weights, about that many are measured, in blocks of rows spread evenly. The error
is then a ratio of two sums over sampled rows, with the usual standard error of such (Cochran, Sampling Techniques,
§6.4); `spread` is 1.96 of it, which is 95 % confidence where rows are like independent ones.

Even steps, for an archive, are not tried one by one: the weights are counted, and entropy and loss of every step
follow from the counts. What rounding to a fine step loses is like noise that is the same in all columns, so its
weighted loss is Σ (w − w')² times the mean of G's diagonal, and of what rows count. The same counts tell what the
numbers themselves take.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil, inf, sqrt
from typing import ClassVar, Literal

from compressor.checkpoint.rows import BLOCK
from compressor.core.lazy import np
from compressor.core.sums import dot, dots
from compressor.core.tensor import TensorSpec
from compressor.core.workspace import Array
from compressor.methods.contract import Block, ByTensor, Method, Scheme, Survey
from compressor.methods.counted_scheme import CountedScheme
from compressor.methods.numerics.even_steps import Classes
from compressor.methods.numerics.factors import Sizes
from compressor.methods.unlisted.dense import Dense
from compressor.recipe.budget import SAMPLE
from compressor.workflows.budget.candidates import DENSE, Candidate
from compressor.workflows.budget.takers import Takers

_GRAM = 1 << 33  # multiplications of a gram that a candidate may cost a tensor, about
_DIM = 0.01  # of the mean energy of a block's rows is added to each, where rows count by one over it
# Sums over a tensor's rows: 1, w², energy, energy², what rows count; and over a candidate's: lost w², loss, loss²,
# loss·energy
_SUMS = 5


@dataclass(frozen=True)
class Measured:
    """A candidate on a tensor, of about so many `bits` a weight in an archive (0: as many as its parts have).
    `error` relative in the Frobenius norm, `loss` the relative squared error that the
    allocation goes by (weighted), `spread` the half width of its 95 % interval as a share of it (0: all read)."""

    error: float
    loss: float
    spread: float = 0.0
    bits: float = 0.0

    @property
    def at_most(self) -> float:
        """The error at the interval's upper end."""
        return self.error * sqrt(1 + self.spread)


Table = Mapping[str, Mapping[str, Measured]]  # by tensor and candidate's key


@dataclass(frozen=True)
class Probe(Scheme):
    """Stands in a plan where a candidate will: its survey measures them all, and leaves the tensor as it is."""

    verb: ClassVar[str] = "quantize"
    id: ClassVar[str] = "probe"

    candidates: tuple[tuple[str, Scheme], ...] = ()
    informed: Literal["", "square", "gram"] = ""
    sample: int = SAMPLE
    wanted: Mapping[str, tuple[str, ...]] = field(default_factory=dict, compare=False)  # by tensor, keys to measure

    @property
    def statistics(self) -> Literal["", "square", "gram"]:  # type: ignore[override]
        return self.informed

    @property
    def at_once(self) -> int:  # type: ignore[override]
        return max((scheme.at_once for _, scheme in self.candidates), default=0)

    @property
    def linear_algebra(self) -> bool:  # type: ignore[override]
        return self.informed == "gram" or any(encoder.linear_algebra for _, encoder in self.candidates)

    @property
    def reach(self) -> Literal["tensor", "model"]:
        return "model"

    def decoder_for(self, spec: TensorSpec) -> Dense | None:
        return None if self.wanted else Dense()

    def prepare(self, specs: Sequence[TensorSpec]) -> Measure:
        return Measure(self, {spec.name: spec for spec in specs})


@dataclass(frozen=True)
class Probed(Dense):
    """A tensor as it is, with what is known of its candidates, by key."""

    rows: Mapping[str, Measured] = field(default_factory=dict, compare=False)


@dataclass(frozen=True)
class ProbedEach(ByTensor):
    """What is known of the candidates of all tensors."""

    table: Table

    def of(self, spec: TensorSpec, own: Method) -> Probed:
        return Probed(self.table[spec.name])


@dataclass
class Seen:
    """Of a tensor so far: sums [1 + candidates, _SUMS], how often which weight was there, and which over factors;
    and what noise those make: `noise`, Σ over rows of the mean square of the factors, and that as errors weigh."""

    sums: Array
    classes: Classes
    over_factors: Classes
    noise: Array = field(default_factory=lambda: np.zeros(2))

    def merge(self, more: Seen) -> None:
        """Take in other blocks of the tensor."""
        self.sums += more.sums
        self.noise += more.noise
        self.classes.merge(more.classes)
        self.over_factors.merge(more.over_factors)

    def settle(self) -> None:
        """Hold one table of counts only."""
        self.classes.settle()
        self.over_factors.settle()


@dataclass(frozen=True)
class Measure(Survey["dict[str, Seen]"]):
    """Gathers sums, and counts of weights where even steps ask for them, by tensor; concludes with what came of
    them."""

    probe: Probe
    specs: Mapping[str, TensorSpec]  # of each tensor

    def start(self) -> dict[str, Seen]:
        return {}

    def observe(self, block: Block, stats: dict[str, Seen]) -> dict[str, Seen]:
        keys = self.probe.wanted.get(block.spec.name, ())
        seen = stats.get(block.spec.name)
        if seen is None:
            classes = Classes.of(block.spec), Classes.of(block.spec, scaled=True)
            seen = stats[block.spec.name] = Seen(np.zeros((1 + len(keys), _SUMS)), *classes)
        sums = seen.sums
        values, work = block.values, block.work
        if (block.start // max(len(values), 1)) % self._every(block.spec) or not keys:
            return stats
        encoders = self._encoders()
        weigh = _Weighing(block, self.probe.informed)
        plain, energy = weigh(values)
        share = _shares(energy) if self.probe.informed else np.ones(len(values))
        energy = energy * share
        sums[0] += (len(values), plain.sum(), energy.sum(), dot(energy, energy), share.sum())
        top = float(np.abs(values).max(initial=0))
        restored = work.array("survey.restored", values.shape, values.dtype.str)
        if any(counted(key, encoders) for key in keys):
            seen.classes.add(values, work)
        if any(_over_factors(encoders.get(key)) for key in keys):
            _count_over_factors(block, self.probe.informed, share, seen)
        for place, key in enumerate(keys, 1):
            if counted(key, encoders):
                continue
            encoder = encoders[key].for_block(block.spec, top)
            assert encoder is not None  # noqa: S101 - `check_readable` saw to that
            encoder.encode(block, None, restored)
            np.subtract(values, restored, out=restored)
            lost, loss = weigh(restored)
            loss = loss * share
            sums[place] += (lost.sum(), loss.sum(), dot(loss, loss), dot(loss, energy), 0)
        return stats

    def merge(self, stats: dict[str, Seen], more: dict[str, Seen]) -> dict[str, Seen]:
        for name, seen in more.items():
            if name in stats:
                stats[name].merge(seen)
            else:
                stats[name] = seen
                seen.settle()
        return stats

    def conclude(self, stats: dict[str, Seen]) -> ProbedEach:
        found, encoders = {}, dict(self.probe.candidates)
        for name, seen in sorted(stats.items()):
            keys, sums, spec = self.probe.wanted.get(name, ()), seen.sums, self.specs[name]
            share = sums[0][0] / (spec.matrix[0] or 1)
            rows = {key: _measured(sums[0], row, share) for key, row in zip(keys, sums[1:], strict=True)}
            found[name] = rows | _forecast([key for key in keys if counted(key, encoders)], encoders, seen, spec)
        return ProbedEach(found)

    def _encoders(self) -> dict[str, Scheme]:
        """The candidates by key; with statistics as they will go by them."""
        found = dict(self.probe.candidates)
        if self.probe.informed:
            informed = {key: one.with_statistics() for key, one in found.items()}
            found |= {key: one for key, one in informed.items() if isinstance(one, Scheme)}
        return found

    def _every(self, spec: TensorSpec) -> int:
        """Of how many blocks one is measured."""
        limit = self.probe.sample or spec.size
        if self.probe.informed == "gram" and self.probe.sample:
            limit = min(limit, _GRAM // max(spec.matrix[1], 1))
        return max(spec.size // max(limit, BLOCK), 1)


class _Weighing:
    """Sums over a row: of squares, and of squares weighed by the layer's inputs. Float64 [rows] each."""

    def __init__(self, block: Block, informed: str) -> None:
        self.work, self.gram, self.square = block.work, None, None
        layer = block.inputs
        if layer is None or not informed:
            return
        mean = float(layer.square.mean()) or 1.0  # a tensor's error is relative: the unit is free
        if informed == "gram":
            assert layer.gram is not None  # noqa: S101 - the planner saw that there is one
            gram = layer.gram
            self.gram = block.work.once("survey.gram", block.spec.name, lambda: (gram / mean).astype(np.float32))
        else:
            self.square = layer.square / mean

    def __call__(self, rows: Array) -> tuple[Array, Array]:
        wide = rows.astype(np.float64)  # squares of float32 weights may leave its range
        plain = dots(wide, wide)
        if self.gram is not None:
            peak = float(np.abs(rows).max(initial=0)) or 1.0
            unit = (wide / peak).astype(np.float32)
            return plain, np.vecdot(unit @ self.gram, unit).astype(np.float64).clip(0) * (peak * peak)
        if self.square is not None:
            return plain, dots(np.square(wide), np.broadcast_to(self.square, wide.shape))
        return plain, plain


def _shares(energy: Array) -> Array:
    """What each row counts, by its energy [rows]: about one over it; 1 where there is none at all."""
    mean = float(energy.mean()) if energy.size else 0.0
    found: Array = 1 / (energy + _DIM * mean) if mean else np.ones(energy.shape)
    return found


def counted(key: str, encoders: Mapping[str, Scheme]) -> bool:
    """Whether a candidate follows from counts of the weights: an even step, or dense."""
    return key == DENSE or isinstance(encoders[key], CountedScheme)


def _over_factors(scheme: Scheme | None) -> bool:
    return isinstance(scheme, CountedScheme) and scheme.seeks_factors


def _count_over_factors(block: Block, informed: str, share: Array, seen: Seen) -> None:
    """Count a block's weights over the factors that it would have by itself, and add what noise these give."""
    values, kind = block.values, block.values.dtype.str
    square = block.inputs.square if informed and block.inputs is not None else np.ones(values.shape[1])
    sizes = Sizes()
    sizes.add(values, 0, block.inputs.square if informed and block.inputs is not None else None)
    factors = sizes.factors(TensorSpec("", block.spec.dtype, values.shape))
    by_row, by_column = factors.by_row(0, len(values), kind), factors.by_column(kind)
    seen.over_factors.add(values / by_row / by_column, block.work)
    rows, columns = np.square(by_row[:, 0], dtype=np.float64), np.square(by_column, dtype=np.float64)
    mean = float(square.mean()) or 1.0
    seen.noise += (
        rows.sum() * float(columns.mean()),
        dot(rows, share) * float((columns * square).mean()) / mean,
    )


def _forecast(
    keys: Sequence[str], encoders: Mapping[str, Scheme], seen: Seen, spec: TensorSpec
) -> dict[str, Measured]:
    """What counts tell of these candidates."""
    rows, plain, energy, _, shares = (float(value) for value in seen.sums[0])
    found = {DENSE: Measured(0.0, 0.0, 0.0, seen.classes.bits() or 1e-9)} if DENSE in keys else {}
    groups: dict[CountedScheme, dict[str, float]] = {}  # the bits of those that differ in nothing else, by key
    for key in keys:
        encoder = encoders.get(key)
        if isinstance(encoder, CountedScheme) and encoder.aimed_bits is not None:
            groups.setdefault(encoder.aiming_at(None), {})[key] = encoder.aimed_bits
    for alike, aims in groups.items():
        classes, noise = (seen.over_factors, seen.noise) if alike.seeks_factors else (seen.classes, (rows, shares))
        each, weighed = (float(value) / (rows or 1) for value in noise)  # of a row
        forecasts = alike.forecasts(classes, spec, tuple(aims.values()))
        for key, (bits, lost) in zip(aims, forecasts, strict=True):
            error = sqrt(lost * each / plain) if plain else 0.0
            found[key] = Measured(error, lost * weighed / energy if energy else 0.0, 0.0, bits)
    return found


def _measured(head: Array, sums: Array, share: float) -> Measured:
    """From the sums over rows to ratios; `share` of the tensor's rows were measured."""
    rows, plain, energy, energy2, _ = (float(value) for value in head)
    lost, loss, loss2, product, _ = (float(value) for value in sums)
    error = sqrt(lost / plain) if plain else 0.0 if not lost else inf
    ratio = loss / energy if energy else 0.0 if not loss else inf
    if not ratio or ratio == inf or rows < 2 or share >= 1:
        return Measured(error, ratio)
    scatter = max(loss2 - 2 * ratio * product + ratio * ratio * energy2, 0) / (rows - 1)
    return Measured(error, ratio, 1.96 * sqrt(scatter * rows * (1 - share)) / loss)


def measure_of(one: Candidate, spec: TensorSpec, measured: Mapping[str, Mapping[str, Measured]]) -> Measured:
    """What is known of a candidate on a tensor; dense loses nothing."""
    known = measured.get(spec.name, {}).get(one.key)
    return Measured(0.0, 0.0) if one.encoder is None and known is None else measured[spec.name][one.key]


def size_of(one: Candidate, spec: TensorSpec, row: Measured, takers: Takers) -> int:
    """Bytes of a tensor as a candidate stores it: its parts', or about those of its codes in an archive."""
    return ceil(row.bits * spec.size / 8) if row.bits else takers.size(one, spec)
