"""What the streams of chunks take: bits that say where the exceptional symbols stand, and bits of values.

An ANS symbol of the frequency f takes log2(2^24 / f) bits. Where the commonest symbol and the others are one
stream, each symbol is two facts, whether it is another one and which of them, and takes the bits of both:

    −log2 P(symbol) = −log2 P(other) − log2 P(symbol | other)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from compressor.core.lazy import np
from compressor.core.workspace import Array

# What a stream tells: values, where they stand, or both if one symbol is the rule (`mixed`).
Role = Literal["values", "positions", "mixed"]


@dataclass
class Account:
    """Bits of streams, coded and at their symbols' fixed width; models, checksums and palettes are neither."""

    values: float = 0.0
    positions: float = 0.0
    plain_values: int = 0
    plain_positions: int = 0

    def add(self, role: Role, plain: int, coded: float) -> None:
        """A stream whose symbols are not looked at."""
        if role == "positions":
            self.positions += coded
            self.plain_positions += plain
        else:
            self.values += coded
            self.plain_values += plain

    def charge(self, role: Role, symbols: Array, width: int, contexts: Array, shares: Array) -> None:
        """A stream of symbols of `width` bits, each in its context; `shares` [contexts, alphabet] are chances.

        Mixed symbols of more than one bit count as positions and values where one of them is more than half.
        """
        flat, contexts = symbols.reshape(-1), contexts.reshape(-1)
        whole = -float(np.log2(shares[contexts, flat]).sum())
        counts = np.bincount(flat, minlength=2)
        mode = int(counts.argmax())
        if role != "mixed" or width < 2 or counts[mode] * 2 <= flat.size:
            self.add(role, flat.size * width, whole)
            return
        there = flat != mode
        rule = shares[contexts, mode]
        marks = -float(np.log2(np.where(there, 1 - rule, rule)).sum())
        self.add("positions", flat.size, marks)
        self.add("values", (flat.size - int(counts[mode])) * width, whole - marks)
