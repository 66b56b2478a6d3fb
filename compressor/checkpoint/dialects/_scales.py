"""What the dialects of quantized floats have in common: how a stranger's tensors are taken for parts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from compressor.core.errors import InputError
from compressor.files.source import Source

_DTYPES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32", "half": "F16", "float": "F32"}
_LARGEST_BLOCK = 1024  # rows or columns that share a scale: a file must not decide how much is read at once


def model_dtype(config: Mapping[str, Any]) -> str | None:
    """The dtype that config.json gives the model, where it is a float that dense weights have."""
    inner = config.get("text_config")
    for place in (config, inner if isinstance(inner, dict) else {}):
        for key in ("dtype", "torch_dtype"):
            said = place.get(key)
            if isinstance(said, str) and said.removeprefix("torch.") in _DTYPES:
                return _DTYPES[said.removeprefix("torch.")]
    return None


def is_block(said: object) -> bool:
    """Whether this is a block of rows × columns that is read here."""
    return (
        isinstance(said, list)
        and len(said) == 2
        and all(type(size) is int and 0 < size <= _LARGEST_BLOCK for size in said)
    )


def single(source: Source, name: str, of: str) -> tuple[int, ...]:
    """The shape of a tensor of one number, `[]` or `[1]`; InputError for others."""
    shape = source.tensors[name].spec.shape
    if shape not in ((), (1,)):
        raise InputError(f"its {name[len(of) :]} has shape {list(shape)}", file=source.path, tensor=of)
    return shape


def orphans(source: Source, suffixes: Iterable[str], taken: set[str]) -> None:
    """InputError for a scale whose weight is not there (or is not stored as it should be), which would be lost."""
    for name in source.tensors:
        for suffix in suffixes:
            if name.endswith(suffix) and name not in taken:
                raise InputError(
                    "is the scale of a weight that is missing, or not stored as the config says",
                    file=source.path,
                    tensor=name,
                )
