"""Answers of one family in one scheme, as a loader gives them and as they have to be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Answers:
    """Of the quantized folder `loaded` as it is, and of that `restored`; and two that are the same but for the
    order of sums: `found` of what the loader made of the codes, without what its kernels round on their own, and
    `wanted` of the restored numbers, with inputs of layers rounded where config.json says so. Each is a vector."""

    loaded: Any
    restored: Any
    found: Any
    wanted: Any

    @property
    def off(self) -> float:
        """How far what was found lies from what is wanted, relative to its length."""
        return float((self.found - self.wanted).norm() / self.wanted.norm())

    @property
    def apart(self) -> float:
        """How far the loaded folder lies from the restored one, relative to its length."""
        return float((self.loaded - self.restored).norm() / self.restored.norm())
