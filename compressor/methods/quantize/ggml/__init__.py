"""ggml's types: `decoder.py` reads blocks, by the `decode_*.py` of each group of types; `grids.py` has what no
formula gives. `scheme.py` has the schemes, `encoder.py` writes blocks, by the `encode_*.py`, with scales that
`search.py` finds."""

from __future__ import annotations

from collections.abc import Mapping

from compressor.methods.contract import Method
from compressor.methods.quantize.ggml.scheme import BY_ID

METHODS: Mapping[str, type[Method]] = BY_ID
