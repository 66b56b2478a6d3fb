"""A tokenizer as metadata of a GGUF file, from the files that transformers keeps it in.

Four kinds are known to llama.cpp and here: byte-level BPE ("gpt2" there), SentencePiece's BPE, which writes
spaces as ▁ and has bytes as a last resort ("llama"), its unigrams ("t5"), and WordPiece ("bert"). What a file
cannot hold is `Unsupported`, whose text says what the tokenizer does that llama.cpp would not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

from compressor.architectures.gguf import chat_templates
from compressor.architectures.gguf.pretokenizers import name_of
from compressor.architectures.gguf.sentencepiece import SentencePiece
from compressor.architectures.gguf.spaces import SPACE, Json, Spaces, Unsupported, normalizers, spaces_of

PREFIX = "tokenizer.ggml"
NONE: Mapping[str, Any] = {f"{PREFIX}.model": "none"}
_MOST = 1 << 22  # tokens; the largest vocabularies have a quarter of a million


class TokenType(IntEnum):
    """What a token is to llama.cpp (and a piece to SentencePiece)."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True, slots=True)
class TokenizerFiles:
    """What a folder has of a tokenizer, parsed: `tokenizer` is tokenizer.json, `config` tokenizer_config.json,
    `model` config.json, `pieces` tokenizer.model, `files` the texts of chat_template.jinja and of the files in
    additional_chat_templates by their names, `template` what chat_template.json says, `added` added_tokens.json."""

    tokenizer: Json | None = None
    config: Json = field(default_factory=dict)
    model: Json = field(default_factory=dict)
    pieces: SentencePiece | None = None
    files: Mapping[str, str] = field(default_factory=dict)
    template: object = None
    added: Json = field(default_factory=dict)

    @property
    def templates(self) -> object:
        """The chat templates that transformers takes, as they are said."""
        return self.files or self.config.get("chat_template") or self.template


@dataclass(slots=True)
class _Tokens:
    """The vocabulary as lists of one entry a token; what no token has is unused."""

    texts: list[str]
    types: list[int]
    scores: list[float]

    @classmethod
    def empty(cls, count: int) -> _Tokens:
        if not 0 < count <= _MOST:
            raise Unsupported(f"its vocabulary has {count} tokens")
        return cls([f"[PAD{n}]" for n in range(count)], [TokenType.UNUSED] * count, [-10000.0] * count)

    def put(self, number: object, text: object, kind: TokenType, score: float) -> None:
        if not isinstance(number, int) or not isinstance(text, str) or not 0 <= number < len(self.texts):
            raise Unsupported(
                f"its token {text!r} has the number {number!r}, of {len(self.texts)} that the model has"
            )
        self.texts[number], self.types[number], self.scores[number] = text, kind, score


def tokenizer_metadata(files: TokenizerFiles, *, vocabulary: int, wordpiece: bool) -> dict[str, Any]:
    """The keys that describe the tokenizer to llama.cpp, for a model of so many tokens. Unsupported where that
    cannot be; `wordpiece`: whether the model is one of those whose tokenizer has to be WordPiece (BERT)."""
    pieces = _pieces(files)
    if pieces is not None and not wordpiece:
        found = _sentencepiece(files, pieces, vocabulary)
    elif files.tokenizer is not None:
        found = _from_json(files, files.tokenizer, vocabulary)
    else:
        raise Unsupported("it has neither tokenizer.json nor tokenizer.model")
    kind = found[f"{PREFIX}.model"]
    if kind not in (("bert", "t5") if wordpiece else ("gpt2", "llama", "t5")):
        raise Unsupported(f"llama.cpp wants {'WordPiece' if wordpiece else 'BPE or SentencePiece'} of this model")
    if wordpiece:
        found[f"{PREFIX}.token_type_count"] = min(max(int(files.model.get("type_vocab_size") or 1), 1), _MOST)
    _check_tokens(found[f"{PREFIX}.tokens"])
    found |= _special_tokens(files, found)
    return found | chat_templates.metadata(files.templates)


def _pieces(files: TokenizerFiles) -> SentencePiece | None:
    """tokenizer.model, where it counts: transformers numbers unigrams otherwise."""
    return None if files.pieces is not None and files.pieces.unigram and files.tokenizer else files.pieces


def _check_tokens(tokens: Sequence[str]) -> None:
    """llama.cpp loads no vocabulary that has a token twice."""
    seen: dict[str, int] = {}
    for number, text in enumerate(tokens):
        if seen.setdefault(text, number) != number:
            raise Unsupported(
                f"its tokens {seen[text]} and {number} are both {text!r}, of which llama.cpp loads one"
            )


