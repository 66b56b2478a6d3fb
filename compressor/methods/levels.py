"""The numbers that a tensor's codes stand for, apart from the codes: what training may change while these stay."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

from compressor.core.workspace import Array


@dataclass(frozen=True, eq=False)
class Levels(ABC):
    """Scales or entries of a codebook, as numbers that weights take by their places: w_i = u_i · p[place_i].

    `places` [weights] says which number each weight takes; `numbers` [levels] are these, float32; `moving`
    [levels], float32, is 0 for a number that has to stay as it is and 1 for others; `units` [weights], float32,
    are the u_i, None where all are 1. Numbers with units are factors of what they were, and stay positive.
    """

    places: Array
    numbers: Array
    moving: Array
    units: Array | None

    def settled(self, numbers: Array) -> Array:
        """What readers make of the parts of these `numbers` [levels], float32: the same where these are exact."""
        return numbers

    @abstractmethod
    def stored(self, numbers: Array) -> Mapping[str, Array]:
        """The parts that are others, by suffix, in storage types, once the levels are `numbers` [levels]."""
