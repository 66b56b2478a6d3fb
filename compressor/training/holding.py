"""Tensors with other numbers than their file's, and networks as they are compared."""

from __future__ import annotations

from dataclasses import dataclass, replace

from compressor.checkpoint import Checkpoint, Tensor
from compressor.errors import InputError
from compressor.files.source import StoredTensor
from compressor.floats import narrow, widen
from compressor.lazy import np
from compressor.networks.description import Fitted
from compressor.networks.kinds import Softmax
from compressor.networks.network import Network
from compressor.tensor import DTYPES
from compressor.workspace import Array, Workspace


@dataclass(frozen=True, eq=False)
class Trained(StoredTensor):
    """A tensor with other numbers than the file's, already in its storage type."""

    numbers: Array

    @property
    def contiguous(self) -> bool:
        return False

    def read_rows(self, columns: int, start: int, stop: int, work: Workspace, key: str) -> Array:
        out = work.array(key, (stop - start, columns), self.numbers.dtype.str)
        np.copyto(out, self.numbers.reshape(-1, columns)[start:stop])
        return out

    def read_bytes(self, start: int, stop: int, work: Workspace, key: str) -> Array:
        raise NotImplementedError  # nothing that is not contiguous is read so

    def read_columns(self, start: int, stop: int, work: Workspace, key: str) -> Array:
        raise NotImplementedError  # it is no part of an encoder


def bare(network: Network) -> Network:
    """The network without a softmax at its end: what it softens is what is compared."""
    fitted = network.fitted
    description = fitted.description
    if len(description.layers) < 2 or not isinstance(description.layers[-1], Softmax):
        return network
    shorter = Fitted(replace(description, layers=description.layers[:-1]), fitted.roles[:-1], fitted.shapes[:-1])
    return Network(shorter, network.tensors, network.dtype)


def holding(checkpoint: Checkpoint, name: str, array: Array) -> Tensor:
    tensor = checkpoint.tensors[name]
    spec = tensor.spec
    numbers = np.empty(spec.shape, DTYPES[spec.dtype].storage)
    narrow(array.astype(DTYPES[spec.dtype].compute, copy=False), spec.dtype, numbers)
    check_finite(numbers, spec.dtype, checkpoint.path, name)
    first = next(iter(tensor.parts.values()))
    placed = replace(first.placed, spec=spec, fortran=False, big_endian=False, strides=None)
    return Tensor(spec, {"": Trained(first.file, placed, numbers)}, tensor.file)


def check_finite(numbers: Array, dtype: str, path: str, tensor: str) -> None:
    if not np.isfinite(widen(numbers, dtype, Workspace(), "narrowed")).all():
        raise InputError(
            f"was trained to numbers beyond {dtype}", file=path, tensor=tensor, remedy="Lower --learning-rate"
        )
