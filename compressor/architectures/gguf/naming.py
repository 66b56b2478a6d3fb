"""Which tensor of a folder goes where in a GGUF file, and back: the rules of a family for a model of some size."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from compressor.architectures.gguf.families import Family, Form, Rule
from compressor.architectures.gguf.moves import (
    Move,
    Shape,
    Side,
    contiguous,
    halves,
    paired,
    plain,
    stacked,
    turned,
)
from compressor.core.tensor_names import layer_of

Sizes = Mapping[str, int]
Shapes = Mapping[str, Shape]

# What stays F32 whatever is asked for, as llama.cpp's converter does: most of its code takes nothing else there
_ALWAYS_F32 = re.compile(
    r"(.*_norm|token_types|position_embd|blk\.\d+\.(ffn_gate_inp|ffn_gate_inp_shexp))\.weight|.*(?<!\.weight)"
)


@dataclass(frozen=True, slots=True)
class Mapped:
    """What becomes of a model: `shapes` of the tensors that are made and the `moves` that make each of them, and
    what is wrong: `missing` tensors that have to be made, by what they would be made from, `misfits` (a tensor's
    shape is not what the config says) and `unmapped` tensors that no rule is for. `left`: those that are of no use
    there, with the reason."""

    shapes: dict[str, Shape] = field(default_factory=dict)
    moves: dict[str, list[Move]] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    misfits: dict[str, str] = field(default_factory=dict)
    unmapped: tuple[str, ...] = ()
    left: dict[str, str] = field(default_factory=dict)


def stays_f32(name: str, shape: Shape) -> bool:
    """Whether llama.cpp takes this tensor as F32 only: vectors, norms, routers, positions."""
    return len(shape) < 2 or _ALWAYS_F32.fullmatch(name) is not None


def body_of(names: Collection[str], family: Family) -> str:
    """What stands before the names of the model's body."""
    for body in (family.body, *family.others):
        if f"{body}{family.embedding}" in names:
            return body
    return family.body


def to_gguf(
    found: Shapes, family: Family, sizes: Sizes, layers: int, sparse_from: int, *, tied: bool | None
) -> Mapped:
    """Tensors of these shapes in a folder as those of a GGUF file. `tied`: what the config says of the head, None
    where nothing."""
    body, mapped = body_of(found, family), Mapped()
    used: set[str] = set()
    for rule, number in _instances(family.rules, layers, sparse_from):
        sources = _sources(rule, number, body, found, family, sizes["E"])
        targets = [name.format(n=number) for name in rule.gguf]
        if not sources:
            if not rule.optional:
                mapped.missing.setdefault(targets[0], _spelled(rule, number, body))
            continue
        used.update(sources)
        shape = axes(rule.shape, sizes)
        wrong = {name: found[name] for name in sources if found[name] != shape}
        if wrong:
            mapped.misfits.update({name: _misfit(have, shape) for name, have in wrong.items()})
            continue
        made, moves = _made(rule.form, sources, targets, shape, sizes)
        mapped.shapes.update(made)
        for move in moves:
            mapped.moves.setdefault(move.gguf.name, []).append(move)
    for name in mapped.shapes:
        mapped.missing.pop(name, None)
    _head(mapped, found, used, body, family, tied)
    rest = [name for name in found if name not in used]
    for name in rest:
        why = next((why for pattern, why in family.left if re.fullmatch(pattern, name)), None)
        if why is not None:
            mapped.left[name] = why
    unmapped = tuple(name for name in rest if name not in mapped.left)
    return Mapped(mapped.shapes, mapped.moves, mapped.missing, mapped.misfits, unmapped, mapped.left)


def _head(
    mapped: Mapped, found: Shapes, used: Collection[str], body: str, family: Family, tied: bool | None
) -> None:
    """A head that is the embedding is stored where llama.cpp wants one; one that is not has to be there."""
    embedding = mapped.moves.get("token_embd.weight")
    if embedding is None or not any("output.weight" in rule.gguf for rule in family.rules):
        return
    if tied is None:
        tied = family.tied or "output.weight" not in mapped.shapes
    if tied and "output.weight" in mapped.shapes:
        move = mapped.moves.pop("output.weight")[0]
        mapped.shapes.pop("output.weight")
        mapped.left[move.folder.name] = "the config ties the head to the embedding"
    if tied and family.head == "stored":
        (name, shape) = embedding[0].folder.name, mapped.shapes["token_embd.weight"]
        mapped.shapes["output.weight"] = shape
        mapped.moves["output.weight"] = [plain(name, "output.weight", shape)]
    if not tied and "output.weight" not in mapped.shapes:
        mapped.missing["output.weight"] = "lm_head.weight"


