"""Adam (Kingma and Ba, arXiv 1412.6980) on arrays in place, by gradients that several lanes have a share in.

    m ← β₁ m + (1 − β₁) g        v ← β₂ v + (1 − β₂) g²        w ← w − η · m̂ / (√v̂ + ε)

What is masked has the gradient 0 from the start and so never moves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt

from compressor.core import kernels
from compressor.core.lazy import np
from compressor.core.workspace import Array, Workspace

_FIRST, _SECOND, _EPSILON = 0.9, 0.999, 1e-8
_BLOCK = 1 << 14  # weights that are worked on while they are in cache


@dataclass(frozen=True)
class _Run:
    """Consecutive weights of a parameter with all that belongs to them; all flat, float32."""

    weight: Array
    gradients: tuple[Array, ...]
    keep: Array | None
    moments: tuple[Array, Array]

    def cut(self, start: int, stop: int) -> _Run:
        part = slice(start, stop)
        keep = None if self.keep is None else self.keep[part]
        first, second = self.moments
        return _Run(
            self.weight[part], tuple(one[part] for one in self.gradients), keep, (first[part], second[part])
        )


class Adam:
    """Moments of these parameters, which are changed in place by the sum of the `gradients` of all lanes.

    `masks` (float32, 0 or 1) are looked at anew in every step. Weights are independent of one another, so that each
    lane can take its share of them: the result does not depend on who does it.
    """

    def __init__(
        self,
        parameters: Mapping[str, Array],
        gradients: Sequence[Mapping[str, Array]],
        masks: Mapping[str, Array],
    ) -> None:
        self.steps, self._rate, self._epsilon = 0, 0.0, 0.0
        self._betas = np.array([_FIRST, 1 - _FIRST, _SECOND, 1 - _SECOND], np.float32)
        self._shares: list[list[_Run]] = [[] for _ in gradients]
        self._work = [Workspace() for _ in gradients]
        for name, weight in parameters.items():
            mask = masks[name].reshape(-1) if name in masks else None
            moments = np.zeros(weight.size, np.float32), np.zeros(weight.size, np.float32)
            whole = _Run(weight.reshape(-1), tuple(one[name].reshape(-1) for one in gradients), mask, moments)
            for lane, share in enumerate(self._shares):
                share.append(
                    whole.cut(weight.size * lane // len(gradients), weight.size * (lane + 1) // len(gradients))
                )

    def forget(self) -> None:
        """What is masked by now has no momentum left that would move it."""
        for share in self._shares:
            for run in share:
                if run.keep is not None:
                    for moment in run.moments:
                        np.multiply(moment, run.keep, out=moment)

    def begin(self, rate: float) -> None:
        """A step of this rate begins; `update` does it, share by share."""
        self.steps += 1
        # both corrections for the moments' start at zero as one factor and one ε, which spares two passes
        correction = sqrt(1 - _SECOND**self.steps)
        self._rate, self._epsilon = rate * correction / (1 - _FIRST**self.steps), _EPSILON * correction

    def update(self, lane: int) -> None:
        """This lane's share of the step. Gradients may be overwritten."""
        for run in self._shares[lane]:
            done = kernels.adam(
                run.weight, run.gradients, run.keep, run.moments, self._betas, self._rate, self._epsilon
            )
            if done is None:
                for start in range(0, run.weight.size, _BLOCK):
                    self._step(run.cut(start, start + _BLOCK), self._work[lane])

    def _step(self, run: _Run, held: Workspace) -> None:
        """What the kernel does, in NumPy: the same operations in the same order, so the same bits."""
        b1, f1, b2, f2 = self._betas
        first, second = run.moments
        gradient, *more = run.gradients
        for other in more:
            gradient += other
        if run.keep is not None:
            gradient *= run.keep
        work = held.array("work", run.weight.shape, "<f4")
        first *= b1
        first += np.multiply(gradient, f1, out=work)
        second *= b2
        np.multiply(gradient, gradient, out=work)
        work *= f2
        second += work
        np.sqrt(second, out=work)
        work += np.float32(self._epsilon)
        np.divide(first, work, out=work)
        work *= np.float32(self._rate)
        np.subtract(run.weight, work, out=run.weight)
