"""The sizes that a student is to have, as a user gives them, held against those that its teacher has."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from compressor.architectures.assembly import several_stacks
from compressor.architectures.chain import Chain
from compressor.architectures.model import Model
from compressor.architectures.recognise import sized
from compressor.core.errors import CompressorError, InputError, UsageError, raise_all
from compressor.core.text import printable

SYMBOLS = ("hidden", "neurons", "heads", "kv_heads", "head_dim", "layers", "experts", "moe", "shared")
_OTHERWISE = {"intermediate": "neurons", "width": "hidden", "depth": "layers", "kv": "kv_heads"}
_ITEM = re.compile(r"\s*([A-Za-z_-]{1,60})\s*=\s*([0-9]{1,9})\s*")
# Entries of a config that say nothing of what the weights compute
_SILENT = ("architectures", "torch_dtype", "dtype", "transformers_version", "_name_or_path", "use_cache")


def parse_shape(text: str) -> dict[str, int]:
    """`hidden=256,heads=8` as sizes by name; UsageError when it is anything else."""
    found: dict[str, int] = {}
    for item in re.split("[,|]", text):  # a --stage has commas of its own
        match = _ITEM.fullmatch(item)
        name = match[1].lower().replace("-", "_") if match else ""
        if match is None or int(match[2]) == 0 or name in found:
            raise UsageError(
                "shape must be sizes such as hidden=256,heads=8, each once and at least 1, "
                f"not '{printable(item, 40)}'"
            )
        found[name] = int(match[2])
    return found


def parse_widths(text: str) -> tuple[int, ...]:
    """`784,100,10` as numbers; UsageError when it is anything else."""
    items = [item.strip() for item in re.split("[,|]", text)]
    if not all(re.fullmatch("[0-9]{1,9}", item) and int(item) for item in items):
        raise UsageError(f"widths must be numbers such as 784,100,50,10, not '{printable(text, 40)}'")
    return tuple(map(int, items))


def shape_of(
    config: Mapping[str, Any], path: str, teacher: Mapping[str, Any] | None
) -> tuple[str, tuple[str, ...]]:
    """The sizes in a student's config as a shape, and what to know of the rest of it. InputError for a config of
    another kind of model than the teacher's, or one of another vocabulary."""
    models = sized(config, path, "method subclone")
    if len(models) > 1:
        raise several_stacks(config, "subclone", [one.family.name for one in models])
    model = models[0]
    teacher = teacher or {}
    for key in ("model_type", "vocab_size"):
        if config.get(key) != teacher.get(key):
            raise InputError(
                f"says {key} {printable(repr(config.get(key)), 40)}, and the teacher's config.json says "
                f"{printable(repr(teacher.get(key)), 40)}: that cannot be cut",
                file=path,
                remedy="Give a config of the same architecture and tokenizer",
            )
    sizes = {name for names in model.family.keys.values() for name in names} | set(_SILENT)
    others = [
        key
        for key, value in config.items()
        if key in teacher and key not in sizes and not isinstance(value, list) and value != teacher[key]
    ]
    notes = []
    if others:
        shown = ", ".join(printable(key, 60) for key in others[:4]) + (", …" if len(others) > 4 else "")
        notes.append(f"of the student's config.json the sizes were taken only; the teacher's are kept: {shown}")
    text = ",".join(f"{symbol}={model.sizes[symbol]}" for symbol in SYMBOLS if symbol in model.sizes)
    return text, tuple(notes)


def smaller_chain(chain: Chain, widths: tuple[int, ...]) -> dict[str, int]:
    """How many neurons of each layer stay, by the layer's name; UsageError where that cannot be."""
    have = chain.widths
    said = ",".join(map(str, have))
    if len(widths) != len(have):
        raise UsageError(
            f"method subclone: {len(widths)} widths are given, and the teacher has {len(have)}: {said}",
            remedy="Layers of a plain chain stay; --method depth can take those as wide as their input away",
        )
    problems: list[CompressorError] = []
    for place, (wanted, size) in enumerate(zip(widths, have, strict=True)):
        if place in (0, len(have) - 1) and wanted != size:
            end = "outputs" if place else "inputs"
            problems.append(
                UsageError(f"method subclone: the teacher has {size} {end}, which stay, and widths says {wanted}")
            )
        elif wanted > size:
            problems.append(
                UsageError(f"method subclone: width {wanted} is larger than the teacher's {size} ({said})")
            )
    raise_all(problems)
    if widths == have:
        raise _nothing()
    return {group.name: wanted for group, wanted in zip(chain.find("neurons").groups, widths[1:-1], strict=True)}


