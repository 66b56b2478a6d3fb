"""Training on softened outputs: minibatches in an order by the seed, Adam, the rate falling as a cosine."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from math import cos, isfinite, pi, sqrt
from typing import TypeVar

from compressor.errors import InputError
from compressor.lazy import np
from compressor.networks.network import Network
from compressor.networks.pointwise import BatchNormLayer
from compressor.training.adam import Adam
from compressor.training.batches import Batches
from compressor.training.request import Training
from compressor.training.softened import loss, slope, soften
from compressor.workspace import Array, Workspace

LANES = 2  # parts of a batch; always as many, so that sums are the same with one processor or more
T = TypeVar("T")


@dataclass(frozen=True)
class Outcome:
    """How it went: the loss and the share of inputs on which both choose alike (held out, or all), before and
    after; `epoch` is the one that was kept."""

    before: tuple[float, float]
    after: tuple[float, float]
    epoch: int
    judged: int


class Lane:
    """One of the parts that every batch is worked on in, side by side: networks on the same tensors with buffers
    and gradients of their own."""

    def __init__(self, student: Network, teacher: Network, batches: Batches, said: Training) -> None:
        self.student, self.teacher, self.batches, self.said = student.twin(), teacher.twin(), batches, said
        self._work = Workspace()

    def step(self, rows: Array, count: int, targets: Array | None, moves: Array | None) -> None:
        """The gradients of the loss of a batch of `count` samples, as far as these `rows` have a share in it.
        `targets` of all inputs; None where the teacher is to be asked."""
        if not len(rows):
            for gradient in self.student.gradients.values():
                gradient[...] = 0
            return
        x = self.batches.take(rows, self._work, moves)
        wanted = self.ask(x) if targets is None else targets[rows]
        outputs = self.student.forward(x.reshape(-1, *self.student.input), keep=True, train=True)
        slope(outputs, wanted, self.said.temperature, count, self._work.array("slope", outputs.shape, "<f4"))
        self.student.backward(self._work.array("slope", outputs.shape, "<f4"))

    def ask(self, x: Array) -> Array:
        """The teacher's softened outputs for inputs [n, numbers of one]."""
        outputs = self.teacher.forward(x.reshape(-1, *self.teacher.input))
        if not np.isfinite(outputs).all():
            raise InputError("the teacher's outputs are not finite", file=self.said.teacher)
        return soften(outputs, self.said.temperature, self._work.array("wanted", outputs.shape, "<f4"))

    def teach(self, rows: Array, targets: Array) -> None:
        """Fill the targets of these inputs."""
        for part in _parts(rows, min(self.teacher.batch, self.student.batch)):
            targets[part] = self.ask(self.batches.take(part, self._work))

    def judge(self, rows: Array, targets: Array) -> tuple[float, int]:
        """The loss over these inputs, summed, and on how many student and teacher choose alike."""
        total, agreed = 0.0, 0
        for part in _parts(rows, self.student.batch):
            x, wanted = self.batches.take(part, self._work), targets[part]
            outputs = self.student.forward(x.reshape(-1, *self.student.input))
            total += loss(outputs, wanted, self.said.temperature) * len(part)
            agreed += int(np.count_nonzero(outputs.argmax(axis=1) == wanted.argmax(axis=1)))
        return total, agreed


class Course:
    """A student, its inputs and what the teacher makes of them."""

    def __init__(
        self,
        student: Network,
        teacher: Network,
        batches: Batches,
        said: Training,
        masks: Mapping[str, Array],
        executor: Executor,
    ) -> None:
        self.said, self.executor = said, executor
        count = len(batches.inputs)
        self.size = min(said.batch_size, count)
        self.lanes = [Lane(student, teacher, batches, said) for _ in range(LANES)]
        # norms go by the whole batch, which one lane then has
        self.apart = not any(isinstance(layer, BatchNormLayer) for layer in student.layers)
        self.adam = Adam(student.parameters, [lane.student.gradients for lane in self.lanes], masks)
        order = np.random.default_rng(said.seed).permutation(count)
        held = int(count * said.holdout) if count > 1 else 0
        self.judged, self.trained = np.sort(order[:held]), order[held:]
        if not held:
            self.judged = np.arange(count)
        self.targets = np.empty((count, *student.outputs), np.float32)
        rows = self._shared(np.arange(count) if not said.shift else self.judged)
        self._each(lambda lane: self.lanes[lane].teach(rows[lane], self.targets))

    def _shared(self, rows: Array) -> list[Array]:
        return [rows[len(rows) * lane // LANES : len(rows) * (lane + 1) // LANES] for lane in range(LANES)]

    def _each(self, work: Callable[[int], T]) -> list[T]:
        return [future.result() for future in [self.executor.submit(_quietly, work, lane) for lane in range(LANES)]]

    def epoch(self, number: int, advance: Callable[[int], None]) -> None:
        """One pass over the inputs, in an order of its own."""
        said = self.said
        random = np.random.default_rng([said.seed, number + 1])
        order = random.permutation(self.trained)
        moves = random.integers(0, 2 * said.shift, (len(order), 2), endpoint=True) if said.shift else None
        targets = None if said.shift else self.targets
        steps = -(-len(order) // self.size)
        for step in range(steps):
            batch = slice(step * self.size, (step + 1) * self.size)
            count = len(order[batch])
            rows = self._shared(order[batch]) if self.apart else [order[batch], order[:0]]
            moved = (
                [None] * LANES
                if moves is None
                else self._shared(moves[batch])
                if self.apart
                else [moves[batch], None]
            )
            self._each(lambda lane: self.lanes[lane].step(rows[lane], count, targets, moved[lane]))
            done = (number * steps + step) / (said.epochs * steps)
            self.adam.begin(said.learning_rate * (1 + cos(pi * done)) / 2)
            self._each(self.adam.update)
            advance(count)

    def judge(self) -> tuple[float, float]:
        """The loss, and the share on which student and teacher choose alike."""
        rows = self._shared(self.judged)
        found = self._each(lambda lane: self.lanes[lane].judge(rows[lane], self.targets))
        return sum(total for total, _ in found) / len(self.judged), sum(agreed for _, agreed in found) / len(
            self.judged
        )


def _quietly(work: Callable[[int], T], lane: int) -> T:
    with np.errstate(all="ignore"):  # of this thread; what goes wrong is seen in the results
        return work(lane)


def _parts(rows: Array, size: int) -> Iterator[Array]:
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


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
    student: Network,
    teacher: Network,
    batches: Batches,
    said: Training,
    executor: Executor,
    advance: Callable[[int], None],
) -> Outcome:
    """Change the student's tensors in place. InputError where its outputs grow beyond all numbers."""
    masks = masks_of(student) if said.respect_zeros else {}
    if said.init == "random":
        start_anew(student, said.seed)
        for name, mask in masks.items():
            student.parameters[name] *= mask
    with np.errstate(all="ignore"):  # what goes wrong is seen below
        course = Course(student, teacher, batches, said, masks, executor)
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
