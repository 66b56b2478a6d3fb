"""AWQ's `quantization_config`, as AutoAWQ's GEMM version writes it: read only.

`P.qweight` I32 [columns, rows/8], `P.qzeros` I32 [groups, rows/8], `P.scales` [groups, rows]: eight rows share a
word, in an order that suits one kernel. w = s·(q − z), asymmetric, 4 bits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from compressor.checkpoint.dialects._auto_round import of_layer
from compressor.checkpoint.dialects._stored import StoredCodes, integer, multiply, shape_of
from compressor.core.errors import InputError
from compressor.core.floats import widen
from compressor.core.lazy import np
from compressor.core.tensor import TensorSpec
from compressor.core.text import printable
from compressor.core.workspace import Array, Workspace
from compressor.files.source import Source
from compressor.methods.contract import Decoder
from compressor.methods.parts import Part

NAME = "awq"
METADATA = "pt"
KEY = "quantization_config"

_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)  # the nibble of a word that row 8·k + i has
_WORD = 8


def speaks(config: Mapping[str, Any]) -> bool:
    """Whether a config.json, which may declare no quantization, is in this dialect."""
    declared = config.get(KEY)
    if not isinstance(declared, dict):
        return False
    rounded = "auto" in str(declared.get("quant_method")) and "awq" in str(declared.get("packing_format", ""))
    return declared.get("quant_method") == NAME or rounded


@dataclass(frozen=True)
class Awq(StoredCodes):
    """AWQ's words across the rows."""

    id: ClassVar[str] = "awq"

    group_size: int  # columns that share a scale and a zero point

    def parts(self, spec: TensorSpec) -> tuple[Part, ...]:
        rows, columns = spec.shape
        groups = columns // self.group_size
        return (
            Part(".qweight", "I32", (columns, rows // _WORD), every=_WORD, stem=True, across=True),
            Part(".qzeros", "I32", (groups, rows // _WORD), every=_WORD, stem=True, across=True),
            Part(".scales", spec.dtype, (groups, rows), stem=True, across=True),
        )

    def decode(self, parts: Mapping[str, Array], spec: TensorSpec, out: Array, start: int, work: Workspace) -> None:
        grouped = out.reshape(len(out), -1, self.group_size)
        zero = np.empty(grouped.shape[:2], out.dtype)
        _spread(parts[".qweight"], out, work)
        _spread(parts[".qzeros"], zero, work)
        scale = widen(parts[".scales"].T, spec.dtype, work, "awq.scale").astype(out.dtype, copy=False)
        np.subtract(grouped, zero[..., None], out=grouped)
        multiply(grouped, scale[..., None], spec.dtype, self.bits)


def _spread(words: Array, out: Array, work: Workspace) -> None:
    """Words [columns, rows/8] to codes [rows, columns]."""
    turned = work.array("awq.turned", (words.shape[1], words.shape[0]), "<u4")
    np.copyto(turned, words.T.view("<u4"))
    codes = work.array("awq.codes", turned.shape, "<u4")
    for row, nibble in enumerate(_ORDER):
        np.right_shift(turned, np.uint32(4 * nibble), out=codes)
        np.bitwise_and(codes, np.uint32(15), out=codes)
        np.copyto(out[row::_WORD], codes, casting="unsafe")


def stored_tensors(source: Source) -> list[tuple[TensorSpec, Decoder]]:
    """The tensors that an AWQ folder stores as codes. InputError for what is not read here."""
    declared = (source.config or {})[KEY]
    version = declared.get("version", "gemm")
    if str(version).lower() != "gemm":
        raise InputError(
            f"config.json: AWQ's version {printable(str(version), 40)!r} is not read here", file=source.path
        )
    bits = integer(declared, "bits", (4,), f"{KEY} ", source)
    return [
        _stored(name.removesuffix(".qweight"), bits, declared, source)
        for name in source.tensors
        if name.endswith(".qweight")
    ]


def _stored(module: str, bits: int, declared: Mapping[str, Any], source: Source) -> tuple[TensorSpec, Decoder]:
    name = f"{module}.weight"
    shape = shape_of(source, f"{module}.qweight", ("I32",), name)
    scales = shape_of(source, f"{module}.scales", ("F16", "BF16", "F32"), name)
    columns, rows = shape[0], shape[1] * _WORD
    if declared.get("extra_config"):  # AutoRound's
        declared = of_layer(declared, module, {bits: columns}, scales[0], source)
        bits = integer(declared, "bits", (4,), f"{KEY} ", source)
    size = declared.get("group_size", -1)
    size = columns if size == -1 and type(size) is int else size
    if (
        type(size) is not int
        or size <= 0
        or len(shape) != 2
        or scales[0] * size != columns
        or scales[1:] != (rows,)
    ):
        raise InputError(
            f"its qweight {list(shape)} and scales {list(scales)} do not fit together "
            f"in groups of {printable(repr(size), 40)}",
            file=source.path,
            tensor=name,
        )
    return TensorSpec(name, source.tensors[f"{module}.scales"].spec.dtype, (rows, columns)), Awq(bits, size)
