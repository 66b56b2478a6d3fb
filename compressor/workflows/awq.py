"""Activation-aware scales (AWQ, Lin et al., arXiv 2306.00978): inputs that are large are rounded more finely.

For the matrices W that read the same inputs x, with E[x xᵀ] known, scales of the inputs are searched that make

    Σ ‖(W − Q(W diag(s)) diag(s)⁻¹) x‖²,    s_j = (√E[x_j²])^α / √(max s · min s)

least, over α = 0, 1/20, …, 1, where Q is the method's own rounding; α = 0 is no scale. They go into the model as
`surgery/scale_folding.py` says, before anything is planned again, so that what follows is plain quantization. Grams
serve where the statistics have them, else their diagonals. Of a matrix 512 rows are tried, in runs that are spread
evenly.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from hashlib import sha256

from compressor.architectures.recognise import recognise
from compressor.calibration.statistics import Statistics
from compressor.checkpoint.checkpoint import Checkpoint, Tensor
from compressor.checkpoint.finite import count_non_finite
from compressor.checkpoint.rows import Rows
from compressor.core.errors import InputError, MissingDescription, UsageError
from compressor.core.layer_inputs import Layer
from compressor.core.lazy import np
from compressor.core.parallel.threads import in_order, local
from compressor.core.tensor_names import layer_of
from compressor.core.text import printable, size_text
from compressor.core.workspace import Array, Workspace
from compressor.engine.plan.plan import Plan, Step
from compressor.methods.numerics.awq_search import AT_ONCE, divided, losses, scale_of
from compressor.surgery.scale_folding import Fold, folded, folds_of

_STEPS = 20  # of α
_ROWS = 512  # of a matrix that are tried
_RUN = 16  # rows that are read together


@dataclass(frozen=True)
class _Judged:
    """A matrix that is rounded by a `step`, with its layer's statistics."""

    tensor: Tensor
    step: Step
    statistics: Statistics

    @property
    def layer(self) -> str:
        assert self.step.inputs is not None  # noqa: S101 - the planner found it
        return self.step.inputs

    def inputs(self, gram: bool) -> Layer:
        return self.statistics.read(self.layer, gram and self.layer in self.statistics.grams)


@dataclass(frozen=True)
class _Rescaled(Statistics):
    """Statistics of a model whose inputs were divided by `scales` [in], by layer, after they were taken."""

    scales: Mapping[str, Array] = field(default_factory=dict)

    def read(self, layer: str, gram: bool = False) -> Layer:
        found, scale = super().read(layer, gram), self.scales.get(layer)
        return found if scale is None else divided(found, scale)

    def changed_by(self) -> str:
        """SHA-256 of the scales."""
        said = sha256()
        for layer, scale in sorted(self.scales.items()):
            said.update(f"{layer}\0".encode() + scale.tobytes())
        return said.hexdigest()


@dataclass(frozen=True)
class _Found:
    """What a search chose for one fold: α, its scale [channels], the loss without a scale and with it."""

    alpha: float
    scale: Array
    before: float
    after: float


def scaled_note(student: Checkpoint) -> tuple[str, ...]:
    """What to know of a student whose record says that it was rounded so."""
    stages = [stage for record in student.records for stage in record.stages]
    if not any(one.get("method") == "awq" for stage in stages for one in (stage, *stage.get("rule", ()))):
        return ()
    return (
        "the student was quantized by method awq, which scales weights: "
        "a teacher without such scales is none for it",
    )


def balanced(
    checkpoint: Checkpoint,
    plan: Plan,
    statistics: Mapping[int, Statistics],
    *,
    workers: int,
    dry: bool,
    strict: bool = False,
) -> tuple[Checkpoint, dict[int, Statistics]]:
    """The checkpoint with scales for what the plan has rounded so, and notes of what was scaled, and what was not
    and why; and the statistics, by stage, as they are with them. A `dry` run only says what would be searched.

    InputError for a model that contradicts its config or is not finite, and with `strict` for one whose
    architecture is not known, in which nothing can be scaled; UsageError where another step comes before.
    """
    judged: dict[str, _Judged] = {}
    for job in plan.jobs:
        for place, step in enumerate(job.steps):
            if step.method.rounded_by.balances:
                if place:
                    raise UsageError(
                        "method awq scales the model before all stages, so no other may come before it",
                        tensor=job.spec.name,
                        remedy="Quantize what the others leave in a run of its own",
                    )
                judged[job.spec.name] = _Judged(checkpoint.tensors[job.spec.name], step, statistics[step.stage])
    specs = [tensor.spec for tensor in checkpoint.tensors.values()]
    try:
        model = recognise(checkpoint.source.config, specs, checkpoint.path, "awq")
    except MissingDescription as error:
        if strict:
            error.remedy = "Drop --strict, and errors are weighed by the inputs all the same"
            raise
        note = f"awq: nothing can be scaled, errors are only weighed by the inputs ({error.reason})"
        return replace(checkpoint, notes=(*checkpoint.notes, note)), dict(statistics)
    folds, why = folds_of(model.parts, checkpoint)
    wanted = [fold for fold in folds if judged.keys() & set(fold.readers)]
    notes = _unscaled([(name, why[name]) for name in judged if name in why])
    if dry:
        count = sum(name in judged for fold in wanted for name in fold.readers)
        notes = (f"awq: scales will be searched for the inputs of {_matrices(count)}", *notes)
        return replace(checkpoint, notes=(*checkpoint.notes, *notes)), dict(statistics)
    most = max(searching_memory(plan, statistics).values(), default=0)
    notes += (f"while scales are searched a worker holds about {size_text(most)}",) if most else ()
    tasks = (
        partial(_search, fold, [judged[name] for name in fold.readers if name in judged], checkpoint.path)
        for fold in wanted
    )
    with local(workers) as executor:
        found = list(in_order(executor, tasks, workers + 1))
    chosen = [(fold, one) for fold, one in zip(wanted, found, strict=True) if one.alpha]
    notes = (*_scaled(chosen, judged, len(wanted)), *notes)
    made, columns = folded(checkpoint, [(fold, one.scale) for fold, one in chosen])
    scales = {layer_of(name): scale for name, scale in columns.items()}
    known: dict[int, Statistics] = {
        number: _Rescaled(**{part.name: getattr(one, part.name) for part in fields(Statistics)}, scales=scales)
        for number, one in statistics.items()
    }
    return replace(made, notes=(*checkpoint.notes, *notes)), known


