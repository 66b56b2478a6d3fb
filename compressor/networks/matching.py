"""Which network a model is: as its user says, one that ships with the package, or a chain of dense layers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

from compressor.checkpoint.checkpoint import Checkpoint
from compressor.checkpoint.rows import read_whole
from compressor.core.errors import InputError
from compressor.core.lazy import np
from compressor.core.text import printable
from compressor.core.workspace import Array
from compressor.networks.description import Description, Fitted, fit, load_description, shipped
from compressor.networks.kinds import Dense, Kind, Relu, Shape
from compressor.networks.known import known
from compressor.networks.network import Network

_CHAIN = re.compile(r"fc([1-9][0-9]{0,3})\.(weight|bias)")


@dataclass(frozen=True)
class Found:
    """A network and how it was found, in words; the `name` of its description, and of others that ship with the
    package and that its tensors fit as well, where they had to tell."""

    network: Network
    description: str
    name: str = ""
    alike: tuple[str, ...] = ()


def read_network(checkpoint: Checkpoint, name: str | None = None, dtype: str = "<f4") -> Found:
    """The network of a model, with its numbers. `name` is a description's, or a TOML file; without it the model's
    tensors must tell. InputError when they do not, or hold NaN or infinite values."""
    specs = {name: tensor.spec for name, tensor in checkpoint.tensors.items() if tensor.spec.is_float}
    shapes = {name: spec.shape for name, spec in specs.items()}
    try:
        alike: tuple[str, ...] = ()
        if name is not None:
            fitted, said = fit(load_description(name), shapes), printable(name, 100)
        else:
            fitted, said, alike = _recognised(shapes)
        tensors = {name: _read(checkpoint, name) for name in specs}
    except InputError as error:
        error.file = error.file or checkpoint.path
        raise
    return Found(Network(fitted, tensors, dtype), said, fitted.description.name, alike)


def _recognised(shapes: Mapping[str, Shape]) -> tuple[Fitted, str, tuple[str, ...]]:
    fits: dict[str, Fitted] = {}
    for name, description in shipped().items():
        with suppress(InputError):
            fits[name] = fit(description, shapes)
    if fits:
        first, *others = fits
        return fits[first], f"{first} (recognised by its tensors)", tuple(others)
    described = known(shapes)
    if described is not None:
        return fit(described, shapes), f"{described.name} (recognised by its tensors)", ()
    chain = _chain(shapes)
    if chain is None:
        there = f"{', '.join(shipped())}, EfficientNet-lite, MobileNetV2, ResNet, or dense layers fc1, fc2, …"
        raise InputError(
            f"is no network that is recognised by its tensors ({there})",
            remedy="Describe it with --network FILE.toml (docs/networks.md)",
        )
    said = f"a chain of {(len(chain.layers) + 1) // 2} dense layers, taken to have ReLU between"
    return fit(chain, shapes), said, ()


def _chain(shapes: Mapping[str, Shape]) -> Description | None:
    """fc1, fc2, … with ReLU between, where there is nothing else."""
    numbers = set()
    for name in shapes:
        match = _CHAIN.fullmatch(name)
        if match is None:
            return None
        numbers.add(int(match[1]))
    first = shapes.get("fc1.weight", ())
    if not numbers or numbers != set(range(1, len(numbers) + 1)) or len(first) != 2:
        return None
    layers: list[Kind] = []
    for number in sorted(numbers):
        layers += [Relu()] * (number > 1) + [Dense(f"fc{number}")]
    return Description((first[1],), tuple(layers), "chain")


def _read(checkpoint: Checkpoint, name: str) -> Array:
    with np.errstate(all="ignore"):
        found = read_whole(checkpoint.tensors[name])
    if not np.isfinite(found).all():
        raise InputError("holds NaN or infinite values", tensor=name, file=checkpoint.path)
    return found
