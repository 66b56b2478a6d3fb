"""Divergence of two models' outputs, gathered from slices of the vocabulary: no whole logits are ever there.

Of each row the largest logit m, s = Σ exp(a − m) and t = Σ exp(a − m)(a − b) are carried on from slice to slice,
for both models, in float64; then KL(p‖q) = t/s − log Σ exp a + log Σ exp b. (The online softmax of Milakov and
Gimelshein 2018, arXiv 1805.02867, with one sum more.)
"""

from __future__ import annotations

from typing import Any

from compressor.calibration.loss import Kind, OutputLoss, quantile_999

_NUMBERS = 1 << 20  # logits that are widened at a time


class Divergence:
    """Of `rows` outputs; `targets` (int64 [rows]) are what really came, where that is known."""

    def __init__(self, torch: Any, rows: int, targets: Any = None) -> None:
        self.torch, self.rows, self.targets = torch, rows, targets
        self.a, self.b = _Side(torch, rows), _Side(torch, rows)
        self.cross = torch.zeros(rows, dtype=torch.float64)

    def add(self, start: int, a: Any, b: Any, first: int = 0) -> None:
        """Logits [n, of the slice] of both for rows from `start`, and of the vocabulary from its entry `first`."""
        step = max(1, _NUMBERS // a.shape[1])
        for at in range(0, len(a), step):
            one, other = a[at : at + step].double(), b[at : at + step].double()
            part = slice(start + at, start + at + len(one))
            targets = None if self.targets is None else self.targets[part] - first
            weights, scale = self.a.add(part, one, first, targets)
            self.cross[part] = self.cross[part] * scale + (weights * (one - other)).sum(1)
            self.b.add(part, other, first, targets)

    def values(self) -> Any:
        """KL(A‖B) of each row, float64 [rows]; NaN where either gave NaN."""
        return (self.cross / self.a.sums - self.a.log_sum + self.b.log_sum).clamp(min=0)

    def loss(self, kind: Kind) -> OutputLoss:
        """All rows together."""
        values = self.values()
        perplexity = None
        if self.targets is not None:
            perplexity = float(self.a.surprise.mean().exp()), float(self.b.surprise.mean().exp())
        return OutputLoss(
            kind,
            self.rows,
            kld=float(values.mean()),
            kld_999=quantile_999(values.sort().values.tolist()),
            agreement=float((self.a.best == self.b.best).double().mean()),
            perplexity=perplexity,
        )


class _Side:
    """One model's sums: float64 [rows] each."""

    def __init__(self, torch: Any, rows: int) -> None:
        self.top = torch.full((rows,), float("-inf"), dtype=torch.float64)
        self.sums = torch.zeros(rows, dtype=torch.float64)
        self.best = torch.zeros(rows, dtype=torch.int64)
        self.hit = torch.zeros(rows, dtype=torch.float64)

    @property
    def log_sum(self) -> Any:
        """log Σ exp of all logits."""
        return self.sums.log() + self.top

    @property
    def surprise(self) -> Any:
        """−log p of the targets."""
        return self.log_sum - self.hit

    def add(self, part: slice, logits: Any, first: int, targets: Any) -> tuple[Any, Any]:
        """Take a slice in: exp(logits − top), and what earlier sums are multiplied by."""
        high, place = logits.max(1)
        better = high > self.top[part]
        top = high.maximum(self.top[part])
        scale = (self.top[part] - top).exp()
        weights = (logits - top[:, None]).exp_()
        self.sums[part] = self.sums[part] * scale + weights.sum(1)
        self.top[part] = top
        self.best[part] = place.add_(first).where(better, self.best[part])
        if targets is not None:
            width = logits.shape[1]
            inside = (targets >= 0) & (targets < width)
            found = logits.gather(1, targets.clamp(0, width - 1)[:, None])[:, 0]
            self.hit[part] = found.where(inside, self.hit[part])
        return weights, scale
