"""Plain chains of dense layers: what one gives is what the next takes, and no config says so."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

from compressor.architectures.groups import Group, Owned, Structure, Touch
from compressor.core.errors import InputError, UsageError
from compressor.core.tensor import TensorSpec
from compressor.core.text import printable

_NUMBER = re.compile(r"[0-9]{1,9}")
_LAST = ("out", "output", "head", "classifier", "fc", "final", "logits", "last")  # of a chain, by habit


@dataclass(frozen=True)
class Chain:
    """Layers in their order, by the names of their weights; `out` is the axis of a weight that its outputs have."""

    weights: tuple[TensorSpec, ...]
    biases: Mapping[str, str]
    out: int

    @property
    def widths(self) -> tuple[int, ...]:
        """How many numbers go in, and how many each layer gives."""
        return (self.weights[0].shape[1 - self.out], *(spec.shape[self.out] for spec in self.weights))

    @property
    def sizes(self) -> dict[str, int]:
        """The chain's sizes, as a model has them: `layers` is how many there are."""
        return {"layers": len(self.weights)}

    def find(self, kind: str) -> Structure:
        """The groups of a structure; UsageError where a chain has none."""
        if kind == "layers":
            return self._layers()
        if kind != "neurons":
            raise UsageError(f"structure {kind}: a plain chain of dense layers has neurons and layers only")
        groups = []
        for one, after in pairwise(self.weights):
            bias = [Touch(self.biases[one.name], 0)] if one.name in self.biases else []
            touches = (Touch(one.name, self.out), *bias, Touch(after.name, 1 - self.out))
            readers = {after.name: 1 - self.out}
            groups.append(Group(_stem(one.name), one.shape[self.out], touches, readers=readers))
        return Structure("neurons", tuple(groups))

    def _layers(self) -> Structure:
        """Layers can go that give as many numbers as they take, but not the last, which no activation follows."""
        named = [spec.name for spec in self.weights if _NUMBER.search(spec.name)]
        numbers = tuple(_NUMBER.findall(name)[0] for name in named)
        owned: dict[str, Owned] = {}
        for place, name in enumerate(named):
            for tensor in filter(None, (name, self.biases.get(name))):
                match = _NUMBER.search(tensor)
                assert match is not None  # noqa: S101 - a bias is called as its weight
                owned[tensor] = Owned(place, tensor[: match.start()], tensor[match.end() :], numbers)
        fixed = {
            place: f"'{printable(_stem(spec.name), 60)}' takes {spec.shape[1 - self.out]} and gives "
            f"{spec.shape[self.out]}, so its neighbours would not fit one another"
            for place, spec in enumerate(self.weights)
            if spec.shape[0] != spec.shape[1]
        }
        fixed[len(self.weights) - 1] = f"'{printable(_stem(self.weights[-1].name), 60)}' gives the outputs"
        readers = {spec.name: 1 - self.out for spec in self.weights}
        return Structure("layers", (Group("layers", len(self.weights), (), owned, (), fixed, readers=readers),))


def find_chain(specs: Mapping[str, TensorSpec], path: str, kind: str) -> Chain | None:
    """The plain chain of dense layers that these tensors are; None where they are no such thing.

    Layers are matrices with or without a bias, called alike but for a number that gives their order (a last one may
    have a name of its own, `head`). InputError where their names say so and their sizes do not.
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
            f"{kind}: '{printable(layers[at], 80)}' gives {shapes[at][0]} and "
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
    return Chain(tuple(weights[name] for name in layers), biases, out)


def _stem(name: str) -> str:
    """A layer's name, without what its tensors are called: `fc1` of `fc1.weight`."""
    return re.sub(r"[._](weight|bias|kernel)$", "", name)


def natural(text: str) -> tuple[tuple[int, str], ...]:
    """A key that orders numbers in names as numbers."""
    return tuple(
        (int(part), "") if part.isdigit() and part.isascii() else (-1, part)
        for part in re.split(r"(\d+)", text[:300])
    )


def _ordered(names: list[str]) -> list[str] | None:
    """The names in their layers' order; None where they do not tell one."""
    last = [name for name in names if not _NUMBER.search(name)]
    numbered = sorted((name for name in names if name not in last), key=natural)
    templates = {tuple(_NUMBER.split(name)) for name in numbered}
    if len(templates) != 1 or len(next(iter(templates))) != 2 or len(last) > 1:
        return None
    if last and _stem(last[0]).rpartition(".")[2].lower() not in _LAST:
        return None
    return numbered + last
