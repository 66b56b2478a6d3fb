"""Training on softened outputs: what is trained, epoch by epoch, and which state is kept."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from math import isfinite

from compressor.core.errors import InputError
from compressor.core.lazy import np
from compressor.networks.network import Network
from compressor.networks.training.batches import Batches
from compressor.networks.training.best_state import BestState, Judged
from compressor.networks.training.epochs import Bonds, Epochs
from compressor.networks.training.gradual_pruning import Gradual
from compressor.networks.training.start import Ties, masks_of, start_anew
from compressor.networks.training.trained_codes import Held
from compressor.recipe.training import Training


@dataclass(frozen=True)
class Outcome:
    """How a training went: the loss and the share of inputs on which both networks choose alike (held out, or all),
    before and after; `epoch` is the one that was kept of `epochs`."""

    before: Judged
    after: Judged
    epoch: int
    epochs: int
    judged: int


def train(
    student: Network,
    teacher: Network,
    batches: Batches,
    options: Training,
    executor: Executor,
    advance: Callable[[int], None],
    held: Held | None = None,
) -> Outcome:
    """Change the student's tensors in place. InputError where its outputs grow beyond all numbers."""
    masks = masks_of(student) if options.respect_zeros else {}
    if held is not None:
        masks = held.free(masks) | held.masks
    ties = Ties(student, masks) if options.tie == "shared" else None
    if options.init == "random":
        start_anew(student, options.seed)
        for name, mask in masks.items():
            student.parameters[name] *= mask
    gradual = None
    if options.sparsity is not None:
        matrices = {name: weight for name, weight in student.parameters.items() if weight.ndim > 1}
        masks |= {name: np.ones_like(weight) for name, weight in matrices.items() if name not in masks}
        gradual = Gradual(matrices, masks, options.sparsity, options.prune_over, options.epochs, options.prune_by)
    epochs = Epochs(student, teacher, batches, options, Bonds(masks, ties, held), executor)
    before, number, found = epochs.judge(), 0, (0.0, 0.0)
    if not isfinite(before[0]):
        raise InputError(
            "the student's outputs are beyond all numbers before it is trained",
            remedy="Scale the inputs down with --divide",
        )
    beside = {} if held is None else {f"{name} numbers": array for name, array in held.numbers.items()}
    best = BestState(student.tensors | beside, len(epochs.judged))
    for number in range(1, options.epochs + 1):
        if gradual is not None and gradual.prune(number - 1):
            epochs.adam.forget()
        epochs.epoch(number - 1, advance)
        last = number == options.epochs
        found = epochs.judge() if options.holdout or last else (0.0, 0.0)
        if not isfinite(found[0]) or not all(np.isfinite(array).all() for array in student.tensors.values()):
            raise InputError(
                f"the student's outputs grew beyond all numbers in epoch {number}",
                remedy=f"Lower --learning-rate, which was {options.learning_rate:g}",
            )
        if options.holdout and (gradual is None or gradual.done(number - 1)):
            best.offer(number, found)
            if options.patience is not None and best.since >= options.patience:
                break
    if not options.holdout:
        return Outcome(before, found, number, number, len(epochs.judged))
    best.restore()
    return Outcome(before, best.judged, best.epoch, number, len(epochs.judged))
