"""From names, shapes and config.json to a model whose dimensions are known.

Nothing is guessed: names that a family does not have, shapes that contradict the config, and blocks that lack a
tensor that others have are refused, with what is missing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from compressor.architectures.assembly import Assembly
from compressor.architectures.families import FAMILIES
from compressor.architectures.family import Family
from compressor.architectures.groups import STRUCTURES
from compressor.architectures.model import MLP, WIDTH, Known, Model, Sections
from compressor.architectures.wrappers import wrappers_of
from compressor.core.errors import InputError, MissingDescription
from compressor.core.tensor import TensorSpec
from compressor.core.text import printable

_LARGEST = 1 << 31  # of any size in a config
# Masks, positions and frequencies, which older versions of libraries saved with the weights
_BUFFER = re.compile(r"(.*\.)?(masked_bias|inv_freq|position_ids|causal_mask|embed_positions)")
_UNITS = {"kv": "q", "2q": "q", "3q": "q", "heads": "q", **{f"2{symbol}": symbol for symbol in MLP}}
DESCRIBE = "Describe what belongs together in a recipe, under [[structure]]"


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a family's table: a module's name, and for each axis of its weight the sections along it."""

    module: str
    axes: tuple[Sections, ...]
    out: int  # the axis that the bias has
    reads: int | None  # the axis over which products are summed

    def fits(self, name: str) -> re.Match[str] | None:
        """The match of a tensor's name where the line is for it, numbers of blocks being groups; else None."""
        pattern = re.escape(self.module).replace(r"\*", r"(0|[1-9][0-9]{0,5})")
        return re.fullmatch(rf"{pattern}(\.weight|\.bias)?", name)


@cache
def lines(table: str) -> tuple[Line, ...]:
    """The lines of a family's table as it is written in `families.py`."""
    found = []
    for text in table.strip().splitlines():
        words = text.split()
        if words:
            axes = tuple(tuple(word.replace("#", "-").split("+")) for word in words[1:] if word != ">")
            turned = words.index(">") - 2 if ">" in words else None
            summed = len(axes) - 1 if turned is None else turned
            reads = None if "#" in words or len(axes) < 2 or words[0].endswith("bias") else summed
            reads = None if reads is None or axes[reads] == ("-",) else reads
            found.append(Line(words[0], axes, 0 if turned is None else len(axes) - 1, reads))
    return tuple(found)


def recognise(
    config: Mapping[str, Any] | None, specs: Iterable[TensorSpec], path: str, kind: str
) -> Model | Assembly:
    """The model that these tensors are, for a structure or a method that cuts; InputError that lists what is not
    understood or missing."""
    what = f"structure {kind}" if kind in STRUCTURES else f"method {kind}"
    models = sized(config, path, what)
    specs = list(specs)
    prefix = wrappers_of([spec.name for spec in specs])
    if prefix:
        raise MissingDescription(
            f"{what}: all names begin with '{prefix}', which a wrapper put there",
            file=path,
            remedy=f"Use --strip-prefix {prefix}",
        )
    unknown = _place(models, specs)
    inside = [name for name, block in unknown if block]
    bad = [name for name, _ in unknown] if kind == "hidden" else inside
    if bad:
        more = f" and {len(bad) - 2} more" if len(bad) > 2 else ""
        raise MissingDescription(
            f"{what}: a {models[0].config['model_type']} model has no "
            + ", ".join(f"'{printable(name, 100)}'" for name in bad[:2])
            + more
            + ", so what belongs together is not known",
            file=path,
            remedy=DESCRIBE,
        )
    # a file may have one stack only: T5's encoder
    there = [one for one in models if any(known.layer is not None for known in one.known)] or models[:1]
    for one in there:
        _check_shapes(one)
        _check_complete(one)
    return there[0] if len(models) == 1 else Assembly(tuple(there))


