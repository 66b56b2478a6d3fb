"""How scales (and codes) of integers are chosen, a way a file."""

from __future__ import annotations

from compressor.methods.quantize.int.ways.awq import choose as awq
from compressor.methods.quantize.int.ways.contract import Grid, Way
from compressor.methods.quantize.int.ways.gptq import choose as gptq
from compressor.methods.quantize.int.ways.hqq import choose as hqq
from compressor.methods.quantize.int.ways.round import choose as absmax
from compressor.methods.quantize.int.ways.search import choose as search

__all__ = ["CHOOSES_CODES", "WAYS", "Grid", "Way"]

WAYS: dict[str, Way] = {
    "absmax": absmax,
    "search": search,
    "hqq": hqq,
    "gptq": gptq,
    "awq": awq,
}
CHOOSES_CODES = ("gptq",)  # ways that leave codes, and not only scales
