"""A model of several stacks in one checkpoint: an encoder and a decoder, a text and a vision tower.

Each stack is a `Model` with sizes of its own. What config.json says of two stacks by one entry is cut in both: the
width of an encoder and a decoder, channel by channel; the number of heads and neurons of T5, where each layer loses
as many, its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

from compressor.architectures.groups import Group, Structure
from compressor.architectures.model import Known, Model, joined
from compressor.core.errors import UsageError
from compressor.core.text import printable


def several_stacks(config: Mapping[str, Any], method: str, names: Iterable[str]) -> UsageError:
    """The error for a method that makes students of models of one stack."""
    return UsageError(
        f"method {method}: a {config['model_type']} model has several stacks ({', '.join(names)}), and students "
        "are made of one",
        remedy="Cut it with prune --structure",
    )


@dataclass(frozen=True)
class Assembly:
    """The stacks of a recognised checkpoint, in the order of their families."""

    parts: tuple[Model, ...]

    @property
    def config(self) -> Mapping[str, Any]:
        """The whole config.json."""
        return self.parts[0].config

    @property
    def known(self) -> tuple[Known, ...]:
        """All tensors with their places."""
        return tuple(chain.from_iterable(part.known for part in self.parts))

    @property
    def names(self) -> tuple[str, ...]:
        """What the stacks are called."""
        return tuple(part.family.name for part in self.parts)

    def cuts(self, kind: str, stack: str | None) -> tuple[tuple[Model, ...], ...]:
        """The stacks in which a structure is cut, in runs that are cut together; of one stack only, where one is
        named. UsageError for a name that is none, and for one stack of those that are cut together."""
        if stack is not None and stack not in self.names:
            raise UsageError(
                f"structure {kind}: this {self.config['model_type']} model has no stack '{printable(stack, 40)}'",
                remedy=f"It has {', '.join(self.names)}",
            )
        found: dict[tuple[str, str], list[Model]] = {}
        for part in self.parts:
            found.setdefault((part.family.part, part.key(kind)), []).append(part)
        runs = tuple(map(tuple, found.values()))
        if stack is None:
            return runs
        run = next(run for run in runs if any(part.family.name == stack for part in run))
        if len(run) > 1:
            raise UsageError(
                f"structure {kind}: config.json has one {run[0].key(kind)} for "
                f"{' and '.join(part.family.name for part in run)}, so they are cut together",
                remedy="Drop the stack",
            )
        return (run,)

    def find(self, kind: str, run: tuple[Model, ...]) -> Structure:
        """The groups of a structure in stacks that are cut together."""
        each = [part.find(kind) for part in run]
        groups: dict[str, list[Group]] = {}
        for group in chain.from_iterable(one.groups for one in each):
            groups.setdefault(group.name, []).append(group)
        pins = {entry: size for one in each for entry, size in one.pins.items()}
        if kind == "layers":
            pins |= self._implied(run)
        return replace(
            each[0],
            groups=tuple(joined(name, some) for name, some in groups.items()),
            followers=tuple(chain.from_iterable(one.followers for one in each)),
            pins=pins,
        )

    def _implied(self, run: tuple[Model, ...]) -> dict[str, int]:
        """How many blocks the other stacks have, where config.json leaves it to the number in these."""
        others = [one for one in self.parts if one not in run and one.family.part == run[0].family.part]
        return {one.key("layers"): one.sizes["layers"] for one in others if one.part.get(one.key("layers")) is None}
