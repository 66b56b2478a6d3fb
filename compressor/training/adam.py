"""Adam (Kingma and Ba, arXiv 1412.6980) on arrays in place.

    m ← β₁ m + (1 − β₁) g        v ← β₂ v + (1 − β₂) g²        w ← w − η · m̂ / (√v̂ + ε)

What is masked has the gradient 0 from the start and so never moves.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import sqrt

from compressor.lazy import np
from compressor.workspace import Array

_FIRST, _SECOND, _EPSILON = 0.9, 0.999, 1e-8


class Adam:
    """Moments of these parameters, which are changed in place by their gradients."""

    def __init__(
        self, parameters: Mapping[str, Array], gradients: Mapping[str, Array], masks: Mapping[str, Array]
    ) -> None:
        self.steps = 0
        self._all = [
            (weight, gradients[name], np.zeros_like(weight), np.zeros_like(weight), masks.get(name))
            for name, weight in parameters.items()
        ]
        self._work = np.empty(max((weight.size for weight in parameters.values()), default=0), np.float32)

    def step(self, rate: float) -> None:
        """One step by the gradients as they are; these are overwritten."""
        self.steps += 1
        # both corrections for the moments' start at zero as one factor and one ε, which spares two passes
        correction = sqrt(1 - _SECOND**self.steps)
        rate, epsilon = rate * correction / (1 - _FIRST**self.steps), _EPSILON * correction
        for weight, gradient, first, second, mask in self._all:
            work = self._work[: weight.size].reshape(weight.shape)
            if mask is not None:
                gradient *= mask
            first *= np.float32(_FIRST)
            np.multiply(gradient, np.float32(1 - _FIRST), out=work)
            first += work
            second *= np.float32(_SECOND)
            np.multiply(gradient, gradient, out=gradient)
            gradient *= np.float32(1 - _SECOND)
            second += gradient
            np.sqrt(second, out=work)
            work += np.float32(epsilon)
            np.divide(first, work, out=work)
            work *= np.float32(rate)
            weight -= work
