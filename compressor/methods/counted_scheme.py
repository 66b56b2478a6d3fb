"""Schemes whose size in an archive and whose loss follow from counts of the weights, without storing any."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Self

from compressor.core.tensor import TensorSpec
from compressor.methods.contract import Scheme
from compressor.methods.numerics.even_steps import Classes


class CountedScheme(Scheme):
    """A scheme that aims at so many bits a weight in an archive, of which counts tell what each number of bits
    loses. A budget finds the bits of each tensor by it."""

    sparsity: float  # least share of the weights, the smallest, that become zero

    @property
    @abstractmethod
    def aimed_bits(self) -> float | None:
        """Bits a weight in an archive that it aims at; None where the options fix the step instead."""

    @property
    @abstractmethod
    def one_step_each(self) -> bool:
        """Whether every tensor has one step, found for it alone."""

    @property
    @abstractmethod
    def seeks_factors(self) -> bool:
        """Whether weights are divided by factors of rows and columns (`numerics/factors.py`) before that."""

    @abstractmethod
    def aiming_at(self, bits: float | None) -> Self:
        """This scheme with other bits a weight; None: those that it aims at by default."""

    @abstractmethod
    def in_bytes(self) -> Self:
        """This scheme with the narrowest codes that it stores outside of an archive."""

    @abstractmethod
    def forecasts(self, classes: Classes, spec: TensorSpec, bits: Sequence[float]) -> list[tuple[float, float]]:
        """For each of these `bits` what a tensor of weights counted in `classes` would take in an archive, bits a
        weight, and Σ (w − w')² over the weights that were counted. Without a step that the options give."""
