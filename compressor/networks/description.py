"""Networks as they are described in TOML: the shape of a sample, and layers from the first to the last.

    input = [1, 28, 28]        # channels, rows, columns; or the number of features
    divide = 255               # what whole numbers of the inputs are divided by; left out: nothing

    [[layer]]
    kind = "conv2d"            # its tensors are conv1.weight and, if there is one, conv1.bias
    name = "conv1"

docs/networks.md has all kinds and options.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import resources
from math import prod
from typing import Any

from compressor.core.errors import CompressorError, InputError, UsageError, problems_of, raise_all
from compressor.core.plain_number import is_number
from compressor.core.text import printable
from compressor.files import strict_toml
from compressor.networks.kinds import KINDS, Add, Kind, Misfit, Shape, readers

_LAYERS = 1000
_KEYS = ("name", "description", "input", "divide", "layer")


@dataclass(frozen=True)
class Description:
    """A network without its numbers. Inputs that are whole numbers are divided by `divide`."""

    input: Shape
    layers: tuple[Kind, ...]
    name: str = ""
    divide: float = 1.0

    def place(self, number: int) -> str:
        """What errors call the layer at this place."""
        layer = self.layers[number]
        name = getattr(layer, "name", "") or getattr(layer, "weight", "") or ""
        return f"layer[{number}] ({layer.kind}{' ' * bool(name)}{printable(name, 80)})"


@dataclass(frozen=True)
class Fitted:
    """A description that fits a model: each layer's tensors by their roles, and the shape of what it takes."""

    description: Description
    roles: tuple[Mapping[str, str], ...]
    shapes: tuple[Shape, ...]  # of the network's input, and of what each layer gives
    sources: tuple[tuple[int, ...], ...]  # of each layer, the places in `shapes` of what it is given


def load_description(name: str) -> Description:
    """A description from a TOML file, or one of those that ship with the package by its name."""
    if "/" in name or name.endswith(".toml"):
        where = f"network {printable(name)}"
        return parse_description(strict_toml.read_text(name, where), where)
    ready = shipped()
    if name not in ready:
        close = get_close_matches(name, ready, 1)
        raise UsageError(
            f"there is no network '{printable(name, 60)}'",
            remedy=f"{f'Did you mean {close[0]}? ' if close else ''}There are {', '.join(ready)}; a file is .toml",
        )
    return ready[name]


def shipped() -> dict[str, Description]:
    """The descriptions of the package, by name."""
    folder = resources.files("compressor") / "networks"
    files = [entry for entry in folder.iterdir() if entry.name.endswith(".toml")]
    files.sort(key=lambda entry: entry.name.removesuffix(".toml"))
    return {
        entry.name.removesuffix(".toml"): parse_description(
            entry.read_text(encoding="utf-8"), f"network {entry.name.removesuffix('.toml')}"
        )
        for entry in files
    }


def parse_description(text: str, where: str) -> Description:
    """A description from its TOML text. UsageError with all that is wrong, each with `where` and the place."""
    table = strict_toml.parse(text, where)
    problems: list[CompressorError] = [_unknown(f"{where}: ", key, _KEYS) for key in table if key not in _KEYS]
    texts = [key for key in ("name", "description") if not isinstance(table.get(key, ""), str)]
    problems += [UsageError(f"{where}: {key}: must be a text") for key in texts]
    shape, divide, layers = table.get("input"), table.get("divide", 1.0), table.get("layer")
    shape = [shape] if type(shape) is int else shape
    if (
        not isinstance(shape, list)
        or len(shape) not in (1, 3)
        or not all(type(size) is int and 0 < size < 2**31 for size in shape)
    ):
        said = "input: must be the number of features, or channels, rows and columns: [1, 28, 28]"
        problems.append(UsageError(f"{where}: {said}"))
    if not is_number(divide) or divide <= 0:
        problems.append(UsageError(f"{where}: divide: must be a positive number"))
    if not isinstance(layers, list) or not layers or not all(isinstance(layer, dict) for layer in layers):
        problems.append(UsageError(f"{where}: has no [[layer]]"))
    elif len(layers) > _LAYERS:
        problems.append(UsageError(f"{where}: has more than {_LAYERS} layers"))
    raise_all(problems)
    assert isinstance(layers, list)  # noqa: S101 - looked at above
    assert isinstance(shape, list)  # noqa: S101 - looked at above
    found: list[Kind] = []
    for number, layer in enumerate(layers):
        try:
            found.append(_layer(layer, f"{where}: layer[{number}]."))
        except CompressorError as error:
            problems.extend(problems_of(error))
    raise_all(problems)
    return Description(tuple(shape), tuple(found), table.get("name", ""), float(divide))


