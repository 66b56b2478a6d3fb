"""The inputs that a student is trained on: all in memory, in bytes where they are bytes."""

from __future__ import annotations

from dataclasses import dataclass

from compressor.core.errors import InputError
from compressor.core.lazy import np
from compressor.core.workspace import Array, Workspace
from compressor.files.opening import open_source
from compressor.files.source import Source, StoredTensor
from compressor.networks.kinds import Shape
from compressor.networks.network import Network
from compressor.networks.samples import blocks, check_samples, check_shape, is_whole, scaling


@dataclass(frozen=True)
class Examples:
    """Inputs that fit both networks, in memory; `description` says in words how they are scaled."""

    source: Source
    array: StoredTensor
    by: float
    description: str
    image: tuple[int, int, int] | None  # channels, rows, columns of a sample that is one

    @property
    def count(self) -> int:
        """How many samples there are."""
        return self.array.spec.shape[0]

    @property
    def dtype(self) -> str:
        """The type in which they are held."""
        return "|u1" if self.array.spec.dtype == "U8" else "<f4"

    @property
    def nbytes(self) -> int:
        """Bytes that the samples take in memory."""
        return self.array.spec.size * np.dtype(self.dtype).itemsize

    def read(self) -> Array:
        """All samples, [samples, numbers of one]. InputError where any number is NaN or infinite."""
        held = np.empty((self.count, self.array.spec.size // self.count), self.dtype)
        for start, block in blocks(self.array, Workspace()):
            np.copyto(held[start : start + len(block)], block, casting="unsafe")
        return held

    def read_labels(self, path: str, classes: int) -> Array:
        """The class of each of them, whole numbers below `classes`. InputError for anything else."""
        source = open_source(path)
        found = next(iter(source.tensors.values()))
        if len(source.tensors) != 1 or not is_whole(found) or found.spec.shape != (self.count,):
            raise InputError(
                f"holds no labels of {self.count} inputs: [samples], whole numbers",
                file=path,
                remedy="Save them alone, as .npy, in the order of the inputs",
            )
        labels = found.read_rows(self.count, 0, 1, Workspace(), "labels").reshape(-1)
        if labels.min() < 0 or labels.max() >= classes:
            raise InputError(
                f"holds labels from {labels.min()} to {labels.max()}, where the networks tell {classes} classes",
                file=path,
            )
        return labels.astype(np.intp)


def open_examples(
    path: str, divide: float | None, student: Network, teacher: Network, *, shift: int = 0
) -> Examples:
    """The inputs in a file. InputError where they are none, not what both networks take, or no images that could be
    moved by a `shift`."""
    source = open_source(path)
    if len(source.tensors) != 1:
        raise InputError(
            f"holds {len(source.tensors)} arrays, where one of inputs belongs",
            file=path,
            remedy="Save the inputs alone, as .npy",
        )
    (array,) = source.tensors.values()
    check_samples(array, array.spec.name)
    for network in (teacher, student):
        check_shape(array, network)
    if not array.spec.shape[0]:
        raise InputError("holds no samples", file=path)
    offered = student.fitted.description.divide
    by = divide if divide is not None else offered if is_whole(array) else 1.0
    image = _image(array.spec.shape[1:]) or _image(student.input)
    if shift and image is None:
        raise InputError(
            "holds no images that could be shifted: of neither rows and columns nor channels, rows and columns",
            file=path,
            remedy="Leave out --shift",
        )
    return Examples(source, array, by, scaling(array, by, asked=divide is not None, offered=offered), image)


def _image(shape: Shape) -> tuple[int, int, int] | None:
    """Channels, rows, columns of a sample, if it has them."""
    if len(shape) not in (2, 3):
        return None
    channels, rows, columns = (1, *shape)[-3:]
    return channels, rows, columns
