"""How integer codes are stored, a layout a file."""

from __future__ import annotations

from compressor.methods.quantize.int.layouts.contract import CodeLayout, Scaled
from compressor.methods.quantize.int.layouts.gptq import Gptq
from compressor.methods.quantize.int.layouts.int_quantized import IntQuantized
from compressor.methods.quantize.int.layouts.mlx import Mlx
from compressor.methods.quantize.int.layouts.own import Own
from compressor.methods.quantize.int.layouts.pack_quantized import PackQuantized
from compressor.methods.quantize.int.layouts.plain import Plain

__all__ = ["LAYOUTS", "CodeLayout", "Scaled"]

LAYOUTS: dict[str, type[CodeLayout]] = {
    layout.name: layout for layout in (PackQuantized, IntQuantized, Own, Plain, Mlx, Gptq)
}
