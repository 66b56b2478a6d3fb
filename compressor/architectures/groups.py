"""What is cut together: groups of dimensions of tensors that are one dimension of the model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Touch:
    """A group's units along an axis of a tensor: unit u has `block` indices from offset + u·block."""

    tensor: str
    axis: int
    block: int = 1
    offset: int = 0


@dataclass(frozen=True, slots=True)
class Owned:
    """A tensor that lives and dies with one unit, whose number stands in its name between `before` and `after`.

    `numbers`: what the units are numbered in their order, where that is not 0, 1, 2, …
    """

    unit: int
    before: str
    after: str
    numbers: tuple[str, ...] = ()

    def called(self, place: int) -> str:
        """Its name where the unit is the one of this place."""
        return f"{self.before}{self.numbers[place] if self.numbers else place}{self.after}"


@dataclass(frozen=True)
class Group:
    """Units that are removed from all these places or from none.

    `keys` are entries of config.json that count them, each with how many one unit stands for; `fixed` are units
    that cannot go, with the reason; `gains` are vectors by which norms multiply the units, where those are
    channels, and `gain_offset` what is added to their numbers first. `readers` are the matrices whose inputs tell
    what the units give, with the axis that is summed over: those that read the units, or write what a unit of
    many tensors adds.
    """

    name: str
    units: int
    touches: tuple[Touch, ...] = ()
    owned: Mapping[str, Owned] = field(default_factory=dict)
    keys: tuple[tuple[str, int], ...] = ()
    fixed: Mapping[int, str] = field(default_factory=dict)
    gains: tuple[str, ...] = ()
    gain_offset: int = 0
    readers: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Structure:
    """A kind of units in one model.

    Groups with the same keys lose the same number of units. `followers` lose what their leader's loss leaves them:
    one unit for each `step` units of the leader (the heads that share a width with the residual stream). What stays
    is a multiple of `step`, and divides `divides` where that is given. `floor` is the smallest number of units that
    the model can be run with, `pins` entries of config.json that the model no longer implies and that must be said.
    `layers`: the units are the numbered blocks themselves.
    """

    kind: str
    groups: tuple[Group, ...]
    followers: tuple[Group, ...] = ()
    step: int = 1
    divides: int = 0
    floor: int = 1
    floor_reason: str = ""
    pins: Mapping[str, int] = field(default_factory=dict)
    layers: bool = False


@dataclass(frozen=True, slots=True)
class Coupled:
    """What became of a group: its units before and after, the share of its Σ w² that went, the largest relative
    error that this means for one of its tensors (or for all of them together), and all places, as `tensor:axis`."""

    structure: str
    name: str
    before: int
    after: int
    removed: float
    error: float
    worst: str
    places: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """The group of coupled dimensions as JSON types, as plans and records have it."""
        return {
            "structure": self.structure,
            "group": self.name,
            "before": self.before,
            "after": self.after,
            "importance_removed": self.removed,
            "relative_error": self.error,
            "axes": list(self.places),
        }


STRUCTURES = ("neurons", "heads", "layers", "experts", "hidden")


@dataclass(frozen=True, slots=True)
class Description:
    """Dimensions that the user says are one: `axes` are (pattern of tensor names, axis, indices of a unit).
    `config` are the entries of config.json that count the units."""

    name: str
    axes: tuple[tuple[str, int, int], ...]
    config: tuple[str, ...] = ()

    def describe(self) -> dict[str, Any]:
        """The structure as the `[[structure]]` table of a recipe would give it."""
        axes = [f"{name}:{axis}:{block}" for name, axis, block in self.axes]
        return {"name": self.name, "axes": axes, **({"config": list(self.config)} if self.config else {})}
