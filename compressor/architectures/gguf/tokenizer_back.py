"""The files of a tokenizer, as transformers loads them, out of the metadata of a GGUF file."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

from compressor.architectures.gguf import chat_templates
from compressor.architectures.gguf.pretokenizers import ignores_merges, pre_tokenizer_of
from compressor.architectures.gguf.spaces import SPACE, Unsupported
from compressor.architectures.gguf.tokenizers import PREFIX, TokenType

Json = dict[str, Any]
_NAMES: Mapping[str, str] = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "sep_token": "seperator_token_id",
    "pad_token": "padding_token_id",
    "mask_token": "mask_token_id",
}


def tokenizer_files(said: Mapping[str, Any], context: int | None) -> dict[str, Json]:
    """tokenizer.json and tokenizer_config.json by their names, for `said`, the keys of GGUF that begin with
    `tokenizer.`; `context`: the longest text. Unsupported where they cannot be made."""
    kind, tokens = said.get(f"{PREFIX}.model"), said.get(f"{PREFIX}.tokens")
    makers = {"gpt2": _byte_level, "llama": _sentencepiece, "bert": _wordpiece, "t5": _unigram}
    if kind == "none":
        raise Unsupported("the file has none")
    if kind not in makers or not isinstance(tokens, list) or not tokens:
        raise Unsupported(f"its kind is {kind!r} to llama.cpp, of which no tokenizer.json is made here")
    types = said.get(f"{PREFIX}.token_type") or [TokenType.NORMAL] * len(tokens)
    if len(types) != len(tokens):
        raise Unsupported(f"it has {len(tokens)} tokens and {len(types)} types of them")
    special = {name: _token(said, tokens, key) for name, key in _NAMES.items()}
    if kind == "bert":
        special["cls_token"] = special["bos_token"]
    made = makers[kind](said, tokens, types)
    made = {"version": "1.0", "truncation": None, "padding": None, **made}
    made["added_tokens"] = _added(tokens, types, special.values())
    made["post_processor"] = made.get("post_processor") or _ends(said, special, tokens)
    config: Json = {name: text for name, text in special.items() if text is not None}
    config |= {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    if context:
        config["model_max_length"] = context
    template = chat_templates.of_metadata(said)
    if template is not None:
        config["chat_template"] = template
    return {"tokenizer.json": made, "tokenizer_config.json": config}


def special_numbers(said: Mapping[str, Any]) -> dict[str, int | None]:
    """What a config.json says of special tokens; None of those that there are not, so that no default counts."""
    return {f"{name}_id": said.get(f"{PREFIX}.{_NAMES[name]}") for name in ("bos_token", "eos_token", "pad_token")}


def _token(said: Mapping[str, Any], tokens: Sequence[str], key: str) -> str | None:
    number = said.get(f"{PREFIX}.{key}")
    return tokens[number] if isinstance(number, int) and 0 <= number < len(tokens) else None


def _vocabulary(tokens: Sequence[str], types: Sequence[int]) -> dict[str, int]:
    return {text: number for number, text in enumerate(tokens) if types[number] != TokenType.UNUSED}


def _added(tokens: Sequence[str], types: Sequence[int], special: Any) -> list[Json]:
    named = {text for text in special if text is not None}
    found = []
    for number, text in enumerate(tokens):
        control = types[number] == TokenType.CONTROL or (text in named and types[number] != TokenType.NORMAL)
        if control or types[number] == TokenType.USER_DEFINED:
            flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
            found.append({"id": number, "content": text, **flags, "special": control})
    return found


def _ends(said: Mapping[str, Any], special: Mapping[str, str | None], tokens: Sequence[str]) -> Json | None:
    """A post-processor that puts the special tokens before and behind a text that llama.cpp puts there."""
    first = special["bos_token"] if said.get(f"{PREFIX}.add_bos_token") else None
    last = special["eos_token"] if said.get(f"{PREFIX}.add_eos_token") else None
    if first is None and last is None:
        return None
    before = [{"SpecialToken": {"id": first, "type_id": 0}}] if first is not None else []
    behind = [{"SpecialToken": {"id": last, "type_id": 0}}] if last is not None else []
    one, two = [{"Sequence": {"id": name, "type_id": number}} for number, name in enumerate("AB")]
    used = {text: tokens.index(text) for text in (first, last) if text is not None}
    return {
        "type": "TemplateProcessing",
        "single": [*before, one, *behind],
        "pair": [*before, one, *behind, *before, two, *behind],
        "special_tokens": {text: {"id": text, "ids": [number], "tokens": [text]} for text, number in used.items()},
    }


def _bpe(vocab: dict[str, int], merges: Sequence[Any], **more: Any) -> Json:
    model: Json = {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None}
    model |= {"end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False}
    return {**model, "vocab": vocab, "merges": list(merges), **more}


def _byte_level(said: Mapping[str, Any], tokens: Sequence[str], types: Sequence[int]) -> Json:
    name = said.get(f"{PREFIX}.pre") or "default"
    divide = pre_tokenizer_of(name)
    if divide is None:
        raise Unsupported(f"llama.cpp divides its texts as {name!r}, of which the pattern is not known here")
    decoder = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
    merges = said.get(f"{PREFIX}.merges") or []
    model = _bpe(_vocabulary(tokens, types), merges, ignore_merges=ignores_merges(name))
    return {"normalizer": None, "pre_tokenizer": divide, "decoder": decoder, "model": model}


def _sentencepiece(said: Mapping[str, Any], tokens: Sequence[str], types: Sequence[int]) -> Json:
    scores = said.get(f"{PREFIX}.scores") or []
    if len(scores) != len(tokens):
        raise Unsupported(f"it has {len(tokens)} tokens and {len(scores)} scores of them")
    before = said.get(f"{PREFIX}.add_space_prefix", True)
    spaces = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    normalizer = {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": SPACE}, spaces]}
    steps: list[Json] = [{"type": "Replace", "pattern": {"String": SPACE}, "content": " "}]
    steps += [{"type": "ByteFallback"}, {"type": "Fuse"}]
    if before:
        steps.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    unknown = next((text for text, kind in zip(tokens, types, strict=True) if kind == TokenType.UNKNOWN), None)
    vocab = _vocabulary(tokens, types)
    model = _bpe(vocab, _merges(vocab, tokens, scores, types), unk_token=unknown, fuse_unk=True, byte_fallback=True)
    return {
        "normalizer": normalizer if before else spaces,
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": steps},
        "model": model,
    }


def _unigram(said: Mapping[str, Any], tokens: Sequence[str], types: Sequence[int]) -> Json:
    scores, unknown = said.get(f"{PREFIX}.scores") or [], said.get(f"{PREFIX}.unknown_token_id", 2)
    if len(scores) != len(tokens):
        raise Unsupported(f"it has {len(tokens)} tokens and {len(scores)} scores of them")
    if not isinstance(unknown, int) or not 0 <= unknown < len(tokens):
        raise Unsupported("it does not say which token stands for what is unknown")
    steps: list[Json] = []
    charsmap = said.get(f"{PREFIX}.precompiled_charsmap")
    if charsmap:
        raw = bytes(number & 0xFF for number in charsmap)
        steps.append({"type": "Precompiled", "precompiled_charsmap": base64.b64encode(raw).decode()})
    if said.get(f"{PREFIX}.remove_extra_whitespaces"):
        pairs = ((r"\A +| +\z", ""), (" {2,}", " "))
        steps += [{"type": "Replace", "pattern": {"Regex": regex}, "content": text} for regex, text in pairs]
    scheme = "always" if said.get(f"{PREFIX}.add_space_prefix", True) else "never"
    divide = {"type": "Metaspace", "replacement": SPACE, "prepend_scheme": scheme, "split": False}
    used = max((number for number, kind in enumerate(types) if kind != TokenType.UNUSED), default=-1) + 1
    vocab = [[text, score] for text, score in zip(tokens[:used], scores, strict=False)]
    return {
        "normalizer": {"type": "Sequence", "normalizers": steps} if steps else None,
        "pre_tokenizer": divide,
        "decoder": divide,
        "model": {"type": "Unigram", "unk_id": unknown, "vocab": vocab, "byte_fallback": False},
    }


def _merges(
    vocab: Mapping[str, int], tokens: Sequence[str], scores: Sequence[float], types: Sequence[int]
) -> list[list[str]]:
    """The merges that make pieces, best pieces first: every way to divide one into two, as transformers has it."""
    normal = [n for n, kind in enumerate(types) if kind == TokenType.NORMAL and len(tokens[n]) > 1]
    normal.sort(key=lambda number: (-scores[number], number))
    found: list[list[str]] = []
    for number in normal:
        text = tokens[number]
        ways = [(text[:at], text[at:]) for at in range(1, len(text)) if text[:at] in vocab and text[at:] in vocab]
        ways.sort(key=lambda way: (vocab[way[0]], vocab[way[1]]))
        found += [list(way) for way in ways]
    return found


def _wordpiece(said: Mapping[str, Any], tokens: Sequence[str], types: Sequence[int]) -> Json:
    texts = [_word(text, types[number]) for number, text in enumerate(tokens)]
    first, last, unknown = (_token(said, tokens, _NAMES[name]) for name in ("bos_token", "sep_token", "unk_token"))
    last = last or _token(said, tokens, _NAMES["eos_token"])
    if first is None or last is None or unknown is None:
        raise Unsupported("it does not say its [CLS], [SEP] and [UNK]")
    lowers = said.get(f"{PREFIX}.normalizer.lowercase") is not False
    strips = said.get(f"{PREFIX}.normalizer.strip_accents")
    normalizer = {"clean_text": True, "handle_chinese_chars": True, "strip_accents": strips, "lowercase": lowers}
    model: Json = {"type": "WordPiece", "unk_token": unknown, "continuing_subword_prefix": "##"}
    model |= {"max_input_chars_per_word": 100, "vocab": _vocabulary(texts, types)}
    both = {"sep": [last, tokens.index(last)], "cls": [first, tokens.index(first)]}
    return {
        "normalizer": {"type": "BertNormalizer", **normalizer},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "post_processor": {"type": "BertProcessing", **both},
        "model": model,
    }


def _word(text: str, kind: int) -> str:
    """A token of WordPiece as transformers spells it: what continues a word begins with ##."""
    if kind in (TokenType.CONTROL, TokenType.UNUSED):
        return text
    return text[1:] if text.startswith(SPACE) else f"##{text}"
