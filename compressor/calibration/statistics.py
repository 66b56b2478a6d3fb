"""Statistics of layer inputs: what calibration gathers and data-aware methods go by.

For a linear layer `y = W x` and the rows x [in] that entered it, all of them together:

    count    how many rows
    mean     Σ x / count          [in]
    square   Σ x² / count         [in]
    gram     Σ x xᵀ / count       [in, in], symmetric, its diagonal `square`; optional

What a block of a language model does to the residual stream, its influence (arXiv 2403.03853), is kept as a layer
of one input, `influence_of(block)`, whose x is 1 − cos(what enters the block, what leaves it) at each token.

They merge: the statistics of two samples give those of both together (`Layer.merge`, `merge_statistics`), so
samples may be taken in any pieces. A layer is named as its weight without the final `.weight`. Files are
safetensors files (docs/formats.md), read as strangers' files are, one layer at a time.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import ClassVar

from compressor.core.errors import InputError, UsageError
from compressor.core.layer_inputs import PANEL, Layer
from compressor.core.lazy import np
from compressor.core.tensor import TensorSpec
from compressor.core.text import printable
from compressor.core.workspace import Array, Workspace
from compressor.files import safetensors
from compressor.files.destination import check_apart
from compressor.files.input_file import InputFile
from compressor.files.layout import Header
from compressor.files.opening import open_file
from compressor.files.sending import Sending
from compressor.files.source import StoredTensor
from compressor.files.writing import check_output, open_output

FORMAT, VERSION = "compressor-statistics", "1"
_INFLUENCE = ".influence"
_ALIKE = 1e-3  # to which a gram must be symmetric, and its diagonal `square`
_SOURCES = 20  # that a merged file names
_AGAIN = "Make it again with `compressor calibrate`"


def influence_of(block: str) -> str:
    """The name under which a block's influence is kept: `model.layers.3.influence`."""
    return f"{block}{_INFLUENCE}"


# ---- files -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Statistics:
    """An opened file of statistics. `widths` and `counts` by layer, in the order of their names; `grams` are the
    layers that have one; `model`, `weights` the fingerprints of what it was taken from ("" where unknown)."""

    file: InputFile
    model: str
    weights: str
    source: str
    widths: Mapping[str, int]
    counts: Mapping[str, int]
    grams: frozenset[str]
    tensors: Mapping[str, StoredTensor] = field(repr=False)
    noun: ClassVar[str] = "statistics"

    @property
    def path(self) -> str:
        """The path of the file of statistics."""
        return self.file.path

    @property
    def layers(self) -> tuple[str, ...]:
        """The layers' names, in order, without the influences of blocks."""
        return tuple(layer for layer in self.widths if not layer.endswith(_INFLUENCE))

    def fits(self, layer: str, spec: TensorSpec, *, by_expert: bool) -> bool:
        """Whether the layer has as many inputs as this weight takes; `by_expert`: experts that are stacked in one
        tensor may have some each."""
        return self.widths[layer] == spec.matrix[1]

    def read(self, layer: str, gram: bool = False) -> Layer:
        """The statistics of a layer; its gram only where asked for. InputError when they are none."""
        if gram and layer not in self.grams:
            raise InputError("has no gram of the layer's inputs", file=self.path, tensor=layer)
        mean, square = self._vector(layer, "mean"), self._vector(layer, "square")
        if (square < 0).any():
            raise self._wrong(layer, "its mean square is negative")
        return Layer(self.counts[layer], mean, square, self._gram(layer, square) if gram else None)

    def identity(self, *, grams: bool = False) -> str:
        """SHA-256 of the fingerprints and of every layer's name, count, mean and square; and of the `grams` for who
        goes by them, which reads the whole file."""
        digest = sha256(f"{self.model}\0{self.weights}".encode())
        for layer, count in self.counts.items():
            digest.update(f"\0{layer}\0{count}\0{layer in self.grams}\0".encode())
            for part in ("mean", "square"):
                digest.update(self._raw(layer, part).tobytes())
            if grams and layer in self.grams:
                for start in range(0, self.widths[layer], PANEL):
                    stop = min(start + PANEL, self.widths[layer])
                    digest.update(self._raw(layer, "gram", start, stop).tobytes())
        return digest.hexdigest()

    def changed_by(self) -> str:
        """SHA-256 of whatever this run made of the file's statistics, on which the bytes of its output depend; ""
        where it took them as they are."""
        return ""

    def _raw(self, layer: str, part: str, start: int = 0, stop: int = 1) -> Array:
        return self.tensors[f"{layer}.{part}"].read_rows(self.widths[layer], start, stop, Workspace(), "raw")

    def _vector(self, layer: str, part: str) -> Array:
        with np.errstate(invalid="ignore"):  # a signalling NaN, which is then found
            found: Array = self._raw(layer, part)[0].astype(np.float64)
        self._finite(layer, part, found)
        return found

    def _gram(self, layer: str, square: Array) -> Array:
        width = self.widths[layer]
        found = np.empty((width, width))
        for start in range(0, width, PANEL):
            rows = found[start : start + PANEL]
            with np.errstate(invalid="ignore"):
                rows[...] = self._raw(layer, "gram", start, start + len(rows))
            self._finite(layer, "gram", rows)
        # |x y| is at most the root of x² y², and sums of float32 products lose some digits
        root = np.sqrt(square)
        if (np.abs(found.diagonal() - square) > _ALIKE * square).any():
            raise self._wrong(layer, "the diagonal of its gram is not its mean square")
        for start in range(0, width, PANEL):
            across, down = found[start : start + PANEL, start:], found[start:, start : start + PANEL].T
            if (np.abs(across - down) > _ALIKE * np.outer(root[start : start + PANEL], root[start:])).any():
                raise self._wrong(layer, "its gram is not symmetric")
        return found

    def _finite(self, layer: str, part: str, found: Array) -> None:
        if not np.isfinite(found).all():
            raise self._wrong(layer, f"its {part} holds NaN or infinite values")

    def _wrong(self, layer: str, reason: str) -> InputError:
        return InputError(reason, file=self.path, tensor=layer, remedy=_AGAIN)


