"""What scales of a matrix's inputs gain (AWQ, Lin et al., arXiv 2306.00978), as arrays alone.

Of a matrix W [rows, in] whose inputs x have E[x xᵀ] known (or its diagonal), scales s [in] make

    Σ ‖(W − Q(W diag(s)) diag(s)⁻¹) x‖²

smaller or larger, where Q is a method's own rounding.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from compressor.core.elementary import power
from compressor.core.floats import settle
from compressor.core.layer_inputs import Layer
from compressor.core.lazy import np
from compressor.core.metrics import dot
from compressor.core.tensor import DTYPES, TensorSpec
from compressor.core.workspace import Array, Workspace
from compressor.methods.contract import Block, Encoder, TensorMethod

LEAST = 1e-4  # of the largest input: what an input that is never active counts as
AT_ONCE = 1 << 18  # weights that are rounded at a time


def scale_of(size: Array, alpha: float) -> Array:
    """s [in] for inputs whose root mean squares are `size` [in], by s_j = size_j^α / √(max s · min s); ones where
    nothing was ever active."""
    top = size.max()
    if not alpha or not top > 0:
        return np.ones_like(size)
    powers = power(np.maximum(size / top, LEAST), alpha)
    scale: Array = powers / np.sqrt(powers.max() * powers.min())
    return scale


def divided(layer: Layer, scale: Array) -> Layer:
    """The statistics of inputs that are divided by `scale` [in]; a gram is changed in place."""
    gram = layer.gram
    if gram is not None:
        gram /= scale[:, None]
        gram /= scale
    return Layer(layer.count, layer.mean / scale, layer.square / scale**2, gram)


def losses(
    rows: Array, scales: Iterable[Array], method: TensorMethod, spec: TensorSpec, layer: Layer
) -> list[float]:
    """For each of the scales [in], what `rows` [rows, in] of the tensor `spec` lose of their outputs when they are
    rounded by `method`: the sum over rows of mean squares, by the gram of the layer's inputs, else its diagonal."""
    work = Workspace()
    weight = (layer.square if layer.gram is None else layer.gram).astype(rows.dtype)
    layer = replace(layer, gram=None)  # float64
    step = max(AT_ONCE // rows.shape[1], 1)
    lost = []
    for scale in scales:
        total = 0.0
        for start in range(0, len(rows), step):
            values = rows[start : start + step]
            apart = _apart(values, scale, method, spec, divided(layer, scale), work)
            weighed = apart @ weight if weight.ndim == 2 else apart * weight
            total += dot(weighed, apart)
        lost.append(total)
    return lost


def _apart(
    values: Array, scale: Array, method: TensorMethod, spec: TensorSpec, inputs: Layer, work: Workspace
) -> Array:
    """W − Q(W diag(s)) diag(s)⁻¹ of some rows; `inputs` are those of W diag(s)."""
    scale = scale.astype(values.dtype)
    scaled, restored = (work.array(f"awq.{key}", values.shape, values.dtype.str) for key in ("scaled", "restored"))
    np.multiply(values, scale, out=scaled)
    stored = work.array("awq.stored", values.shape, DTYPES[spec.dtype].storage)
    scaled = settle(scaled, spec.dtype, stored, work)
    part = TensorSpec(spec.name, spec.dtype, values.shape)
    encoder = method.prepare([part])
    assert isinstance(encoder, Encoder)  # noqa: S101 - none but encoders have inputs scaled, by rows or groups
    with np.errstate(all="ignore"):
        encoder.encode(Block(scaled, 0, part, work, {}, inputs), None, restored)
        np.divide(restored, scale, out=restored)
        np.subtract(values, restored, out=restored)
    return restored
