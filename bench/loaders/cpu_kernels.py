"""Whether bitsandbytes' kernels for processors give what the codes stand for, but for their rounding."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

_ROUNDED = 0.02  # relative to the length of a layer's outputs: bfloat16, and scales that are rounded to it


def check_kernels(layers: Iterable[Any]) -> None:
    """Let each layer compare what its kernel computes with the product of its inputs and of what its codes stand
    for, whenever the model computes; RuntimeError then where that is more than rounding. To be called before the
    kernels have packed the codes in their own way."""
    import bitsandbytes
    import torch

    for layer in layers:
        weight = bitsandbytes.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)

        def compare(layer: Any, given: tuple[Any, ...], found: Any, weight: Any = weight) -> None:
            wanted = torch.nn.functional.linear(given[0].to(weight.dtype), weight, layer.bias).float()
            if (found.float() - wanted).norm() > _ROUNDED * wanted.norm():
                raise RuntimeError("a kernel of bitsandbytes computes something else than the codes stand for")

        layer.register_forward_hook(compare)
