"""A tokenizer of 256 tokens for small models, which some loaders open no folder without. It is given no text."""

from __future__ import annotations

import json
from pathlib import Path

from bench.loaders.families import VOCABULARY
from compressor.architectures.gguf.pretokenizers import pre_tokenizer_of

_LETTERS = "abcdefghijklmnop"


def write_tokenizer(folder: Path, kind: str = "gpt-2") -> None:
    """Write tokenizer.json and tokenizer_config.json: pairs of letters, none a part of a character. `kind` is
    llama.cpp's name for a way to divide texts, or `wordpiece`."""
    tokens = [one + other for one in _LETTERS for other in _LETTERS][:VOCABULARY]
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"] if kind == "wordpiece" else ["<s>", "</s>"]
    tokens[: len(special)] = special
    vocabulary = {token: number for number, token in enumerate(tokens)}
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    added = [{"id": number, "content": text, "special": True, **flags} for number, text in enumerate(special)]
    whole = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "post_processor": None}
    if kind == "wordpiece":
        both = {"cls": ["[CLS]", 2], "sep": ["[SEP]", 3]}
        names = ("pad_token", "unk_token", "cls_token", "sep_token")
        whole |= {
            "normalizer": {
                "type": "BertNormalizer",
                "clean_text": True,
                "handle_chinese_chars": True,
                "strip_accents": None,
                "lowercase": True,
            },
            "pre_tokenizer": {"type": "BertPreTokenizer"},
            "post_processor": {"type": "BertProcessing", **both},
            "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
            "model": {
                "type": "WordPiece",
                "unk_token": "[UNK]",
                "continuing_subword_prefix": "##",
                "max_input_chars_per_word": 100,
                "vocab": vocabulary,
            },
        }
    else:
        names = ("bos_token", "eos_token")
        whole |= {
            "normalizer": None,
            "pre_tokenizer": pre_tokenizer_of(kind),
            "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
            "model": {"type": "BPE", "vocab": vocabulary, "merges": []},
        }
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **dict(zip(names, special, strict=True))}
    (folder / "tokenizer.json").write_text(json.dumps(whole), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
