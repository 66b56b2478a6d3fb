"""What statistics of layer inputs say of a model that cuts have made smaller since they were taken."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from compressor.architectures.groups import Group
from compressor.calibration.statistics import Statistics, influence_of
from compressor.checkpoint.checkpoint import Tensor
from compressor.checkpoint.views import SelectedTensor
from compressor.core.errors import CompressorError, InputError, UsageError, raise_all
from compressor.core.lazy import np
from compressor.core.tensor_names import layer_of
from compressor.core.text import printable
from compressor.core.workspace import Array


@dataclass(frozen=True, slots=True)
class Place:
    """Where a tensor lies in the model before any cut: its name there, and by axis which positions are left, where
    not all are."""

    name: str
    index: Mapping[int, Array] = field(default_factory=dict)


def placed(
    places: Mapping[str, Place], before: Mapping[str, Tensor], after: Mapping[str, tuple[str, Tensor]]
) -> dict[str, Place]:
    """The places of all tensors after a cut, from those before it (none of the first); `after` are the tensors with
    their new names, by their old ones."""
    found = {}
    for name, (called, tensor) in after.items():
        place = places.get(name) or Place(name)
        whole = tensor.parts.get("")
        if isinstance(whole, SelectedTensor) and whole.origin is before[name]:
            cut = {
                axis: place.index[axis][index] if axis in place.index else index
                for axis, index in whole.index.items()
            }
            place = Place(place.name, {**place.index, **cut})
        found[called] = place
    return found


def energies(
    groups: Iterable[Group],
    places: Mapping[str, Place],
    tensors: Mapping[str, Tensor],
    statistics: Statistics,
    kind: str,
) -> dict[str, Array]:
    """Σ x² over all rows, by input, for the readers of these groups. UsageError for a group without readers,
    InputError with every layer that the statistics lack or have otherwise."""
    found: dict[str, Array] = {}
    problems: list[CompressorError] = []
    for group in groups:
        if not group.readers:
            raise UsageError(
                f"structure {kind}: no layer with inputs of its own reads {printable(group.name, 100)}",
                remedy="Use --importance l2",
            )
        for name, axis in group.readers.items():
            if name not in found:
                try:
                    place = places.get(name) or Place(name)
                    found[name] = _energy(place, axis, tensors[name], statistics, owned=name in group.owned)
                except InputError as error:
                    problems.append(error)
    raise_all(problems)
    return found


def influences(groups: Iterable[Group], places: Mapping[str, Place], statistics: Statistics) -> dict[str, Array]:
    """The mean of 1 − cos between what enters and what leaves each block [units], by the name of its group.
    InputError for a block of which the statistics say nothing."""
    found: dict[str, Array] = {}
    for group in groups:
        names = {owned.unit: (places.get(name) or Place(name)).name for name, owned in group.owned.items()}
        ends = {owned.unit: owned.after for owned in group.owned.values()}
        by_unit = np.zeros(group.units)
        for unit, name in names.items():
            layer = influence_of(name.removesuffix(ends[unit]))
            if not statistics.counts.get(layer):
                raise InputError(
                    "there is no influence of this block",
                    file=statistics.path,
                    tensor=name.removesuffix(ends[unit]),
                    remedy="`calibrate --text` notes it for language models; else leave --stats out",
                )
            by_unit[unit] = statistics.read(layer).mean[0]
        found[group.name] = by_unit
    return found


def _energy(place: Place, axis: int, tensor: Tensor, statistics: Statistics, *, owned: bool) -> Array:
    layer, index = layer_of(place.name), place.index.get(axis)

    def refused(reason: str, remedy: str = "Calibrate this model, or use --importance l2") -> InputError:
        return InputError(reason, file=statistics.path, tensor=place.name, remedy=remedy)

    width = statistics.widths.get(layer)
    if width is None:
        raise refused("there are no statistics of its inputs")
    fits = width == tensor.spec.shape[axis] if index is None else width > index[-1]
    if not fits:
        raise refused(f"has shape {list(tensor.spec.shape)}, inputs on axis {axis}, and its statistics {width}")
    count = statistics.counts[layer]
    if not count and not owned:  # an expert that no token was sent to is of no use, and its neurons are unknown
        raise refused("its layer saw no input at all", "Calibrate with more inputs, or use --importance l2")
    found: Array = statistics.read(layer).square * count
    return found if index is None else found[index]
