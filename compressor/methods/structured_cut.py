"""A structured cut as a user asks for it: a stage of a recipe with the key `structure`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Literal

from compressor.architectures.groups import STRUCTURES, Description
from compressor.core.errors import CompressorError, UsageError
from compressor.core.text import printable
from compressor.methods.options import flag, option, options_of, parse_options

_AXIS = re.compile(r"(?P<name>.+?):(?P<axis>[0-9]{1,2})(?::(?P<block>[0-9]{1,9}))?")
_RANGE = re.compile(r"([0-9]{1,9})(?:-([0-9]{1,9}))?")


@dataclass(frozen=True)
class StructuredCut:
    """Which structure to cut, how much of it, and what of it."""

    structure: str = option(help=f"cut whole structures: {', '.join(STRUCTURES)}, or one that the recipe describes")
    fraction: float | None = option(
        None, help="share of the structure's units to remove", low=0, high=1, open_low=True, open_high=True
    )
    count: int | None = option(None, help="units of the structure to remove, in each layer", low=1, high=2**31)
    layers: str | None = option(None, help="blocks to remove, such as 20-27 or 3,5,9-11")
    stack: str | None = option(
        None, help="of a model of several stacks the one to cut: encoder or decoder, text or vision", free=True
    )
    multiple_of: int = option(1, help="keep a multiple of this many units", low=1, high=2**31)
    importance: Literal["auto", "l2", "l1", "gains", "inputs", "influence", "middle", "random", "index"] = option(
        "auto",
        help="the least important go: by norm of the coupled weights, for hidden by the gains of its norms, by "
        "what --stats says of the inputs, for layers by what --stats says of their influence or those in the "
        "middle, at random, or the last; auto: for layers influence with --stats, else middle; gains for hidden; "
        "for the others inputs with --stats, else l2",
    )
    seed: int = option(0, help="of the random numbers", low=0, high=2**63)
    described: Description | None = None
    keep: Mapping[str, int] | None = None  # for groups with this entry of config.json (or of this name): what stays
    stats: str | None = None  # the file of statistics that it goes by

    def __post_init__(self) -> None:
        given = [name for name in ("fraction", "count", "layers", "keep") if getattr(self, name) is not None]
        if self.importance == "gains" and self.structure != "hidden":
            raise UsageError(f"importance gains is for structure hidden, not {self.structure}")
        if self.importance in ("influence", "middle") and self.structure != "layers":
            raise UsageError(f"importance {self.importance} is for structure layers, not {self.structure}")
        if self.importance == "inputs" and self.structure == "layers":
            raise UsageError(
                "importance inputs picks the very layers that carry everything",
                remedy="Use influence, or auto, which takes it where statistics are given",
            )
        if self.stats is not None and self.importance not in ("auto", "inputs", "influence"):
            raise UsageError(f"importance {self.importance} goes by no statistics: drop stats")
        if self.layers is not None and self.structure != "layers":
            raise UsageError(f"layers are for structure layers, not {self.structure}")
        if len(given) != 1:
            ways = "fraction, count or layers" if self.structure == "layers" else "fraction or count"
            raise UsageError(
                f"structure {self.structure} needs one of {ways}, and got {' and '.join(given) or 'none'}"
            )
        if self.layers is not None:
            self.removed_layers()

    @property
    def by(self) -> str:
        """What decides which units are important; "" where the user names those that go."""
        if self.layers is not None:
            return ""
        if self.importance != "auto":
            return self.importance
        if self.structure == "layers":
            return "middle" if self.stats is None else "influence"
        if self.structure == "hidden" and self.described is None:
            return "gains"
        return "l2" if self.stats is None else "inputs"

    @property
    def takes_statistics(self) -> bool:
        """Whether statistics would decide where the user leaves open what does."""
        return self.importance == "auto" and (self.structure != "hidden" or self.described is not None)

    def removed_layers(self) -> tuple[int, ...]:
        """The numbers in `layers`, in order; UsageError when it is no list of ranges."""
        return numbered_layers(self.layers or "")

    def describe(self) -> dict[str, Any]:
        """The stage as a recipe would give it, with the importance that was taken."""
        found: dict[str, Any] = {"kind": "prune"}
        for name in cut_options():
            value = self.by if name == "importance" else getattr(self, name)
            if value not in (None, "") and not (name in ("seed", "multiple_of") and value == _default(name)):
                found[name] = value
        if self.described is not None:
            found["axes"] = self.described.describe()["axes"]
        return found


def numbered_layers(text: str) -> tuple[int, ...]:
    """The numbers that such a text names, in order; UsageError when it is no list of numbers and ranges."""
    found: set[int] = set()
    for item in re.split("[,|]", text):  # a --stage has commas of its own
        match = _RANGE.fullmatch(item.strip())
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if first > last or last > 100_000:
            raise UsageError(
                f"layers must be numbers and ranges such as 20-27 or 3,5,9-11, not '{printable(text, 40)}'"
            )
        found.update(range(first, last + 1))
    return tuple(sorted(found))


def cut_options() -> dict[str, Any]:
    """The options of a structured cut, as `options_of` gives those of methods."""
    return options_of(StructuredCut)


def _default(name: str) -> Any:
    return StructuredCut.__dataclass_fields__[name].default


def is_structured_cut(verb: str, options: Mapping[str, Any]) -> bool:
    """Whether a stage's options ask for a structured cut."""
    return verb == "prune" and options.get("structure") is not None


