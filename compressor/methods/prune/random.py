"""Zero a share of weights drawn at random: the control that every comparison needs.

Each weight has a random number, that of its place in the tensor from a stream (Philox) keyed by the seed and the
tensor's name; the k = round(sparsity · n) smallest go, in each tensor, exactly. With `respect_zeros` the zeros that
are there count as drawn first.

Stored: the same dtype and shape. Error: as large as the largest weight.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b
from typing import ClassVar

from compressor.core.lazy import np
from compressor.core.workspace import Array
from compressor.methods.contract import Block
from compressor.methods.numerics.smallest_keys import Smallest
from compressor.methods.options import option

_DRAW = 8  # 32-bit numbers that one step of the stream gives


@dataclass(frozen=True)
class Random(Smallest):
    """Zero `sparsity` of each tensor's weights, drawn by `seed`."""

    id: ClassVar[str] = "random"

    sparsity: float = option(help="share of weights that become zero", low=0, high=1, open_high=True)
    seed: int = option(0, help="of the random numbers", low=0, high=2**63)
    respect_zeros: bool = option(False, help="zeros that are there count as drawn")

    def rank(self, size: int) -> int:
        return round(self.sparsity * size)

    def key_type(self, specs: object) -> str:
        return "<u4"

    def keys(self, block: Block, key_type: str) -> Array:
        first, count = block.start * block.values.shape[1], block.values.size
        stream = np.random.Philox(key=int.from_bytes(self._key(block.spec.name), "little"))
        stream.advance(first // _DRAW)
        skipped = first % _DRAW
        raw = stream.random_raw(-(-(skipped + count) // _DRAW) * _DRAW // 2)
        found: Array = raw.view("<u4")[skipped : skipped + count].reshape(block.values.shape)
        if self.respect_zeros:
            np.copyto(found, 0, where=block.values == 0)
        return found

    def _key(self, name: str) -> bytes:
        return blake2b(f"{self.seed}\0{name}".encode(), digest_size=16).digest()


METHOD = Random
