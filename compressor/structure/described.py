"""Groups that the user describes, and those of plain chains of dense layers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from compressor.errors import InputError, UsageError
from compressor.structure.coupling import Group, Structure, Touch
from compressor.structure.request import Description
from compressor.tensor import TensorSpec
from compressor.text import printable

_NUMBER = re.compile(r"[0-9]{1,9}")
_LAST = ("out", "output", "head", "classifier", "fc", "final", "logits", "last")  # of a chain, by habit


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
    for stars, places in sorted(groups.items(), key=lambda item: tuple(map(_natural, item[0]))):
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
        made.append(Group(label, count, touches, {}, tuple((key, 1) for key in description.config)))
    return Structure(description.name, tuple(made))


def chain(specs: Mapping[str, TensorSpec], path: str, kind: str) -> Structure | None:
    """The junctions of a plain chain of dense layers; None where the tensors are no such thing.

    Layers are matrices with or without a bias, called alike but for a number that gives their order (a last one may
    have a name of its own, `head`). What one gives is what the next takes.
    """
    weights = {name: spec for name, spec in specs.items() if len(spec.shape) == 2}
    others = {name: spec for name, spec in specs.items() if name not in weights}
    if len(weights) < 2 or any(len(spec.shape) != 1 for spec in others.values()):
        return None
    layers = _ordered(list(weights))
    if layers is None:
        return None
    shapes = [weights[name].shape for name in layers]
    if all(a[0] == b[1] for a, b in pairwise(shapes)):
        out = 0
    elif all(a[1] == b[0] for a, b in pairwise(shapes)):
        out = 1
    else:
        at = next(n for n in range(len(shapes) - 1) if shapes[n][0] != shapes[n + 1][1])
        raise InputError(
            f"structure {kind}: '{printable(layers[at], 80)}' gives {shapes[at][0]} and "
            f"'{printable(layers[at + 1], 80)}' takes {shapes[at + 1][1]}, so this is no chain of dense layers",
            file=path,
            remedy="Describe what belongs together in a recipe, under [[structure]]",
        )
    biases = {}
    for name, spec in others.items():
        owner = next((weight for weight in layers if _stem(weight) == _stem(name)), None)
        if owner is None or spec.shape[0] != weights[owner].shape[out] or owner in biases:
            return None
        biases[owner] = name
    if kind != "neurons":
        raise UsageError(f"structure {kind}: a plain chain of dense layers has neurons only")
    groups = []
    for one, after in pairwise(layers):
        touches = [Touch(one, out), *([Touch(biases[one], 0)] if one in biases else []), Touch(after, 1 - out)]
        groups.append(Group(_stem(one), weights[one].shape[out], tuple(touches)))
    return Structure("neurons", tuple(groups))


def _stem(name: str) -> str:
    """A layer's name, without what its tensors are called: `fc1` of `fc1.weight`."""
    return re.sub(r"[._](weight|bias|kernel)$", "", name)


def _natural(text: str) -> tuple[tuple[int, str], ...]:
    return tuple(
        (int(part), "") if part.isdigit() and part.isascii() else (-1, part)
        for part in re.split(r"(\d+)", text[:300])
    )


def _ordered(names: list[str]) -> list[str] | None:
    """The names in their layers' order; None where they do not tell one."""
    last = [name for name in names if not _NUMBER.search(name)]
    numbered = sorted((name for name in names if name not in last), key=_natural)
    templates = {tuple(_NUMBER.split(name)) for name in numbered}
    if len(templates) != 1 or len(next(iter(templates))) != 2 or len(last) > 1:
        return None
    if last and _stem(last[0]).rpartition(".")[2].lower() not in _LAST:
        return None
    return numbered + last
