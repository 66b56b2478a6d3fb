"""Integers of 2 to 8 bits: `scheme.py` says what they are, `ways/` choose scales and codes, `layouts/` store
them."""

from __future__ import annotations

from compressor.methods.quantize.int.scheme import METHOD, Int

__all__ = ["METHOD", "Int"]
