"""Statistics of a model under the names that a GGUF file has for its layers, or those of a Hugging Face folder.

Inputs of a layer are the same on both sides: rows are permuted between them, columns are not. Experts that lie
stacked in a file have the inputs of each, one after the other, as an importance matrix has; an expert that saw
nothing weighs all inputs alike, and so does what has no layer of its own in a folder (keys of DeepSeek's latent).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from compressor.calibration.statistics import Statistics
from compressor.checkpoint.checkpoint import Checkpoint
from compressor.checkpoint.gguf.from_file import is_file_of_a_model, layers_of_folder
from compressor.checkpoint.gguf.to_file import layers_of_file
from compressor.core.errors import InputError, Problems
from compressor.core.layer_inputs import Layer
from compressor.core.lazy import np
from compressor.core.tensor import TensorSpec
from compressor.core.tensor_names import layer_of

Layers = Mapping[str, tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class _Source:
    """Where a layer's statistics stand in the file: in `layers`, one after the other, of which `part` of `parts` is
    meant; all inputs alike where there are none."""

    layers: tuple[str, ...]
    part: int = 0
    parts: int = 1


@dataclass(frozen=True)
class Renamed(Statistics):
    """Statistics of a file, by other names."""

    inner: Statistics = field(kw_only=True)
    sources: Mapping[str, _Source] = field(kw_only=True)

    def read(self, layer: str, gram: bool = False) -> Layer:
        source = self.sources[layer]
        if not source.layers:
            width = self.widths[layer]
            return Layer(self.counts[layer], np.zeros(width), np.ones(width))
        if len(source.layers) == source.parts == 1:
            return self.inner.read(source.layers[0], gram)
        read = [self.inner.read(one) for one in source.layers]
        mean = np.concatenate([one.mean for one in read])
        square = np.concatenate([one.square if one.count else np.ones(one.width) for one in read])
        size = self.widths[layer]
        own = slice(source.part * size, (source.part + 1) * size)
        return Layer(self.counts[layer], mean[own], square[own])

    def identity(self, *, grams: bool = False) -> str:
        return self.inner.identity(grams=grams)

    def changed_by(self) -> str:
        return self.inner.changed_by()

    def fits(self, layer: str, spec: TensorSpec, *, by_expert: bool) -> bool:
        """Of stacked experts [experts, out, in] it has the inputs of all together, or of each."""
        width = self.widths[layer]
        if len(spec.shape) != 3:
            return width == spec.matrix[1]
        return by_expert and width in (spec.shape[-1], spec.shape[0] * spec.shape[-1])


def by_names_of(statistics: Statistics, checkpoint: Checkpoint) -> Statistics:
    """The statistics by the names that the checkpoint has: as they are where those are in the file, or where
    nothing is known of the other side's names."""
    if any(layer_of(name) in statistics.widths for name in checkpoint.tensors):
        return statistics
    in_file = is_file_of_a_model(checkpoint)
    try:
        layers = layers_of_folder(checkpoint) if in_file else layers_of_file(checkpoint)
    except (InputError, Problems):  # of a model that is not known as both
        return statistics
    if not in_file:
        return _for_folder(statistics, layers)
    found = _for_file(statistics, checkpoint, layers)
    used = {one for own in layers.values() for one in own}
    # a fingerprint of names is another one here; whose layers are all this model's are its statistics
    return replace(found, model="", weights="") if used.issuperset(statistics.layers) else found


def for_file(statistics: Statistics, file: Checkpoint, folder: Checkpoint) -> Statistics:
    """The statistics by the names of a GGUF file that a folder becomes; as they are where it has them already."""
    if any(layer_of(name) in statistics.widths for name in file.tensors):
        return statistics
    return _for_file(statistics, file, layers_of_file(folder))


def _for_file(statistics: Statistics, checkpoint: Checkpoint, layers: Layers) -> Statistics:
    """`layers`: of each matrix those of the folder whose inputs it takes."""
    sources: dict[str, _Source] = {}
    for name, own in layers.items():
        known = tuple(one for one in own if one in statistics.widths)
        if len(known) == len(own) > 0:
            sources[layer_of(name)] = _Source(known)
    uniform = {
        layer_of(name): checkpoint.tensors[name].spec.shape[-1]
        for name, own in layers.items()
        if not own and name in checkpoint.tensors
    }
    return _renamed(statistics, sources, uniform) if sources else statistics


def _for_folder(statistics: Statistics, layers: Layers) -> Statistics:
    sources: dict[str, _Source] = {}
    for name, own in layers.items():
        layer = layer_of(name)
        if layer in statistics.widths:
            sources |= {one: _Source((layer,), part, len(own)) for part, one in enumerate(own)}
    return _renamed(statistics, sources, {}) if sources else statistics


def _renamed(statistics: Statistics, sources: Mapping[str, _Source], uniform: Mapping[str, int]) -> Statistics:
    sources = {**sources, **dict.fromkeys(uniform, _Source(()))}
    widths, counts = {}, {}
    most = max(statistics.counts.values(), default=1)
    for layer, source in sorted(sources.items()):
        widths[layer] = sum(statistics.widths[one] for one in source.layers) // source.parts or uniform[layer]
        counts[layer] = max((statistics.counts[one] for one in source.layers), default=most)
    return Renamed(
        statistics.file,
        statistics.model,
        statistics.weights,
        statistics.source,
        widths,
        counts,
        frozenset(
            layer
            for layer, source in sources.items()
            if len(source.layers) == source.parts == 1 and source.layers[0] in statistics.grams
        ),
        statistics.tensors,
        inner=statistics,
        sources=sources,
    )
