"""Metadata and tensors that cannot both be true."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from support.gguf_files import ARRAY, STRING, UINT32, GgufFile, numbers, value

from compressor.core.errors import InputError
from compressor.files.opening import open_source

LINES = (numbers("token_embd.weight", (4, 8)), numbers("blk.1.attn_q.weight", (8, 8)))
TRUE: dict[str | bytes, Any] = {
    "general.architecture": value(STRING, "llama"),
    "llama.block_count": value(UINT32, 2),
    "llama.embedding_length": value(UINT32, 8),
    "tokenizer.ggml.tokens": value(ARRAY, (STRING, list("abcd"))),
}


def write(place: Path, **changes: bytes) -> Path:
    path = place / "m.gguf"
    path.write_bytes(GgufFile(LINES, {**TRUE, **changes}).file())
    return path


def test_what_agrees_is_opened(tmp_path: Path) -> None:
    assert len(open_source(write(tmp_path)).tensors) == 2
    other = {"general.architecture": value(STRING, "of-no-language")}
    assert len(open_source(write(tmp_path, **other, **{"llama.block_count": value(UINT32, 0)})).tensors) == 2


@pytest.mark.parametrize(
    ("key", "said", "reason"),
    [
        (
            "llama.block_count",
            value(UINT32, 1),
            "tensor 'blk.1.attn_q.weight': is of a block beyond the 1 that the metadata says (llama.block_count)",
        ),
        ("llama.embedding_length", value(10, 9), "is [4, 8], and llama.embedding_length is 9"),
        (
            "tokenizer.ggml.tokens",
            value(ARRAY, (STRING, list("abc"))),
            "tensor 'token_embd.weight': is [4, 8], and tokenizer.ggml.tokens are 3",
        ),
    ],
)
def test_what_contradicts_is_refused(tmp_path: Path, key: str, said: bytes, reason: str) -> None:
    with pytest.raises(InputError, match=re.escape(reason)) as caught:
        open_source(write(tmp_path, **{key: said}))
    assert "Download or convert it again" in str(caught.value)


@pytest.mark.parametrize("said", [value(STRING, "2"), value(ARRAY, (4, [1, 2])), value(6, 2.5)])
def test_what_is_no_number_says_nothing(tmp_path: Path, said: bytes) -> None:
    assert open_source(write(tmp_path, **{"llama.block_count": said}))