def make_structured_cut(
    options: Mapping[str, Any],
    *,
    text: bool = False,
    where: str = "",
    described: Sequence[Description] = (),
    stage_keys: Sequence[str] = (),
    stats: str | None = None,
) -> StructuredCut:
    """Build a structured cut; UsageError with all that is wrong at once. `stage_keys` were given besides, and mean
    nothing here; `stats` is the file of statistics that it is to go by."""
    wrong: list[CompressorError] = [
        UsageError(f"{where}{flag(name, where)}: has no meaning for a structured cut") for name in stage_keys
    ]
    wanted = options.get("structure")
    description = next((one for one in described if one.name == wanted), None)
    if description is None and isinstance(wanted, str) and wanted not in STRUCTURES:
        names = [*STRUCTURES, *(one.name for one in described)]
        close = get_close_matches(wanted, names, 1)
        wrong.append(
            UsageError(
                f"{where}{flag('structure', where)}: there is no structure '{printable(wanted, 40)}'",
                remedy=f"{f'Did you mean {close[0]}? ' if close else ''}There are {', '.join(names)}",
            )
        )
    return parse_options(
        StructuredCut,
        options,
        where,
        owner="a structured cut",
        text=text,
        wrong=wrong,
        described=description,
        stats=stats,
    )


def parse_description(table: Mapping[str, Any], where: str) -> Description:
    """A `[[structure]]` table of a recipe: `axes`, and where they are wanted `name` and `config`."""
    unknown = sorted(set(table) - {"name", "axes", "config"})
    if unknown:
        raise UsageError(f"{where}{printable(unknown[0], 60)}: is not known; there are name, axes and config")
    name = table.get("name", "neurons")
    axes, config = table.get("axes"), table.get("config", [])
    if not isinstance(name, str) or not name or len(name) > 100:
        raise UsageError(f"{where}name: must be a text")
    for key, value in (("axes", axes), ("config", config)):
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise UsageError(f"{where}{key}: must be a list of texts")
    assert isinstance(axes, list)  # noqa: S101 - just looked at
    found = []
    for item in axes:
        match = _AXIS.fullmatch(item)
        if match is None or match["block"] == "0":
            raise UsageError(
                f"{where}axes: '{printable(item, 80)}' is not NAME:AXIS",
                remedy="For example 'layers.*.mlp.up_proj.weight:0', with :128 after it where a unit has 128 rows",
            )
        found.append((match["name"], int(match["axis"]), int(match["block"] or 1)))
    if not found:
        raise UsageError(f"{where}axes: is empty")
    if len({name.count("*") for name, _, _ in found}) > 1:
        raise UsageError(
            f"{where}axes: every name must have the same number of *, which stand for the same numbers"
        )
    return Description(name, tuple(found), tuple(config))