def open_statistics(path: str | os.PathLike[str]) -> Statistics:
    """Open a file of statistics: all of its header and the counts, and no layer yet. InputError when it is none."""
    file = open_file(path)
    header = safetensors.read_header(file)
    said = header.metadata
    if said.get("format") != FORMAT:
        raise InputError("is no file of statistics", file=file.path, remedy="`compressor calibrate` makes one")
    if said.get("version") != VERSION:
        shown = printable(said.get("version", ""), 20)
        raise InputError(f"has version '{shown}', not {VERSION}: written by a newer compressor?", file=file.path)
    for key in ("model", "weights"):
        if said.get(key, "") and (len(said[key]) != 64 or set(said[key]) - set("0123456789abcdef")):
            raise InputError(f"its {key} is no SHA-256", file=file.path, remedy=_AGAIN)
    tensors = {placed.spec.name: StoredTensor(file, placed) for placed in header.tensors}
    widths = _widths(header, tensors, file.path)
    grams = frozenset(layer for layer in widths if f"{layer}.gram" in tensors)
    counts = np.empty((len(widths), 1), "<i8")
    places = [tensors[f"{layer}.count"].placed.offset for layer in widths]
    file.read_runs((run.view(np.uint8).data, place) for run, place in zip(counts, places, strict=True))
    for layer, count in zip(widths, counts[:, 0].tolist(), strict=True):
        if count < 0:
            raise InputError("its count is negative", file=file.path, tensor=layer, remedy=_AGAIN)
    return Statistics(
        file,
        said.get("model", ""),
        said.get("weights", ""),
        said.get("source", ""),
        widths,
        dict(zip(widths, counts[:, 0].tolist(), strict=True)),
        grams,
        tensors,
    )


def _widths(header: Header, tensors: Mapping[str, StoredTensor], path: str) -> dict[str, int]:
    """The layers' names and widths; InputError unless each has all it should, and nothing is there besides."""
    names = {placed.spec.name.rpartition(".")[0] for placed in header.tensors}
    known: set[str] = set()
    widths: dict[str, int] = {}
    for layer in sorted(names):
        mean = tensors.get(f"{layer}.mean")
        width = mean.spec.size if mean is not None else 0
        if width == 0:
            raise InputError("a layer lacks its mean", file=path, tensor=f"{layer}.mean", remedy=_AGAIN)
        for declared in _specs(layer, width, gram=f"{layer}.gram" in tensors):
            found = tensors.get(declared.name)
            if found is None or found.spec != declared:
                shown = "is missing" if found is None else f"is {found.spec.dtype} {list(found.spec.shape)}"
                wanted = f"{declared.dtype} {list(declared.shape)}"
                raise InputError(f"{shown}, where {wanted} belongs", file=path, tensor=declared.name, remedy=_AGAIN)
            known.add(declared.name)
        widths[layer] = width
    other = next((name for name in tensors if name not in known), None)
    if other is not None:
        raise InputError("is no part of statistics", file=path, tensor=other, remedy=_AGAIN)
    if not widths:
        raise InputError("holds no layer", file=path, remedy=_AGAIN)
    return widths


def _specs(layer: str, width: int, *, gram: bool) -> list[TensorSpec]:
    vectors = [TensorSpec(f"{layer}.{part}", "F32", (width,)) for part in ("mean", "square")]
    matrices = [TensorSpec(f"{layer}.gram", "F32", (width, width))] if gram else []
    return [TensorSpec(f"{layer}.count", "I64", (1,)), *vectors, *matrices]


