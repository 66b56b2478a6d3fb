"""Layers that keep the shape: activations and norms. Their numbers are features or channels, the last axis."""

from __future__ import annotations

from math import pi, sqrt
from typing import Any

from compressor.core.lazy import np
from compressor.core.workspace import Array
from compressor.networks.kinds import BatchNorm, Gelu, LayerNorm
from compressor.networks.layers import Layer

MOMENTUM = 0.1  # of a batch's share in the running mean and variance, as PyTorch has it


class Activation(Layer):
    """A function of each number."""

    keeps_output = True

    def target(self, x: Array) -> Array:
        """Where the result goes."""
        return x if self.in_place else self.array("y", *x.shape)


class ReluLayer(Activation):
    """`max(x, 0)`."""

    def forward(self, x: Array, *, keep: bool = False, train: bool = False) -> Array:
        self.y = np.maximum(x, 0, out=self.target(x))
        return self.y

    def backward(self, gradient: Array, *, inputs: bool = True) -> Array | None:
        passed = np.greater(self.y, 0, out=self.array("passed", *self.y.shape, dtype="|b1"))
        return np.multiply(gradient, passed, out=gradient)


class Relu6Layer(Activation):
    """`min(max(x, 0), 6)`."""

    def forward(self, x: Array, *, keep: bool = False, train: bool = False) -> Array:
        self.y = np.clip(x, 0, 6, out=self.target(x))
        return self.y

    def backward(self, gradient: Array, *, inputs: bool = True) -> Array | None:
        passed = np.greater(self.y, 0, out=self.array("passed", *self.y.shape, dtype="|b1"))
        gradient *= passed
        return np.multiply(gradient, np.less(self.y, 6, out=passed), out=gradient)


class SwishLayer(Layer):
    """`x s` with `s = 1 / (1 + e^−x)`; its slope is `s (1 + x (1 − s))`."""

    def forward(self, x: Array, *, keep: bool = False, train: bool = False) -> Array:
        self.x = x
        share = np.multiply(x, 0.5, out=self.array("share", *x.shape))
        np.tanh(share, out=share)
        share += 1
        share *= 0.5
        return np.multiply(x, share, out=self.array("y", *x.shape))

    def backward(self, gradient: Array, *, inputs: bool = True) -> Array | None:
        share = self.array("share", *self.x.shape)
        slope = np.subtract(1, share, out=self.array("slope", *self.x.shape))
        slope *= self.x
        slope += 1
        slope *= share
        return np.multiply(gradient, slope, out=gradient)


class TanhLayer(Activation):
    """`tanh(x)`; its slope is `1 − y²`."""

    def forward(self, x: Array, *, keep: bool = False, train: bool = False) -> Array:
        self.y = np.tanh(x, out=self.target(x))
        return self.y

    def backward(self, gradient: Array, *, inputs: bool = True) -> Array | None:
        slope = np.multiply(self.y, self.y, out=self.array("slope", *self.y.shape))
        np.subtract(1, slope, out=slope)
        return np.multiply(gradient, slope, out=gradient)


class SigmoidLayer(Activation):
    """`1 / (1 + e^−x)`, as `(tanh(x / 2) + 1) / 2`, which cannot overflow; its slope is `y (1 − y)`."""

    def forward(self, x: Array, *, keep: bool = False, train: bool = False) -> Array:
        y = np.multiply(x, 0.5, out=self.target(x))
        np.tanh(y, out=y)
        y += 1
        y *= 0.5
        self.y = y
        return y

    def backward(self, gradient: Array, *, inputs: bool = True) -> Array | None:
        slope = np.subtract(1, self.y, out=self.array("slope", *self.y.shape))
        slope *= self.y
        return np.multiply(gradient, slope, out=gradient)


class SoftmaxLayer(Activation):
    """`e^x / Σ e^x`; backwards `y (g − Σ g y)`."""

    def forward(self, x: Array, *, keep: bool = False, train: bool = False) -> Array:
        y: Array = np.subtract(x, x.max(axis=-1, keepdims=True), out=self.target(x))
        np.exp(y, out=y)
        y /= y.sum(axis=-1, keepdims=True)
        self.y = y
        return y

    def backward(self, gradient: Array, *, inputs: bool = True) -> Array | None:
        gradient -= np.einsum("nf,nf->n", gradient, self.y)[:, None]
        gradient *= self.y
        return gradient


class GeluLayer(Layer):
    """`x · Φ(x)`."""

    kind: Gelu

    def forward(self, x: Array, *, keep: bool = False, train: bool = False) -> Array:
        self.x = x
        below = self._below(x)
        return np.multiply(x, below, out=self.array("y", *x.shape))

    def backward(self, gradient: Array, *, inputs: bool = True) -> Array | None:
        x = self.x
        square = np.multiply(x, x, out=self.array("square", *x.shape))
        below = self.array("below", *x.shape)
        if self.kind.approximate == "tanh":  # below = (1 + tanh u) / 2, whose slope is 2 below (1 − below) u′
            slope = np.multiply(square, sqrt(2 / pi) * 3 * 0.044715, out=square)
            slope += sqrt(2 / pi)
            slope *= 2 * below * (1 - below)
        else:  # the density of the normal distribution
            slope = np.exp(np.multiply(square, -0.5, out=square), out=square)
            slope *= 1 / sqrt(2 * pi)
        slope *= x
        slope += below
        return np.multiply(gradient, slope, out=gradient)

    def _below(self, x: Array) -> Array:
        """The share of the normal distribution that lies below x."""
        found = self.array("below", *x.shape)
        if self.kind.approximate == "tanh":
            np.multiply(x, x, out=found)
            found *= 0.044715
            found += 1
            found *= x
            found *= sqrt(2 / pi)
            np.tanh(found, out=found)
            found += 1
            found *= 0.5
            return found
        return _normal(x, found, self.array("tail", *x.shape))


