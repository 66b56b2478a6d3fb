"""Students whose weights are codes: the codes stay, and what they stand for is trained, or stays too.

A weight of integer codes is w = s_g (q − z), so the slope of the loss by a scale is Σ over its group of the slopes
by the weights times (q − z); by an entry of a codebook it is the sum of those of all weights with its code. Both
are numbers p that weights take by their places, times units: w = u · p[place]. Scales are trained as factors of
what they were, so that a learning rate means the same for all of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from compressor.checkpoint.checkpoint import Tensor
from compressor.checkpoint.rows import Rows
from compressor.core.errors import UsageError
from compressor.core.lazy import np
from compressor.core.workspace import Array, Workspace
from compressor.methods.levels import Levels
from compressor.networks.network import Network

_LEAST = 1e-3  # of what it was, to which a scale may fall: it never changes its sign


@dataclass(frozen=True, eq=False)
class TrainedCodes:
    """A `tensor` that stays codes, and its `weight` in the network [weights], which follows the `levels`."""

    tensor: Tensor
    weight: Array
    levels: Levels

    def gather(self, slopes: Array, out: Array) -> None:
        """From the loss's slopes by single weights [weights] those by the levels, into `out` [levels]; summed in
        float64."""
        levels, flat = self.levels, slopes.reshape(-1)
        weights = flat if levels.units is None else flat * levels.units
        np.copyto(
            out, np.bincount(levels.places, weights=weights, minlength=len(levels.numbers)), casting="same_kind"
        )

    def spread(self) -> None:
        """Make the weights what the levels now say."""
        levels = self.levels
        if levels.units is not None:
            np.maximum(levels.numbers, np.float32(_LEAST), out=levels.numbers)
        # Training goes by the rounded ones, and small steps add up in those that are not
        np.take(levels.settled(levels.numbers), levels.places, out=self.weight, mode="clip")
        if levels.units is not None:
            np.multiply(self.weight, levels.units, out=self.weight)

    def parts(self) -> dict[str, Array]:
        """The stored parts that changed, by suffix, in their shapes and storage types."""
        stored = self.levels.stored(self.levels.numbers)
        return {suffix: array.reshape(self.tensor.parts[suffix].spec.shape) for suffix, array in stored.items()}


def trained_codes(tensor: Tensor, weight: Array) -> TrainedCodes:
    """A stored tensor on its way through training, whose numbers in the network are `weight` [out, …]. UsageError
    where its parts hold no scales or entries that can be trained."""
    decoder, spec = tensor.encoder, tensor.spec
    levels = None if decoder is None or not decoder.has_levels(spec) else decoder.levels(spec, _all_parts(tensor))
    if levels is None:
        raise UsageError(
            f"is stored as {'numbers' if decoder is None else decoder.label}, whose scales cannot be trained",
            tensor=spec.name,
            remedy="Use --codes fixed; scales of scheme int (layouts pack-quantized, int-quantized, compressor and "
            "plain) and codebooks can",
        )
    return TrainedCodes(tensor, weight.reshape(-1), levels)


class Held:
    """The tensors of a student that stay codes: `fixed`, or with their `scales` (or entries) trained."""

    def __init__(self, student: Network, tensors: Mapping[str, Tensor], how: Literal["fixed", "scales"]) -> None:
        self.names = {name for name in student.parameters if tensors[name].encoder is not None}
        names = sorted(self.names) if how == "scales" else []
        self.trained = {name: trained_codes(tensors[name], student.parameters[name]) for name in names}
        self.spread()

    @property
    def nbytes(self) -> int:
        """Bytes that places and units take."""
        levels = [codes.levels for codes in self.trained.values()]
        arrays = (array for each in levels for array in (each.places, each.units))
        return sum(array.nbytes for array in arrays if array is not None)

    @property
    def numbers(self) -> dict[str, Array]:
        """What is trained in the place of weights, by tensor."""
        return {name: codes.levels.numbers for name, codes in self.trained.items()}

    @property
    def masks(self) -> dict[str, Array]:
        """By tensor 1 for each of the `numbers` that is trained and 0 for one that stays."""
        return {name: codes.levels.moving for name, codes in self.trained.items()}

    def free(self, arrays: Mapping[str, Array]) -> dict[str, Array]:
        """The `arrays` of the tensors that do not stay codes, by name."""
        return {name: array for name, array in arrays.items() if name not in self.names}

    def slopes(self, gradients: Mapping[str, Array]) -> dict[str, Array]:
        """Where the gradients of all that is trained will be, for a lane with these by weights."""
        return self.free(gradients) | {name: np.zeros_like(numbers) for name, numbers in self.numbers.items()}

    def gather(self, gradients: Mapping[str, Array], slopes: Mapping[str, Array]) -> None:
        """Fill the slopes of a lane from its gradients."""
        for name, codes in self.trained.items():
            codes.gather(gradients[name], slopes[name])

    def spread(self) -> None:
        """The weights follow what was trained."""
        for codes in self.trained.values():
            codes.spread()


def _all_parts(tensor: Tensor) -> Mapping[str, Array]:
    """All rows of a tensor's parts, by suffix, as its decoder takes them."""
    rows, columns = tensor.spec.matrix
    return Rows(tensor, columns, 0, rows, Workspace(), "levels").views(0, rows)
