"""4-bit normal floats: `scheme.py` says what they are, `levels.py` how they are found, and `bitsandbytes_state.py`
describes them to bitsandbytes."""

from __future__ import annotations

from compressor.methods.quantize.nf4.scheme import METHOD, Nf4

__all__ = ["METHOD", "Nf4"]
