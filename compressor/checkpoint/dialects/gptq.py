"""GPTQ's `quantization_config` in a folder's config.json: its first format written, both read.

The width, the group size and whether columns were sorted hold for the folder; modules that differ are named by
patterns under `dynamic`, and so are linear modules that stay dense (gptqmodel's extension; vLLM reads it too).
Patterns also match the names of the layers that vLLM fuses. optimum, by which transformers reads such folders,
knows no patterns: `modules_in_block_to_quantize` names the modules with codes where others beside them have none.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from compressor.architectures.conv1d import is_conv1d
from compressor.architectures.decoder_layers import has_layers, in_known_list, modules_of
from compressor.architectures.fused_layers import experts_module, fused_group
from compressor.architectures.roles import Role, is_embedding, role_of
from compressor.checkpoint.dialects._auto_round import of_layer
from compressor.checkpoint.dialects._stored import StoredCodes, integer, multiply, shape_of
from compressor.core import bitpacking as bitstream
from compressor.core.errors import InputError
from compressor.core.floats import widen
from compressor.core.lazy import np
from compressor.core.tensor import TensorSpec
from compressor.core.text import printable
from compressor.core.workspace import Array, Workspace
from compressor.files.source import Source
from compressor.methods.contract import Decoder
from compressor.methods.parts import Part
from compressor.methods.quantize.int.layouts.gptq import unpack_down

NAME = "gptq"
METADATA = "pt"
KEY = "quantization_config"

_AUTO_ROUND = ("auto-round", "auto_round", "intel/auto-round")
_WIDTHS = (2, 3, 4, 8)
_SHIFTS = {"gptq": 1, "gptq_v2": 0}  # what each format takes from zero points before it stores them


def speaks(config: Mapping[str, Any]) -> bool:
    """Whether a config.json, which may declare no quantization, is in this dialect."""
    declared = config.get(KEY)
    if not isinstance(declared, dict):
        return False
    packing = str(declared.get("packing_format", ""))
    return declared.get("quant_method") == NAME or (
        declared.get("quant_method") in _AUTO_ROUND and "awq" not in packing
    )


# ---- writing -------------------------------------------------------------------------------------------


def configure(
    config: Mapping[str, Any], packed: Sequence[tuple[TensorSpec, Decoder]], dense: Sequence[TensorSpec]
) -> dict[str, Any] | None:
    """config.json with the quantization_config of a folder with these packed and these dense tensors; None where
    a tensor belongs to a module that GPTQ's loaders never take quantized."""
    roles = {role_of(spec.name, spec.shape) for spec, _ in packed}
    if any(is_embedding(spec.name) or is_conv1d(config, spec.name) for spec, _ in packed):
        return None
    modules = {}
    for spec, decoder in packed:
        said = decoder.config(spec) or {}
        modules[spec.name] = (said["bits"], said["group_size"])
    counts = Counter(modules.values())
    usual = min(counts, key=lambda found: (-counts[found], found))
    dynamic: dict[str, dict[str, int]] = {}
    for name, (bits, group) in sorted(modules.items()):
        if (bits, group) != usual:
            dynamic[f"+:{_pattern(name)}"] = {"bits": bits, "group_size": group}
    for spec in dense:
        if len(spec.shape) == 2 and spec.name.endswith(".weight") and not _left_dense(spec):
            dynamic[f"-:{_pattern(spec.name)}"] = {}
    declared = {
        "quant_method": NAME,
        "bits": usual[0],
        "group_size": usual[1],
        "desc_act": False,
        "sym": True,
        "lm_head": Role.HEAD in roles,
        "checkpoint_format": "gptq",
        "pack_dtype": "int32",
        **({"dynamic": dynamic} if dynamic else {}),
        **_blocks([spec.name for spec, _ in packed], [spec.name for spec in dense if _is_layer(spec)]),
    }
    return {**config, KEY: declared}


def _blocks(packed: Sequence[str], dense: Sequence[str]) -> dict[str, Any]:
    """Which modules optimum makes quantized ones, where that is not every one in the list of layers that it knows.
    Names begin with "" when any list is meant."""
    known = all(map(in_known_list, packed))
    if not has_layers(packed) or (known and not has_layers(filter(in_known_list, dense))):
        return {}
    found: dict[str, Any] = {"modules_in_block_to_quantize": [modules_of(packed, dense)]}
    return found if known else {"block_name_to_quantize": "", **found}


