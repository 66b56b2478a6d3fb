"""What a budget chose and a search tried, as their reports have it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Chosen:
    """A decided tensor: what it becomes, `size` bytes of it, its relative error (unweighted, ± `spread` of its
    square where a sample was measured), the weighted one, and what the last step to this choice gained: loss a MB
    of the unit (0: the smallest candidate)."""

    name: str
    shape: tuple[int, ...]
    choice: str
    size: int
    bits: float
    error: float
    weighted: float
    spread: float
    gain: float
    fused: bool


@dataclass(frozen=True)
class Point:
    """A point of the curve: bytes of the decided tensors, bits a weight, the mean error; `name` if uniform."""

    size: int
    bits: float
    error: float
    name: str = ""


@dataclass(frozen=True)
class Allocation:
    """`asked` in words; `weighted` by which statistics; `chosen` by tensor; the `point` reached; the `curve` from
    the smallest to the best, and what `uniform` choices of one candidate would give, for comparison."""

    asked: str
    weighted: str
    chosen: tuple[Chosen, ...]
    point: Point
    curve: tuple[Point, ...]
    uniform: tuple[Point, ...]
    size_after: int
    tried: tuple[Evaluation, ...] = ()  # outputs that `tune` measured, in order
    note: str = ""  # what is odd about the target
    sloped: bool = False  # whether errors are weighed by what they cost the outputs


@dataclass(frozen=True)
class Evaluation:
    """A point that was tried: its place on the curve, the files' size, and what was said of it: the metric, and
    where several things were measured all of these."""

    point: int
    size: int
    metric: float
    values: Mapping[str, float] = field(default_factory=dict)
