"""A checkpoint with less of a structure: what to cut is found, measured and chosen here, and the rest is read as if
it had never been more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import sqrt
from typing import Any

from compressor.architectures.assembly import Assembly, several_stacks
from compressor.architectures.chain import Chain, find_chain
from compressor.architectures.groups import Coupled, Group, Structure
from compressor.architectures.model import Model
from compressor.architectures.recognise import recognise
from compressor.calibration.statistics import Statistics
from compressor.checkpoint.checkpoint import Checkpoint, Tensor
from compressor.checkpoint.views import SelectedTensor, gathered
from compressor.core.errors import InputError, UsageError
from compressor.core.lazy import np
from compressor.core.parallel.threads import local
from compressor.core.tensor import DTYPES
from compressor.core.workspace import Array
from compressor.files.input_file import InputFile
from compressor.files.source import Source
from compressor.methods.structured_cut import StructuredCut
from compressor.surgery.choose_units import choose, kept_counts
from compressor.surgery.config_edit import edited, pooling
from compressor.surgery.described import described
from compressor.surgery.importance import Sums, measure, total_squares, weights_of
from compressor.surgery.input_energy import Place, energies, influences, placed


@dataclass(frozen=True)
class CutSource(Source):
    """A source of which less is used: it is as large as the `original`, and all of that was opened. `places` tell
    where each tensor lies in that."""

    original: Source | None = None
    places: Mapping[str, Place] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        assert self.original is not None  # noqa: S101 - set below
        return self.original.nbytes

    @property
    def opened(self) -> tuple[InputFile, ...]:
        assert self.original is not None  # noqa: S101
        return self.original.opened


def restructure(
    checkpoint: Checkpoint,
    requests: Sequence[StructuredCut],
    *,
    workers: int = 1,
    keep_non_finite: bool = False,
    statistics: Statistics | None = None,
) -> Checkpoint:
    """The checkpoint after these cuts, each on what the earlier left. `statistics` of layer inputs before any cut
    are for those that go by some. UsageError for what cannot be cut, InputError for a model that is not understood;
    all weights that a cut concerns are read once."""
    for request in requests:
        for run in _runs(checkpoint, request):
            checkpoint = _cut(checkpoint, request, run, workers, keep_non_finite, statistics)
    return checkpoint


def _runs(checkpoint: Checkpoint, request: StructuredCut) -> tuple[tuple[str, ...], ...]:
    """The stacks of a model of several that are cut one after the other; one run without names where it has one."""
    found = None if request.described is not None else model_of(checkpoint, request.structure)
    if isinstance(found, Assembly):
        runs = found.cuts(request.structure, request.stack)
        return tuple(tuple(part.family.name for part in run) for run in runs)
    if request.stack is not None:
        raise UsageError(
            f"structure {request.structure}: a stack is named, and this model has only one", remedy="Drop the stack"
        )
    return ((),)


def teacher_of(checkpoint: Checkpoint, kind: str) -> Model | Chain:
    """What a student is cut out of. UsageError for a model of several stacks, InputError for what is unknown."""
    found = model_of(checkpoint, kind)
    if isinstance(found, Assembly):
        raise several_stacks(found.config, kind, found.names)
    return found


def model_of(checkpoint: Checkpoint, kind: str) -> Model | Assembly | Chain:
    """What the checkpoint is, as far as cuts know: a recognised model or a plain chain. InputError for others."""
    specs = {name: tensor.spec for name, tensor in checkpoint.tensors.items()}
    config = checkpoint.source.config
    if config is None or "model_type" not in config:
        chain = find_chain(specs, checkpoint.path, kind)
        if chain is not None:
            return chain
    return recognise(config, specs.values(), checkpoint.path, kind)


def _cut(
    checkpoint: Checkpoint,
    request: StructuredCut,
    run: tuple[str, ...],
    workers: int,
    keep_non_finite: bool,
    statistics: Statistics | None,
) -> Checkpoint:
    structure, model = _find(checkpoint, request, run)
    _check_tensors(checkpoint, structure)
    counts = kept_counts(request, structure)
    groups = (*structure.groups, *structure.followers)
    energy: Mapping[str, Array] = {}
    if request.by in ("inputs", "influence"):
        assert statistics is not None  # noqa: S101 - who asks for them gave them
        places = _places(checkpoint)
        if request.by == "influence":
            energy = influences(groups, places, statistics)
        else:
            energy = energies(groups, places, checkpoint.tensors, statistics, structure.kind)
    with local(workers) as executor:
        sums = measure(checkpoint.tensors, groups, executor, checkpoint.path, keep_non_finite=keep_non_finite)
    keep = choose(request, structure, counts, sums, checkpoint.tensors, energy)
    tensors = _tensors(checkpoint, groups, keep)
    errors = _errors(checkpoint, tensors, groups, keep, sums, keep_non_finite)
    cuts = [
        _coupled(structure.kind, group, keep[group.name], sums, errors)
        for group in groups
        if not keep[group.name].all()
    ]
    source = _source(checkpoint, tensors, structure, model, keep)
    return replace(
        checkpoint,
        source=source,
        tensors={name: replace(tensor, file=source.file_of[name]) for name, tensor in sorted(tensors.values())},
        records=tuple(
            record
            for record, part in zip(checkpoint.records, checkpoint.source.files, strict=True)
            if part in source.files
        ),
        cuts=(*checkpoint.cuts, *cuts),
    )


def _find(checkpoint: Checkpoint, request: StructuredCut, run: tuple[str, ...]) -> tuple[Structure, Model | None]:
    """The structure that the request names, as the user describes it, or as it is recognised, in these stacks."""
    if request.described is not None:
        specs = {name: tensor.spec for name, tensor in checkpoint.tensors.items()}
        return described(request.described, specs, checkpoint.source.config, checkpoint.path), None
    found = model_of(checkpoint, request.structure)
    if isinstance(found, Assembly):
        parts = tuple(part for part in found.parts if part.family.name in run)
        return found.find(request.structure, parts), parts[0]
    return found.find(request.structure), found if isinstance(found, Model) else None


def _check_tensors(checkpoint: Checkpoint, structure: Structure) -> None:
    for group in (*structure.groups, *structure.followers):
        for touch in group.touches:
            tensor = checkpoint.tensors[touch.tensor]
            if not DTYPES[tensor.spec.dtype].storage:
                raise InputError(
                    f"is {tensor.spec.dtype}, whose elements are narrower than a byte and cannot be cut",
                    file=checkpoint.path,
                    tensor=touch.tensor,
                )
            if tensor.encoder is not None and len(tensor.spec.shape) > 2:
                raise InputError(
                    "is stored as codes and has more than two axes",
                    file=checkpoint.path,
                    tensor=touch.tensor,
                    remedy="Restore the model first",
                )


def _tensors(
    checkpoint: Checkpoint, groups: Sequence[Group], keep: Mapping[str, Array]
) -> dict[str, tuple[str, Tensor]]:
    """What is left, by the old name: the new name and the tensor."""
    masks: dict[str, dict[int, Array]] = {}
    names: dict[str, str] = {}
    gone: set[str] = set()
    for group in groups:
        mask = keep[group.name]
        for touch in group.touches:
            shape = checkpoint.tensors[touch.tensor].spec.shape
            axis = masks.setdefault(touch.tensor, {}).setdefault(touch.axis, np.ones(shape[touch.axis], bool))
            end = touch.offset + group.units * touch.block
            axis[touch.offset : end] &= np.repeat(mask, touch.block)
        new = np.cumsum(mask) - 1
        for name, owned in group.owned.items():
            if mask[owned.unit]:
                names[name] = owned.called(int(new[owned.unit]))
            else:
                gone.add(name)
    found = {}
    for name, tensor in checkpoint.tensors.items():
        if name not in gone:
            called = names.get(name, name)
            found[name] = (called, gathered(tensor, called, masks.get(name, {})))
    return found


def _errors(
    checkpoint: Checkpoint,
    tensors: Mapping[str, tuple[str, Tensor]],
    groups: Sequence[Group],
    keep: Mapping[str, Array],
    sums: Mapping[str, Sums],
    keep_non_finite: bool,
) -> dict[str, float]:
    """‖what went of a tensor‖ / ‖tensor‖ for every tensor that was cut."""
    axes: dict[str, set[int]] = {}
    lost: dict[str, float] = {}
    for group in groups:
        gone = ~keep[group.name]
        for touch in group.touches:
            if touch.tensor in sums:
                axes.setdefault(touch.tensor, set()).add(touch.axis)
                vector = sums[touch.tensor].by_axis[touch.axis][0]
                part = vector[touch.offset : touch.offset + group.units * touch.block]
                went = float(part[np.repeat(gone, touch.block)].sum())
                lost[touch.tensor] = lost.get(touch.tensor, 0.0) + went
    found = {}
    for name, went in lost.items():
        total = sums[name].squares
        if len(axes[name]) > 1 and name in tensors:  # rows and columns went, and meet: look at what is left
            went = total - total_squares(tensors[name][1], checkpoint.path, keep_non_finite=keep_non_finite)
        found[name] = sqrt(max(went, 0.0) / total) if total else 0.0
    return found


def _coupled(
    kind: str, group: Group, keep: Array, sums: Mapping[str, Sums], errors: Mapping[str, float]
) -> Coupled:
    weights = weights_of(group, sums, 2)
    total = float(weights.sum())
    removed = float(weights[~keep].sum()) / total if total else 0.0
    worst = max((touch.tensor for touch in group.touches), key=lambda name: errors.get(name, 0.0), default="")
    error = errors.get(worst, 0.0)
    owned = [(sums[name].squares, keep[one.unit]) for name, one in group.owned.items() if name in sums]
    if owned:
        whole = sqrt(sum(size for size, stays in owned if not stays) / (sum(size for size, _ in owned) or 1.0))
        error, worst = max((error, worst), (whole, group.name))
    places = [f"{touch.tensor}:{touch.axis}" for touch in group.touches] or [f"{group.name}.*"]
    shares = (round(removed, 6), round(error, 6))  # sums differ in their last digits between processors
    return Coupled(kind, group.name, group.units, int(keep.sum()), *shares, worst, tuple(dict.fromkeys(places)))


def _places(checkpoint: Checkpoint) -> Mapping[str, Place]:
    return checkpoint.source.places if isinstance(checkpoint.source, CutSource) else {}


def _source(
    checkpoint: Checkpoint,
    tensors: Mapping[str, tuple[str, Tensor]],
    structure: Structure,
    model: Model | None,
    keep: Mapping[str, Array],
) -> CutSource:
    """The source without the files that lost all their tensors, with the config of what is left."""
    source = checkpoint.source
    used = {tensor.file for _, tensor in tensors.values()}
    held = {tensor.file for tensor in checkpoint.tensors.values()}
    files = [number for number in range(len(source.files)) if number in used or number not in held]
    place = {old: new for new, old in enumerate(files)}
    config: dict[str, Any] | None = None
    if source.config is not None:
        config = edited(source.config, model, structure, keep, checkpoint.path)
    return CutSource(
        path=source.path,
        kind=source.kind,
        files=tuple(source.files[number] for number in files),
        tensors=source.tensors,
        file_of={called: place[tensor.file] for called, tensor in tensors.values()},
        config=config,
        # config.json is written anew, no longer carried
        carried={
            name: file for name, file in source.carried.items() if config is None or name != source.config_name
        },
        texts={**source.texts, **pooling(source, structure, keep)},
        left=source.left,
        index=source.index,
        index_metadata=source.index_metadata,
        notes=source.notes,
        linked=source.linked,
        inside=source.inside,
        original=source.original if isinstance(source, CutSource) else source,
        places=placed(_places(checkpoint), checkpoint.tensors, tensors),
    )


__all__ = ["CutSource", "SelectedTensor", "restructure"]
