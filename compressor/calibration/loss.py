"""What a model lost against another one, as figures.

All logarithms are natural. With p and q the distributions that A and B give for one token, sample or input:

    KL divergence   Σ p · (log p − log q), in nats; its mean, and the value that 99.9 % do not exceed
    agreement       the share of them whose most probable outcome is the same
    perplexity      exp of the mean of −log p(next token), over the tokens that have a next one in their window
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Kind = Literal["language model", "masked language model", "classifier", "encoder", "network"]


@dataclass(frozen=True)
class OutputLoss:
    """The outputs of B against those of A. `count` of what was compared: tokens, or samples. None: makes no sense
    for the kind. `perplexity` and `accuracy` are of A and of B; `cosine` is the mean of that between embeddings,
    `error` ‖b − a‖ / ‖a‖ of all outputs of a network."""

    kind: Kind
    count: int
    kld: float | None = None
    kld_999: float | None = None
    agreement: float | None = None
    perplexity: tuple[float, float] | None = None
    cosine: float | None = None
    accuracy: tuple[float, float] | None = None
    error: float | None = None

    @property
    def perplexity_ratio(self) -> float | None:
        """B's perplexity over A's."""
        return None if self.perplexity is None else self.perplexity[1] / self.perplexity[0]

    @property
    def lost(self) -> float:
        """The one number that says how much: KL divergence, or 1 − cosine of embeddings."""
        if self.kld is not None:
            return self.kld
        return max(1 - self.cosine, 0.0) if self.cosine is not None else self.error or 0.0


@dataclass(frozen=True)
class BlockLoss:
    """A block of the model, by its number. `added`: ‖B(h) − A(h)‖ / ‖A(h)‖ where both are given what enters A's;
    `total`: the same where B's is given what B's earlier blocks left."""

    number: int
    added: float
    total: float


@dataclass(frozen=True)
class TensorLoss:
    """What it costs that one tensor alone is B's: `lost` as `OutputLoss.lost` has it, and the tensor's relative
    error ‖b − a‖ / ‖a‖."""

    name: str
    lost: float
    error: float


@dataclass(frozen=True)
class ModelLoss:
    """`outputs` of all samples; `source` says which those were. `blocks` in their order; `tensors` the costliest
    first, measured on `sample` tokens of them; `notes` on what the user should know."""

    outputs: OutputLoss
    source: str
    blocks: tuple[BlockLoss, ...] = ()
    tensors: tuple[TensorLoss, ...] = ()
    sample: int = 0
    notes: tuple[str, ...] = ()


def quantile_999(sorted_values: Sequence[float]) -> float:
    """The smallest of some values, in ascending order, that 99.9 % of them do not exceed."""
    place = -(-len(sorted_values) * 999 // 1000) - 1
    return float(sorted_values[max(place, 0)])
