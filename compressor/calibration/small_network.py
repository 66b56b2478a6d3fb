"""Statistics through a network that runs in NumPy, and from activations that were recorded elsewhere."""

from __future__ import annotations

import os
from bisect import bisect_left
from collections.abc import Callable, Mapping
from math import prod

from compressor.calibration.recorded import open_recorded
from compressor.calibration.result import Task
from compressor.checkpoint.checkpoint import Checkpoint
from compressor.core.errors import InputError
from compressor.core.layer_inputs import Gather
from compressor.core.tensor_names import layer_of
from compressor.core.text import printable
from compressor.core.workspace import Array, Workspace
from compressor.files.opening import open_source
from compressor.files.source import StoredTensor
from compressor.networks.matching import read_network
from compressor.networks.network import Network
from compressor.networks.samples import blocks, check_samples, check_shape, choose, is_whole, scaling
from compressor.networks.surest import first_samples, surest


def through_network(
    task: Task,
    checkpoint: Checkpoint,
    inputs: str,
    *,
    network: str | None,
    divide: float | None,
    samples: int | None,
    seed: int,
) -> None:
    """Run inputs through the model's network, and gather what enters its linear layers."""
    source = open_source(inputs)
    if len(source.tensors) != 1:
        raise InputError(
            f"holds {len(source.tensors)} arrays, where one of inputs belongs",
            file=inputs,
            remedy="Save the inputs alone, as .npy",
        )
    (array,) = source.tensors.values()
    check_samples(array, array.spec.name)
    found = read_network(checkpoint, network)
    made, description = found.network, found.network.fitted.description
    check_shape(array, made)
    by = divide if divide is not None else description.divide if is_whole(array) else 1.0
    if array.spec.shape[0]:
        found = surest(checkpoint, found, first_samples(array, by))
        made = found.network
    task.note(f"network: {found.description}")
    task.note(f"inputs: {scaling(array, by, asked=divide is not None, offered=description.divide)}")
    if made.grouped:
        task.note("of convolutions in groups the inputs of all groups are taken together")
    chosen = choose(array.spec.shape[0], samples, seed)
    if not chosen:
        raise InputError("holds no samples", file=inputs)
    name = os.path.basename(inputs)
    said = f"{len(chosen)} of {array.spec.shape[0]} inputs of {name} (seed {seed})"
    task.source = said if len(chosen) < array.spec.shape[0] else f"{len(chosen)} inputs of {name}"
    gathers = {layer: Gather(width, task.wants_gram(width), layer) for layer, width in made.linear.items()}
    with task.writing({layer: gather.width for layer, gather in gathers.items()}) as add:
        _run(task, array, made, chosen, by, lambda layer, rows: gathers[layer].add(rows))
        for layer in list(gathers):
            add(layer, gathers.pop(layer).layer)


def _run(
    task: Task,
    array: StoredTensor,
    made: Network,
    chosen: list[int],
    by: float,
    watch: Callable[[str, Array], None],
) -> None:
    work, scale, size = Workspace(), 1 / by, array.spec.nbytes
    for start, block in blocks(array, work, made.batch):
        first, last = bisect_left(chosen, start), bisect_left(chosen, start + len(block))
        rows = block if last - first == len(block) else block[[at - start for at in chosen[first:last]]]
        if len(rows):
            if by != 1:
                rows *= rows.dtype.type(scale)
            made.forward(rows.reshape(-1, *made.input), watch=watch)
        task.progress(size * (start + len(block)) // array.spec.shape[0], size)


def from_recorded(task: Task, checkpoint: Checkpoint | None, path: str) -> None:
    """Gather activations that were recorded layer by layer, in row blocks."""
    layers: dict[str, list[StoredTensor]] = {}
    for name, array in open_recorded(path):
        check_samples(array, name)
        mine = layers.setdefault(layer_of(name), [])
        mine.append(array)
        if array.spec.shape[-1] != mine[0].spec.shape[-1]:
            raise InputError(
                f"has {array.spec.shape[-1]} features, and {mine[0].spec.shape[-1]} in {mine[0].file.path}",
                file=array.file.path,
                tensor=name,
            )
    widths = {layer: arrays[0].spec.shape[-1] for layer, arrays in sorted(layers.items())}
    if checkpoint is not None:
        _check_layers(checkpoint, widths, path)
    task.source = f"activations recorded in {os.path.basename(path.rstrip('/'))}"
    total = sum(array.spec.nbytes for arrays in layers.values() for array in arrays)
    done, work = 0, Workspace()
    with task.writing(widths) as add:
        for layer, width in widths.items():
            gather = Gather(width, task.wants_gram(width), layer)
            for array in layers[layer]:
                for _, block in blocks(array, work):
                    gather.add(block.reshape(-1, width))
                    done += block.size * array.spec.nbytes // array.spec.size
                    task.progress(done, total)
            add(layer, gather.layer)


def _check_layers(checkpoint: Checkpoint, widths: Mapping[str, int], path: str) -> None:
    """InputError where a layer is none of the model's, or takes another number of features."""
    for layer, width in widths.items():
        tensor = checkpoint.tensors.get(f"{layer}.weight") or checkpoint.tensors.get(layer)
        if tensor is None or not tensor.spec.is_float or len(tensor.spec.shape) < 2:
            raise InputError(
                f"is no linear layer of {printable(checkpoint.path)}",
                file=path,
                tensor=layer,
                remedy="Layers are called like their weights, without .weight; `compressor inspect` shows these",
            )
        shape = tensor.spec.shape
        if width not in (prod(shape[1:]), shape[0] if len(shape) == 2 else 0):  # GPT-2 has [in, out]
            raise InputError(
                f"has {width} features, where the model's {tensor.spec.name} {list(shape)} takes {prod(shape[1:])}",
                file=path,
                tensor=layer,
            )