def smaller_model(model: Model, shape: Mapping[str, int], *, implied: bool) -> dict[str, int]:
    """The student's sizes by symbol, those that are not asked for as the teacher's. UsageError with everything that
    cannot be; `implied`: sizes that concern nothing in this model are no mistake."""
    sizes, problems = model.sizes, list[CompressorError]()
    used = {symbol for one in model.known for sections in one.axes for symbol in sections}
    used |= {"heads", "head_dim", "layers", "kv_heads"}
    keys = {model.key(symbol) for symbol in used} - {""}
    wanted: dict[str, int] = {}
    for name, size in shape.items():
        symbol = _symbol(model, name)
        if symbol is None or (symbol not in used and model.key(symbol) not in keys):
            if not implied or symbol is None:
                has = [one for one in SYMBOLS if one in used and one != "head_dim"]
                said = f"method subclone: a {model.config['model_type']} model has no {printable(name, 40)}"
                problems.append(UsageError(said, remedy=f"It has {', '.join(has)}"))
        elif symbol != "head_dim" and size > sizes[symbol]:
            problems.append(
                UsageError(f"method subclone: {name} {size} is larger than the teacher's {sizes[symbol]}")
            )
        else:
            wanted[symbol] = size
    raise_all(problems)
    _check_heads(model, wanted)
    _check_widths(model, wanted)
    if all(size == sizes[symbol] for symbol, size in wanted.items()):
        raise _nothing()
    return {**{symbol: sizes[symbol] for symbol in SYMBOLS if symbol in sizes}, **wanted}


def _symbol(model: Model, name: str) -> str | None:
    """What a name means: one of `SYMBOLS`, or what this kind of config calls it."""
    name = _OTHERWISE.get(name, name)
    if name in SYMBOLS:
        return name
    return next((symbol for symbol, names in model.family.keys.items() if name in names), None)


def _check_heads(model: Model, wanted: dict[str, int]) -> None:
    """Heads keep their width and their number of queries; in some architectures they and the width go together."""
    sizes = model.sizes
    width, each = sizes["head_dim"], sizes["heads"] // sizes["kv_heads"]
    if wanted.get("head_dim", width) != width:
        raise UsageError(
            f"method subclone: heads keep their width, which is {width}, and {wanted['head_dim']} is asked for",
            remedy=f"Ask for other numbers of heads or channels, or say that head_dim is {width}",
        )
    if model.family.bound_heads:
        hidden = wanted.get("hidden", sizes["hidden"])
        heads = wanted.get("heads", hidden // width)
        if hidden != heads * width:
            raise UsageError(
                f"method subclone: heads keep their width, which is {width}, and in a {model.config['model_type']} "
                f"model they make up hidden: {heads} of them are not {hidden}",
                remedy=f"For example hidden={max(hidden // width, 1) * width},heads={max(hidden // width, 1)}",
            )
        return
    heads = wanted.get("heads", wanted["kv_heads"] * each if "kv_heads" in wanted else sizes["heads"])
    if heads % each or wanted.get("kv_heads", heads // each) != heads // each:
        said = f" and {wanted['kv_heads']} of keys and values" if "kv_heads" in wanted else ""
        raise UsageError(
            f"method subclone: {each} heads of the teacher share keys and values; {heads} heads{said} do not fit",
            remedy=f"For example heads={max(heads // each, 1) * each},kv_heads={max(heads // each, 1)}",
        )
    wanted["heads"], wanted["kv_heads"] = heads, heads // each


def _check_widths(model: Model, wanted: Mapping[str, int]) -> None:
    """What loaders ask of a width, and of the sizes of experts."""
    hidden, heads = wanted.get("hidden", model.sizes["hidden"]), wanted.get("heads", 1)
    if model.divisible and hidden % heads:
        raise UsageError(
            f"method subclone: transformers loads a {model.config['model_type']} model only where the number of "
            f"heads divides the width; {heads} heads do not divide {hidden}",
            remedy=f"For example hidden={max(hidden // heads, 1) * heads}",
        )
    for symbol in ("hidden", "moe"):
        size = wanted.get(symbol, model.sizes.get(symbol))
        step = model.aligned(symbol) if size is not None else 1
        if size is not None and size % step:
            raise UsageError(
                f"method subclone: experts are multiplied at once where sizes are multiples of {step}, and "
                f"{symbol} {size} is none",
                remedy=f"For example {symbol}={max(size // step, 1) * step}",
            )


def _nothing() -> UsageError:
    return UsageError("method subclone: the student would be as large as the teacher", remedy="Ask for less")