# erfc(z) = (a₁ t + … + a₅ t⁵) e^(−z²), t = 1 / (1 + p z), z ≥ 0: Abramowitz and Stegun 7.1.26, error below 1.5e-7
_ERFC = (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592)
_P = 0.3275911


def _normal(x: Array, out: Array, work: Array) -> Array:
    """Φ(x) = erfc(−x / √2) / 2."""
    z = np.multiply(np.abs(x, out=work), 1 / sqrt(2), out=work)
    t = 1 / (1 + _P * z)
    np.multiply(t, _ERFC[0], out=out)
    for factor in _ERFC[1:]:
        out += factor
        out *= t
    np.multiply(z, z, out=z)
    np.exp(np.negative(z, out=z), out=z)
    out *= z
    out *= 0.5
    np.subtract(1, out, out=out, where=x > 0)
    return out


class BatchNormLayer(Layer):
    """By the running mean and variance; in training by the batch's own, which then move the running ones."""

    kind: BatchNorm

    def forward(self, x: Array, *, keep: bool = False, train: bool = False) -> Array:
        self.trained = train
        axes = tuple(range(x.ndim - 1))
        if train:
            mean, variance = x.mean(axis=axes), x.var(axis=axes)
            count = x.size // x.shape[-1]
            for role, found in (("mean", mean), ("variance", variance * (count / max(count - 1, 1)))):
                running = self.tensors[role]
                running += MOMENTUM * (found - running)
        else:
            mean, variance = self.tensors["mean"], self.tensors["variance"]
            if not keep:
                return self._at_once(x, mean, variance)
        self.scale = 1 / np.sqrt(variance + x.dtype.type(self.kind.epsilon))
        self.normal = np.subtract(x, mean, out=self.array("normal", *x.shape))
        self.normal *= self.scale
        return _affine(self, self.normal)

    def _at_once(self, x: Array, mean: Array, variance: Array) -> Array:
        """Where nobody asks for gradients: one product and one sum for each channel, in place where that may be."""
        scale = 1 / np.sqrt(variance + x.dtype.type(self.kind.epsilon))
        if "weight" in self.parameters:
            scale *= self.parameters["weight"]
        shift = -mean * scale
        if "bias" in self.parameters:
            shift += self.parameters["bias"]
        y: Array = np.multiply(x, scale, out=x if self.in_place else self.array("y", *x.shape))
        y += shift
        return y

    def backward(self, gradient: Array, *, inputs: bool = True) -> Array | None:
        _affine_gradients(self, gradient, self.normal)
        if not inputs:
            return None
        if "weight" in self.parameters:
            gradient *= self.parameters["weight"]
        if self.trained:
            axes = tuple(range(gradient.ndim - 1))
            along = np.multiply(gradient, self.normal, out=self.array("along", *gradient.shape)).mean(axis=axes)
            gradient -= gradient.mean(axis=axes)
            gradient -= np.multiply(self.normal, along, out=self.array("along", *gradient.shape))
        gradient *= self.scale
        return gradient


class LayerNormLayer(Layer):
    """By each sample's own mean and variance."""

    kind: LayerNorm

    def forward(self, x: Array, *, keep: bool = False, train: bool = False) -> Array:
        self.normal = np.subtract(x, x.mean(axis=-1, keepdims=True), out=self.array("normal", *x.shape))
        variance = np.einsum("nf,nf->n", self.normal, self.normal) / x.shape[-1]
        self.scale = (1 / np.sqrt(variance + x.dtype.type(self.kind.epsilon)))[:, None]
        self.normal *= self.scale
        return _affine(self, self.normal)

    def backward(self, gradient: Array, *, inputs: bool = True) -> Array | None:
        _affine_gradients(self, gradient, self.normal)
        if not inputs:
            return None
        if "weight" in self.parameters:
            gradient *= self.parameters["weight"]
        along = np.einsum("nf,nf->n", gradient, self.normal)[:, None] / gradient.shape[-1]
        gradient -= gradient.mean(axis=-1, keepdims=True)
        gradient -= np.multiply(self.normal, along, out=self.array("along", *gradient.shape))
        gradient *= self.scale
        return gradient


def _affine(layer: Layer, normal: Array) -> Array:
    y = layer.array("y", *normal.shape)
    if "weight" in layer.parameters:
        np.multiply(normal, layer.parameters["weight"], out=y)
    else:
        np.copyto(y, normal)
    if "bias" in layer.parameters:
        y += layer.parameters["bias"]
    return y


def _affine_gradients(layer: Layer, gradient: Array, normal: Array) -> None:
    axes: Any = tuple(range(gradient.ndim - 1))
    if "weight" in layer.gradients:
        product = np.multiply(gradient, normal, out=layer.array("along", *gradient.shape))
        np.sum(product, axis=axes, out=layer.gradients["weight"])
    if "bias" in layer.gradients:
        np.sum(gradient, axis=axes, out=layer.gradients["bias"])
