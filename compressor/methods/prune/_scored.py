"""The importance of weights by what they are multiplied with: |W| · ‖x‖₂ of the layer's inputs, or given scores."""

from __future__ import annotations

from compressor.core.lazy import np
from compressor.core.workspace import Array
from compressor.methods.contract import Block


def scored(block: Block) -> Array:
    """|W| · √square of `block.inputs` as unsigned integers that sort like it, in a buffer.

    The roots are scaled by a power of two, which changes no comparison, so that no product overflows.
    """
    assert block.inputs is not None  # noqa: S101 - the method asked for them
    values = block.values
    root = np.abs(np.sqrt(block.inputs.square))  # the root of −0 is −0, which would sort above all
    root = np.ldexp(root, -np.frexp(root.max())[1])
    found = block.work.array("smallest.keys", values.shape, values.dtype.str)
    np.abs(values, out=found)
    np.multiply(found, root.astype(values.dtype), out=found)
    return found.view(f"<u{values.itemsize}")