class Writer:
    """A file of statistics under construction, layer by layer. `declared` are all layers' widths and whether each
    has a gram; `force` replaces what is there. As a context it publishes the file, or leaves nothing behind.

    The same layers give the same bytes, in whatever order they come. OutputError when it cannot be written,
    InputError when numbers are beyond float32.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        declared: Mapping[str, tuple[int, bool]],
        *,
        model: str = "",
        weights: str = "",
        source: str = "",
        force: bool = False,
    ) -> None:
        path = os.fspath(path)
        check_output(path, folder=False, replace=force)
        specs = [spec for name, (width, gram) in declared.items() for spec in _specs(name, width, gram=gram)]
        said = {"format": FORMAT, "version": VERSION, "model": model, "weights": weights, "source": source}
        self.layout = safetensors.layout(specs, said)
        self.waiting = dict(declared)
        named = [(os.path.basename(path), self.layout)]
        self.sink = open_output(path, "safetensors", named, Sending.alone(), replace=force)

    def add(self, name: str, layer: Layer) -> None:
        """Write a layer that was declared."""
        if self.waiting.pop(name, None) != (layer.width, layer.gram is not None):
            raise UsageError("was not declared so, or comes twice", tensor=name)
        self.sink.write(0, self.layout.offsets[f"{name}.count"], np.array([layer.count], "<i8"))
        for part in ("mean", "square", "gram"):
            content = getattr(layer, part)
            if content is not None:
                for offset, data in _narrowed(content, name):
                    self.sink.write(0, self.layout.offsets[f"{name}.{part}"] + offset, data)

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                if self.waiting:
                    raise UsageError("was declared and did not come", tensor=next(iter(self.waiting)))
                self.sink.finish_file(0)
                self.sink.publish()
        finally:
            self.sink.discard()


def write_statistics(
    path: str | os.PathLike[str],
    layers: Iterable[tuple[str, Layer]],
    *,
    model: str = "",
    weights: str = "",
    source: str = "",
    declared: Mapping[str, tuple[int, bool]] | None = None,
    force: bool = False,
) -> None:
    """Write a file of statistics. `declared` are all layers' widths and whether each has a gram: given these,
    layers are taken from `layers` and written one by one; else all are held first. More at `Writer`."""
    if declared is None:
        held = dict(layers)
        layers, declared = held.items(), {name: (one.width, one.gram is not None) for name, one in held.items()}
    with Writer(path, declared, model=model, weights=weights, source=source, force=force) as writer:
        for name, layer in layers:
            writer.add(name, layer)


def _narrowed(content: Array, layer: str) -> Iterator[tuple[int, Array]]:
    """An array in float32, a panel at a time, with the place of each in bytes."""
    offset = 0
    for start in range(0, len(content), PANEL):
        with np.errstate(over="ignore"):
            data = np.ascontiguousarray(content[start : start + PANEL], "<f4")
        if not np.isfinite(data).all():
            raise InputError("its inputs' squares are beyond float32", tensor=layer, remedy="Scale its inputs down")
        yield offset, data
        offset += data.nbytes


def merge_statistics(
    paths: Sequence[str | os.PathLike[str]], out: str | os.PathLike[str], *, force: bool = False
) -> None:
    """Write the statistics of all these samples of one model together; a layer that only some files have is taken
    from those. InputError when the files are of different models or weights, or a layer differs between them."""
    if not paths:
        raise UsageError("there are no statistics to merge", remedy="Give one file at least")
    out = os.fspath(out)
    check_apart(out, *(os.fspath(path) for path in paths))
    opened = [open_statistics(path) for path in paths]
    first = opened[0]
    declared: dict[str, tuple[int, bool]] = {}
    for one in opened:
        for key in ("model", "weights"):
            mine, theirs = getattr(first, key), getattr(one, key)
            if mine != theirs:
                raise InputError(
                    f"was taken from {'another model' if key == 'model' else 'other weights'} than {first.path}",
                    file=one.path,
                    remedy="Merge what was taken from one model with the same weights",
                )
        for layer, width in one.widths.items():
            kind = (width, layer in one.grams)
            if declared.setdefault(layer, kind) != kind:
                had, has = (
                    f"{wide} inputs with{'' if gram else 'out'} a gram" for wide, gram in (declared[layer], kind)
                )
                raise InputError(f"has {has}, and another file {had}", file=one.path, tensor=layer)

    def merged() -> Iterator[tuple[str, Layer]]:
        for layer, (_, gram) in sorted(declared.items()):
            total: Layer | None = None
            for one in opened:
                if layer in one.widths:
                    more = one.read(layer, gram)
                    total = more if total is None else total.merge(more)
            assert total is not None  # noqa: S101 - a file declared it
            yield layer, total

    sources = list(dict.fromkeys(one.source for one in opened if one.source))
    more = f"; and {len(sources) - _SOURCES} more" if len(sources) > _SOURCES else ""
    write_statistics(
        out,
        merged(),
        model=first.model,
        weights=first.weights,
        source="; ".join(sources[:_SOURCES]) + more,
        declared=declared,
        force=force,
    )


# ---- what they are statistics of -------------------------------------------------------------------------------
