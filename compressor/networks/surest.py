"""Which of several descriptions a model is meant by, where its tensors fit them all: that by which it is surest.

LeNet-5 has the same tensors with a ReLU after each layer and with Caffe's only one. A network that is run by
another description than it was trained by still answers, but is less sure of its answers.
"""

from __future__ import annotations

from dataclasses import replace

from compressor.checkpoint.checkpoint import Checkpoint
from compressor.core.lazy import np
from compressor.core.workspace import Array, Workspace
from compressor.files.source import StoredTensor
from compressor.networks.kinds import Softmax
from compressor.networks.matching import Found, read_network
from compressor.networks.network import Network
from compressor.networks.samples import blocks

SAMPLES = 1000  # that tell how sure a network is


def first_samples(array: StoredTensor, by: float) -> Array:
    """The first samples of an array of them [n, numbers of one], over `by`, float32."""
    found = []
    for start, block in blocks(array, Workspace(), SAMPLES):
        found.append(block[: SAMPLES - start] / np.float32(by))
        if start + len(block) >= SAMPLES:
            break
    return np.concatenate(found)


def confidence(network: Network, samples: Array) -> float:
    """The mean probability of the class that is answered, for samples [n, numbers of one]; 0 where the outputs are
    not those of classes, or not finite."""
    outputs = answers(network, samples)
    if outputs.ndim != 2 or outputs.shape[1] < 2:
        return 0.0
    if not np.isfinite(outputs).all():
        return 0.0
    if not isinstance(network.fitted.description.layers[-1], Softmax):
        outputs = np.exp(outputs - outputs.max(axis=1, keepdims=True))
        outputs /= outputs.sum(axis=1, keepdims=True)
    return float(outputs.max(axis=1).mean())


def answers(network: Network, samples: Array) -> Array:
    """The outputs for samples [n, numbers of one], float64, batch by batch."""
    step = max(1, network.batch)
    parts = (samples[start : start + step] for start in range(0, len(samples), step))
    with np.errstate(all="ignore"):  # of inputs that are far too large; whoever goes on says so
        outputs = [network.forward(part.reshape(-1, *network.input)).astype(np.float64) for part in parts]
    return np.concatenate(outputs)


def surest(checkpoint: Checkpoint, found: Found, samples: Array) -> Found:
    """The network by the description by which it is surest of these samples [n, numbers of one], of those that its
    tensors fit; as it was found where there is but one, or its user has named it."""
    if not found.alike:
        return found
    sure = {found.name: confidence(found.network, samples)}
    others = {name: read_network(checkpoint, name, found.network.dtype) for name in found.alike}
    sure |= {name: confidence(other.network, samples) for name, other in others.items()}
    best = max(sure, key=lambda name: sure[name])
    taken = found if best == found.name else others[best]
    said = ", ".join(f"{name} {share:.3f}" for name, share in sure.items())
    return replace(
        taken, description=f"{best} (of those that its tensors fit it is the surest by it: {said})", alike=()
    )


def both_surest(
    teacher: Checkpoint, mentor: Found, student: Checkpoint, found: Found, samples: Array
) -> tuple[Found, Found]:
    """The teacher's network and the student's, by one description where both fit several: that by which the teacher
    is surest of these samples [n, numbers of one]."""
    mentor = surest(teacher, mentor, samples)
    if mentor.name in (found.name, *found.alike) and found.alike:
        found = replace(read_network(student, mentor.name, found.network.dtype), description=mentor.description)
        return mentor, found
    return mentor, surest(student, found, samples)