def _layer(table: Mapping[str, Any], where: str) -> Kind:
    said = table.get("kind")
    if not isinstance(said, str) or said not in KINDS:
        close = get_close_matches(str(said), KINDS, 1)
        raise UsageError(
            f"{where}kind: must be one of {', '.join(KINDS)}"
            + (f", not '{printable(str(said), 40)}'" if said else ""),
            remedy=f"Did you mean {close[0]}?" if close else "",
        )
    kind, values, problems = KINDS[said], {}, list[CompressorError]()
    known = readers(kind)
    for key, value in table.items():
        if key == "kind":
            continue
        if key not in known:
            problems.append(_unknown(where, key, known))
            continue
        try:
            values[key] = known[key](value)
        except ValueError as error:
            problems.append(UsageError(f"{where}{key}: {error}"))
    raise_all(problems)
    if kind is Add and "other" not in values:
        raise UsageError(f"{where}other: is missing: the output that is added")
    if "name" in known and "name" not in values and not all(values.get(key) for key in kind.own):
        raise UsageError(f"{where}name: is missing: its tensors are called after it")
    return kind(**values)


def _unknown(where: str, key: str, known: Any) -> UsageError:
    close = get_close_matches(key, known, 1)
    return UsageError(
        f"{where}{printable(key, 60)}: is not known; there is {', '.join(known) or 'nothing but kind'}",
        remedy=f"Did you mean {close[0]}?" if close else "",
    )


def fit(description: Description, tensors: Mapping[str, Shape]) -> Fitted:
    """Find each layer's tensors among a model's (shapes by name) and follow a sample's shape through the layers.

    InputError naming the first layer that does not fit, or tensors that no layer has.
    """
    shape, roles, shapes = description.input, list[Mapping[str, str]](), [description.input]
    owner: dict[str, int] = {}
    sources = _sources(description)
    for number, layer in enumerate(description.layers):
        given = [shapes[place] for place in sources[number]]
        if given[1:] and given[0] != given[1]:
            raise _misfit(description, number, f"adds {list(given[1])} to {list(given[0])}")
        shape = given[0]
        mine = layer.roles(tensors)
        for name in mine.values():
            if name not in tensors:
                raise _misfit(description, number, "is not in the model", name)
            if name in owner:
                raise _misfit(description, number, f"is taken by layer[{owner[name]}] too", name)
            owner[name] = number
        try:
            shape = layer.result(shape, {role: tensors[name] for role, name in mine.items()})
        except Misfit as error:
            about = mine.get(error.tensor or "")
            raise _misfit(description, number, str(error), about) from error
        if prod(shape) >= 2**31:
            raise _misfit(description, number, f"gives {list(shape)}, which is too large")
        roles.append(mine)
        shapes.append(shape)
    rest = sorted(set(tensors) - set(owner))
    if rest:
        more = f" (nor are {len(rest) - 1} more)" if len(rest) > 1 else ""
        raise InputError(
            f"is not in the description of network {_called(description)}{more}",
            tensor=rest[0],
            remedy="Describe the network that these tensors are of, with --network FILE.toml",
        )
    return Fitted(description, tuple(roles), tuple(shapes), sources)


def _sources(description: Description) -> tuple[tuple[int, ...], ...]:
    """Of each layer whose outputs it takes: 0 for the network's input, else one more than the layer's place.
    UsageError where a name is none of an earlier layer, is used twice, or what a layer gives goes nowhere."""
    places: dict[str, int] = {}
    found, unused = [], {0: "input"}
    for number, layer in enumerate(description.layers):
        wanted = [layer.input, layer.other] if isinstance(layer, Add) else [layer.input]
        for name in wanted:
            if name and name not in places:
                close = get_close_matches(name, places, 1)
                raise UsageError(
                    f"{description.place(number)}: no layer before it has the output '{printable(name, 60)}'",
                    remedy=f"Did you mean {close[0]}?" if close else "Name it there: output = …",
                )
        found.append(tuple(places[name] if name else number for name in wanted))
        for place in found[-1]:
            unused.pop(place, None)
        if layer.output in places:
            raise UsageError(f"{description.place(number)}: another layer has its output '{layer.output}' too")
        if layer.output:
            places[layer.output] = number + 1
        unused[number + 1] = description.place(number)
    unused.pop(len(description.layers))
    if unused:
        raise UsageError(f"{next(iter(unused.values()))}: nothing takes what it gives")
    return tuple(found)


def _called(description: Description) -> str:
    return printable(description.name, 60) or "(without a name)"


def _misfit(description: Description, number: int, reason: str, tensor: str | None = None) -> InputError:
    return InputError(
        f"{reason}, in {description.place(number)} of network {_called(description)}",
        tensor=tensor,
        remedy="The description does not match the model",
    )
