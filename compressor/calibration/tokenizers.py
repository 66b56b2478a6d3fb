"""The tokenizer that comes with a model: in its folder, or in the metadata of a GGUF file."""

from __future__ import annotations

import importlib
import json
from typing import Any

from compressor.calibration.meta_model import foreign, libraries
from compressor.core.errors import InputError
from compressor.core.text import printable
from compressor.files.source import Source

_FILES = (
    *("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "sentencepiece.bpe.model"),
    *("tokenizer.model.v3", "tekken.json", "sentencepiece.model"),
)


def tokenizer_of(source: Source) -> Any | None:
    """The tokenizer of a model; None where none comes with it."""
    _, transformers = libraries()
    if "tokenizer.json" in source.texts:
        with foreign("read its tokenizer", source.path):
            made = importlib.import_module("tokenizers").Tokenizer.from_str(source.texts["tokenizer.json"].decode())
            return transformers.PreTrainedTokenizerFast(tokenizer_object=made)
    if source.kind != "folder" or not any(f"{source.inside}{name}" in source.carried for name in _FILES):
        return None
    with foreign("read its tokenizer", source.path):
        return transformers.AutoTokenizer.from_pretrained(
            source.path, local_files_only=True, trust_remote_code=False
        )


def check_alike(a: Any, b: Any, text: str, path: str) -> None:
    """InputError where the tokenizer `b`, of the model at `path`, divides a text otherwise than `a`."""
    one, other = (list(each(text, add_special_tokens=False, verbose=False)["input_ids"]) for each in (a, b))
    if one == other:
        return
    at = next((n for n, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1]), None)
    at = min(len(one), len(other)) if at is None else at
    said = [json.dumps(each.decode(ids[at : at + 1])) for each, ids in ((a, one), (b, other))]
    raise InputError(
        f"its tokenizer divides the text otherwise than A's: token {at} is {one[at : at + 1]} "
        f"{printable(said[0], 40)} in A and {other[at : at + 1]} {printable(said[1], 40)} in B",
        file=path,
        remedy="Outputs of models of different vocabularies cannot be compared",
    )
