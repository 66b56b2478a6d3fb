"""What a Hugging Face folder has of a tokenizer, read and parsed."""

from __future__ import annotations

from typing import Any

from compressor.architectures.gguf.sentencepiece import SentencePiece, parse
from compressor.architectures.gguf.tokenizers import TokenizerFiles
from compressor.core.errors import InputError
from compressor.files.source import Source
from compressor.files.strict_json import read_object

TOKENIZER, CONFIG, PIECES = "tokenizer.json", "tokenizer_config.json", "tokenizer.model"
TEMPLATE, OLD_TEMPLATE, ADDED = "chat_template.jinja", "chat_template.json", "added_tokens.json"
_MOST_PIECES = 64 << 20  # bytes of a tokenizer.model; Gemma's has 5 million
# Files that are read into the metadata, or say nothing that it does not
READ = (
    *(TOKENIZER, CONFIG, PIECES, TEMPLATE, OLD_TEMPLATE, ADDED),
    *("special_tokens_map.json", "vocab.json", "merges.txt", "vocab.txt", "config.json"),
)


def read_tokenizer(source: Source) -> TokenizerFiles:
    """The tokenizer of a folder, as much as there is. InputError for files that are not what their names say."""
    template = source.carried.get(f"{source.inside}{TEMPLATE}")
    text = None if template is None else template.read(0, template.size).decode("utf-8", "replace")
    if text is None:
        said = _object(source, OLD_TEMPLATE) or {}
        text = said["chat_template"] if isinstance(said.get("chat_template"), str) else None
    return TokenizerFiles(
        tokenizer=_object(source, TOKENIZER),
        config=_object(source, CONFIG) or {},
        model=source.config or {},
        pieces=_pieces(source),
        template=text,
        added=_object(source, ADDED) or {},
    )


def _object(source: Source, name: str) -> dict[str, Any] | None:
    file = source.carried.get(f"{source.inside}{name}")
    return None if file is None else read_object(file, lenient=True, large=True)


def _pieces(source: Source) -> SentencePiece | None:
    file = source.carried.get(f"{source.inside}{PIECES}")
    if file is None:
        return None
    if file.size > _MOST_PIECES:
        raise InputError(f"has {file.size} bytes; the limit is {_MOST_PIECES}", file=file.path)
    try:
        return parse(file.read(0, file.size))
    except ValueError as error:
        raise InputError(f"is no tokenizer.model of SentencePiece: {error}", file=file.path) from error
