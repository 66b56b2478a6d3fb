"""Limits of what a model may lose by its outputs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from math import inf

from compressor.core.errors import UsageError

_NAMES = {
    "max_kld": "KL divergence",
    "min_agreement": "share of equal first choices",
    "max_perplexity_ratio": "perplexity",
    "min_cosine": "embedding",
}


@dataclass(frozen=True)
class Judged:
    """What a gate (an option with its limit) says of what was measured, which is told in words."""

    gate: str
    measured: str
    holds: bool


@dataclass(frozen=True)
class LossGates:
    """`max_kld`: the mean KL divergence, in nats; `min_agreement`: the share of equal most probable outcomes;
    `max_perplexity_ratio`: B's perplexity over A's; `min_cosine`: the mean cosine of embeddings. None: no limit."""

    max_kld: float | None = None
    min_agreement: float | None = None
    max_perplexity_ratio: float | None = None
    min_cosine: float | None = None

    def __post_init__(self) -> None:
        for name, value in self.given.items():
            if not -inf < value < inf:
                raise UsageError(f"{flag_of(name)} must be a number, not {value:g}")

    @property
    def given(self) -> dict[str, float]:
        """The limits that there are, by name."""
        values = {one.name: getattr(self, one.name) for one in fields(self)}
        return {name: value for name, value in values.items() if value is not None}

    def judged(self, found: dict[str, float | None]) -> Iterator[Judged]:
        """What the gates say of measured values (by the gates' names). UsageError for a gate of something that was
        not measured, since such models have none."""
        for name, limit in self.given.items():
            value = found[name]
            if value is None:
                raise UsageError(f"{flag_of(name)}: such a model has no {_NAMES[name]}")
            told = f"{value:.4g}" if abs(value - limit) > abs(limit) / 1000 else f"{value!r}"
            keeps = value <= limit if name.startswith("max_") else value >= limit
            yield Judged(f"{flag_of(name)} {limit:.15g}", f"it is {told}", keeps)

    def failures(self, found: dict[str, float | None]) -> list[str]:
        """What measured values fail, in words; UsageError as `judged`."""
        return [f"{one.gate}: {one.measured}" for one in self.judged(found) if not one.holds]


def flag_of(name: str) -> str:
    """A gate as the command line has it."""
    return f"--{name.replace('_', '-')}"
