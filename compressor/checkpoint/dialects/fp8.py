"""FP8 folders as DeepSeek publishes them and transformers calls them (`quant_method` "fp8"): read only.

`P.weight` F8_E4M3 with `P.weight_scale_inv` beside it, perhaps in another shard: one scale for a block of
`weight_block_size` rows × columns, or without that for the tensor. Despite its name it is multiplied; with
`scale_fmt` "ue8m0" it may be F8_E8M0. FBGEMM's
(`quant_method` "fbgemm_fp8") have a `P.weight_scale` [out, 1] instead. The restored tensors have the dtype of the
model (`dtype` in config.json; BF16 where it says none).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from compressor.checkpoint.dialects._scales import is_block, model_dtype, orphans, single
from compressor.core.errors import InputError
from compressor.core.tensor import TensorSpec
from compressor.core.text import printable
from compressor.files.source import Source
from compressor.methods.contract import Decoder
from compressor.methods.quantize.fp8 import Fp8, Scales

NAME = "fp8"
KEY = "quantization_config"
_FBGEMM = "fbgemm_fp8"
_ACTIVATIONS = ("activation_scale", "input_scale", "input_scale_ub")


def speaks(config: Mapping[str, Any]) -> bool:
    """Whether a config.json, which may declare no quantization, is in this dialect."""
    declared = config.get(KEY)
    return isinstance(declared, dict) and declared.get("quant_method") in (NAME, _FBGEMM)


def stored_tensors(source: Source) -> list[tuple[TensorSpec, Decoder]]:
    """The FP8 weights of such a folder. InputError where one has no scale, or a scale no weight."""
    config = source.config or {}
    block = config[KEY].get("weight_block_size")
    if block is not None and not is_block(block):
        raise InputError(f"config.json: weight_block_size is {printable(str(block), 40)}", file=source.path)
    rows = config[KEY]["quant_method"] == _FBGEMM
    last = "_scale" if rows else "_scale_inv"
    dtype = model_dtype(config) or "BF16"
    found: list[tuple[TensorSpec, Decoder]] = []
    for name, tensor in source.tensors.items():
        if not tensor.spec.dtype.startswith("F8_E4M3"):
            continue
        scale = source.tensors.get(name + last)
        if scale is None or tensor.spec.dtype != "F8_E4M3":
            raise InputError(
                f"is {tensor.spec.dtype} without a {name.rpartition('.')[2]}{last} that is read here",
                file=source.path,
                tensor=name,
            )
        if len(tensor.spec.shape) != 2:
            raise InputError(f"is FP8 of shape {list(tensor.spec.shape)}, no matrix", file=source.path, tensor=name)
        if scale.spec.dtype not in ("F32", "BF16", "F16", "F8_E8M0"):
            raise InputError(f"its scale is {scale.spec.dtype}, not a float", file=source.path, tensor=name)
        spec = TensorSpec(name, dtype, tensor.spec.shape)
        if rows:
            how = Fp8(granularity="channel", scales=Scales(last, scale.spec.dtype))
        elif block is None:
            scales = Scales(last, scale.spec.dtype, single(source, name + last, name))
            how = Fp8(granularity="tensor", scales=scales)
        else:
            how = Fp8(granularity="block", scales=Scales(last, scale.spec.dtype, block=(block[0], block[1])))
        found.append((spec, how))
    orphans(source, (last,), {spec.name + last for spec, _ in found})
    return found


def leftovers(source: Source, stored: Sequence[tuple[TensorSpec, Decoder]]) -> set[str]:
    """Calibrated scales of activations."""
    stems = {spec.name.removesuffix("weight") for spec, _ in stored}
    return {stem + last for stem in stems for last in _ACTIVATIONS} & set(source.tensors)