def remarks(files: TokenizerFiles) -> Iterator[str]:
    """What llama.cpp does otherwise with texts of some kind."""
    stripped = [text for text, flags in _flags(files) if flags]
    if stripped:
        more = f" and {len(stripped) - 1} more" if len(stripped) > 1 else ""
        yield f"llama.cpp leaves the spaces round {stripped[0]!r}{more}, which this tokenizer takes away"
    yield from chat_templates.remarks(files.templates)
    pieces = _pieces(files)
    if pieces is not None:
        if pieces.bpe and (pieces.charsmap or pieces.merges_spaces):
            yield "the tokenizer replaces characters or joins spaces, and llama.cpp's BPE does not: texts differ"
    elif files.tokenizer is not None:
        yield from _remarks_of_json(files.tokenizer)


def _flags(files: TokenizerFiles) -> Iterator[tuple[str, bool]]:
    """Added tokens, and whether they take spaces beside them along."""
    for one in (files.tokenizer or {}).get("added_tokens") or ():
        if isinstance(one, dict):
            yield str(one.get("content")), bool(one.get("lstrip") or one.get("rstrip"))


def _remarks_of_json(tokenizer: Json) -> Iterator[str]:
    kinds = {one.get("type"): one for one in normalizers(tokenizer.get("normalizer"))}
    if kinds.keys() & {"NFC", "NFKC"}:
        yield "the tokenizer composes characters (NFC), and llama.cpp does not: decomposed texts differ"
    if _strips_accents(kinds.get("BertNormalizer") or {}):
        yield "llama.cpp takes Korean syllables apart otherwise than this tokenizer: texts with them differ"
    model = tokenizer.get("model") or {}
    if model.get("type") == "Unigram" or model.get("byte_fallback"):
        spaces = spaces_of(tokenizer)
        if spaces.before and not (spaces.always or spaces.merged):
            yield "llama.cpp puts a space also before texts that begin with one, and this tokenizer does not"


def _from_json(files: TokenizerFiles, tokenizer: Json, vocabulary: int) -> dict[str, Any]:
    model = tokenizer.get("model")
    kind = model.get("type") if isinstance(model, dict) else None
    if not isinstance(model, dict) or kind not in ("BPE", "WordPiece", "Unigram"):
        raise Unsupported(f"its kind is {kind!r}, and BPE, SentencePiece's models and WordPiece are known")
    if kind == "WordPiece":
        return _wordpiece(files, tokenizer, model, vocabulary)
    if kind == "Unigram":
        return _unigram(files, tokenizer, model, vocabulary)
    if model.get("byte_fallback"):
        return _bpe_with_spaces(files, tokenizer, model, vocabulary)
    return _byte_level(files, tokenizer, model, vocabulary)


# ---- the four kinds ------------------------------------------------------------------------------------


def _byte_level(files: TokenizerFiles, tokenizer: Json, model: Json, vocabulary: int) -> dict[str, Any]:
    for one in normalizers(tokenizer.get("normalizer")):
        if one.get("type") not in ("NFC", "NFKC"):
            raise Unsupported(f"its normalizer {one.get('type')!r} is none that llama.cpp has for byte-level BPE")
    name = name_of(tokenizer.get("pre_tokenizer"), ignore_merges=bool(model.get("ignore_merges")))
    if name is None:
        raise Unsupported("its pre_tokenizer divides texts in a way that llama.cpp has no name for")
    tokens = _vocabulary(model, vocabulary)
    _add_tokens(tokens, files)
    merges = [" ".join(part.replace(" ", "Ġ") for part in pair) for pair in _merges(model)]
    return {
        f"{PREFIX}.model": "gpt2",
        f"{PREFIX}.pre": name,
        f"{PREFIX}.tokens": tokens.texts,
        f"{PREFIX}.token_type": tokens.types,
        f"{PREFIX}.merges": merges,
    }


