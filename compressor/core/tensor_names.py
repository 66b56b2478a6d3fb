"""What the name of one tensor says of another: a layer's name, its weight, its bias."""

from __future__ import annotations


def weight_of(bias: str) -> str:
    """The weight of the layer whose bias is called so; "" where nothing says that it is one."""
    stem = bias.removesuffix("bias")
    return f"{stem}weight" if stem != bias else ""


def layer_of(tensor: str) -> str:
    """The layer whose weight is called so."""
    return tensor.removesuffix(".weight")
