"""Which tensors of another checkpoint, and which statistics of layer inputs, go with which tensors. What is wrong
with them is found before the run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from compressor.architectures.conv1d import is_conv1d
from compressor.calibration.fingerprint import fingerprint
from compressor.calibration.statistics import Statistics
from compressor.checkpoint.checkpoint import Checkpoint, Tensor
from compressor.core.errors import InputError
from compressor.core.tensor import TensorSpec
from compressor.core.tensor_names import layer_of, weight_of
from compressor.core.text import printable
from compressor.engine.plan.plan import Step
from compressor.recipe.model import Stage
from compressor.recipe.selection import VECTOR, LeftAlone, left_alone

_SHOWN = 3  # layers that an error names


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


def layer_for(
    spec: TensorSpec, statistics: Statistics, checkpoint: Checkpoint, *, gram: bool, by_expert: bool = False
) -> str:
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
    if is_conv1d(checkpoint.source.config, spec.name) and spec.name not in checkpoint.upright:
        raise refused("is stored transposed (Conv1D), so that its rows are no outputs", "Exclude it")
    if not statistics.fits(layer, spec, by_expert=by_expert):
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
    partner = _called_alike(spec, student, teacher)
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


def _called_alike(spec: TensorSpec, student: Checkpoint, teacher: Checkpoint) -> Tensor | None:
    partner = teacher.tensors.get(spec.name)
    if partner is None and len(student.tensors) == len(teacher.tensors) == 1:
        partner = next(iter(teacher.tensors.values()))
    return partner


def has_partner(spec: TensorSpec, student: Checkpoint, teacher: Checkpoint) -> bool:
    """Whether a tensor has a partner there, of the same shape and of floats."""
    partner = _called_alike(spec, student, teacher)
    return partner is not None and partner.spec.shape == spec.shape and partner.spec.is_float


def check_partners(stages: Iterable[Stage], student: Checkpoint, teachers: Mapping[str, Checkpoint]) -> None:
    """InputError where partners may lack tensors, and one lacks all of those that are to be treated."""
    for stage in stages:
        if stage.teacher is None or not stage.method.partner_optional:
            continue
        teacher, role = teachers[stage.teacher], stage.method.partners[0]
        wanted = [tensor.spec for tensor in student.tensors.values() if stage.leaves(tensor.spec) is None]
        if wanted and not any(has_partner(spec, student, teacher) for spec in wanted):
            raise InputError(
                f"has no floats of the name and shape of any tensor of the input's that is to be coded against the "
                f"{role}",
                file=teacher.path,
                remedy="Name the checkpoint that the input was trained from",
            )


def bias_left_alone(spec: TensorSpec, stage: Stage, checkpoint: Checkpoint) -> LeftAlone | None:
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
    treated = left_alone(weight.spec, stage.method.verb, stage.include, stage.exclude) is None
    method = stage.method_for(weight.spec.name)
    if not treated or method != stage.method_for(spec.name) or method.skip(weight.spec) is not None:
        return LeftAlone("bias of a layer that is left alone", asked=True)
    return None


def informed(spec: TensorSpec, step: Step, statistics: Mapping[int, Statistics], checkpoint: Checkpoint) -> Step:
    """The step with the layer whose statistics its method goes by, if it goes by any."""
    gram = step.method.statistics == "gram"
    if not step.method.statistics:
        return step
    layer = layer_for(spec, statistics[step.stage], checkpoint, gram=gram, by_expert=step.method.inputs_by_expert)
    return replace(step, inputs=layer, gram=gram)
