"""Groups that the user describes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from compressor.architectures.chain import natural
from compressor.architectures.groups import Description, Group, Structure, Touch
from compressor.core.errors import InputError, UsageError
from compressor.core.tensor import TensorSpec
from compressor.core.text import printable


def described(
    description: Description, specs: Mapping[str, TensorSpec], config: Mapping[str, Any] | None, path: str
) -> Structure:
    """A group for each way in which the `*` of all names can be read alike."""
    groups: dict[tuple[str, ...], list[tuple[str, int, int]]] = {}
    for name, axis, block in description.axes:
        pattern = re.compile(re.escape(name).replace(r"\*", "([^.]+)"))
        found = [(match, spec) for spec in specs.values() if (match := pattern.fullmatch(spec.name))]
        if not found:
            raise UsageError(
                f"structure {printable(description.name, 60)}: no tensor is called '{printable(name, 100)}'",
                remedy="`compressor inspect` shows the names",
            )
        for match, spec in found:
            if axis >= len(spec.shape):
                raise UsageError(f"has no axis {axis}: its shape is {list(spec.shape)}", tensor=spec.name)
            groups.setdefault(match.groups(), []).append((spec.name, axis, block))
    made = []
    for stars, places in sorted(groups.items(), key=lambda item: tuple(map(natural, item[0]))):
        units: dict[int, str] = {}
        for tensor, axis, block in places:
            count, rest = divmod(specs[tensor].shape[axis], block)
            if rest:
                raise UsageError(
                    f"its axis {axis} is no multiple of {block}: its shape is {list(specs[tensor].shape)}",
                    tensor=tensor,
                )
            units.setdefault(count, f"{tensor}:{axis}")
        if len(units) > 1:
            (one, first), (two, second) = list(units.items())[:2]
            raise UsageError(
                f"structure {printable(description.name, 60)}: {printable(first, 100)} has {one} units and "
                f"{printable(second, 100)} has {two}, so they are not the same dimension"
            )
        count = next(iter(units))
        for key in description.config:
            if config is None or type(config.get(key)) is not int:
                raise UsageError(
                    f"structure {printable(description.name, 60)}: config.json has no number {printable(key, 60)}"
                )
            if config[key] != count:
                raise InputError(
                    f"config.json says {printable(key, 60)} {config[key]}, and {places[0][0]} has {count}",
                    file=path,
                )
        touches = tuple(Touch(tensor, axis, block) for tensor, axis, block in places)
        label = ".".join((description.name, *stars))
        keys = tuple((key, 1) for key in description.config)
        readers = {tensor: 1 for tensor, axis, _ in places if axis == 1 and len(specs[tensor].shape) == 2}
        made.append(Group(label, count, touches, {}, keys, readers=readers))
    return Structure(description.name, tuple(made))
