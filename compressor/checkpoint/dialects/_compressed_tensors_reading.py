"""Reading a folder that compressed-tensors' `quantization_config` describes.

The dtypes of codes and scales tell how a tensor is stored, and its parts' shapes by which of the config's groups.
So the patterns by which groups name their modules need not be run, which in a stranger's file may take for ever.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from compressor.checkpoint.dialects._activation_order import SUFFIX, ActivationOrder, check_order, has_order
from compressor.checkpoint.dialects._scales import is_block, model_dtype, orphans, single
from compressor.core.errors import CompressorError, InputError, UnreadCodes, UsageError, problems_of
from compressor.core.lazy import np
from compressor.core.tensor import TensorSpec
from compressor.core.text import printable
from compressor.core.workspace import Workspace
from compressor.files.source import Source
from compressor.methods.contract import Decoder
from compressor.methods.quantize.fp8 import Fp8, Scales
from compressor.methods.quantize.int import Int
from compressor.methods.quantize.mxfp4 import Mxfp4
from compressor.methods.quantize.mxfp8 import Mxfp8
from compressor.methods.quantize.nvfp4 import Nvfp4
from compressor.methods.registry import make_method

KEY = "quantization_config"

# What a calibrated scheme keeps beside a weight for its activations, and a cache scheme in its attention
_ACTIVATIONS = ("input_scale", "input_zero_point", "input_global_scale", "output_scale", "output_zero_point")
_CACHE = ("k_scale", "v_scale", "q_scale", "k_zero_point", "v_zero_point", "k_global_scale", "v_global_scale")


@dataclass(frozen=True)
class _Group:
    """How a config group stores its tensors: what reads one of a source, which may hang on how its scale lies
    there. `block`: the rows and columns that share a scale, where these are blocks of a matrix."""

    decoder_for: Callable[[TensorSpec, Source], Decoder]
    block: tuple[int, int] | None = None


Found = _Group | str  # how a group stores its tensors, or why that is not read here


def stored_tensors(source: Source) -> list[tuple[TensorSpec, Decoder]]:
    """The tensors that a compressed-tensors folder stores as parts. InputError for what is not read here."""
    config = (source.config or {})[KEY]
    declared = config.get("config_groups")
    if not declared and isinstance(config.get("kv_cache_scheme"), dict):
        return []  # only the cache of keys and values is quantized, when the model runs
    if not isinstance(declared, dict) or not declared or not all(isinstance(g, dict) for g in declared.values()):
        raise InputError(f"config.json: {KEY} has no config_groups", file=source.path)
    if _turns_inputs(config.get("transform_config")):
        raise UnreadCodes(
            "its weights go with transforms of what enters layers (transform_config), which are not undone here",
            file=source.path,
            remedy="Give the model before it was quantized",
        )
    groups = {
        layout: [made for group in declared.values() for made in _made(how, group, config.get("format"))]
        for layout, how in _LAYOUTS.items()
    }
    found = []
    for name in source.tensors:
        if name.endswith(".weight_packed"):
            base = name.removesuffix("_packed")
        elif name.endswith(".weight") and (
            f"{name}_scale" in source.tensors or source.tensors[name].spec.dtype == "F8_E4M3"
        ):
            base = name
        else:
            continue
        layout = _layout(name, base, source)
        spec = _original(layout, base, source)
        decoder = _choose(spec, groups[layout], source)
        check_order(spec, decoder, source)
        found.append((spec, decoder))
    taken = {f"{spec.name}_scale" for spec, _ in found}
    taken |= {part.name(spec.name) for spec, decoder in found for part in decoder.parts(spec)}
    orphans(source, (".weight_scale", ".weight_global_scale"), taken)
    return found


def leftovers(source: Source, stored: Sequence[tuple[TensorSpec, Decoder]]) -> set[str]:
    """What only a quantized loader has a use for: scales of activations, and of a quantized cache; and an order of
    columns that was never set."""
    stems = {spec.name.removesuffix("weight") for spec, _ in stored}
    names = {stem + last for stem in stems for last in _ACTIVATIONS} & set(source.tensors)
    unordered = (spec for spec, decoder in stored if not isinstance(decoder, ActivationOrder))
    names |= {f"{spec.name}{SUFFIX}" for spec in unordered} & set(source.tensors)
    if (source.config or {})[KEY].get("kv_cache_scheme") is not None:
        names |= {name for name in source.tensors if name.endswith(tuple(f".{last}" for last in _CACHE))}
    return names


def _turns_inputs(declared: object) -> bool:
    """Whether a loader computes something beside the weights, which mean nothing then without it.

    Rotations that were multiplied into weights (`weight_input`, `weight_output`) leave the model what it was.
    """
    groups = declared.get("config_groups") if isinstance(declared, dict) else None
    applied = [
        one
        for group in (groups.values() if isinstance(groups, dict) else ())
        for one in (group.get("apply") or () if isinstance(group, dict) else ())
    ]
    return any(not isinstance(one, dict) or not str(one.get("location")).startswith("weight_") for one in applied)


# ---- how a tensor is stored ----------------------------------------------------------------------------


def _layout(name: str, base: str, source: Source) -> str:
    """The layout of the tensor `base` whose codes are called `name`."""
    codes, scale = source.tensors[name].spec, source.tensors.get(f"{base}_scale")
    kind = None if scale is None else scale.spec.dtype
    if name != base and codes.dtype == "U8":
        return "mxfp4-pack-quantized" if kind == "U8" else "nvfp4-pack-quantized"
    if name != base:
        return "pack-quantized"
    if codes.dtype == "F8_E4M3":
        return "mxfp8-quantized" if kind == "U8" else "float-quantized"
    return "int-quantized"


def _original(layout: str, name: str, source: Source) -> TensorSpec:
    """The tensor as it was: shape from `weight_shape` or the codes, dtype from the scale or the model's config."""
    scale = source.tensors.get(f"{name}_scale")
    narrow = _LAYOUTS[layout].narrow
    if scale is None or not (scale.spec.is_float or (narrow and scale.spec.dtype == "U8")):
        raise InputError("has no float scale beside it", file=source.path, tensor=name)
    said = model_dtype(source.config or {})
    if layout.endswith("4-pack-quantized"):
        shape = source.tensors[f"{name}_packed"].spec.shape
        if len(shape) != 2:
            raise InputError(f"its codes have shape {list(shape)}", file=source.path, tensor=name)
        return TensorSpec(name, said or "BF16", (shape[0], shape[1] * 2))
    if layout == "mxfp8-quantized":
        return TensorSpec(name, said or "BF16", source.tensors[name].spec.shape)
    if layout == "float-quantized":
        return TensorSpec(name, said or scale.spec.dtype, source.tensors[name].spec.shape)
    shape_of = source.tensors.get(f"{name}_shape")
    if shape_of is None and f"{name}_packed" in source.tensors:
        raise InputError("has no weight_shape beside it", file=source.path, tensor=name)
    if shape_of is None:
        return TensorSpec(name, scale.spec.dtype, source.tensors.get(name, scale).spec.shape)
    if shape_of.spec.dtype not in ("I64", "I32") or shape_of.spec.shape != (2,):
        raise InputError("its weight_shape is not two integers", file=source.path, tensor=name)
    values = shape_of.read_rows(1, 0, 2, Workspace(), "shape").reshape(-1)
    if not np.all((values >= 0) & (values < 2**40)):
        raise InputError("its weight_shape makes no sense", file=source.path, tensor=name)
    return TensorSpec(name, scale.spec.dtype, (int(values[0]), int(values[1])))