def _bpe_with_spaces(files: TokenizerFiles, tokenizer: Json, model: Json, vocabulary: int) -> dict[str, Any]:
    """SentencePiece's BPE out of tokenizer.json. It merges the pair whose piece has the best score, which is the
    order in which the merges stand."""
    spaces = spaces_of(tokenizer)
    if spaces.charsmap or spaces.merged:
        raise Unsupported("it replaces characters or joins spaces, which llama.cpp's BPE does not")
    tokens = _vocabulary(model, vocabulary)
    ranks: dict[str, float] = {}
    for rank, pair in enumerate(_merges(model)):
        ranks.setdefault("".join(pair), -float(rank))
    last = -float(len(ranks) + 1)
    for number, text in enumerate(tokens.texts):
        if tokens.types[number] == TokenType.NORMAL:
            tokens.scores[number] = ranks.get(text, last)
            if len(text) == 6 and text.startswith("<0x") and text.endswith(">"):
                tokens.types[number], tokens.scores[number] = TokenType.BYTE, 0.0
    unknown = (model.get("vocab") or {}).get(model.get("unk_token"))
    _add_tokens(tokens, files)
    if isinstance(unknown, int) and 0 <= unknown < vocabulary:
        tokens.types[unknown] = TokenType.UNKNOWN
    return _spm(tokens, space=spaces.before)


def _sentencepiece(files: TokenizerFiles, pieces: SentencePiece, vocabulary: int) -> dict[str, Any]:
    if not (pieces.bpe or pieces.unigram):
        raise Unsupported("its tokenizer.model is neither BPE nor unigrams but another kind of SentencePiece's")
    tokens = _Tokens.empty(vocabulary)
    for number, piece in enumerate(pieces.pieces):
        if number < vocabulary:
            tokens.put(number, piece.text, TokenType(piece.kind), piece.score)
    _add_tokens(tokens, files)
    if pieces.bpe:
        return _spm(tokens, space=pieces.space_before)
    return _ugm(tokens, Spaces(pieces.space_before, merged=pieces.merges_spaces, charsmap=pieces.charsmap))


def _unigram(files: TokenizerFiles, tokenizer: Json, model: Json, vocabulary: int) -> dict[str, Any]:
    """SentencePiece's unigrams out of tokenizer.json, whose vocabulary is a list of texts with their scores."""
    tokens, unknown = _Tokens.empty(vocabulary), model.get("unk_id")
    for number, one in enumerate(model.get("vocab") or ()):
        if not isinstance(one, list) or len(one) != 2 or not isinstance(one[1], (int, float)):
            raise Unsupported(f"its token {number} is no text with a score")
        tokens.put(number, one[0], TokenType.NORMAL, float(one[1]))
    scores = list(tokens.scores)
    _add_tokens(tokens, files)
    tokens.scores = [new if old == -10000.0 else old for old, new in zip(scores, tokens.scores, strict=True)]
    if not isinstance(unknown, int) or not 0 <= unknown < vocabulary:
        raise Unsupported("it does not say which token stands for what is unknown")
    tokens.types[unknown] = TokenType.UNKNOWN
    if model.get("byte_fallback"):
        raise Unsupported("it has bytes for unknown characters, which llama.cpp's unigrams have not")
    return _ugm(tokens, spaces_of(tokenizer))


def _ugm(tokens: _Tokens, spaces: Spaces) -> dict[str, Any]:
    if TokenType.BYTE in tokens.types:
        raise Unsupported("it has bytes for unknown characters, which llama.cpp's unigrams have not")
    if TokenType.UNKNOWN not in tokens.types:
        raise Unsupported("it does not say which token stands for what is unknown")
    if spaces.lines and not spaces.charsmap:
        raise Unsupported("it divides texts at tabs and ends of lines, which llama.cpp's unigrams do not")
    made: dict[str, Any] = {
        f"{PREFIX}.model": "t5",
        f"{PREFIX}.pre": "default",
        f"{PREFIX}.tokens": tokens.texts,
        f"{PREFIX}.scores": tokens.scores,
        f"{PREFIX}.token_type": tokens.types,
        f"{PREFIX}.add_space_prefix": spaces.before,
        f"{PREFIX}.remove_extra_whitespaces": spaces.merged,
        f"{PREFIX}.unknown_token_id": tokens.types.index(TokenType.UNKNOWN),
    }
    return made | ({f"{PREFIX}.precompiled_charsmap": spaces.charsmap} if spaces.charsmap else {})


def _spm(tokens: _Tokens, *, space: bool) -> dict[str, Any]:
    return {
        f"{PREFIX}.model": "llama",
        f"{PREFIX}.pre": "default",
        f"{PREFIX}.tokens": tokens.texts,
        f"{PREFIX}.scores": tokens.scores,
        f"{PREFIX}.token_type": tokens.types,
        f"{PREFIX}.add_space_prefix": space,
    }


