"""Inputs of a layer that go together, weights for it, and what its outputs lose."""

from __future__ import annotations

import numpy as np

from compressor.core.layer_inputs import Gather, Layer
from compressor.core.workspace import Array


def correlated(width: int, count: int = 1500) -> Layer:
    random = np.random.default_rng(width)
    mixing = random.standard_normal((width, width)) * np.exp(random.standard_normal(width))[:, None] * 0.3
    gather = Gather(width, gram=True)
    gather.add(random.standard_normal((count, width)) @ (mixing + np.eye(width)))
    return gather.layer


def weights(rows: int, columns: int) -> Array:
    return (np.random.default_rng(columns + 1).standard_normal((rows, columns)) * 0.05).astype(np.float32)


def lost(values: Array, restored: Array, layer: Layer) -> float:
    apart = restored.astype(np.float64) - values
    return float(np.sum((apart @ layer.gram) * apart))
