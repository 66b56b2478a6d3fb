"""An importance matrix of llama.cpp's, read as statistics, and written: sums of squares of each weight's inputs.

Of its two forms, a `.gguf` has two tensors for each weight, `NAME.in_sum2` F32 [experts, in] and `NAME.counts` F32
[experts, 1]; the older `.dat` is a list of int32 and float32 numbers,

    entries, {length, name, calls, values, value …}, chunks, length, data set

where what follows the entries may be missing. Means of squares are sums over counts (calls); experts that saw
nothing weigh all inputs alike, as in llama.cpp. There are no means of the inputs themselves, and no grams.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping, Sequence
from hashlib import sha256

from compressor.calibration.statistics import Statistics, open_statistics
from compressor.core.errors import InputError, UsageError
from compressor.core.ggml_types import BY_NAME
from compressor.core.layer_inputs import Layer
from compressor.core.lazy import np
from compressor.core.tensor import TensorSpec
from compressor.core.tensor_names import layer_of
from compressor.core.workspace import Array, Workspace
from compressor.files.gguf import values
from compressor.files.gguf.reading import MAGIC, read_header
from compressor.files.gguf.values import Kind
from compressor.files.gguf.writing import GgufTensor, layout
from compressor.files.input_file import InputFile
from compressor.files.layout import Placed
from compressor.files.opening import open_file
from compressor.files.sending import Sending
from compressor.files.source import StoredTensor
from compressor.files.writing import open_output

_AGAIN = "Make it again with llama-imatrix"
_SUMS, _COUNTS = ".in_sum2", ".counts"
_LONGEST_NAME = 1024
_INT = struct.Struct("<i")


class Imatrix(Statistics):
    """An opened importance matrix. The widths of stacked experts are those of all of them together; `tensors` has
    the sums by layer and, but in a `.dat`, the counts by layer and `.counts`."""

    def read(self, layer: str, gram: bool = False) -> Layer:
        sums = self.numbers(layer)
        counts = self.numbers(layer + _COUNTS) if layer + _COUNTS in self.tensors else None
        if counts is None:
            counts = np.array([max(self.counts[layer], 1)], np.float64)
        grouped = sums.reshape(len(counts), -1)
        seen = counts[:, None] > 0
        square = np.where(seen, grouped / np.where(seen, counts[:, None], 1), 1.0).reshape(-1)
        return Layer(self.counts[layer], np.zeros_like(square), square)

    def identity(self, *, grams: bool = False) -> str:
        digest = sha256()
        for layer in self.layers:
            digest.update(f"{layer}\0{self.counts[layer]}\0".encode())
            digest.update(self.read(layer).square.astype("<f8").tobytes())
        return digest.hexdigest()

    def fits(self, layer: str, spec: TensorSpec, *, by_expert: bool) -> bool:
        """Of stacked experts [experts, out, in] it has the inputs of all together, or of each."""
        width = self.widths[layer]
        if len(spec.shape) != 3:
            return width == spec.matrix[1]
        return by_expert and width in (spec.shape[-1], spec.shape[0] * spec.shape[-1])

    def numbers(self, key: str) -> Array:
        """All numbers of one of `tensors`, float64. InputError for what no sum of squares or count can be."""
        stored = self.tensors[key]
        raw = stored.read_rows(stored.spec.size, 0, 1, Workspace(), "raw")
        with np.errstate(invalid="ignore"):
            found: Array = raw[0].astype(np.float64)
        if not (np.isfinite(found) & (found >= 0)).all():
            raise InputError(
                "holds NaN, infinite or negative numbers",
                file=self.path,
                tensor=stored.spec.name,
                remedy=_AGAIN,
            )
        return found


def open_layers(path: str | os.PathLike[str]) -> Statistics:
    """Open a file of statistics, or an importance matrix of either form. InputError when it is none."""
    file = open_file(path)
    if file.size >= len(MAGIC) and file.read(0, len(MAGIC)) == MAGIC:
        return _open_gguf(file)
    if os.path.splitext(file.path)[1].lower() == ".dat":
        return _open_dat(file)
    return open_statistics(path)


def _made(file: InputFile, tensors: dict[str, StoredTensor], counts: dict[str, int]) -> Imatrix:
    if not counts:
        raise InputError("holds no layer", file=file.path, remedy=_AGAIN)
    widths = {layer: tensors[layer].spec.size for layer in sorted(counts)}
    return Imatrix(file, "", "", "", widths, {layer: counts[layer] for layer in widths}, frozenset(), tensors)


def _open_gguf(file: InputFile) -> Imatrix:
    header = read_header(file)
    stored = {placed.spec.name: StoredTensor(file, placed) for placed in header.tensors}
    tensors: dict[str, StoredTensor] = {}
    for name, one in stored.items():
        if not name.endswith(_SUMS):
            continue
        weight = name.removesuffix(_SUMS)
        counts = stored.get(weight + _COUNTS)
        if counts is None or one.spec.dtype != "F32" or counts.spec.dtype != "F32":
            raise InputError(
                "has no counts beside its sums, both in F32", file=file.path, tensor=name, remedy=_AGAIN
            )
        if not one.spec.size or not counts.spec.size or one.spec.size % counts.spec.size:
            raise InputError("has sums that do not go by its counts", file=file.path, tensor=name, remedy=_AGAIN)
        tensors[layer_of(weight)], tensors[layer_of(weight) + _COUNTS] = one, counts
    if not tensors:
        raise InputError(
            "is a GGUF file, but no importance matrix",
            file=file.path,
            remedy="Give statistics, or what llama-imatrix makes",
        )
    layers = [layer for layer in tensors if not layer.endswith(_COUNTS)]
    opened = _made(file, tensors, dict.fromkeys(layers, 1))
    seen = {layer: int(opened.numbers(layer + _COUNTS).max()) for layer in layers}  # of experts the most
    return _made(file, tensors, seen)


def _open_dat(file: InputFile) -> Imatrix:
    tensors: dict[str, StoredTensor] = {}
    counts: dict[str, int] = {}
    at = 0

    def number(least: int, most: int) -> int:
        nonlocal at
        if at + _INT.size > file.size:
            raise InputError("is no importance matrix: it ends too early", file=file.path, remedy=_AGAIN)
        (found,) = _INT.unpack(file.read(at, _INT.size))
        at += _INT.size
        if not least <= found <= most:
            raise InputError("is no importance matrix", file=file.path, remedy=_AGAIN)
        return int(found)

    for _ in range(number(1, file.size)):
        length = number(1, min(_LONGEST_NAME, max(file.size - at - _INT.size, 0)))
        weight = file.read(at, length).decode("utf-8", "surrogateescape")
        at += length
        calls, values = number(0, 2**31 - 1), number(1, 2**31 - 1)
        if at + 4 * values > file.size:
            raise InputError("is no importance matrix: it ends too early", file=file.path, remedy=_AGAIN)
        layer = layer_of(weight)
        if layer in counts:
            raise InputError("is there twice", file=file.path, tensor=weight, remedy=_AGAIN)
        tensors[layer] = StoredTensor(file, Placed(TensorSpec(weight, "F32", (values,)), at))
        counts[layer] = max(calls, 1)
        at += 4 * values
    return _made(file, tensors, counts)


def write_imatrix(
    path: str, layers: Mapping[str, Layer], weights: Mapping[str, Sequence[str]], *, source: str, force: bool
) -> None:
    """Write the squares of these layers as an importance matrix for `weights`: the name of each in a GGUF file,
    with the layers whose inputs it takes, of stacked experts one each; where there are none under their own names.

    UsageError where none of them is known, InputError where squares are beyond float32, OutputError when it cannot
    be written.
    """
    named = weights or {f"{layer}.weight": (layer,) for layer in layers}
    known = {name: own for name, own in sorted(named.items()) if all(one in layers for one in own)}
    if not known:
        raise UsageError("nothing that was gathered is a weight of a GGUF file", remedy="Write a .safetensors")
    numbers: dict[str, Array] = {}
    for name, own in known.items():
        with np.errstate(over="ignore"):
            sums = np.stack([layers[one].square * layers[one].count for one in own]).astype("<f4")
        if not np.isfinite(sums).all():
            raise InputError("its inputs' squares are beyond float32", tensor=name, remedy="Scale its inputs down")
        numbers[name + _SUMS] = sums
        numbers[name + _COUNTS] = np.array([[layers[one].count] for one in own], "<f4")
    fields = {
        "general.type": values.text("imatrix"),
        "imatrix.datasets": values.array(Kind.STRING, [source]),
        "imatrix.chunk_count": values.scalar(Kind.UINT32, 1),  # all rows are one chunk
        "imatrix.chunk_size": values.scalar(Kind.UINT32, max(one.count for one in layers.values())),
    }
    tensors = [GgufTensor(name, BY_NAME["F32"], found.shape) for name, found in numbers.items()]
    planned = layout(tensors, fields)
    sink = open_output(path, "gguf", [(os.path.basename(path), planned)], Sending.alone(), replace=force)
    try:
        for name, found in numbers.items():
            sink.write(0, planned.offsets[name], found)
        sink.finish_file(0)
        sink.publish()
    finally:
        sink.discard()