def from_gguf(found: Shapes, family: Family, sizes: Sizes, layers: int, sparse_from: int) -> Mapped:
    """Tensors of these shapes in a GGUF file as those of a folder; `moves` are by the folder's names."""
    mapped = Mapped()
    used: set[str] = set()
    for rule, number in _instances(family.rules, layers, sparse_from):
        targets = [name.format(n=number) for name in rule.gguf]
        if not all(name in found for name in targets):
            if not rule.optional and not used.issuperset(targets):
                mapped.missing.setdefault(targets[0], targets[0])
            continue
        if used.issuperset(targets):
            continue  # another rule for experts was first
        if rule.form == "experts" and found[targets[0]][:1] != (sizes["E"],):
            mapped.misfits[targets[0]] = f"is {list(found[targets[0]])}, of {sizes['E']} experts"
            used.update(targets)
            continue
        count = range(sizes["E"]) if rule.form == "experts" else range(1)
        sources = [_placed(rule, family.body).format(n=number, e=expert) for expert in count]
        shape = axes(rule.shape, sizes)
        made, moves = _made(rule.form, sources, targets, shape, sizes)
        wrong = {name: have for name, have in made.items() if _trimmed(found[name]) != _trimmed(have)}
        used.update(targets)
        if wrong:
            mapped.misfits.update({name: _misfit(found[name], have) for name, have in wrong.items()})
            continue
        for move in moves:
            mapped.moves.setdefault(move.folder.name, []).append(move)
            mapped.shapes[move.folder.name] = shape
    for name in used:
        mapped.missing.pop(name, None)
    unmapped = tuple(name for name in found if name not in used)
    return Mapped(mapped.shapes, mapped.moves, mapped.missing, mapped.misfits, unmapped, mapped.left)


def inputs_of(moves: Mapping[str, Sequence[Move]]) -> dict[str, tuple[str, ...]]:
    """Matrices of a file, by the moves into each, with the layers of the folder whose inputs each takes: of stacked
    experts one each, of what is joined the first; none for keys of a latent, which are multiplied with queries."""
    found = {}
    for name, own in moves.items():
        layers = tuple(dict.fromkeys(layer_of(move.folder.name) for move in own))
        stacked = len(own) > 1 and len({move.folder.name for move in own}) == len(own)
        found[name] = () if name.endswith(".attn_k_b.weight") else layers if stacked else layers[:1]
    return found


def axes(shape: str, sizes: Sizes) -> Shape:
    """The sizes of a rule's shape: `Q+K H`."""
    return tuple(sum(sizes[letter] for letter in axis.split("+")) for axis in shape.split())


def _trimmed(shape: Shape) -> Shape:
    """A shape without leading ones: ggml does not know how many axes a tensor had."""
    while len(shape) > 1 and shape[0] == 1:
        shape = shape[1:]
    return shape


def _instances(rules: Sequence[Rule], layers: int, sparse_from: int) -> Iterator[tuple[Rule, int]]:
    """Every rule for every layer that it is for."""
    for rule in rules:
        if rule.layers == "once":
            yield rule, 0
            continue
        first = sparse_from if rule.layers == "sparse" else 0
        last = sparse_from if rule.layers == "dense" else layers
        yield from ((rule, number) for number in range(first, last))


def _placed(rule: Rule, body: str) -> str:
    return rule.folder if rule.folder.startswith("lm_head.") else f"{body}{rule.folder}"


def _spelled(rule: Rule, number: int, body: str) -> str:
    return _placed(rule, body).format(n=number, e=0)