def _choose(spec: TensorSpec, groups: Sequence[Found], source: Source) -> Decoder:
    """The decoder of the group that this tensor was stored by."""
    known = [(group, group.decoder_for(spec, source)) for group in groups if not isinstance(group, str)]
    unknown = [group for group in groups if isinstance(group, str)]
    fits = known if len(groups) == 1 else [(group, made) for group, made in known if _fits(spec, made, source)]
    if not fits:
        reason = f"is stored in a way that is not read here: {unknown[0]}" if unknown else "fits no config group"
        raise InputError(reason, file=source.path, tensor=spec.name)
    if len({made.label for _, made in fits}) > 1:
        raise InputError("is so narrow that it fits groups of 4 and of 8 bits", file=source.path, tensor=spec.name)
    if len({group.block for group, _ in fits if group.block is not None}) > 1:
        raise InputError(
            "is so small that it fits groups of several block sizes", file=source.path, tensor=spec.name
        )
    return fits[0][1]


def _fits(spec: TensorSpec, decoder: Decoder, source: Source) -> bool:
    try:
        parts = decoder.parts(spec)
    except UsageError:
        return False
    zero = "_zero_point"
    if (f"{spec.name}{zero}" in source.tensors) != any(part.suffix == zero for part in parts):
        return False
    stored = [source.tensors.get(spec.name + part.suffix) for part in parts]
    return all(
        found is not None and (found.spec.dtype, found.spec.shape) == (part.dtype, part.shape)
        for found, part in zip(stored, parts, strict=True)
    )


# ---- what the groups say -------------------------------------------------------------------------------


def _made(layout: _Layout, group: Mapping[str, Any], common: object) -> list[Found]:
    """How a group stores tensors of this layout, or why that is not read; nothing if it is of another's."""
    weights, form = group.get("weights"), group.get("format") or common
    if form not in layout.formats:
        others = {form for other in _LAYOUTS.values() for form in other.formats}
        return [] if isinstance(form, str) and form in others else [f"its format is {printable(str(form), 40)!r}"]
    reason = f"its scheme is not of {layout.called}"
    try:
        if not isinstance(weights, dict) or weights.get("type", "int") != layout.type:
            return [reason]
        return [layout.make(weights, layout.name)]
    except (KeyError, TypeError, CompressorError) as error:
        return [problems_of(error)[0].reason if isinstance(error, CompressorError) else reason]


