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
MORE_TEMPLATES = "additional_chat_templates/"
_MOST_PIECES = 64 << 20  # bytes of a tokenizer.model; Gemma's has 5 million
# Files that are read into the metadata, or say nothing that it does not
READ = (
    *(TOKENIZER, CONFIG, PIECES, TEMPLATE, OLD_TEMPLATE, ADDED),
    *("special_tokens_map.json", "vocab.json", "merges.txt", "vocab.txt", "config.json"),
)


def read_tokenizer(source: Source) -> TokenizerFiles:
    """The tokenizer of a folder, as much as there is. InputError for files that are not what their names say."""
    return TokenizerFiles(
        tokenizer=_object(source, TOKENIZER),
        config=_object(source, CONFIG) or {},
        model=source.config or {},
        pieces=_pieces(source),
        files=_templates(source),
        template=(_object(source, OLD_TEMPLATE) or {}).get("chat_template"),
        added=_object(source, ADDED) or {},
    )


def _templates(source: Source) -> dict[str, str]:
    """The files of chat templates by their names, the first of which is the default."""
    found: dict[str, str] = {}
    for path, file in source.carried.items():
        inner = path.removeprefix(source.inside)
        name = "default" if inner == TEMPLATE else inner.removeprefix(MORE_TEMPLATES).removesuffix(".jinja")
        if inner in (TEMPLATE, f"{MORE_TEMPLATES}{name}.jinja") and path.startswith(source.inside):
            found[name] = file.read(0, file.size).decode("utf-8", "replace")
    return dict(sorted(found.items(), key=lambda one: (one[0] != "default", one[0])))


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
