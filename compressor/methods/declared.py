"""What a config.json says of the parts of a tensor, which is the same for all tensors of one shape and decoder: a
model has thousands of them, and a plan asks ten times for each."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NamedTuple

from compressor.core.same import Same
from compressor.core.tensor import TensorSpec
from compressor.methods.contract import Decoder


class Declared(NamedTuple):
    """What the dialect's config says (not to be changed), as JSON too, and the dialect; see `Decoder`."""

    config: Mapping[str, Any] | None
    text: str
    dialect: str


def declared(decoder: Decoder, spec: TensorSpec) -> Declared:
    """What is said of a tensor like this one that the decoder reads."""
    return _declared(Same(decoder), spec.dtype, spec.shape)


@lru_cache(maxsize=1024)
def _declared(this: Same[Decoder], dtype: str, shape: tuple[int, ...]) -> Declared:
    spec = TensorSpec("", dtype, shape)
    config = this.held.config(spec)
    return Declared(config, json.dumps(config, sort_keys=True), this.held.dialect(spec))