def _strategy(weights: Mapping[str, Any]) -> Any:
    return weights.get("strategy") or {None: "tensor", -1: "channel"}.get(weights.get("group_size"), "group")


def _integers(weights: Mapping[str, Any], layout: str) -> Found:
    strategy = _strategy(weights)
    made = make_method(
        "quantize",
        {
            "scheme": "int",
            "bits": weights["num_bits"],
            "symmetric": weights.get("symmetric", True),
            "granularity": strategy,
            "layout": layout,
            **({"group_size": weights.get("group_size")} if strategy == "group" else {}),
        },
        where="quantization_config ",
    )
    assert isinstance(made, Decoder)  # noqa: S101 - the scheme named above
    if layout == "pack-quantized" and 32 % weights["num_bits"]:
        return _Group(partial(_bit_stream, made, weights["num_bits"]))
    if strategy != "group" or layout != "pack-quantized":
        return _Group(lambda spec, source: made)
    bits, size = weights["num_bits"], weights["group_size"]
    codes = Int(bits, weights.get("symmetric", True), "group", size, layout="pack-quantized")
    ordered = ActivationOrder(bits, size, codes)
    return _Group(lambda spec, source: ordered if has_order(spec, source) else made)


def _bit_stream(made: Decoder, bits: int, spec: TensorSpec, source: Source) -> Decoder:
    """Codes that fill no whole words, as versions from 0.20 on have them. InputError where older ones wrote them,
    which take more words, or as many for other numbers."""
    rows, columns = spec.matrix
    packed = source.tensors.get(f"{spec.name}_packed")
    older = -(-columns // (32 // bits))  # whole codes in each word
    if older > 1 and packed is not None and packed.spec.shape == (rows, older):
        raise InputError(
            f"its codes of {bits} bits lie in words as compressed-tensors before 0.20 packed them, or cannot be "
            "told from such, and are not read here",
            file=source.path,
            tensor=spec.name,
            remedy="Give the model before it was quantized",
        )
    return made


def _floats(weights: Mapping[str, Any], layout: str) -> Found:
    strategy, block = _strategy(weights), weights.get("block_structure")
    if isinstance(block, str):  # as they were written up to 0.9: 128x128
        block = [int(size) if size.isdecimal() and len(size) < 9 else 0 for size in block.split("x")]
    if weights.get("num_bits") != 8 or weights.get("symmetric", True) is not True:
        return "its floats are not of 8 bits without a zero point"
    if strategy not in ("tensor", "channel", "block"):
        return f"its strategy is {printable(str(strategy), 40)!r}"
    if strategy != "block":
        return _Group(partial(_eight_bit_floats, strategy, None))
    if not isinstance(block, list) or not is_block(block):
        return f"its block_structure is {printable(str(block), 40)}"
    size = (block[0], block[1])
    return _Group(partial(_eight_bit_floats, strategy, size), size)


def _eight_bit_floats(
    granularity: Literal["tensor", "channel", "block"],
    block: tuple[int, int] | None,
    spec: TensorSpec,
    source: Source,
) -> Decoder:
    """With the dtype and the shape that the scale has in the source, where these may differ."""
    scale = f"{spec.name}_scale"
    shape = single(source, scale, spec.name) if granularity == "tensor" else (1,)
    scales = Scales("_scale", source.tensors[scale].spec.dtype, shape, block or Scales.block)
    return Fp8(granularity=granularity, scales=scales)


def _blocks(weights: Mapping[str, Any], layout: str) -> Found:
    scheme = {kind.format: kind for kind in (Nvfp4, Mxfp4, Mxfp8)}[layout]
    made = scheme()
    said = tuple(weights.get(key) for key in ("num_bits", "group_size", "symmetric"))
    if said not in ((made.element.bits, made.size, True), (made.element.bits, made.size, None)):
        return f"its scheme is not {made.id}"
    return _Group(lambda spec, source: made)


@dataclass(frozen=True)
class _Layout:
    """A way of storing tensors: the `formats` by which configs call it, the `type` of weights, in words what these
    are, and how a group of it is read. `narrow`: the scale may be an exponent in a byte."""

    name: str
    formats: tuple[str, ...]
    type: str
    called: str
    make: Callable[[Mapping[str, Any], str], Found]
    narrow: bool = False


# Older files name the format once for all groups; `naive` is what 8 bits are called without activations.
_LAYOUTS = {
    layout.name: layout
    for layout in (
        *(
            _Layout(name, (*forms, "mixed-precision"), "int", "scaled integers", _integers)
            for name, forms in {
                "pack-quantized": ("pack-quantized", "int-quantized", "naive-quantized"),
                "int-quantized": ("pack-quantized", "int-quantized", "naive-quantized"),
            }.items()
        ),
        _Layout(
            "float-quantized",
            ("float-quantized", "naive-quantized", "mixed-precision"),
            "float",
            "8-bit floats",
            _floats,
        ),
        *(
            _Layout(kind.format, (kind.format, "mixed-precision"), "float", kind.id, _blocks, narrow=True)
            for kind in (Nvfp4, Mxfp4, Mxfp8)
        ),
    )
}
