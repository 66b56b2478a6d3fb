"""The loss of Hinton, Vinyals and Dean (arXiv 1503.02531): a student's softened outputs against its teacher's.

    loss = τ² · mean over samples of KL(softmax(teacher / τ) ‖ softmax(student / τ))

Its gradient by the student's outputs is τ · (softmax(student / τ) − softmax(teacher / τ)) / samples: τ² keeps it of
one size whatever the temperature.
"""

from __future__ import annotations

from compressor.core.lazy import np
from compressor.core.workspace import Array


def soften(outputs: Array, temperature: float, out: Array) -> Array:
    """softmax(outputs / τ) of each row [n, classes]; `out` may be `outputs`."""
    np.subtract(outputs, outputs.max(axis=1, keepdims=True), out=out)
    out *= out.dtype.type(1 / temperature)
    np.exp(out, out=out)
    out /= out.sum(axis=1, keepdims=True)
    return out


def slope(student: Array, softened: Array, temperature: float, count: int, out: Array) -> Array:
    """The gradient of the loss of `count` samples by the student's outputs [n, classes] for some of them, where
    `softened` are the teacher's."""
    soften(student, temperature, out)
    out -= softened
    out *= out.dtype.type(temperature / count)
    return out


def add_labels(student: Array, labels: Array, weight: float, count: int, work: Array, out: Array) -> None:
    """Turn `out`, the slope of the loss of `count` samples, into that of `(1 − weight) · loss + weight · cross`:
    `cross` is the cross-entropy of the student's outputs [n, classes] and the labels [n]; `work` is as large."""
    soften(student, 1.0, work)
    work[np.arange(len(labels)), labels] -= 1
    work *= work.dtype.type(weight / count)
    out *= out.dtype.type(1 - weight)
    out += work


def loss(student: Array, softened: Array, temperature: float) -> float:
    """The loss of a batch: the mean over its samples [n, outputs] of the divergence, times temperature²; NaN where
    an output is not finite."""
    scaled = student.astype(np.float64) / temperature
    with np.errstate(invalid="ignore"):
        scaled -= scaled.max(axis=1, keepdims=True)
    scaled -= np.log(np.exp(scaled).sum(axis=1, keepdims=True))
    wanted = softened.astype(np.float64)
    entropy = wanted * np.log(np.maximum(wanted, 1e-300))
    found = float(temperature**2 * (entropy - wanted * scaled).sum() / len(scaled))
    return 0.0 if found < 0 else found


def cross(student: Array, labels: Array) -> float:
    """The mean cross-entropy of the student's outputs and the labels, in float64."""
    scaled = student.astype(np.float64)
    scaled -= scaled.max(axis=1, keepdims=True)
    scaled -= np.log(np.exp(scaled).sum(axis=1, keepdims=True))
    return float(-scaled[np.arange(len(labels)), labels].mean())
