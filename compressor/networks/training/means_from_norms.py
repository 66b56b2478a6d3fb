"""Correcting a student's batch norms and biases without inputs, by what its teacher's norms say of theirs.

A batch norm gives numbers of mean β and variance γ², channel by channel (Nagel et al., arXiv 1906.04721, 4.2). What
an activation makes of numbers normal by these has means that can be integrated; so what enters the layers after it
is known in the mean, E x, and a student's weights W' shift what they give by (W' − W) E x. The next norm's mean
takes the shift, or the layer's own bias does. Variances stay as they are: the correlations that they depend on are
not known.

Known are no inputs of the network, so that layers before the first norm stay as they are, and nothing that comes of
a largest.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from compressor.core.errors import InputError
from compressor.core.lazy import np
from compressor.core.workspace import Array
from compressor.networks.kinds import Shape
from compressor.networks.layers import AddLayer, AveragePoolLayer, FlattenLayer, Layer, Linear
from compressor.networks.network import Network
from compressor.networks.pointwise import (
    BatchNormLayer,
    GeluLayer,
    Relu6Layer,
    ReluLayer,
    SigmoidLayer,
    SwishLayer,
    TanhLayer,
)

_ACTIVATIONS = (ReluLayer, Relu6Layer, SwishLayer, GeluLayer, TanhLayer, SigmoidLayer)
_KEEP_MEANS = (Linear, AveragePoolLayer, FlattenLayer)  # of a mean they give the mean of what they give
_REACH, _POINTS = 8.0, 513  # deviations to either side, and points, by which a normal distribution is integrated


@dataclass(frozen=True)
class _Known:
    """What a layer gives, by channel or feature: its mean in the student (`ours`) and in the teacher, and its
    variance in the teacher, None where that is not known."""

    ours: Array
    theirs: Array
    variance: Array | None


def correct_means(student: Network, teacher: Network, codes: Collection[str], path: str) -> list[str]:
    """Correct the student's norms and biases, but for the tensors that are `codes`: the names of those that may
    differ now. InputError where there are none."""
    changed = list[str]()
    given: list[_Known | None] = [None]
    for number, (ours, theirs) in enumerate(zip(student.layers, teacher.layers, strict=True)):
        known = [given[place] for place in student.fitted.sources[number]]
        role = "mean" if isinstance(ours, BatchNormLayer) else "bias"
        name = student.fitted.roles[number].get(role)
        movable = name if name not in codes else None
        given.append(_through(ours, theirs, known, movable is not None))
        linear = isinstance(ours, Linear) and known[0] is not None
        if movable is not None and (linear or (isinstance(ours, BatchNormLayer) and known[0] is not None)):
            changed.append(movable)
    if not changed:
        raise InputError(
            "has no layer between norms whose inputs are known in the mean without any given",
            file=path,
            remedy="Give --inputs FILE.npy",
        )
    return changed


def _through(ours: Layer, theirs: Layer, known: list[_Known | None], movable: bool) -> _Known | None:
    """What a pair of layers gives, the student's corrected where it may be."""
    first = known[0]
    if isinstance(ours, BatchNormLayer):
        return _norm(ours, theirs, first, movable)
    if first is None:
        return None
    if isinstance(ours, AddLayer):
        other = known[1]
        return None if other is None else _sum(first, other)
    if isinstance(ours, _KEEP_MEANS):
        return _mean(ours, theirs, first, movable)
    if isinstance(ours, _ACTIVATIONS) and first.variance is not None:
        mean, _ = _integrated(ours, first.ours, first.variance)
        return _Known(mean, *_integrated(theirs, first.theirs, first.variance))
    return None


def _norm(ours: Layer, theirs: Layer, given: _Known | None, movable: bool) -> _Known:
    """A norm, whose mean takes the shift; what it gives is known by its weights alone."""
    size = len(ours.tensors["mean"])
    if given is not None and movable:
        ours.tensors["mean"] += (given.ours - given.theirs).astype(ours.dtype)
    means = [np.asarray(one.tensors.get("bias", np.zeros(size)), np.float64) for one in (ours, theirs)]
    deviation = np.asarray(theirs.tensors.get("weight", np.ones(size)), np.float64)
    return _Known(means[0], means[1], deviation * deviation)


def _sum(one: _Known, other: _Known) -> _Known:
    """Of two that are taken to be independent."""
    known = one.variance is not None and other.variance is not None
    variance = one.variance + other.variance if known else None  # type: ignore[operator]
    return _Known(one.ours + other.ours, one.theirs + other.theirs, variance)


def _mean(ours: Layer, theirs: Layer, given: _Known, movable: bool) -> _Known:
    """Layers whose mean output is their output for the mean, planes of it with their padding; a bias takes the
    shift."""
    means = [
        _flat(layer.forward(_plane(mean, layer.given, layer.dtype)))
        for layer, mean in ((ours, given.ours), (theirs, given.theirs))
    ]
    if movable:
        ours.tensors["bias"] += (means[1] - means[0]).astype(ours.dtype)
        means[0] = means[1]
    return _Known(means[0], means[1], None)


def _integrated(layer: Layer, mean: Array, variance: Array) -> tuple[Array, Array]:
    """Mean and variance of what an activation makes of normal numbers [channels]."""
    z = np.linspace(-_REACH, _REACH, _POINTS)
    share = np.exp(-z * z / 2)
    share /= share.sum()
    numbers = mean + np.sqrt(variance) * z[:, None]
    found = layer.forward(numbers.astype(layer.dtype)).astype(np.float64)
    middle = share @ found
    return middle, share @ (found - middle) ** 2


def _plane(mean: Array, shape: Shape, dtype: str) -> Array:
    """A sample of this shape (channels first) whose every point has the mean, as layers take it."""
    plane: Array = np.empty((1, *shape[1:], shape[0]), dtype)
    plane[...] = mean
    return plane


def _flat(planes: Array) -> Array:
    """The mean over the points of planes, [channels]."""
    found: Array = planes.reshape(-1, planes.shape[-1]).mean(axis=0, dtype=np.float64)
    return found
