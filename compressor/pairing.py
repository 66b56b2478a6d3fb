"""Which tensors of another checkpoint, and which statistics of layer inputs, go with which tensors. What is wrong
with them is found before the run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from compressor.checkpoint import Checkpoint
from compressor.dialects.compressed_tensors import is_transposed
from compressor.errors import CompressorError, InputError, UsageError, raise_all
from compressor.inputs import weight_of
from compressor.plan import Job, Step
from compressor.recipe import Recipe, Stage
from compressor.reshape import Reshape
from compressor.scores import open_scores
from compressor.selection import VECTOR, Kept, kept
from compressor.statistics import Statistics, fingerprint, layer_of, open_statistics
from compressor.structure.request import Request
from compressor.tensor import TensorSpec
from compressor.text import printable, size_text

_SHOWN = 3  # layers that an error names


def with_statistics(recipe: Recipe, stats: str | None) -> Recipe:
    """The recipe whose stages know the file that they go by: their own, else `stats`, else the recipe's. Cuts that
    leave open what they go by take the common one where no stage does.

    UsageError where a stage lacks one, has one for nothing, or nothing would be done with `stats`.
    """
    common = stats or recipe.stats
    stages, problems, taken, used = [], list[CompressorError](), False, False
    for stage in recipe.stages:
        if (stage.stats or common) is not None:
            stage = _going_by_them(stage)
        needs = stage.statistics
        if needs is None and stage.stats is not None:
            problems.append(UsageError(f"{stage.method.verb} {stage.method.id} goes by no statistics: drop stats"))
        elif needs is not None and stage.stats is None:
            if common is None:
                problems.append(_lacking(f"{needs.verb} {needs.id}"))
            stage, taken = replace(stage, stats=common), True
        stages.append(stage)
    cuts: list[Request | Reshape] = []
    for cut in recipe.cuts:
        if isinstance(cut, Request) and cut.stats is None and cut.layers is None:
            asked = cut.importance == "inputs"
            if asked and common is None:
                problems.append(_lacking("importance inputs"))
            elif common is not None and (asked or (cut.importance == "auto" and not taken)):
                cut, used = replace(cut, stats=common), True
        cuts.append(cut)
    taken = taken or used
    if common is not None and not taken and not problems:
        own = any(stage.statistics for stage in recipe.stages) or any(
            isinstance(cut, Request) and cut.stats for cut in recipe.cuts
        )
        said = "its own" if own else "none"
        problems.append(UsageError(f"--stats: no stage takes it; what they go by is {said}", remedy="Leave it out"))
    raise_all(problems)
    return replace(recipe, stages=tuple(stages), cuts=tuple(cuts))


def _lacking(what: str) -> UsageError:
    return UsageError(
        f"{what} goes by statistics of the layers' inputs",
        remedy="Give --stats FILE, which `compressor calibrate` makes",
    )


def _going_by_them(stage: Stage) -> Stage:
    """The stage with its methods going by statistics where they may."""
    method = stage.method.with_statistics() or stage.method
    return replace(stage, method=method, rules=tuple((t, one.with_statistics() or one) for t, one in stage.rules))


def open_all(recipe: Recipe) -> dict[int, Statistics]:
    """The statistics of each cut and stage that goes by some, by its number; every file is opened once."""
    opened: dict[tuple[str, bool], Statistics] = {}
    found = {}
    wanted = [
        *((cut.stats if isinstance(cut, Request) else None, False) for cut in recipe.cuts),
        *((stage.stats, stage.scored) for stage in recipe.stages),
    ]
    for number, (path, scored) in enumerate(wanted):
        if path is not None:
            if (path, scored) not in opened:
                opened[path, scored] = open_scores(path) if scored else open_statistics(path)
            found[number] = opened[path, scored]
    return found


def files_of(recipe: Recipe) -> list[str]:
    """The files of statistics and scores that the recipe names."""
    named = [*(cut.stats for cut in recipe.cuts if isinstance(cut, Request)), *(one.stats for one in recipe.stages)]
    return sorted({path for path in named if path is not None})


def described(recipe: Recipe, statistics: Mapping[int, Statistics]) -> Iterator[Mapping[str, Any]]:
    """All that is done as a recipe would give it, with what the statistics that it goes by are known by."""
    for number, stage in enumerate((*recipe.cuts, *recipe.stages)):
        if number == len(recipe.cuts):
            yield from _trained(recipe)
        said = stage.describe()
        if number in statistics:
            asked = (stage.method, *(method for _, method in stage.rules)) if isinstance(stage, Stage) else ()
            grams = any(method.statistics == "gram" or method.balances for method in asked)
            scored = isinstance(stage, Stage) and stage.scored
            said["scores" if scored else "stats"] = f"sha256:{statistics[number].identity(grams=grams)}"
        yield said
    if not recipe.stages:
        yield from _trained(recipe)


def _trained(recipe: Recipe) -> Iterator[Mapping[str, Any]]:
    """Training comes between cuts and stages."""
    if recipe.training is not None:
        yield recipe.training.describe()


def check_model(statistics: Iterable[Statistics], checkpoint: Checkpoint, undivided: Checkpoint) -> tuple[str, ...]:
    """What the user should know of where they were taken. InputError where that was another model.

    `undivided` is the checkpoint with its experts as the file has them.
    """
    wanted = {one.path: one for one in statistics if one.model}
    if not wanted:
        return ()
    prints = [fingerprint(checkpoint), *([fingerprint(undivided)] if undivided is not checkpoint else [])]
    notes = []
    for one in wanted.values():
        same = [weights for model, weights in prints if model == one.model]
        if not same:
            raise InputError(
                f"its statistics are of another model than {checkpoint.path}: {_difference(one, checkpoint)}",
                file=one.path,
                remedy="Calibrate this model" + (" as the cut leaves it" if checkpoint.cuts else ""),
            )
        if one.weights and one.weights not in same:
            notes.append(
                "the statistics were taken from this model with other weights (before or after pruning it, say)"
            )
    return tuple(dict.fromkeys(notes))


def _difference(statistics: Statistics, checkpoint: Checkpoint) -> str:
    specs = {layer_of(name): tensor.spec for name, tensor in checkpoint.tensors.items()}
    missing = [layer for layer in statistics.layers if layer not in specs]
    wider = [
        f"'{printable(layer, 100)}' has {specs[layer].matrix[1]} inputs and not {width}"
        for layer, width in statistics.widths.items()
        if layer in specs and specs[layer].matrix[1] != width
    ]
    if missing:
        return "it has no " + _listed([f"'{printable(layer, 100)}'" for layer in missing])
    return _listed(wider) if wider else "names or shapes of other weights differ"


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def layer_for(spec: TensorSpec, statistics: Statistics, checkpoint: Checkpoint, *, gram: bool) -> str:
    """The layer whose inputs this tensor is multiplied with. InputError when there is none, or it does not fit.

    Two files of one tensor and one layer pair whatever they are called. The layer's vectors are looked at.
    """
    layer, noun = layer_of(spec.name), statistics.noun

    def refused(reason: str, remedy: str = "Exclude it, or calibrate this model") -> InputError:
        return InputError(reason, file=statistics.path, tensor=spec.name, remedy=remedy)

    if layer not in statistics.widths and len(checkpoint.tensors) == len(statistics.layers) == 1:
        layer = statistics.layers[0]
    width = statistics.widths.get(layer)
    if width is None:
        raise refused(f"there are no {noun} of its inputs", "Exclude it, or calibrate with it")
    if is_transposed(checkpoint.source.config, spec):
        raise refused("is stored transposed (Conv1D), so that its rows are no outputs", "Exclude it")
    if width != spec.matrix[1]:
        raise refused(f"has shape {list(spec.shape)}, so {spec.matrix[1]} inputs, and its {noun} {width}")
    if not statistics.counts[layer]:
        raise refused("its layer saw no input at all", "Exclude it, or calibrate with more inputs")
    if gram and layer not in statistics.grams:
        raise refused("the statistics have no gram of its inputs", "Make them again with grams, or exclude it")
    statistics.read(layer)
    return layer


def partner_for(spec: TensorSpec, student: Checkpoint, teacher: Checkpoint, role: str) -> str:
    """The tensor of the same name and shape of the teacher, or whatever its `role`; two inputs of one tensor pair
    whatever they call it."""
    partner = teacher.tensors.get(spec.name)
    if partner is None and len(student.tensors) == len(teacher.tensors) == 1:
        partner = next(iter(teacher.tensors.values()))
    if partner is None:
        raise InputError(
            f"the {role} {teacher.path} has no tensor of that name",
            tensor=spec.name,
            remedy=f"Exclude it, or give a {role} of the same structure",
        )
    if partner.spec.shape != spec.shape:
        raise InputError(
            f"the {'student' if role == 'teacher' else 'input'} has shape {list(spec.shape)}, "
            f"the {role} {list(partner.spec.shape)}",
            file=teacher.path,
            tensor=spec.name,
            remedy=f"Exclude it, or give a {role} of the same structure",
        )
    if not partner.spec.is_float:
        raise InputError(f"the {role}'s is {partner.spec.dtype}, not a float", file=teacher.path, tensor=spec.name)
    return partner.spec.name


def bias_kept(spec: TensorSpec, stage: Stage, checkpoint: Checkpoint) -> Kept | None:
    """Why a stage that treats layers' biases leaves this vector alone; None where it is the bias of a layer whose
    weight the stage treats by the same method."""
    weight = checkpoint.tensors.get(weight_of(spec.name))
    if (
        weight is None
        or not weight.spec.is_float
        or len(weight.spec.shape) < 2
        or spec.shape[0] != weight.spec.shape[0]
    ):
        return VECTOR
    treated = kept(weight.spec, stage.method.verb, stage.include, stage.exclude) is None
    method = stage.method_for(weight.spec.name)
    if not treated or method != stage.method_for(spec.name) or method.skip(weight.spec) is not None:
        return Kept("bias of a layer that is left alone", asked=True)
    return None


def informed(spec: TensorSpec, step: Step, statistics: Mapping[int, Statistics], checkpoint: Checkpoint) -> Step:
    """The step with the layer whose statistics its method goes by, if it goes by any."""
    gram = step.method.statistics == "gram"
    if not step.method.statistics:
        return step
    layer = layer_for(spec, statistics[step.stage], checkpoint, gram=gram)
    return replace(step, inputs=layer, gram=gram)


def memory_note(jobs: Iterable[Job], statistics: Mapping[int, Statistics]) -> tuple[str, ...]:
    """What a worker holds of statistics."""
    sizes = [0]
    for job in jobs:
        for step in job.steps:
            if step.inputs is not None:
                width = statistics[step.stage].widths[step.inputs]
                sizes.append(16 * width + (8 * width * width if step.gram else 0))
    if not max(sizes):
        return ()
    return (f"a worker holds the statistics of one layer at a time, at most {size_text(max(sizes))}",)
