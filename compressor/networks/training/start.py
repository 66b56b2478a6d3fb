"""What a training begins with: which weights may move, which move as one, and a random start."""

from __future__ import annotations

from collections.abc import Mapping
from math import sqrt

from compressor.core.lazy import np
from compressor.core.workspace import Array
from compressor.networks.network import Network


def masks_of(student: Network) -> dict[str, Array]:
    """Where the student's matrices are not zero, as float32 0 or 1, of those that have zeros."""
    found = {name: weight != 0 for name, weight in _matrices(student).items()}
    return {name: mask.astype(np.float32) for name, mask in found.items() if not mask.all()}


class Ties:
    """Weights of a matrix that are equal move as one: each gets the sum of the gradients of all of them, so that
    Adam, which treats alike what is alike, keeps them equal. A codebook is trained so, or a quantized tensor's
    levels. Weights whose mask is 0 do not move, and are left out of it."""

    def __init__(self, student: Network, masks: Mapping[str, Array]) -> None:
        self._places: dict[str, tuple[Array | None, Array]] = {}  # which weights move, and the number of each
        self.counts: dict[str, int] = {}  # of different numbers in each matrix
        for name, weight in _matrices(student).items():
            moving = np.flatnonzero(masks[name]) if name in masks else None
            flat = weight.reshape(-1)
            numbers, places = np.unique(flat if moving is None else flat[moving], return_inverse=True)
            self._places[name], self.counts[name] = (moving, places.reshape(-1)), len(numbers)

    def share(self, gradients: Mapping[str, Array]) -> None:
        """Gradients of single weights become those of the numbers that they share; summed in float64."""
        for name, (moving, places) in self._places.items():
            gradient = gradients[name].reshape(-1)
            mine = gradient if moving is None else gradient[moving]
            sums = np.bincount(places, weights=mine, minlength=self.counts[name]).astype(np.float32)
            if moving is None:
                np.take(sums, places, out=gradient, mode="clip")
            else:
                gradient[moving] = sums[places]


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


def _matrices(student: Network) -> dict[str, Array]:
    return {name: weight for name, weight in student.parameters.items() if weight.ndim > 1}
