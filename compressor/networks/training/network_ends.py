"""Tensors with other numbers than their file's, and networks as they are compared."""

from __future__ import annotations

from dataclasses import replace

from compressor.core.errors import InputError
from compressor.networks.description import Fitted
from compressor.networks.kinds import Softmax
from compressor.networks.network import Network


def bare(network: Network) -> Network:
    """The network without a softmax at its end: what it softens is what is compared."""
    fitted = network.fitted
    description = fitted.description
    if len(description.layers) < 2 or not isinstance(description.layers[-1], Softmax):
        return network
    shorter = Fitted(
        replace(description, layers=description.layers[:-1]),
        fitted.roles[:-1],
        fitted.shapes[:-1],
        fitted.sources[:-1],
    )
    return Network(shorter, network.tensors, network.dtype)


def check_same_shapes(student: Network, teacher: Network, path: str) -> None:
    """InputError where a tensor of the student, which is in `path`, has not its teacher's shape."""
    for name, array in student.tensors.items():
        other = teacher.tensors.get(name)
        if other is None or other.shape != array.shape:
            what = "not there" if other is None else str(list(other.shape))
            raise InputError(
                f"is {list(array.shape)}, and in the teacher {what}",
                file=path,
                tensor=name,
                remedy="It takes a student of its teacher's shapes; soft-targets trains others",
            )
