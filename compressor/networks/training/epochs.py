"""A training as a run of epochs: batches in an order by the seed, the rate falling as a cosine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from math import cos, pi
from typing import TypeVar

from compressor.core.lazy import np
from compressor.core.workspace import Array
from compressor.networks.network import Network
from compressor.networks.pointwise import BatchNormLayer
from compressor.networks.training.adam import Adam
from compressor.networks.training.batches import Batches
from compressor.networks.training.half_batch import HalfBatch
from compressor.networks.training.start import Ties
from compressor.networks.training.trained_codes import Held
from compressor.recipe.training import Training

LANES = 2  # parts of a batch; always as many, so that sums are the same with one processor or more
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Bonds:
    """What a student's weights are bound to: masks of the zeros that stay (float32, 0 or 1, by the tensor's name),
    values that are shared, and codes."""

    masks: Mapping[str, Array]
    ties: Ties | None = None
    held: Held | None = None


class Epochs:
    """A student, its inputs and what the teacher makes of them."""

    def __init__(
        self,
        student: Network,
        teacher: Network,
        batches: Batches,
        options: Training,
        bonds: Bonds,
        executor: Executor,
    ) -> None:
        held = bonds.held
        self.options, self.ties, self.executor, self.held = options, bonds.ties, executor, held
        count = len(batches.inputs)
        self.size = min(options.batch_size, count)
        self.lanes = [HalfBatch(student, teacher, batches, options) for _ in range(LANES)]
        # norms go by the whole batch, which one lane then has
        self.apart = not any(isinstance(layer, BatchNormLayer) for layer in student.layers)
        parameters, gradients = student.parameters, [lane.student.gradients for lane in self.lanes]
        if held is not None:
            parameters = held.free(parameters) | held.numbers
            gradients = [held.slopes(one) for one in gradients]
        self.gradients = gradients
        self.adam = Adam(parameters, gradients, bonds.masks)
        order = np.random.default_rng(options.seed).permutation(count)
        aside = int(count * options.holdout) if count > 1 else 0
        self.judged, self.trained = np.sort(order[:aside]), order[aside:]
        if not aside:
            self.judged = np.arange(count)
        self.moves: Array | None = None  # of all inputs in this epoch
        self.targets = np.empty((count, *student.outputs), np.float32)
        rows = self._shared(np.arange(count) if not options.shift else self.judged)
        self._each(lambda lane: self.lanes[lane].teach(rows[lane], self.targets))

    def _shared(self, rows: Array) -> list[Array]:
        return [rows[len(rows) * lane // LANES : len(rows) * (lane + 1) // LANES] for lane in range(LANES)]

    def _each(self, work: Callable[[int], T]) -> list[T]:
        return [future.result() for future in [self.executor.submit(_quietly, work, lane) for lane in range(LANES)]]

    def epoch(self, number: int, advance: Callable[[int], None]) -> None:
        """Train for one pass over the inputs, in an order of its own."""
        options = self.options
        random = np.random.default_rng([options.seed, number + 1])
        order = random.permutation(self.trained)
        if options.shift:
            self.moves = random.integers(0, 2 * options.shift, (len(self.targets), 2), endpoint=True)
        steps = -(-len(order) // self.size)
        for step in range(steps):
            batch = order[step * self.size : (step + 1) * self.size]
            rows = self._shared(batch) if self.apart else [batch, batch[:0]]
            self._each(partial(self._slopes, rows, len(batch)))
            done = (number * steps + step) / (options.epochs * steps)
            if self.ties is not None:
                for lane in self.lanes:
                    self.ties.share(lane.student.gradients)
            if self.held is not None:
                for lane, slopes in zip(self.lanes, self.gradients, strict=True):
                    self.held.gather(lane.student.gradients, slopes)
            self.adam.begin(options.learning_rate * (1 + cos(pi * done)) / 2)
            self._each(self.adam.update)
            if self.held is not None:
                self.held.spread()
            advance(len(batch))

    def _slopes(self, shares: Sequence[Array], count: int, lane: int) -> None:
        rows = shares[lane]
        if self.moves is None:
            self.lanes[lane].step(rows, count, targets=self.targets[rows])
        else:
            self.lanes[lane].step(rows, count, moves=self.moves[rows])

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
