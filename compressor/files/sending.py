"""How an output that is elsewhere is sent there."""

from __future__ import annotations

import os
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Sending:
    """How files of an output elsewhere are sent: under the `key` of what makes them, so that a run that goes on
    finds what was sent, which an error `keeps` for it."""

    key: str
    keeps: bool = False

    @classmethod
    def alone(cls) -> Sending:
        """Of what no run goes on with."""
        return cls(os.urandom(8).hex())
