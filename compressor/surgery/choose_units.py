"""How many units stay, and which."""

from __future__ import annotations

from collections.abc import Mapping

from compressor.architectures.groups import Group, Structure
from compressor.checkpoint.checkpoint import Tensor
from compressor.core.errors import UsageError
from compressor.core.lazy import np
from compressor.core.workspace import Array
from compressor.methods.structured_cut import StructuredCut
from compressor.surgery.importance import Sums, draw, energies_of, gains_of, weights_of


def kept_counts(request: StructuredCut, structure: Structure) -> dict[str, int]:
    """The units that each group keeps, by its name; UsageError where that is none of them, or all."""
    found = {}
    for group in structure.groups:
        found[group.name] = _kept(request, structure, group)
    leader = structure.groups[0]
    for group in structure.followers:
        found[group.name] = found[leader.name] * group.units // leader.units
    return found


def _kept(request: StructuredCut, structure: Structure, group: Group) -> int:
    units, what = group.units, f"structure {structure.kind}: {group.name} has {group.units}"
    if request.layers is not None:
        removed = request.removed_layers()
        if removed[-1] >= units:
            raise UsageError(f"{what} (0 to {units - 1}), and --layers asks for {removed[-1]}")
        kept = units - len(removed)
    elif request.keep is not None:
        key, each = group.keys[0] if group.keys else (group.name, 1)
        kept = request.keep.get(key, units * each) // each
    elif request.count is not None:
        kept = units - request.count
    else:
        kept = units - round((request.fraction or 0) * units)
    least = max(structure.floor, 1)
    if kept < least:
        why = f", and {structure.floor_reason}" if structure.floor_reason else ""
        raise UsageError(f"{what}, and {max(kept, 0)} would be left{why}", remedy=f"Remove at most {units - least}")
    if request.keep is not None:
        return kept
    step = np.lcm(request.multiple_of, structure.step).item()
    if request.layers is None:
        kept = -(-kept // step) * step
    while kept < units and structure.divides % kept:
        kept += step
    if kept >= units:
        why = f" in multiples of {step}" if step > 1 else ""
        why += f" in numbers that divide {structure.divides}" if structure.divides else ""
        raise UsageError(f"{what}, and nothing would be removed{why}", remedy="Ask for more, or a smaller multiple")
    return int(kept)


def choose(
    request: StructuredCut,
    structure: Structure,
    counts: Mapping[str, int],
    sums: Mapping[str, Sums],
    tensors: Mapping[str, Tensor],
    energy: Mapping[str, Array],
) -> dict[str, Array]:
    """For each group which units stay [bool, units]: the most important, of equal ones the first. `tensors` are all
    of the checkpoint, `energy` Σ x² of the inputs of the groups' readers where the request goes by those, or by
    group the influence of its blocks. The first and the last block of a model stay where anything else can go,
    unless blocks are named, or taken without a measure."""
    found = {}
    ends = structure.layers and request.by not in ("random", "index")
    for group in (*structure.groups, *structure.followers):
        keep = np.zeros(group.units, bool)
        if request.layers is not None:
            keep[:] = True
            keep[list(request.removed_layers())] = False
        else:
            first = dict.fromkeys([*group.fixed, *((0, group.units - 1) if ends else ())])
            order = _order(request, group, counts[group.name], tuple(first), sums, tensors, energy)
            rest = [unit for unit in np.argsort(order, kind="stable").tolist() if unit not in first]
            keep[[*first, *rest][: counts[group.name]]] = True
        for unit, why in group.fixed.items():
            if not keep[unit]:
                raise UsageError(f"structure {structure.kind}: number {unit} of {group.units} cannot go: {why}")
        found[group.name] = keep
    return found


def _order(
    request: StructuredCut,
    group: Group,
    count: int,
    stay: tuple[int, ...],
    sums: Mapping[str, Sums],
    tensors: Mapping[str, Tensor],
    energy: Mapping[str, Array],
) -> Array:
    """Numbers that are smallest for what must stay. Gains that are alike, or none, tell nothing: then l2 does.
    `count` units will be kept, and those that `stay` among them in any case."""
    found: Array
    if request.by == "index":
        found = np.arange(group.units)
    elif request.by == "random":
        found = draw(request.seed, group.name, group.units)
    elif request.by == "inputs":
        found = -energies_of(group, sums, energy)
    elif request.by == "influence":
        found = -energy[group.name]
    elif request.by == "middle":
        free = [unit for unit in range(group.units) if unit not in stay]
        gone = min(group.units - count, len(free))
        found = np.zeros(group.units)
        first = (len(free) - gone) // 2
        found[free[first : first + gone]] = 1
    else:
        found = -gains_of(group, tensors) if request.by == "gains" and group.gains else np.zeros(1)
        if np.ptp(found) == 0:
            found = -weights_of(group, sums, 1 if request.by == "l1" else 2)
    return found