def sized(config: Mapping[str, Any] | None, path: str, what: str) -> list[Model]:
    """The stacks of the model that a config describes, most have one: their families and sizes, no tensors yet."""
    if config is None:
        raise MissingDescription(
            f"{what}: the architecture cannot be recognised: a config.json with model_type is missing",
            file=path,
            remedy=f"Give the model's folder. {DESCRIBE}",
        )
    named = config.get("model_type")
    families = [one for one in FAMILIES if named in one.types] if isinstance(named, str) else []
    if not families:
        known = ", ".join(dict.fromkeys(name for one in FAMILIES for name in one.types))
        said = (
            "config.json has no model_type"
            if named is None
            else f"model_type {printable(str(named), 40)!r} is not known"
        )
        raise MissingDescription(
            f"{what}: {said}; known are {known}",
            file=path,
            remedy=DESCRIBE,
        )
    models = [Model(family, path, config) for family in families]
    for model in models:
        inner = model.part.get("model_type")
        if model.family.inner and inner not in model.family.inner:
            raise MissingDescription(
                f"{what}: in a {named} model {model.family.part} of model_type {printable(repr(inner), 40)} is not "
                f"known; known are {', '.join(model.family.inner)}",
                file=path,
                remedy=DESCRIBE,
            )
        model.sizes = _sizes(model)
    return models


def _sizes(model: Model) -> dict[str, int]:
    """The dimensions' sizes from the config; InputError for what is missing or no size."""
    found: dict[str, int] = {}
    missing = []
    for symbol in ("hidden", "heads", "layers"):
        value = _size(model, symbol)
        if value is None:
            missing.append(model.key(symbol))
        else:
            found[symbol] = value
    if missing:
        raise MissingDescription(f"config.json lacks {', '.join(missing)}", file=model.path, remedy=DESCRIBE)
    heads, hidden = found["heads"], found["hidden"]
    found["kv_heads"] = _size(model, "kv_heads") or heads
    if heads % found["kv_heads"]:
        raise model.contradiction(f"says {heads} heads for {found['kv_heads']} of keys and values")
    head_dim = _size(model, "head_dim")
    if head_dim is None:
        if hidden % heads:
            raise model.contradiction(f"says a width of {hidden} for {heads} heads")
        head_dim = hidden // heads
    found |= {"head_dim": head_dim, "q": heads * head_dim, "kv": found["kv_heads"] * head_dim}
    found |= {"cross": found["q"], "encoded": hidden, "3q": 3 * found["q"]}
    for symbol in (*MLP, "experts", "embed"):
        value = _size(model, symbol)
        if value is None and symbol in model.family.times:
            value = model.family.times[symbol] * hidden
        if value is not None:
            found[symbol] = value * model.many(symbol)
    for symbol in ("q", *MLP):
        if symbol in found:
            found[f"2{symbol}"] = 2 * found[symbol]
    return found


def _size(model: Model, symbol: str) -> int | None:
    key = model.key(symbol)
    value = model.part.get(key) if key else None
    default = model.family.defaults.get(symbol)
    if value is None and isinstance(default, str):
        key, value, default = default, model.part.get(default), None
    if value is None:
        assert not isinstance(default, str)  # noqa: S101 - just replaced
        return default
    if type(value) is not int or not 0 < value < _LARGEST:
        raise model.contradiction(f"says {key} {printable(repr(value), 40)}, which is no size")
    return value


def _place(models: Iterable[Model], specs: Iterable[TensorSpec]) -> list[tuple[str, bool]]:
    """Put every tensor in its place; the names of those without one, and whether they are within a block."""
    unknown = []
    for spec in specs:
        inside = False
        for model in models:
            other = next((one for one in model.family.beside if spec.name.startswith(one.prefixes)), None)
            if other is not None:
                if other not in model.beside:
                    model.beside.append(other)
                break
            known, within = _placed(model.family, spec)
            inside |= within
            if known is not None:
                model.known.append(known)
                break
        else:
            if not _BUFFER.fullmatch(spec.name):
                unknown.append((spec.name, inside))
    return unknown


