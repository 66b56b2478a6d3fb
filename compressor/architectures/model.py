"""A recognised model: its tensors in their places, and the structures that can be cut from it."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from compressor.architectures.family import Beside, Family
from compressor.architectures.groups import STRUCTURES, Group, Owned, Structure, Touch
from compressor.core.errors import InputError, UsageError
from compressor.core.tensor import DTYPES, TensorSpec

MLP = ("neurons", "moe", "shared")  # dimensions that are neurons, each with an entry of its own in the config
_MANY = 1 << 10
_ALIGNED = 128  # bits: torch multiplies experts at once where rows are multiples of 16 bytes
_NORM = re.compile(r"(norm|(^|\.)ln_)[^.]*\.weight$", re.IGNORECASE)
HEADS = ("q", "cross")  # dimensions that are heads of queries
WIDTH = ("hidden", "encoded")  # dimensions that are the residual width
_INNER = (*HEADS, *MLP)  # what matrices read that write to the residual stream

Sections = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Known:
    """A tensor with its place: block and expert it belongs to, sections along each axis, its line.

    `reads`: the axis over which its products are summed, where that is a dimension of the model.
    """

    spec: TensorSpec
    axes: tuple[Sections, ...]
    line: str
    reads: int | None = None
    layer: int | None = None
    expert: int | None = None


@dataclass
class Model:
    """A recognised checkpoint: `sizes` of the dimensions, all tensors with their places."""

    family: Family
    path: str
    config: Mapping[str, Any]
    sizes: dict[str, int] = field(default_factory=dict)
    known: list[Known] = field(default_factory=list)
    beside: list[Beside] = field(default_factory=list)

    @property
    def part(self) -> Mapping[str, Any]:
        """The config that has the sizes: config.json, or what stands in it."""
        held = self.config.get(self.family.part) if self.family.part else self.config
        return held if isinstance(held, Mapping) else self.config

    @property
    def parts(self) -> tuple[Model, ...]:
        """The stacks of the model: this one."""
        return (self,)

    @property
    def called(self) -> str:
        """What is said before the names of groups that another stack of the model may have too."""
        return f"{self.family.name}." if self.family.name else ""

    def key(self, symbol: str) -> str:
        """The config's name for a size: the one that it uses, else the first."""
        names = self.family.keys.get(symbol, ())
        return next((name for name in names if self.part.get(name) is not None), names[0] if names else "")

    @property
    def divisible(self) -> bool:
        """Whether the number of heads has to divide the width."""
        types = {self.config["model_type"], self.part.get("model_type")}
        return not types.isdisjoint(self.family.divisible) and self.sizes["hidden"] % self.sizes["heads"] == 0

    def many(self, symbol: str) -> int:
        """How many indices there are to a unit of a dimension."""
        entry = self.family.many.get(symbol)
        value = self.part.get(entry, 1) if entry else 1
        if type(value) is not int or not 0 < value <= _MANY:
            raise self.contradiction(f"says {entry} {value!r}, which is no number from 1 to {_MANY}")
        return value

    def find(self, kind: str) -> Structure:
        """The groups of a structure; UsageError where the model has none, or where it cannot be cut."""
        self._check_allowed(kind)
        makers = {
            "neurons": self._neurons,
            "heads": self._heads,
            "layers": self._layers,
            "experts": self._experts,
            "hidden": self._hidden,
        }
        return makers[kind]()

    def _check_allowed(self, kind: str) -> None:
        reasons = self._reasons()
        if kind in reasons:
            raise UsageError(
                f"structure {kind}: in this {self.config['model_type']} model {reasons[kind]}",
                remedy=self._others(reasons),
            )

    def _others(self, reasons: Mapping[str, str]) -> str:
        others = [other for other in STRUCTURES if other not in reasons and self._has(other)]
        return f"What can be cut is {', '.join(others)}" if others else ""

    def _reasons(self) -> dict[str, str]:
        """The structures that cannot be cut, with the reason."""
        family = self.family
        reasons = {what: why for one in self.beside for what, why in one.refuses.items()} | dict(family.refuses)
        for what, (entry, wanted, why) in family.only.items():
            if (self.part.get(entry) or 0) != wanted:
                reasons[what] = why
        return reasons

    def _has(self, kind: str) -> bool:
        if kind == "heads" and self.family.bound_heads:
            return False
        return kind != "experts" or any("experts" in sections for one in self.known for sections in one.axes)

    # ---- the structures ----------------------------------------------------------------------------

    def _neurons(self) -> Structure:
        groups = []
        for symbol in MLP:
            if self.key(symbol):
                blocks = {symbol: self.many(symbol), f"2{symbol}": 2}
                groups += self._groups(symbol, ((self.key(symbol), 1),), blocks)
        if not groups:
            raise self._none("neurons")
        # a size that the config leaves to a default must be said
        return Structure("neurons", tuple(groups), step=self.aligned("moe"))

    def _heads(self) -> Structure:
        if self.family.bound_heads:
            raise UsageError(
                f"structure heads: in a {self.config['model_type']} config.json a head's width is "
                f"{self.key('hidden')} / {self.key('heads')}, so no loader could be told of fewer heads",
                remedy=self._others(self._reasons())
                if "hidden" in self._reasons()
                else "--structure hidden cuts heads and width together",
            )
        sizes = self.sizes
        return Structure(
            "heads",
            self._head_groups(),
            pins={"head_dim": sizes["head_dim"]},
            divides=sizes["hidden"] * sizes["kv_heads"] // sizes["heads"] if self.divisible else 0,
        )

    def _head_groups(self) -> tuple[Group, ...]:
        sizes = self.sizes
        each = sizes["heads"] // sizes["kv_heads"]
        keys = [(self.key("heads"), each)]
        if self.key("kv_heads"):
            keys.append((self.key("kv_heads"), 1))
        width = each * sizes["head_dim"]
        blocks = {"q": width, "2q": 2 * width, "3q": 3 * width, "kv": sizes["head_dim"], "heads": each}
        groups = self._groups("q", tuple(keys), blocks)
        if self.family.same_heads and groups:
            groups = [joined(f"{_prefix([one.name for one in groups])}.attention", groups)]
        groups += self._groups("cross", tuple(keys), {"cross": width})
        if not groups:
            raise self._none("heads")
        return tuple(groups)

    def _experts(self) -> Structure:
        groups = []
        for layer, members in self._by_layer():
            owned = {
                one.spec.name: _owned(one.spec.name, one.expert, "experts")
                for one in members
                if one.expert is not None
            }
            touches = tuple(_touches(members, {"experts": 1}, self.sizes))
            if owned or touches:
                self._check_numbers({one.expert for one in members if one.expert is not None}, layer)
                name = _prefix([*owned, *(touch.tensor for touch in touches)])
                keys = ((self.key("experts"), 1),)
                readers = _readers((one for one in members if one.spec.name in owned), _INNER)
                groups.append(Group(name, self.sizes["experts"], touches, owned, keys, readers=readers))
        if not groups:
            raise self._none("experts")
        used = self.part.get("num_experts_per_tok")
        if type(used) is not int or not 0 < used <= self.sizes["experts"]:
            raise self.contradiction(f"says num_experts_per_tok {used!r} of {self.sizes['experts']} experts")
        return Structure(
            "experts", tuple(groups), floor=used, floor_reason=f"each token uses {used} (num_experts_per_tok)"
        )

    def _check_numbers(self, experts: set[int], layer: int | None) -> None:
        if experts and experts != set(range(self.sizes["experts"])):
            raise self.contradiction(
                f"says {self.sizes['experts']} experts, and block {layer} has {len(experts)}, the last numbered "
                f"{max(experts)}"
            )

    def _layers(self) -> Structure:
        if self.part.get("scale_attn_by_inverse_layer_idx"):
            raise UsageError(
                "structure layers: scale_attn_by_inverse_layer_idx makes a block depend on its number, "
                "so the others would compute something else"
            )
        owned = {
            one.spec.name: _owned(one.spec.name, one.layer, self.family.stack)
            for one in self.known
            if one.layer is not None
        }
        readers = _readers((one for one in self.known if one.layer is not None), _INNER)
        keys = ((self.key("layers"), 1),)
        name = f"{self.called}{self.family.stack}"
        group = Group(name, self.sizes["layers"], (), owned, keys, self._fixed(), readers=readers)
        return Structure("layers", (group,), layers=True)

    def _fixed(self) -> dict[int, str]:
        """The blocks that cannot go, with the reason."""
        count, why = self.family.fixed_blocks
        if isinstance(count, tuple):
            held: Any = self.config
            for entry in count:
                held = held.get(entry) if isinstance(held, Mapping) else None
            count = len(held) if isinstance(held, list) else 0
        return dict.fromkeys(range(min(count, self.sizes["layers"])), why)

    def _hidden(self) -> Structure:
        keys = [(self.key("hidden"), 1)]
        blocks = dict.fromkeys(WIDTH, 1)
        if self.sizes.get("embed") == self.sizes["hidden"]:  # then there is no projection between them
            blocks["embed"] = 1
            keys.append((self.key("embed"), 1))
        touches = tuple(_touches(self.known, blocks, self.sizes))
        gains = tuple(
            one.spec.name
            for one in self.known
            if len(one.axes) == 1 and one.axes[0][0] in blocks and _NORM.search(one.line)
        )
        readers = _readers((one for one in self.known if one.layer is not None), ("hidden",))
        offset = int(self.family.one_plus)
        group = Group("hidden", self.sizes["hidden"], touches, {}, tuple(keys), {}, gains, offset, readers)
        pins = {entry: self.sizes["hidden"] for entry in self.family.implied if self.part.get(entry) is None}
        if not self.family.bound_heads and self.key("head_dim"):
            pins["head_dim"] = self.sizes["head_dim"]
        if self.key("neurons") and self.part.get(self.key("neurons")) is None:
            pins[self.key("neurons")] = self.sizes["neurons"]
        bound = self.family.bound_heads
        return Structure(
            "hidden",
            (group,),
            self._head_groups() if bound else (),
            step=self._width_step(),
            pins=pins,
        )

    def _width_step(self) -> int:
        """What the width stays a multiple of: a unit of heads that share it, or what loaders ask of a width."""
        if self.family.bound_heads:
            return self.sizes["hidden"] // self.sizes["kv_heads"]
        return math.lcm(self.sizes["heads"] if self.divisible else 1, self.aligned("hidden"))

    def aligned(self, symbol: str) -> int:
        """What the size of a dimension of experts stays a multiple of: 16 bytes of their dtype."""
        dtypes = {
            one.spec.dtype for one in self.known for sections in one.axes if "moe" in sections or "2moe" in sections
        }
        step = max((_ALIGNED // DTYPES[dtype].bits for dtype in dtypes), default=1)
        return step if dtypes and self.sizes[symbol] % step == 0 else 1

    # ---- their parts -------------------------------------------------------------------------------

    def _groups(self, symbol: str, keys: tuple[tuple[str, int], ...], blocks: Mapping[str, int]) -> list[Group]:
        """A group for each block, and in it for each expert, that has the dimension."""
        places: dict[tuple[int | None, int | None], list[Known]] = {}
        for one in self.known:
            if any(symbol in sections for sections in one.axes) or any(
                other in sections for other in blocks for sections in one.axes
            ):
                places.setdefault((one.layer, one.expert), []).append(one)
        found = []
        units = self.sizes[symbol] // blocks[symbol] if places else 0
        for _, members in sorted(places.items(), key=lambda item: tuple(-1 if n is None else n for n in item[0])):
            touches = tuple(_touches(members, blocks, self.sizes))
            name = _prefix([touch.tensor for touch in touches])
            found.append(Group(name, units, touches, {}, keys, readers=_readers(members, tuple(blocks))))
        return found

    def _by_layer(self) -> Iterator[tuple[int | None, list[Known]]]:
        layers: dict[int | None, list[Known]] = {}
        for one in self.known:
            layers.setdefault(one.layer, []).append(one)
        yield from sorted(layers.items(), key=lambda item: -1 if item[0] is None else item[0])

    def _none(self, kind: str) -> UsageError:
        has = [other for other in STRUCTURES if other != kind and (other != "experts" or self._has(other))]
        return UsageError(
            f"structure {kind}: this {self.config['model_type']} model has no {kind}",
            remedy=f"It has {', '.join(has)}",
        )

    def contradiction(self, said: str) -> InputError:
        """The error for a model whose tensors are at odds with its config.json, in the words of `said`."""
        return InputError(f"config.json {said}", file=self.path, remedy="Fetch config and weights of one revision")


def joined(name: str, groups: Sequence[Group]) -> Group:
    """One group of what these have, unit by unit; they have as many units and the same keys."""
    return replace(
        groups[0],
        name=name,
        touches=tuple(touch for one in groups for touch in one.touches),
        owned={key: owned for one in groups for key, owned in one.owned.items()},
        gains=tuple(gain for one in groups for gain in one.gains),
        readers={key: axis for one in groups for key, axis in one.readers.items()},
    )


def _touches(members: Iterable[Known], blocks: Mapping[str, int], sizes: Mapping[str, int]) -> Iterator[Touch]:
    for one in members:
        for axis, sections in enumerate(one.axes):
            offset = 0
            for symbol in sections:
                if symbol in blocks:
                    yield Touch(one.spec.name, axis, blocks[symbol], offset)
                offset += sizes.get(symbol, 0)


def _readers(members: Iterable[Known], symbols: Iterable[str]) -> dict[str, int]:
    """The layers whose products are summed over one of these dimensions, with that axis; without routers and
    experts in one tensor, which are no layers with inputs of their own."""
    wanted, other = set(symbols), {"experts", "-"}
    return {
        one.spec.name: one.reads
        for one in members
        if one.reads is not None
        and wanted & set(one.axes[one.reads])
        and not any(other & set(sections) for sections in one.axes)
    }


def _owned(name: str, unit: int | None, after: str) -> Owned:
    """A tensor's place in a numbered list: its name is cut at the number that follows the list's name."""
    assert unit is not None  # noqa: S101 - who calls looked
    match = re.search(rf"(^|\.){re.escape(after)}\.([0-9]+)(?=\.)", name)
    assert match is not None  # noqa: S101 - the name was recognised by it
    return Owned(unit, name[: match.start(2)], name[match.end(2) :])


def _prefix(names: list[str]) -> str:
    """What all names begin with, up to a dot: `model.layers.0.mlp`."""
    split = [name.split(".") for name in names]
    shared = []
    for parts in zip(*split, strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    return ".".join(shared) or "all"
