"""Training on softened outputs: minibatches in an order by the seed, Adam, the rate falling as a cosine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import cos, isfinite, pi, sqrt

from compressor.errors import InputError
from compressor.lazy import np
from compressor.networks.network import Network
from compressor.training.adam import Adam
from compressor.training.request import Training
from compressor.training.softened import loss, slope, soften
from compressor.workspace import Array


@dataclass(frozen=True)
class Outcome:
    """How it went: the loss and the share of inputs on which both choose alike (held out, or all), before and
    after; `epoch` is the one that was kept."""

    before: tuple[float, float]
    after: tuple[float, float]
    epoch: int
    judged: int


class Course:
    """A student, its inputs and what the teacher makes of them, with buffers for a batch."""

    def __init__(
        self,
        student: Network,
        teacher: Network,
        inputs: Array,
        by: float,
        said: Training,
        masks: Mapping[str, Array],
    ) -> None:
        self.student, self.inputs, self.scale, self.said = student, inputs, np.float32(1 / by), said
        self.size = min(said.batch_size, len(inputs))
        self._held = np.empty((max(self.size, student.batch), inputs.shape[1]), inputs.dtype)
        self._numbers = np.empty(self._held.shape, np.float32)
        self._slope = np.empty((self.size, *student.outputs), np.float32)
        self.adam = Adam(student.parameters, student.gradients, masks)
        order = np.random.default_rng(said.seed).permutation(len(inputs))
        count = int(len(inputs) * said.holdout) if len(inputs) > 1 else 0
        self.judged, self.trained = np.sort(order[:count]), order[count:]
        if not count:
            self.judged = np.arange(len(inputs))
        self.targets = np.empty((len(inputs), *student.outputs), np.float32)
        for start in range(0, len(inputs), teacher.batch):
            rows = np.arange(start, min(start + teacher.batch, len(inputs)))
            for part in np.array_split(rows, -(-len(rows) // len(self._held))):
                outputs = teacher.forward(self.batch(part).reshape(-1, *teacher.input))
                if not np.isfinite(outputs).all():
                    raise InputError("the teacher's outputs are not finite", file=said.teacher)
                soften(outputs, said.temperature, self.targets[part[0] : part[-1] + 1])

    def batch(self, rows: Array) -> Array:
        """These inputs as numbers, [n, numbers of one]; valid until the next."""
        held = np.take(self.inputs, rows, axis=0, out=self._held[: len(rows)], mode="clip")  # no copy between
        return np.multiply(held, self.scale, out=self._numbers[: len(rows)])

    def epoch(self, number: int, advance: Callable[[int], None]) -> None:
        """One pass over the inputs, in an order of its own."""
        said, student = self.said, self.student
        order = np.random.default_rng([said.seed, number + 1]).permutation(self.trained)
        steps = -(-len(order) // self.size)
        for step in range(steps):
            rows = order[step * self.size : (step + 1) * self.size]
            outputs = student.forward(self.batch(rows).reshape(-1, *student.input), keep=True, train=True)
            student.backward(slope(outputs, self.targets[rows], said.temperature, self._slope[: len(rows)]))
            done = (number * steps + step) / (said.epochs * steps)
            self.adam.step(said.learning_rate * (1 + cos(pi * done)) / 2)
            advance(len(rows))

    def judge(self) -> tuple[float, float]:
        """The loss, and the share on which student and teacher choose alike."""
        total = agreed = 0.0
        for start in range(0, len(self.judged), self.student.batch):
            rows = self.judged[start : start + self.student.batch]
            outputs = self.student.forward(self.batch(rows).reshape(-1, *self.student.input))
            total += loss(outputs, self.targets[rows], self.said.temperature) * len(rows)
            agreed += int(np.count_nonzero(outputs.argmax(axis=1) == self.targets[rows].argmax(axis=1)))
        return total / len(self.judged), agreed / len(self.judged)


def masks_of(student: Network) -> dict[str, Array]:
    """Where the student's matrices are not zero, of those that have zeros."""
    found = {name: weight != 0 for name, weight in student.parameters.items() if weight.ndim > 1}
    return {name: mask.astype(np.float32) for name, mask in found.items() if not mask.all()}


def start_anew(student: Network, seed: int) -> None:
    """He's initialisation: weights normal with the variance 2 / inputs, biases 0, norms as if not there."""
    random = np.random.default_rng([seed, 0])
    for name in sorted(student.tensors):
        array = student.tensors[name]
        if array.ndim > 1 and name in student.parameters:
            array[...] = random.standard_normal(array.shape, np.float32)
            array *= np.float32(sqrt(2 * len(array) / array.size))
        else:
            array[...] = 0
    for layer in student.layers:
        for role in ("weight", "variance"):
            if role in layer.tensors and layer.tensors[role].ndim == 1:
                layer.tensors[role][...] = 1


def train(
    student: Network, teacher: Network, inputs: Array, by: float, said: Training, advance: Callable[[int], None]
) -> Outcome:
    """Change the student's tensors in place. InputError where its outputs grow beyond all numbers."""
    masks = masks_of(student) if said.respect_zeros else {}
    if said.init == "random":
        start_anew(student, said.seed)
        for name, mask in masks.items():
            student.parameters[name] *= mask
    with np.errstate(all="ignore"):  # what goes wrong is seen below
        course = Course(student, teacher, inputs, by, said, masks)
        before, best, kept = course.judge(), (-1.0, 0.0), dict[str, Array]()
        epoch, after = 0, before
        for number in range(said.epochs):
            course.epoch(number, advance)
            found = course.judge() if said.holdout or number == said.epochs - 1 else (0.0, 0.0)
            if not isfinite(found[0]) or not all(np.isfinite(array).all() for array in student.tensors.values()):
                raise InputError(
                    f"the student's outputs grew beyond all numbers in epoch {number + 1}",
                    remedy=f"Lower --learning-rate, which was {said.learning_rate:g}",
                )
            if (found[1], -found[0]) >= best or not said.holdout:
                best, epoch, after = (found[1], -found[0]), number + 1, found
                kept = {name: array.copy() for name, array in student.tensors.items()} if said.holdout else {}
    for name, array in kept.items():
        student.tensors[name][...] = array
    return Outcome(before, after, epoch, len(course.judged))
