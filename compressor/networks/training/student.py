"""A checkpoint whose tensors are those of a trained student, as if the file had held them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

from compressor.checkpoint.checkpoint import Checkpoint
from compressor.checkpoint.views import ReplacedTensor, check_finite, holding
from compressor.core.errors import InputError
from compressor.core.parallel.threads import local
from compressor.core.workspace import Array
from compressor.files.source import StoredTensor
from compressor.networks.matching import read_network
from compressor.networks.network import Network
from compressor.networks.surest import answers, both_surest, confidence, first_samples
from compressor.networks.training.batches import Batches, bordered
from compressor.networks.training.epochs import LANES
from compressor.networks.training.examples import Examples, open_examples
from compressor.networks.training.loop import Outcome, train
from compressor.networks.training.matched_norms import matched
from compressor.networks.training.network_ends import bare
from compressor.networks.training.refit_in_order import refitted
from compressor.networks.training.trained_codes import Held, TrainedCodes
from compressor.recipe.matched_norms import MatchedNorms
from compressor.recipe.sequential_refit import Sequential
from compressor.recipe.training import METHOD, OfNetworks, Training


def trained(
    checkpoint: Checkpoint,
    teacher: Checkpoint,
    options: OfNetworks,
    *,
    workers: int,
    dry: bool,
    progress: Callable[[int, int], None] | None,
) -> Checkpoint:
    """The student after training, the teacher's outputs before it; `dry`: not trained, only looked at. InputError
    where the two do not pair, or the inputs are not theirs."""
    if isinstance(options, Sequential):
        return refitted(checkpoint, teacher, options, workers=workers, dry=dry, progress=progress)
    if isinstance(options, MatchedNorms):
        return matched(checkpoint, teacher, options, dry=dry, progress=progress)
    found = read_network(checkpoint, options.network)
    student = bare(found.network)
    mentor = read_network(teacher, options.teacher_network or options.network)
    master = bare(mentor.network)
    if student.outputs != master.outputs or len(student.outputs) != 1:
        raise InputError(
            f"gives {list(student.outputs)} outputs, and the teacher {list(master.outputs)}",
            file=checkpoint.path,
            remedy="Student and teacher must give the same vector of outputs, of whatever shapes they are inside",
        )
    examples = open_examples(options.inputs, options.divide, student, master, shift=options.shift)
    samples = first_samples(examples.array, examples.by)
    mentor, found = both_surest(teacher, mentor, checkpoint, found, samples)
    student, master = bare(found.network), bare(mentor.network)
    held = None if options.codes == "numbers" else _held(checkpoint, student, options.codes)
    nbytes = sum(array.nbytes for array in student.tensors.values())
    # the student, its best state, masks, two moments and a gradient of each lane; the teacher
    size = (5 + LANES) * nbytes + sum(array.nbytes for array in master.tensors.values())
    size += 0 if held is None else held.nbytes
    size += (2 if options.shift else 1) * examples.nbytes + 4 * examples.count * student.outputs[0]
    notes = [
        f"network: {found.description}; the teacher's: {mentor.description}",
        f"inputs: {examples.count}, {examples.description}",
        _knows(master, samples, examples, options, teacher.path),
        f"{METHOD} holds both networks, Adam's moments and all inputs in memory: about {size / 1e6:.0f} MB",
    ]
    if not dry and not options.rehearsal:
        try:
            outcome = _run(student, master, examples, options, workers, progress, held)
        except InputError as error:
            error.file = error.file or checkpoint.path
            raise
        notes.append(_told(outcome, options))
    tensors = dict(checkpoint.tensors)
    for name, array in student.tensors.items():
        if held is None or name not in held.names:
            tensors[name] = holding(checkpoint, name, array)
    if held is not None:
        for name, codes in held.trained.items():
            tensors[name] = replace(tensors[name], parts={**tensors[name].parts, **_stored(codes)})
        tensors = {name: replace(one, kept=one.encoder is not None) for name, one in tensors.items()}
    return replace(checkpoint, tensors=tensors, notes=(*checkpoint.notes, *notes))


def _knows(teacher: Network, samples: Array, examples: Examples, options: Training, path: str) -> str:
    """How sure the teacher is of the first inputs, and how often right where there are labels, in words. InputError
    where that is less than asked for."""
    sure = confidence(teacher, samples)
    said = f"the teacher is sure of its answers by {sure:.3f} in the mean of the first {len(samples)} inputs"
    if options.labels is None:
        return said
    labels = examples.read_labels(options.labels, teacher.outputs[0])[: len(samples)]
    right = float((answers(teacher, samples).argmax(axis=1) == labels).mean())
    said += f", and right on {100 * right:.2f} % of them"
    if options.min_accuracy is not None and right < options.min_accuracy:
        raise InputError(
            f"{said}; at least {100 * options.min_accuracy:g} % were asked for",
            file=path,
            remedy="See whether the network is the one that it was trained as (--network), how inputs are scaled "
            "(--divide), and whether the labels are theirs; or lower --min-accuracy",
        )
    return said


def _run(
    student: Network,
    teacher: Network,
    examples: Examples,
    options: Training,
    workers: int,
    progress: Callable[[int, int], None] | None,
    held: Held | None,
) -> Outcome:
    inputs = examples.read()
    total, done = examples.array.spec.nbytes * options.epochs, 0

    def advance(samples: int) -> None:
        nonlocal done
        done += samples * examples.array.spec.nbytes // examples.count
        if progress is not None:
            progress(min(done, total), total)

    if options.shift:
        assert examples.image is not None  # noqa: S101 - looked at in open_examples
        inputs = bordered(inputs, examples.image, options.shift)
    labels = None if options.labels is None else examples.read_labels(options.labels, student.outputs[0])
    batches = Batches(inputs, examples.by, options.shift, labels)
    with local(min(workers, LANES)) as executor:  # one thread of BLAS each, whose sums then are always the same
        outcome = train(student, teacher, batches, options, executor, advance, held)
    examples.source.check_unchanged()
    return outcome


def _held(checkpoint: Checkpoint, student: Network, how: Literal["fixed", "scales"]) -> Held:
    held = Held(student, checkpoint.tensors, how)
    if not held.names:
        raise InputError(
            "stores no weights of the network as codes, which --codes is to keep",
            file=checkpoint.path,
            remedy="Leave out --codes, or quantize the student first",
        )
    return held


def _stored(codes: TrainedCodes) -> dict[str, StoredTensor]:
    """The parts that training changed, as if the file had held them. InputError where they hold them no more."""
    found: dict[str, StoredTensor] = {}
    for suffix, numbers in codes.parts().items():
        part = codes.tensor.parts[suffix]
        if part.spec.is_float:
            check_finite(numbers, part.spec.dtype, part.file.path, codes.tensor.spec.name)
        placed = replace(part.placed, fortran=False, big_endian=False, strides=None)
        found[suffix] = ReplacedTensor(part.file, placed, numbers)
    return found


def _told(outcome: Outcome, options: Training) -> str:
    where = "held out" if options.holdout else "trained on"
    alike = "student and teacher" if options.labels is None else "student and teacher, and labels by their share,"
    return (
        f"{alike} choose alike on {100 * outcome.after[1]:.2f} % of {outcome.judged} inputs {where}, "
        f"before {100 * outcome.before[1]:.2f} %; loss {outcome.after[0]:.4g}, before {outcome.before[0]:.4g}; "
        f"epoch {outcome.epoch} of {outcome.epochs} is kept"
    )
