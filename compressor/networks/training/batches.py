"""Inputs as a network takes them, batch by batch; images moved by a few pixels where that is asked for."""

from __future__ import annotations

from dataclasses import dataclass

from compressor.core.lazy import np
from compressor.core.workspace import Array, Workspace


@dataclass(frozen=True, eq=False)
class Batches:
    """Inputs [samples, numbers of one] in bytes or float32, which are divided by `by`.

    With a `shift` they are images [samples, channels, rows, columns] with so many pixels more at each border, which
    repeat what is there: an image that is moved is one window of these.
    """

    inputs: Array
    by: float
    shift: int = 0
    labels: Array | None = None  # a class for each

    @property
    def width(self) -> int:
        """How many numbers one sample has."""
        if not self.shift:
            return int(self.inputs.shape[1])
        _, channels, rows, columns = self.inputs.shape
        return int(channels * (rows - 2 * self.shift) * (columns - 2 * self.shift))

    def take(self, which: Array, work: Workspace, moves: Array | None = None) -> Array:
        """Some samples as numbers [n, numbers of one], moved by `moves` [n, 2] from 0 to 2 · shift, or not
        (`shift`); valid until the next of this workspace."""
        held = work.array("taken", (len(which), self.width), self.inputs.dtype.str)
        if not self.shift:
            np.take(self.inputs, which, axis=0, out=held, mode="clip")  # another mode would copy once more
        else:
            _, channels, rows, columns = self.inputs.shape
            images = held.reshape(len(which), channels, rows - 2 * self.shift, columns - 2 * self.shift)
            windows = np.lib.stride_tricks.sliding_window_view(self.inputs, images.shape[2:], axis=(2, 3))
            down, across = (self.shift, self.shift) if moves is None else moves.T
            images[...] = windows[which, :, down, across]
        found = work.array("numbers", held.shape, "<f4")
        return np.multiply(held, np.float32(1 / self.by), out=found)


def bordered(inputs: Array, image: tuple[int, int, int], shift: int) -> Array:
    """Inputs [samples, numbers of one] as images (channels, rows, columns) that can be moved by `shift` pixels."""
    border = (0, 0), (0, 0), (shift, shift), (shift, shift)
    return np.pad(inputs.reshape(-1, *image), border, mode="edge")
