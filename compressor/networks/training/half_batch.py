"""One of the parts that every batch is worked on in, side by side."""

from __future__ import annotations

from collections.abc import Iterator

from compressor.core.errors import InputError
from compressor.core.lazy import np
from compressor.core.workspace import Array, Workspace
from compressor.networks.network import Network
from compressor.networks.training.batches import Batches
from compressor.networks.training.loss import add_labels, cross, loss, slope, soften
from compressor.recipe.training import Training


class HalfBatch:
    """Networks on the same tensors as those of other lanes, with buffers and gradients of their own."""

    def __init__(self, student: Network, teacher: Network, batches: Batches, options: Training) -> None:
        self.student, self.teacher, self.batches, self.options = student.twin(), teacher.twin(), batches, options
        self._work = Workspace()

    def step(self, rows: Array, count: int, *, targets: Array | None = None, moves: Array | None = None) -> None:
        """The gradients of the loss of a batch of `count` samples, as far as these `rows` have a share in it. Where
        there are no `targets` for them, the teacher is asked."""
        if not len(rows):
            for gradient in self.student.gradients.values():
                gradient[...] = 0
            return
        x = self.batches.take(rows, self._work, moves)
        wanted = self.ask(x) if targets is None else targets
        outputs = self.student.forward(x.reshape(-1, *self.student.input), keep=True, train=True)
        found = slope(
            outputs, wanted, self.options.temperature, count, self._work.array("slope", outputs.shape, "<f4")
        )
        if self.batches.labels is not None:
            work = self._work.array("labels", outputs.shape, "<f4")
            add_labels(outputs, self.batches.labels[rows], self.options.label_weight, count, work, found)
        self.student.backward(found)

    def ask(self, x: Array) -> Array:
        """The teacher's softened outputs for inputs [n, numbers of one]."""
        outputs = self.teacher.forward(x.reshape(-1, *self.teacher.input))
        if not np.isfinite(outputs).all():
            raise InputError("the teacher's outputs are not finite", file=self.options.teacher)
        return soften(outputs, self.options.temperature, self._work.array("wanted", outputs.shape, "<f4"))

    def teach(self, rows: Array, targets: Array) -> None:
        """Fill the targets of these inputs."""
        for part in _parts(rows, min(self.teacher.batch, self.student.batch)):
            targets[part] = self.ask(self.batches.take(part, self._work))

    def judge(self, rows: Array, targets: Array) -> tuple[float, float]:
        """The loss over these inputs, summed, and on how many student and teacher choose alike; where there are
        labels, they have their share in both."""
        total = agreed = 0.0
        for part in _parts(rows, self.student.batch):
            x, wanted = self.batches.take(part, self._work), targets[part]
            outputs = self.student.forward(x.reshape(-1, *self.student.input))
            chosen = outputs.argmax(axis=1)
            found = loss(outputs, wanted, self.options.temperature)
            alike = float(np.count_nonzero(chosen == wanted.argmax(axis=1)))
            if self.batches.labels is not None:
                labels, weight = self.batches.labels[part], self.options.label_weight
                found += weight * (cross(outputs, labels) - found)
                alike += weight * (np.count_nonzero(chosen == labels) - alike)
            total += found * len(part)
            agreed += alike
        return total, agreed


def _parts(rows: Array, size: int) -> Iterator[Array]:
    for start in range(0, len(rows), size):
        yield rows[start : start + size]
