"""FP8 weights as ComfyUI stores them in files without a config: read only.

`P.weight` F8_E4M3 (or F8_E5M2) with `P.scale_weight` F32 [] or [1] beside it, which multiplies, and perhaps
`P.scale_input` for activations; a tensor `scaled_fp8` marks the file. The newer form has `P.weight_scale`,
`P.input_scale` and `P.comfy_quant`, bytes of JSON whose `format` is `float8_e4m3fn` or `float8_e5m2`
(ComfyUI, comfy/utils.py and comfy/quant_ops.py). Weights without a scale are plain FP8 numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from compressor.checkpoint.dialects._scales import single
from compressor.core.errors import InputError
from compressor.core.tensor import TensorSpec
from compressor.core.text import printable
from compressor.core.workspace import Workspace
from compressor.files.source import Source, StoredTensor
from compressor.files.strict_json import parse_object
from compressor.methods.contract import Decoder
from compressor.methods.quantize.fp8 import Fp8, Scales

NAME = "ComfyUI's scaled FP8"
_MARK = "scaled_fp8"
_FORMATS = {"float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2"}
_LONGEST = 10_000  # bytes of a description


def speaks(config: Mapping[str, Any]) -> bool:
    """No config.json declares it: names tell (`found_in`)."""
    return False


def found_in(source: Source) -> bool:
    """Whether FP8 weights stand beside scales called so, or are described, whatever a config says."""
    return any(_scales_codes(source, name) or _describes(tensor) for name, tensor in source.tensors.items())


def _scales_codes(source: Source, name: str) -> bool:
    """Whether this is the scale of an FP8 weight, and does not merely have the name of one."""
    codes = source.tensors.get(f"{name.removesuffix('.scale_weight')}.weight")
    return name.endswith(".scale_weight") and codes is not None and codes.spec.dtype.startswith("F8_")


def _describes(tensor: StoredTensor) -> bool:
    """Whether a tensor is the description of a weight: some bytes of that name."""
    spec = tensor.spec
    return spec.name.endswith(".comfy_quant") and spec.dtype == "U8" and 0 < spec.size <= _LONGEST


def stored_tensors(source: Source) -> list[tuple[TensorSpec, Decoder]]:
    """The scaled weights of such a file, as BF16. InputError for formats that are not read here."""
    found: list[tuple[TensorSpec, Decoder]] = []
    for name, tensor in source.tensors.items():
        stem = name.removesuffix(".weight")
        described = source.tensors.get(f"{stem}.comfy_quant")
        form = _format(described, source) if described is not None and _describes(described) else None
        suffix = ".scale_weight" if form is None else ".weight_scale"
        scale = source.tensors.get(stem + suffix)
        if not name.endswith(".weight") or scale is None:
            continue
        if form is not None and form != tensor.spec.dtype:
            raise InputError(f"is {tensor.spec.dtype}, and said to be {form}", file=source.path, tensor=name)
        if tensor.spec.dtype not in _FORMATS.values():
            raise InputError(
                f"is {tensor.spec.dtype} with a scale, and FP8 is read here",
                file=source.path,
                tensor=name,
                remedy="Give the model before it was quantized",
            )
        if not scale.spec.is_float:
            raise InputError(f"its scale is {scale.spec.dtype}, no float", file=source.path, tensor=name)
        scales = Scales(suffix, scale.spec.dtype, single(source, stem + suffix, stem), stem=True)
        stored = Fp8(element="e4m3", granularity="tensor", scales=scales)
        if tensor.spec.dtype != "F8_E4M3":
            stored = replace(stored, element="e5m2")
        found.append((TensorSpec(name, "BF16", tensor.spec.shape), stored))
    return found


def leftovers(source: Source, stored: Sequence[tuple[TensorSpec, Decoder]]) -> set[str]:
    """The file's mark, descriptions, scales of activations, and scales of what is not FP8 (all are 1)."""
    ends = (".comfy_quant", ".scale_input", ".input_scale")
    marks = {name for name in source.tensors if name == _MARK or name.endswith(f".{_MARK}")}
    return marks | {name for name in source.tensors if name.endswith(ends)}


def _format(described: StoredTensor, source: Source) -> str:
    """The dtype that a description names."""
    spec = described.spec
    raw = described.read_rows(spec.size, 0, 1, Workspace(), "comfy").tobytes()
    form = parse_object(raw, source.path).get("format")
    if form not in _FORMATS:
        raise InputError(
            f"says that the weight is stored as {printable(repr(form), 40)}, which is not read here",
            file=source.path,
            tensor=spec.name,
            remedy=f"These are: {', '.join(_FORMATS)}",
        )
    return _FORMATS[form]
