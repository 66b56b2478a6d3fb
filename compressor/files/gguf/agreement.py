"""Metadata that contradicts the tensors beside it: such a model is not what it says, and no loader takes it."""

from __future__ import annotations

import re
from collections.abc import Mapping

from compressor.core.errors import InputError
from compressor.core.text import printable
from compressor.files.gguf.values import Kind, Value

ARCHITECTURE = "general.architecture"
_BLOCK = re.compile(r"blk\.(\d{1,9})\..+")
_EMBEDDING = "token_embd.weight"  # [tokens, embedding]
_TOKENS = "tokenizer.ggml.tokens"
_AGAIN = "Download or convert it again"


def check_agreement(fields: Mapping[str, Value], shapes: Mapping[str, tuple[int, ...]], path: str) -> None:
    """InputError where the metadata and the tensors of a whole model cannot both be true.

    That is where blocks are beyond the count of them, or where embeddings have another length than is said or are
    those of another number of tokens than are listed.
    """
    named = fields.get(ARCHITECTURE)
    prefix = named.python() if named is not None and named.kind is Kind.STRING else ""
    blocks = integer(fields, f"{prefix}.block_count")
    if blocks is not None:
        beyond = [name for name in shapes if (found := _BLOCK.fullmatch(name)) and int(found[1]) >= blocks]
        if beyond:
            raise InputError(
                f"is of a block beyond the {blocks} that the metadata says ({printable(prefix, 40)}.block_count)",
                file=path,
                tensor=beyond[0],
                remedy=_AGAIN,
            )
    shape = shapes.get(_EMBEDDING)
    if shape is None or len(shape) != 2:
        return
    listed = fields.get(_TOKENS)
    tokens = len(listed) if listed is not None and listed.items is Kind.STRING else None
    for size, said, what in (
        (shape[1], integer(fields, f"{prefix}.embedding_length"), f"{prefix}.embedding_length is"),
        (shape[0], tokens, f"{_TOKENS} are"),
    ):
        if said is not None and said != size:
            raise InputError(
                f"is {list(shape)}, and {printable(what, 80)} {said}", file=path, tensor=_EMBEDDING, remedy=_AGAIN
            )


def integer(fields: Mapping[str, Value], key: str) -> int | None:
    """A whole number of the metadata; None where there is none, or something else."""
    value = fields.get(key)
    if value is None or value.kind in (Kind.ARRAY, Kind.STRING):
        return None
    found = value.python()
    return found if type(found) is int else None
