"""ggml's types: `decoder.py` reads blocks, by the `decode_*.py` of each group of types; `grids.py` has what no
formula gives."""

from __future__ import annotations

from collections.abc import Mapping

from compressor.methods.contract import Method

METHODS: Mapping[str, type[Method]] = {}
