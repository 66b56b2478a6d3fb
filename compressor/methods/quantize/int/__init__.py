"""Integers of 2 to 8 bits with one scale (and zero point) for a tensor, a row, or a group of a row.

    q = clip(round(w/s) + z, −2^(b−1), 2^(b−1) − 1), halves to even;  w ≈ (q − z)·s;  symmetric: z = 0

`method` chooses s and z. From the range (absmax, the rule of compressed-tensors):

    symmetric:   s = max|w| / ((2^b − 1)/2)
    asymmetric:  s = (max − min)/(2^b − 1), the range extended to 0;  z = −2^(b−1) − round(min/s)

or from there on for the least squared error (`ways/search.py`), half-quadratic (`ways/hqq.py`), or, with the codes,
for the least error of the layer's outputs (`ways/gptq.py`); awq searches with errors weighed by the inputs
(`ways/awq.py`), in a model whose inputs were scaled for it (`workflows/awq.py`). We divide in float32
(float64 for float64 weights) whatever the source's dtype, and by the scale as it is stored, which loses less than
compressed-tensors' own arithmetic in the same bytes. A zero weight has code z and comes back as exactly zero.

Stored, for `NAME` [rows, columns] (codes offset to unsigned, rows packed as little-endian bit streams):

* `pack-quantized` (4, 8 bits): `NAME_packed` I32 [rows, ⌈columns·b/32⌉], `NAME_scale` [rows, groups] or [1],
  `NAME_shape` I64 [2]; asymmetric: `NAME_zero_point` I32 [⌈rows·b/32⌉, groups], packed along the rows
  (I8 [1] by tensor);
* `int-quantized` (8 bits, symmetric, by tensor or channel): `NAME` I8 [rows, columns], `NAME_scale` [rows, 1]
  or [1];
* `compressor` (any): `NAME.codes` U8 [rows, ⌈columns·b/8⌉], `NAME.scale` [rows, groups] or [1]; asymmetric:
  `NAME.zero_point` U8 like the scale;
* `mlx` (2, 3, 4, 5, 6, 8 bits; groups of 32, 64, 128): `NAME` U32 [rows, columns·b/32], and without `.weight` in
  the name `.scales`, `.biases` [rows, groups]; w ≈ s·q + β as MLX rounds it, β = −z·s;
* `gptq` (4, 8 bits, symmetric, by channel or group): without `.weight` in the name, `.qweight` I32
  [columns·b/32, rows], `.qzeros` I32 [groups, rows·b/32], `.scales` F16 [groups, rows], `.g_idx` I32 [columns];
* `plain` (any; what `--store codes` takes): as `compressor`, with `NAME.codes` I8 (asymmetric: U8), one code an
  element.

The first two are compressed-tensors' own. A scale has the weight's dtype (F32 for FP8 weights; `mlx`: and for
float64; `gptq`: always F16, and weights beyond its range are clipped), and is positive unless `signed_scales` says
otherwise.
Error: about half a scale; what a search clips more, but never more in the sum of squares (gptq: see `Int.bound`).

`scheme.py` has the options, `ways/` choose scales and codes, `layouts/` store them.
"""

from __future__ import annotations

from compressor.methods.quantize.int.scheme import METHOD, Int

__all__ = ["METHOD", "Int"]
