"""Students whose weights are codes: the codes stay, and what they stand for is trained, or stays too.

A weight of integer codes is w = s_g (q − z), so the slope of the loss by a scale is Σ over its group of the slopes
by the weights times (q − z); by an entry of a codebook it is the sum of those of all weights with its code. Both
are numbers p that weights take by their places, times units: w = u · p[place]. Scales are trained as factors of
what they were, so that a learning rate means the same for all of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from compressor.checkpoint.checkpoint import Tensor
from compressor.checkpoint.rows import Rows
from compressor.core import bitpacking as bitstream
from compressor.core.errors import UsageError
from compressor.core.floats import narrow, widen
from compressor.core.lazy import np
from compressor.core.tensor import DTYPES
from compressor.core.workspace import Array, Workspace
from compressor.methods.quantize.codebook import Codebook
from compressor.methods.quantize.int import Int
from compressor.methods.quantize.int.layouts import Scaled
from compressor.networks.network import Network

LAYOUTS = ("pack-quantized", "int-quantized", "compressor", "plain")
_LEAST = 1e-3  # of what it was, to which a scale may fall: it never changes its sign


@dataclass(frozen=True, eq=False)
class Levels:
    """The numbers that one tensor's codes stand for, flat, float32: entries of its codebook, or factors of its
    `scales`, with units."""

    tensor: Tensor
    weight: Array  # of the network, flat, which they change
    places: Array
    numbers: Array
    moving: Array  # 0 for an entry that is zero and stays so, else 1
    scales: Array | None = None
    units: Array | None = None

    def gather(self, slopes: Array, out: Array) -> None:
        """The slopes of single weights become those of the numbers; summed in float64."""
        flat = slopes.reshape(-1)
        weights = flat if self.units is None else flat * self.units
        np.copyto(out, np.bincount(self.places, weights=weights, minlength=len(self.numbers)), casting="same_kind")

    def spread(self) -> None:
        """The weights become what the numbers make of them."""
        if self.units is not None:
            np.maximum(self.numbers, np.float32(_LEAST), out=self.numbers)
        np.take(self.numbers, self.places, out=self.weight, mode="clip")
        if self.units is not None:
            np.multiply(self.weight, self.units, out=self.weight)

    def parts(self) -> dict[str, Array]:
        """The parts that changed, as they are stored."""
        encoder, spec = self.tensor.encoder, self.tensor.spec
        if isinstance(encoder, Int):
            assert self.scales is not None  # noqa: S101 - integer codes have some
            form, rule = encoder.form(spec), encoder.rule(spec)
            shape = self.tensor.parts[form.scale].spec.shape
            wide = self.numbers.astype(DTYPES[spec.dtype].compute) * self.scales
            zero = self._zero_points()
            stored, _ = rule.store(wide.reshape(1 if encoder.grain == "tensor" else spec.matrix[0], -1), zero)
            return {form.scale: stored.reshape(shape)}
        assert isinstance(encoder, Codebook)  # noqa: S101 - there are no other kinds
        books = self.numbers.reshape(-1, encoder.entries)
        order = np.argsort(books, axis=1, kind="stable")  # books ascend
        part = self.tensor.parts[".codebook"].spec
        stored = np.empty(books.shape, DTYPES[part.dtype].storage)
        sorted_books = np.take_along_axis(books, order, axis=1)
        narrow(sorted_books.astype(DTYPES[part.dtype].compute, copy=False), part.dtype, stored)
        # each code becomes its entry's new place
        ranks = np.argsort(order, axis=1, kind="stable").astype(np.uint8).reshape(-1)
        codes = ranks[self.places].reshape(spec.matrix)
        packed = np.empty(self.tensor.parts[".codes"].spec.shape, np.uint8)
        bitstream.pack(codes, encoder.bits, packed.reshape(len(codes), -1), Workspace())
        return {".codes": packed, ".codebook": stored.reshape(part.shape)}

    def _zero_points(self) -> Array | None:
        encoder, spec = self.tensor.encoder, self.tensor.spec
        assert isinstance(encoder, Int)  # noqa: S101 - who calls looked
        codes = np.empty(spec.matrix, np.uint8)
        form = encoder.form(spec)
        assert isinstance(form, Scaled)  # noqa: S101 - `LAYOUTS` are such
        found = form.unpack(_views(self.tensor), codes, Workspace())
        return None if found is None else found.astype(DTYPES[spec.dtype].compute)


def levels_of(tensor: Tensor, weight: Array) -> Levels:
    """The levels of a stored tensor, whose numbers in the network are `weight`. UsageError where its parts hold no
    scales or entries that can be trained."""
    encoder, spec, work = tensor.encoder, tensor.spec, Workspace()
    rows, columns = spec.matrix
    codes = np.empty((rows, columns), np.uint8)
    if isinstance(encoder, Codebook):
        parts = _views(tensor)
        bitstream.unpack(parts[".codes"], encoder.bits, codes, work)
        books = widen(np.array(parts[".codebook"]).reshape(-1, encoder.entries), spec.dtype, work, "levels")
        which = np.arange(rows) // (encoder.rows or max(rows, 1))
        places = codes + encoder.entries * which[:, None]
        numbers = books.astype(np.float32).reshape(-1)
        return Levels(tensor, weight.reshape(-1), places.reshape(-1), numbers, (numbers != 0).astype(np.float32))
    if not isinstance(encoder, Int) or encoder.layout_of(spec) not in LAYOUTS:
        raise UsageError(
            f"is stored as {'numbers' if encoder is None else encoder.label}, whose scales cannot be trained",
            tensor=spec.name,
            remedy="Use --codes fixed; scales of scheme int (layouts pack-quantized, int-quantized, compressor and "
            "plain) and codebooks can",
        )
    layout = encoder.form(spec)
    assert isinstance(layout, Scaled)  # noqa: S101 - `LAYOUTS` are such
    parts = _views(tensor)
    zero = layout.unpack(parts, codes, work)
    grouped = encoder.grouped(codes).astype(np.float32)
    grouped -= encoder.half if zero is None else zero.astype(np.float32)[..., None]
    scales = encoder.rule(spec).numbers(np.array(layout.scales(parts))).reshape(-1)
    shape = (1, 1, 1) if encoder.grain == "tensor" else (*grouped.shape[:2], 1)
    grouped *= scales.astype(np.float32).reshape(shape)
    places = np.broadcast_to(np.arange(len(scales)).reshape(shape), grouped.shape)
    factors, ones = np.ones((2, len(scales)), np.float32)
    return Levels(tensor, weight.reshape(-1), places.reshape(-1), factors, ones, scales, grouped.reshape(-1))


class Held:
    """The tensors of a student that stay codes: `fixed`, or by their `scales` (and entries), which are trained."""

    def __init__(self, student: Network, tensors: Mapping[str, Tensor], how: Literal["fixed", "scales"]) -> None:
        self.names = {name for name in student.parameters if tensors[name].encoder is not None}
        names = sorted(self.names) if how == "scales" else []
        self.levels = {name: levels_of(tensors[name], student.parameters[name]) for name in names}
        for levels in self.levels.values():
            levels.spread()

    @property
    def nbytes(self) -> int:
        """Bytes that places and units take."""
        arrays = (array for one in self.levels.values() for array in (one.places, one.units))
        return sum(array.nbytes for array in arrays if array is not None)

    @property
    def numbers(self) -> dict[str, Array]:
        """What is trained in the place of weights, by tensor."""
        return {name: levels.numbers for name, levels in self.levels.items()}

    @property
    def masks(self) -> dict[str, Array]:
        return {name: levels.moving for name, levels in self.levels.items()}

    def free(self, arrays: Mapping[str, Array]) -> dict[str, Array]:
        """Those of tensors that are not held."""
        return {name: array for name, array in arrays.items() if name not in self.names}

    def slopes(self, gradients: Mapping[str, Array]) -> dict[str, Array]:
        """Where the gradients of all that is trained will be, for a lane with these by weights."""
        return self.free(gradients) | {name: np.zeros_like(numbers) for name, numbers in self.numbers.items()}

    def gather(self, gradients: Mapping[str, Array], slopes: Mapping[str, Array]) -> None:
        """Fill the slopes of a lane from its gradients."""
        for name, levels in self.levels.items():
            levels.gather(gradients[name], slopes[name])

    def spread(self) -> None:
        """The weights follow what was trained."""
        for levels in self.levels.values():
            levels.spread()


def _views(tensor: Tensor) -> Mapping[str, Array]:
    """All rows of the parts, as encoders see them."""
    rows, columns = tensor.spec.matrix
    return Rows(tensor, columns, 0, rows, Workspace(), "levels").views(0, rows)
