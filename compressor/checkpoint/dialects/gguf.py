"""GGUF: tensors that a `.gguf` stores as blocks of ggml's types, which its own table of tensors tells.

What they stand for is float32, as ggml has it. `configure` there is none: no folder is in this dialect.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from compressor.core.ggml_types import GgmlType
from compressor.core.tensor import TensorSpec
from compressor.files.source import Source
from compressor.methods.contract import Decoder

NAME = "gguf"
SAID = "quantized (ggml's types)"


def speaks(config: Mapping[str, Any]) -> bool:
    """No config.json is."""
    return False


def found_in(source: Source) -> bool:
    """Whether any tensor of the input is stored as blocks."""
    return any(not kind.dtype for _, kind, _ in _tensors(source))


def stored_tensors(source: Source) -> list[tuple[TensorSpec, Decoder]]:
    """The tensors that are stored as blocks."""
    from compressor.methods.quantize.ggml.decoder import GgmlBlocks  # here because most inputs hold none

    return [
        (TensorSpec(name, "F32", shape), GgmlBlocks(kind.name))
        for name, kind, shape in _tensors(source)
        if not kind.dtype
    ]


def _tensors(source: Source) -> Iterator[tuple[str, GgmlType, tuple[int, ...]]]:
    if source.kind != "gguf":
        return
    from compressor.files.gguf.reading import GgufHeader

    for part in source.files:
        if isinstance(part.header, GgufHeader):
            for name, kind in part.header.types.items():
                yield name, kind, part.header.shapes[name]