def searching_memory(plan: Plan, statistics: Mapping[int, Statistics]) -> dict[str, int]:
    """About how many bytes a worker holds while scales are searched for the inputs of a matrix, by its name."""
    found = {}
    for job in plan.jobs:
        for step in job.steps:
            if step.method.rounded_by.balances and step.inputs is not None:
                rows, width = min(job.spec.matrix[0], _ROWS), job.spec.matrix[1]
                gram = step.inputs in statistics[step.stage].grams
                # the rows and their runs; what a block is rounded with; the gram in float64 and as it is multiplied
                sizes = 2 * 4 * rows * width, 12 * 4 * min(rows * width, AT_ONCE), gram * 12 * width * width
                found[job.spec.name] = sum(sizes)
    return found


# ---- the search ------------------------------------------------------------------------------------------------


def _search(fold: Fold, judged: Sequence[_Judged], path: str) -> _Found:
    """The best α for one fold, judged by these of its readers."""
    energy, total = np.zeros(fold.channels), 0
    for one in judged:
        layer = one.inputs(gram=False)
        energy += fold.gathered(layer.square * layer.count)
        total += layer.count
    size = np.sqrt(energy / max(total * fold.each, 1))
    scales = [scale_of(size, step / _STEPS) for step in range(_STEPS + 1)]
    lost = np.zeros(len(scales))
    for one in judged:
        lost += _losses(one, [fold.spread(scale) for scale in scales], path)
    best = int(lost.argmin())
    return _Found(best / _STEPS, scales[best], float(lost[0]), float(lost[best]))


def _losses(one: _Judged, scales: Sequence[Array], path: str) -> Array:
    """Σ over rows and inputs of what each scale [in] makes the outputs lose, in mean squares times the count."""
    rows, layer, spec = _sample(one.tensor, path), one.inputs(gram=True), one.tensor.spec
    lost = losses(rows, scales, one.step.method.rounded_by, spec, layer)
    return np.array([each * layer.count * spec.matrix[0] / len(rows) for each in lost])


def _sample(tensor: Tensor, path: str) -> Array:
    """Rows that stand for all of a matrix: all of it, or runs that are spread evenly."""
    rows, columns = tensor.spec.matrix
    found = [
        Rows(tensor, columns, start, stop, Workspace(), "awq").block(start, stop).copy()
        for start, stop in _runs(rows, tensor.align)
    ]
    sample = np.concatenate(found)
    if not np.isfinite(sample).all():
        count = count_non_finite(tensor)
        raise InputError(
            f"holds {count} NaN or infinite value{'s' if count != 1 else ''}",
            file=path,
            tensor=tensor.spec.name,
            remedy="Mend it, --exclude it, or carry such tensors over with --non-finite keep",
        )
    return sample


def _runs(rows: int, align: int) -> Iterator[tuple[int, int]]:
    run = -(-_RUN // align) * align
    count = -(-rows // run)
    taken = min(count, max(_ROWS // run, 1))
    for number in range(taken):
        start = number * count // taken * run
        yield start, min(start + run, rows)


# ---- what is said of it ----------------------------------------------------------------------------------------


def _matrices(count: int) -> str:
    return f"{count} matri{'x' if count == 1 else 'ces'}"


def _scaled(chosen: Sequence[tuple[Fold, _Found]], judged: Mapping[str, _Judged], wanted: int) -> Iterator[str]:
    if not chosen:
        why = "no scale loses less than none" if wanted else "there is no place for a scale"
        yield f"awq: no inputs are scaled: {why}; errors are weighed by the inputs all the same"
        return
    count = sum(name in judged for fold, _ in chosen for name in fold.readers)
    alphas = sorted(one.alpha for _, one in chosen)
    less = 1 - sum(one.after for _, one in chosen) / sum(one.before for _, one in chosen)
    yield (
        f"awq: the inputs of {_matrices(count)} are scaled, alpha {alphas[0]:g} to {alphas[-1]:g}, which takes "
        f"{less:.1%} off what their outputs lose by the statistics; weights and what comes before them are scaled, "
        "so compare outputs with the original, not weights"
    )
    if wanted > len(chosen):
        left = wanted - len(chosen)
        yield f"awq: in {left} place{'s' * (left > 1)} no scale loses less than none"


def _unscaled(reasons: Iterable[tuple[str, str]]) -> tuple[str, ...]:
    """Matrices without a scale, by reason."""
    by_reason: dict[str, list[str]] = {}
    for name, reason in reasons:
        by_reason.setdefault(reason, []).append(name)
    found = []
    for reason, names in by_reason.items():
        some = f"'{printable(names[0], 100)}'{', …' if len(names) > 1 else ''}"
        found.append(
            f"awq: {_matrices(len(names))} {'is' if len(names) == 1 else 'are'} not scaled ({reason}): {some}"
        )
    return tuple(found)