def _placed(family: Family, spec: TensorSpec) -> tuple[Known | None, bool]:
    """A tensor in its place in a family, None where it has none; and whether it is within a block."""
    inside = re.compile(rf"{re.escape(family.stack)}\.(0|[1-9][0-9]{{0,5}})\.(.+)")
    name = next((spec.name[len(p) :] for p in family.prefixes if spec.name.startswith(p)), spec.name)
    match = inside.fullmatch(name)
    layer = int(match[1]) if match else None
    if match and _BUFFER.fullmatch(match[2]):
        return Known(spec, (("-",),) * len(spec.shape), match[2], layer=layer), True
    found = _line(family.block if match else family.outer, match[2] if match else name)
    if found is None:
        return None, match is not None
    line, expert, bias = found
    axes, reads = line.axes, line.reads
    if bias and len(axes) > 1:
        axes, reads = (axes[line.out],), None
    called = f"{line.module}{'.bias' if bias else '.weight'}"
    return Known(spec, axes, called, reads, layer, expert), True


def _line(table: str, name: str) -> tuple[Line, int | None, bool] | None:
    for line in lines(table):
        match = line.fits(name)
        if match is not None:
            expert = int(match[1]) if "*" in line.module else None
            return line, expert, name.endswith(".bias") and not line.module.endswith(".bias")
    return None


def _check_shapes(model: Model) -> None:
    """Every dimension must have the size that the config says."""
    for one in model.known:
        shape = one.spec.shape
        if len(shape) != len(one.axes):
            raise InputError(
                f"has shape {list(shape)}, where {len(one.axes)} axes belong", file=model.path, tensor=one.spec.name
            )
        for axis, sections in enumerate(one.axes):
            if sections == ("-",):
                continue
            lacking = [symbol for symbol in sections if symbol not in model.sizes]
            if lacking:
                raise InputError(
                    f"config.json lacks {model.key(lacking[0]) or lacking[0]}, the size of its axis {axis}",
                    file=model.path,
                    tensor=one.spec.name,
                )
            wanted = sum(model.sizes[symbol] for symbol in sections)
            if shape[axis] != wanted:
                raise InputError(
                    f"has shape {list(shape)}, and by config.json axis {axis} ({'+'.join(sections)}) has {wanted}",
                    file=model.path,
                    tensor=one.spec.name,
                    remedy="Fetch config and weights of one revision",
                )


def _check_complete(model: Model) -> None:
    """Blocks are numbered from 0 without gaps, and have the matrices that blocks of their kind have, once."""
    places: dict[tuple[Any, ...], str] = {}
    for one in model.known:
        other = places.setdefault((one.line, one.layer, one.expert), one.spec.name)
        if other != one.spec.name:
            raise InputError(
                f"is there under two names, the other is '{printable(other, 100)}'",
                file=model.path,
                tensor=one.spec.name,
            )
    layers: dict[int, set[str]] = {}
    for one in model.known:
        if one.layer is not None:
            layers.setdefault(one.layer, set()).add(one.line)
    count = model.sizes["layers"]
    key = model.key("layers")
    if len(layers) != count or max(layers) != count - 1:
        absent = next((number for number in range(min(count, len(layers) + 1)) if number not in layers), None)
        if absent is None and model.part.get("num_nextn_predict_layers"):
            raise MissingDescription(
                f"block {max(layers)} guesses tokens ahead (num_nextn_predict_layers), which no cut knows of",
                file=model.path,
                remedy=DESCRIBE,
            )
        said = f"there is a block {max(layers)}" if absent is None else f"block {absent} is missing"
        raise model.contradiction(f"says {key} {count}, and {said}")
    partners = _coupled_lines(model)
    for layer, held in sorted(layers.items()):
        for together in partners:
            lacking = sorted(together - held)
            if lacking and together & held:
                raise InputError(
                    f"block {layer} has no {lacking[0]}, which belongs to its {sorted(together & held)[0]}",
                    file=model.path,
                    remedy="Fetch the missing shards",
                )


def _coupled_lines(model: Model) -> list[set[str]]:
    """For each dimension of a block, the weights that have it in some block: one without the others is a damage."""
    found: dict[str, set[str]] = {}
    apart = {"-", *WIDTH, "embed", "experts"} | ({"heads"} if model.family.same_heads else set())
    for one in model.known:
        if one.layer is not None and one.line.endswith(".weight"):
            for sections in one.axes:
                for symbol in set(sections) - apart:
                    found.setdefault(_UNITS.get(symbol, symbol), set()).add(one.line)
    return list(found.values())