def _wordpiece(files: TokenizerFiles, tokenizer: Json, model: Json, vocabulary: int) -> dict[str, Any]:
    normalizer, divide = tokenizer.get("normalizer") or {}, tokenizer.get("pre_tokenizer") or {}
    if normalizer.get("type") != "BertNormalizer" or divide.get("type") != "BertPreTokenizer":
        raise Unsupported("it does not divide texts as BERT does, which is what llama.cpp's WordPiece does")
    for key in ("clean_text", "handle_chinese_chars"):
        if normalizer.get(key) is False:
            raise Unsupported(f"its {key} is off, which is always on in llama.cpp's WordPiece")
    if model.get("continuing_subword_prefix", "##") != "##":
        raise Unsupported(f"it continues words with {model['continuing_subword_prefix']!r} and not with '##'")
    tokens = _vocabulary(model, vocabulary)
    _add_tokens(tokens, files)
    for number, text in enumerate(tokens.texts):
        if tokens.types[number] != TokenType.CONTROL:
            tokens.texts[number] = text[2:] if text.startswith("##") else f"{SPACE}{text}"
    lowers, strips = normalizer.get("lowercase") is not False, _strips_accents(normalizer)
    made: dict[str, Any] = {
        f"{PREFIX}.model": "bert",
        f"{PREFIX}.pre": "default",
        f"{PREFIX}.tokens": tokens.texts,
        f"{PREFIX}.token_type": tokens.types,
    }
    if not lowers:
        made[f"{PREFIX}.normalizer.lowercase"] = False
    return made | ({f"{PREFIX}.normalizer.strip_accents": strips} if strips != lowers else {})


def _strips_accents(normalizer: Json) -> bool:
    """Whether a BertNormalizer takes accents away: where it does not say, if it lowers capitals."""
    said = normalizer.get("strip_accents")
    return bool(normalizer.get("lowercase") if said is None else said)


# ---- their parts ---------------------------------------------------------------------------------------


def _vocabulary(model: Json, count: int) -> _Tokens:
    tokens, found = _Tokens.empty(count), model.get("vocab")
    if not isinstance(found, dict) or not found:
        raise Unsupported("its vocabulary is missing")
    for text, number in found.items():
        tokens.put(number, text, TokenType.NORMAL, 0.0)
    if len(set(found.values())) < len(found):
        raise Unsupported("tokens of its vocabulary have one number")
    return tokens


def _merges(model: Json) -> Iterator[tuple[str, str]]:
    """The halves of each merge, in the order of their ranks."""
    known = model["vocab"]
    for one in model.get("merges") or ():
        left, right = _pair(one)
        if left not in known or right not in known or left + right not in known:
            raise Unsupported(f"its merge {one!r} is not of tokens of the vocabulary")
        yield left, right


def _added(files: TokenizerFiles) -> Iterator[tuple[int, str, bool]]:
    """Added tokens: their number, text and whether they are special."""
    for text, number in files.added.items():
        yield number, text, False
    decoder = files.config.get("added_tokens_decoder")
    listed: list[Any] = (
        [{"id": number, **one} for number, one in decoder.items()] if isinstance(decoder, dict) else []
    )
    if files.tokenizer is not None:
        listed += files.tokenizer.get("added_tokens") or []
    for one in listed:
        if not isinstance(one, dict) or not str(one.get("id")).isdecimal():
            raise Unsupported(f"its added token {one!r} has no number")
        yield int(one["id"]), one.get("content", ""), bool(one.get("special"))


def _add_tokens(tokens: _Tokens, files: TokenizerFiles) -> None:
    for number, text, special in _added(files):
        if isinstance(text, str) and (special or _looks_special(text)):
            tokens.put(number, text, TokenType.CONTROL, -1000.0)
        else:
            tokens.put(number, text.replace(SPACE, " "), TokenType.USER_DEFINED, -1000.0)


def _looks_special(text: str) -> bool:
    """Whether a token that is not marked as special is one by its looks, as llama.cpp's converter has it."""
    return (
        text in ("<pad>", "<mask>", "<2mass>", "[@BOS@]")
        or (text.startswith("<|") and text.endswith("|>"))
        or (text.startswith("<｜") and text.endswith("｜>"))
        or (text.startswith("<unused") and text.endswith(">"))
    )


def _pair(merge: object) -> tuple[str, str]:
    """The two halves of a merge, written as one text or as two."""
    parts = merge.split(" ") if isinstance(merge, str) else merge
    if not isinstance(parts, list) or len(parts) != 2 or not all(isinstance(part, str) for part in parts):
        raise Unsupported(f"its merge {merge!r} is no pair")
    return parts[0], parts[1]


