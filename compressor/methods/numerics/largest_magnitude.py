"""The largest magnitude of every tensor, for schemes that have a scale for a whole tensor.

Tensors that loaders fuse into one (`architectures/fused_layers.py`) get the largest of them all, so that they share
that scale.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from compressor.architectures.fused_layers import fused_group
from compressor.methods.contract import Block, Encoder, Survey


@dataclass(frozen=True)
class Largest(Survey[dict[str, float]]):
    """Concludes with what `encoder` makes of the magnitudes by tensor."""

    encoder: Callable[[Mapping[str, float]], Encoder]

    def start(self) -> dict[str, float]:
        return {}

    def observe(self, block: Block, stats: dict[str, float]) -> dict[str, float]:
        extent = max(float(block.values.max()), -float(block.values.min()))
        return self.merge(stats, {block.spec.name: extent})

    def merge(self, stats: dict[str, float], more: dict[str, float]) -> dict[str, float]:
        for name, extent in more.items():
            stats[name] = max(stats.get(name, 0.0), extent)
        return stats

    def conclude(self, stats: dict[str, float]) -> Encoder:
        return self.encoder(shared(stats))


def shared(largest: Mapping[str, float]) -> dict[str, float]:
    """For each tensor the largest magnitude of those that it is fused with."""
    groups: dict[str, float] = {}
    for name, extent in largest.items():
        whole = fused_group(name) or name
        groups[whole] = max(groups.get(whole, 0.0), extent)
    return {name: groups[fused_group(name) or name] for name in largest}