def _sources(rule: Rule, number: int, body: str, found: Collection[str], family: Family, experts: int) -> list[str]:
    """The folder's tensors that a rule is for; none where one is missing."""
    if rule.folder.startswith("lm_head.") and rule.folder not in found:
        inside = f"{body.removesuffix('model.')}{rule.folder}"
        return [inside] if inside in found else []
    count = range(experts) if rule.form == "experts" else range(1)
    named = [_placed(rule, body).format(n=number, e=expert) for expert in count]
    for end, older in family.renamed:
        named = [
            f"{name.removesuffix(end)}{older}" if name.endswith(end) and name not in found else name
            for name in named
        ]
    return named if named and all(name in found for name in named) else []


def _misfit(have: Shape, wanted: Shape) -> str:
    return f"is {list(have)}, where {list(wanted)} was expected"


# ---- forms ---------------------------------------------------------------------------------------------

_Made = tuple[dict[str, Shape], list[Move]]


def _made(form: Form, sources: Sequence[str], targets: Sequence[str], shape: Shape, sizes: Sizes) -> _Made:
    """The tensors of a GGUF file that tensors of one shape make, and how."""
    return _FORMS[form](sources, targets, shape, sizes)


def _plain(sources: Sequence[str], targets: Sequence[str], shape: Shape, sizes: Sizes) -> _Made:
    return {targets[0]: shape}, [plain(sources[0], targets[0], shape)]


def _plus_one(sources: Sequence[str], targets: Sequence[str], shape: Shape, sizes: Sizes) -> _Made:
    return {targets[0]: shape}, [plain(sources[0], targets[0], shape, 1.0)]


def _paired(sources: Sequence[str], targets: Sequence[str], shape: Shape, sizes: Sizes) -> _Made:
    return {targets[0]: shape}, [paired(sources[0], targets[0], shape, sizes["D"])]


def _turned(sources: Sequence[str], targets: Sequence[str], shape: Shape, sizes: Sizes) -> _Made:
    there = (*shape[:-2], shape[-1], shape[-2])
    return {targets[0]: there}, [turned(sources[0], targets[0], shape)]


def _stacked(sources: Sequence[str], targets: Sequence[str], shape: Shape, sizes: Sizes) -> _Made:
    return {targets[0]: (len(sources), *shape)}, stacked(sources, targets[0], shape)


def _halves(sources: Sequence[str], targets: Sequence[str], shape: Shape, sizes: Sizes) -> _Made:
    there = (shape[0], shape[1] // 2, *shape[2:])
    moves = halves(sources[0], targets, shape, axis=1, turns=False, swap=False)
    return dict.fromkeys(targets, there), moves


def _turned_halves(sources: Sequence[str], targets: Sequence[str], shape: Shape, sizes: Sizes) -> _Made:
    there = (shape[0], shape[2] // 2, shape[1])
    return dict.fromkeys(targets, there), halves(sources[0], targets, shape, axis=2, turns=True, swap=True)


def _bias_by_turns(sources: Sequence[str], targets: Sequence[str], shape: Shape, sizes: Sizes) -> _Made:
    there = (shape[0], shape[1] // 2)
    return dict.fromkeys(targets, there), halves(sources[0], targets, shape, axis=1, turns=True, swap=False)


def _latent(sources: Sequence[str], targets: Sequence[str], shape: Shape, sizes: Sizes) -> _Made:
    """Of each head rows for keys above rows for values; llama.cpp multiplies queries by the keys turned."""
    heads, keys, values, rank = sizes["N"], sizes["nope"], sizes["value"], shape[1]
    unit, (to_keys, to_values) = (keys + values) * rank, targets
    moves = [
        Move((heads, keys, rank), Side(sources[0], 0, (unit, rank, 1)), Side(to_keys, 0, (rank * keys, 1, keys))),
        Move(
            (heads, values, rank),
            Side(sources[0], keys * rank, (unit, rank, 1)),
            Side(to_values, 0, contiguous((heads, values, rank))),
        ),
    ]
    return {to_keys: (heads, rank, keys), to_values: (heads, values, rank)}, moves


_FORMS: Mapping[Form, Callable[[Sequence[str], Sequence[str], Shape, Sizes], _Made]] = {
    "plain": _plain,
    "plus one": _plus_one,
    "paired": _paired,
    "turned": _turned,
    "experts": _stacked,
    "halves": _halves,
    "turned halves": _turned_halves,
    "bias by turns": _bias_by_turns,
    "latent": _latent,
}
