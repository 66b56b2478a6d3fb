"""NF4: codes of 4 bits for the quantiles of a normal distribution, with one scale for a block of weights.

    w ≈ s · level[c],   c the nearest of 16 levels from −1 to 1, one of which is exactly 0

QLoRA's data type (arXiv 2305.14314). The blocks run over the flattened tensor. `--method absmax` takes each block's
largest magnitude for s, as bitsandbytes does; `search` takes the s near it that minimises the block's squared
error, which the same bytes and the same loaders allow. `--double-quant` stores the scales in 8 bits:
s ≈ map[c]·a + o, with one a for 256 scales and one o, their mean, for the tensor.

Stored, for `NAME` of n weights in blocks of g (bitsandbytes' layout, first weight of a byte in the high nibble):

* `NAME` U8 [⌈n/2⌉, 1]; `NAME.absmax` F32 [⌈n/g⌉]; `NAME.quant_map` F32 [16], the levels;
  `NAME.quant_state.bitsandbytes__nf4` U8, JSON: quant_type, blocksize, dtype, shape;
* with double quantization `NAME.absmax` is U8, and beside it are `NAME.nested_absmax` F32 [⌈n/g/256⌉] and
  `NAME.nested_quant_map` F32 [256], and the state says nested_blocksize, nested_dtype, nested_offset (padded with
  spaces to a fixed length).

Where g does not divide the rows, as many rows as whole blocks need are taken together; where blocks never end
with a row (n is no multiple of g) it is the whole tensor, up to 2^21 weights. With double quantization a survey
remembers a scale for each block, n/16 bytes.
Error: at most 0.152·s where nothing is clipped; a quarter of the block's largest weight with `search`; with double
quantization, whose scales are rough, never more than the weight itself.

`scheme.py` has the options, `levels.py` finds codes and scales, `bitsandbytes_state.py` describes them.
"""

from __future__ import annotations

from compressor.methods.quantize.nf4.scheme import METHOD, Nf4

__all__ = ["METHOD", "Nf4"]
