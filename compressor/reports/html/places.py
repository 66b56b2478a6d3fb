"""Where a tensor stands in its model, as its name tells: the layer, and what it is within each of them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

from compressor.architectures.roles import Role, role_of


class Place(NamedTuple):
    """The stack of layers that a tensor is in and the layer's number there, or None; and its role in a word or two:
    `self_attn.q_proj`, where experts are told by `*`."""

    layer: tuple[str, int] | None
    role: str


@lru_cache(maxsize=1 << 16)
def place_of(name: str, shape: tuple[int, ...]) -> Place:
    """The place of a tensor. Other roles than the weight of a layer are called as reasons call them."""
    parts = name.split(".")
    at = next((n for n, part in enumerate(parts) if part.isascii() and part.isdigit() and len(part) < 6), None)
    layer = None if at is None else (".".join(parts[:at]), int(parts[at]))
    role = role_of(name, shape)
    if role not in (Role.LAYER, Role.TOWER):
        return Place(layer, role.value)
    within = parts if at is None else parts[at + 1 :]
    within = within[:-1] if len(within) > 1 and within[-1] == "weight" else within
    return Place(layer, ".".join("*" if part.isdigit() else part for part in within) or "weight")


def layers_of(places: Sequence[Place]) -> list[tuple[str, int]]:
    """The layers that there are, in order; none where there is not more than one."""
    found = sorted({place.layer for place in places if place.layer is not None})
    return found if len(found) > 1 else []