def _is_layer(spec: TensorSpec) -> bool:
    """Whether optimum would take the tensor for a linear layer's, or a convolution's over two axes."""
    return len(spec.shape) in (2, 4) and spec.name.endswith(".weight") and experts_module(spec.name) is None


def _left_dense(spec: TensorSpec) -> bool:
    """Whether no loader expects the tensor quantized, so that nothing has to be said of it."""
    return role_of(spec.name, spec.shape) is Role.HEAD or is_embedding(spec.name)


def _pattern(name: str) -> str:
    """What matches a module, with or without the names of models around it, and what it is fused into."""
    experts = experts_module(name)
    if experts is not None:
        return rf"^(.*\.)?{re.escape(experts)}(\..*)?$"  # vLLM asks for the module, others for each expert
    *parents, last = name.removesuffix(".weight").split(".")
    whole = fused_group(name)
    ends = [last] if whole is None else [last, whole.rpartition(".")[2]]
    text = r"\.".join([*map(re.escape, parents), f"({'|'.join(map(re.escape, ends))})"])
    return rf"^(.*\.)?{text}$"


# ---- reading -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Words(StoredCodes):
    """GPTQ's words down the columns, whoever wrote them. `shift` is what was taken from zero points; with an
    `index` each column names its group, else every `group_size` columns are one."""

    id: ClassVar[str] = "gptq"

    groups: int  # groups of columns that share scales and zero points
    group_size: int  # columns of a group
    shift: int  # what zero points are stored less than they are
    index: bool  # whether each column names its group

    def parts(self, spec: TensorSpec) -> tuple[Part, ...]:
        rows, columns = spec.shape
        found = (
            Part(".qweight", "I32", (columns * self.bits // 32, rows), stem=True, across=True),
            Part(".qzeros", "I32", (self.groups, rows * self.bits // 32), every=0, stem=True),
            Part(".scales", spec.dtype, (self.groups, rows), stem=True, across=True),
        )
        return (*found, Part(".g_idx", "I32", (columns,), every=0, stem=True)) if self.index else found

    def decode(self, parts: Mapping[str, Array], spec: TensorSpec, out: Array, start: int, work: Workspace) -> None:
        rows, columns = out.shape
        codes = work.array("gptq.codes", out.shape, "|u1")
        unpack_down(parts[".qweight"], self.bits, codes, work)
        zero = self._zero_points(parts[".qzeros"], start, rows, work).astype(out.dtype)
        scale = widen(parts[".scales"].T, spec.dtype, work, "gptq.scale").astype(out.dtype, copy=False)
        np.copyto(out, codes)
        index = parts.get(".g_idx")
        in_order = np.arange(columns) // self.group_size
        if columns == self.groups * self.group_size and (index is None or np.array_equal(index, in_order)):
            grouped = out.reshape(rows, self.groups, self.group_size)
            np.subtract(grouped, zero[..., None], out=grouped)
            multiply(grouped, scale[..., None], spec.dtype, self.bits)
            return
        order = in_order if index is None else index
        spread = work.array("gptq.spread", out.shape, out.dtype.str)
        np.subtract(out, zero.take(order, axis=1, out=spread, mode="clip"), out=out)
        multiply(out, scale.take(order, axis=1, out=spread, mode="clip"), spec.dtype, self.bits)

    def _zero_points(self, words: Array, start: int, rows: int, work: Workspace) -> Array:
        """Those of the rows [start, start + rows) as [rows, groups]; `words` holds all."""
        first = start // 32  # 32 codes are whole words, whatever their width
        held = np.array(words[:, first * self.bits : -(-(start + rows) * self.bits // 32)], order="C").view("<u4")
        if self.shift and self.bits != 3:
            # whole words, as loaders do: who took 1 from a zero point of 0 has borrowed from its neighbour
            held += np.uint32(sum(1 << place for place in range(0, 32, self.bits)))
        zero = np.empty((self.groups, start + rows - first * 32), np.uint8)
        bitstream.unpack(held.view("|u1"), self.bits, zero, work)
        found: Array = zero[:, start - first * 32 :].T
        return (found + self.shift) & 7 if self.bits == 3 else found


def stored_tensors(source: Source) -> list[tuple[TensorSpec, Decoder]]:
    """The tensors that a GPTQ folder stores as codes. InputError for what is not read here."""
    declared = (source.config or {})[KEY]
    form = str(declared.get("checkpoint_format", declared.get("format", "gptq")))
    rounded = declared.get("quant_method") in _AUTO_ROUND
    if rounded:
        form = _auto_round_format(declared, source)
    if form not in _SHIFTS:
        raise InputError(f"config.json: GPTQ's format {printable(form, 40)!r} is not read here", file=source.path)
    found = []
    for name in source.tensors:
        if name.endswith(".qweight"):
            module = name.removesuffix(".qweight")
            own = _of_module(declared, module, source) if rounded else declared
            bits = integer(own, "bits", _WIDTHS, f"{KEY} ", source)
            found.append(_stored(module, bits, form, own, source))
    return found


def _auto_round_format(declared: Mapping[str, Any], source: Source) -> str:
    """How AutoRound, which writes GPTQ's words, stores zero points: less one where it says `auto_gptq`, else as
    they are."""
    packing = str(declared.get("packing_format", "auto_round"))
    if packing.partition(":")[2] not in ("", "auto_gptq", "gptqmodel") or not packing.startswith("auto_round"):
        raise InputError(
            f"config.json: AutoRound's packing_format {printable(packing, 40)} is not read here", file=source.path
        )
    return "gptq" if packing.endswith("auto_gptq") else "gptq_v2"


def _of_module(declared: Mapping[str, Any], module: str, source: Source) -> Mapping[str, Any]:
    """What AutoRound's config says of a module, whose zero points tell its width."""
    name = f"{module}.weight"
    words, rows = shape_of(source, f"{module}.qweight", ("I32",), name)[:2]
    zeros = shape_of(source, f"{module}.qzeros", ("I32",), name)[1]
    groups = shape_of(source, f"{module}.scales", ("F16", "BF16", "F32"), name)[0]
    columns = {bits: words * 32 // bits for bits in _WIDTHS if zeros * 32 == rows * bits}
    return of_layer(declared, module, columns, groups, source)


def _stored(
    module: str, bits: int, form: str, declared: Mapping[str, Any], source: Source
) -> tuple[TensorSpec, Decoder]:
    name = f"{module}.weight"
    shape = shape_of(source, f"{module}.qweight", ("I32",), name)
    scales = shape_of(source, f"{module}.scales", ("F16", "BF16", "F32"), name)
    index = source.tensors.get(f"{module}.g_idx")
    columns = shape[0] * 32 // bits if index is None else index.spec.size
    by_module = index is not None and bool(declared.get("dynamic"))
    if by_module:  # the shapes tell
        bits = shape[0] * 32 // max(columns, 1)
    groups, rows = scales[0], shape[1]
    if (
        len(shape) != 2
        or scales != (groups, rows)
        or columns * bits != shape[0] * 32
        or bits not in _WIDTHS
        or rows * bits % 32
        or groups > columns
    ):
        raise InputError(
            f"its qweight {list(shape)}, scales {list(scales)} and {columns} columns do not fit together "
            f"at {bits} bits",
            file=source.path,
            tensor=name,
        )
    size = declared.get("group_size")
    if not by_module:
        if type(size) is not int or not (size == -1 or 0 < size < 2**31):
            raise InputError(
                f"config.json: {KEY} group_size is {printable(repr(size), 40)}, which makes no sense",
                file=source.path,
            )
        size = columns if size == -1 else size
        if groups != -(-columns // size):
            raise InputError(
                f"has {groups} groups, where {columns} columns have {-(-columns // size)} of {size}",
                file=source.path,
                tensor=name,
            )
    else:
        size = -(-columns // groups)
    if index is not None:
        _check_index(index, groups, name, source)
    dtype = source.tensors[f"{module}.scales"].spec.dtype
    decoder = Words(bits, groups, min(size, columns), _SHIFTS[form], index is not None)
    return TensorSpec(name, dtype, (rows, columns)), decoder


def _check_index(index: Any, groups: int, name: str, source: Source) -> None:
    """The group that each column names must be there."""
    spec = index.spec
    if spec.dtype == "I32" and len(spec.shape) == 1:
        values = index.read_rows(spec.size, 0, 1, Workspace(), "index")
        if np.all((values >= 0) & (values < groups)):
            return
    raise InputError(
        f"its g_idx does not name one of {groups} groups for each column", file=source.path, tensor=name
    )
