"""MXFP4 experts as gpt-oss is published (`quant_method` "mxfp4"): read only.

For the fused experts `P` of transformers, `P_blocks` U8 [E, out, in/32, 16] with two E2M1 codes a byte, the first
in its low half, and `P_scales` U8 [E, out, in/32], exponents with a bias of 127. transformers computes with `P` [E,
in, out], so that is what is restored (transformers, integrations/mxfp4.py: convert_moe_packed_tensors).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf
from typing import Any, ClassVar

from compressor.checkpoint.dialects._scales import model_dtype
from compressor.checkpoint.dialects._stored import StoredCodes
from compressor.core.errors import InputError
from compressor.core.lazy import np
from compressor.core.tensor import TensorSpec
from compressor.core.workspace import Array, Workspace
from compressor.files.source import Source
from compressor.methods.contract import Decoder
from compressor.methods.numerics.minifloat import E2M1, powers_of_two
from compressor.methods.parts import Part

NAME = "mxfp4"
KEY = "quantization_config"
_GROUP = 32  # weights that share a scale


def speaks(config: Mapping[str, Any]) -> bool:
    """Whether a config.json, which may declare no quantization, is in this dialect."""
    declared = config.get(KEY)
    return isinstance(declared, dict) and declared.get("quant_method") == NAME


def stored_tensors(source: Source) -> list[tuple[TensorSpec, Decoder]]:
    """The experts that such a folder stores as blocks. InputError where blocks and scales do not fit."""
    dtype = model_dtype(source.config or {}) or "BF16"
    found: list[tuple[TensorSpec, Decoder]] = []
    for name, tensor in source.tensors.items():
        if not name.endswith("_blocks"):
            continue
        base, spec = name.removesuffix("_blocks"), tensor.spec
        scales = source.tensors.get(f"{base}_scales")
        good = spec.dtype == "U8" and len(spec.shape) == 4 and spec.shape[-1] * 2 == _GROUP
        if not good or scales is None or (scales.spec.dtype, scales.spec.shape) != ("U8", spec.shape[:3]):
            raise InputError("its blocks and scales do not fit together", file=source.path, tensor=base)
        experts, out, groups, _ = spec.shape
        found.append((TensorSpec(base, dtype, (experts, groups * _GROUP, out)), Blocks(4)))
    return found


@dataclass(frozen=True)
class Blocks(StoredCodes):
    """MXFP4 blocks of fused experts, turned as transformers computes with them."""

    id: ClassVar[str] = "mxfp4"

    @property
    def label(self) -> str:
        return self.id

    def parts(self, spec: TensorSpec) -> tuple[Part, ...]:
        experts, inner, out = spec.shape
        groups = inner // _GROUP
        return Part("_blocks", "U8", (experts, out, groups, _GROUP // 2)), Part(
            "_scales", "U8", (experts, out, groups)
        )

    def bound(self, largest: float, spec: TensorSpec) -> float:
        return inf

    def decode(self, parts: Mapping[str, Array], spec: TensorSpec, out: Array, start: int, work: Workspace) -> None:
        _, inner, outer = spec.shape
        pairs, steps = E2M1.pairs(out.dtype.str), powers_of_two().astype(out.dtype)
        turned = work.array("mxfp4.turned", (outer, inner // _GROUP, _GROUP), out.dtype.str)
        for expert, (blocks, scales) in enumerate(zip(parts["_blocks"], parts["_scales"], strict=True)):
            pairs.take(blocks.reshape(outer, -1), out=turned.reshape(outer, -1).view(pairs.dtype), mode="wrap")
            np.multiply(turned, steps.take(scales.reshape(outer, -1))[..., None], out=turned)
            np.copyto(out[expert].reshape(inner, outer), turned.reshape(outer, inner).T)