# ---- special tokens and templates ----------------------------------------------------------------------

_KEYS: Mapping[str, str] = {
    "bos": "bos_token_id",
    "eos": "eos_token_id",
    "unk": "unknown_token_id",
    "sep": "seperator_token_id",
    "pad": "padding_token_id",
    "mask": "mask_token_id",
}


def absent_tokens(files: TokenizerFiles, found: Mapping[str, Any]) -> Iterator[str]:
    """What is said of special tokens that the vocabulary of the metadata `found` has not."""
    known = {*found[f"{PREFIX}.tokens"], *(text for _, text, _ in _added(files))}
    for kind, text in _named(files).items():
        if text and text not in known:
            number = found.get(f"{PREFIX}.{_KEYS.get(kind)}")
            stands = "the file names none" if number is None else f"{number} stands for it, as config.json says"
            yield f"its {kind}_token is {text!r}, which its vocabulary has not: {stands}"


def _named(files: TokenizerFiles) -> dict[str, str | None]:
    """The texts of special tokens, by what they are."""
    named = {kind: _content(files.config.get(f"{kind}_token")) for kind in (*_KEYS, "cls")}
    return {**named, "bos": named["bos"] or named["cls"], "eos": named["eos"] or named["sep"]}


def _special_tokens(files: TokenizerFiles, found: Mapping[str, Any]) -> dict[str, Any]:
    named = _named(files)
    first, last = _template_ends(files.tokenizer)
    count = len(found[f"{PREFIX}.tokens"])
    numbers = {text: number for number, text in enumerate(found[f"{PREFIX}.tokens"])}
    numbers |= {text: number for number, text, _ in _added(files)}
    made: dict[str, Any] = {}
    for kind, key in _KEYS.items():
        number = numbers.get(named[kind] or "")
        if number is None:
            number = _own_number(files.model.get(f"{kind}_token_id"))
        if number is not None and 0 <= number < count:
            made[f"{PREFIX}.{key}"] = number
    starts = first is not None and first in (named["bos"], named["cls"], None)
    ends = last is not None and last in (named["eos"], named["sep"])
    for kind, template in (("bos", starts), ("eos", ends)):
        said = files.config.get(f"add_{kind}_token")
        known = first is not None or last is not None
        made[f"{PREFIX}.add_{kind}_token"] = template if known or not isinstance(said, bool) else said
    if first is None and last is None and files.tokenizer is None:  # SentencePiece alone: as LlamaTokenizer does
        said = files.config.get("add_bos_token")
        made[f"{PREFIX}.add_bos_token"] = said if isinstance(said, bool) else True
    for kind in ("bos", "eos"):
        needed = kind == "eos" or made[f"{PREFIX}.add_{kind}_token"]
        if needed and named[kind] and f"{PREFIX}.{_KEYS[kind]}" not in made:
            raise Unsupported(
                f"its {kind}_token is {named[kind]!r}, which its vocabulary has not: llama.cpp would take another"
            )
    return made


def _own_number(said: object) -> int | None:
    """A token's number in config.json, which may list several."""
    if isinstance(said, list):
        said = said[0] if said else None
    return said if isinstance(said, int) and not isinstance(said, bool) else None


def _content(token: object) -> str | None:
    """The text of a token, which may stand as an object."""
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else None


def _template_ends(tokenizer: Json | None) -> tuple[str | None, str | None]:
    """The special tokens that the post-processor puts before and behind a text."""
    processor = (tokenizer or {}).get("post_processor") or {}
    first = last = None
    for one in processor.get("processors") or [processor]:
        if one.get("type") in ("RobertaProcessing", "BertProcessing"):
            first, last = (one.get("cls") or [None])[0], (one.get("sep") or [None])[0]
        if one.get("type") != "TemplateProcessing":
            continue
        single = one.get("single")
        if not isinstance(single, list) or sum("Sequence" in part for part in single) != 1:
            raise Unsupported("its post_processor does not say what is put before and behind a text")
        text = next(place for place, part in enumerate(single) if "Sequence" in part)
        if text > 1 or len(single) - text > 2:
            raise Unsupported("it puts several tokens before or behind a text, where llama.cpp puts one")
        first = single[0].get("SpecialToken", {}).get("id", first)
        last = single[-1].get("SpecialToken", {}).get("id", last)
    return first, last
