"""Tokenizers as metadata: every kind, what is refused, and the way back."""

from __future__ import annotations

import struct
from dataclasses import replace
from typing import Any

import pytest
from support.gguf_models import VOCABULARY, tokenizer

from compressor.architectures.gguf.pretokenizers import name_of, pre_tokenizer_of
from compressor.architectures.gguf.sentencepiece import parse
from compressor.architectures.gguf.spaces import Unsupported
from compressor.architectures.gguf.tokenizer_back import special_numbers, tokenizer_files
from compressor.architectures.gguf.tokenizers import (
    TokenizerFiles,
    TokenType,
    absent_tokens,
    remarks,
    tokenizer_metadata,
)

P = "tokenizer.ggml"
KNOWN = (
    *("llama-bpe", "dbrx", "qwen2", "qwen35", "gpt-4o", "tekken", "deepseek-v3", "deepseek-llm", "deepseek-coder"),
    *("seed-coder", "bailingmoe", "minicpm5", "smollm", "gpt-2"),
)
IGNORING = ("llama-bpe", "tekken", "minicpm5")


def files(kind: str = "gpt-2", **more: Any) -> TokenizerFiles:
    made = tokenizer(kind)
    return TokenizerFiles(made["tokenizer.json"] | more.pop("json", {}), made["tokenizer_config.json"] | more)


def made(kind: str = "gpt-2", **more: Any) -> dict[str, Any]:
    return tokenizer_metadata(files(kind, **more), vocabulary=VOCABULARY, wordpiece=kind == "wordpiece")


@pytest.mark.parametrize("name", KNOWN)
def test_every_way_to_divide_is_recognised(name: str) -> None:
    assert name_of(pre_tokenizer_of(name), ignore_merges=name in IGNORING) == name


def test_a_way_that_is_not_known() -> None:
    strange = {"type": "Split", "pattern": {"Regex": "."}, "behavior": "Isolated", "invert": False}
    assert name_of(strange, ignore_merges=False) is None
    with pytest.raises(Unsupported, match=r"in a way that llama\.cpp has no name for"):
        made(json={"pre_tokenizer": strange})


def test_byte_level() -> None:
    found = made()
    assert found[f"{P}.model"] == "gpt2"
    assert found[f"{P}.pre"] == "gpt-2"
    assert found[f"{P}.tokens"][:4] == ["<s>", "</s>", "<unk>", "a"]
    assert len(found[f"{P}.tokens"]) == VOCABULARY
    assert found[f"{P}.merges"][:2] == ["a b", "c d"]
    types = found[f"{P}.token_type"]
    assert types[0] == TokenType.CONTROL
    assert types[3] == TokenType.NORMAL
    assert types[-1] == TokenType.UNUSED
    assert (found[f"{P}.bos_token_id"], found[f"{P}.eos_token_id"], found[f"{P}.unknown_token_id"]) == (0, 1, 2)
    assert found[f"{P}.add_bos_token"] is False


def test_a_token_that_is_added_and_not_special() -> None:
    added = [{"id": 34, "content": "▁▁::="}, {"id": 35, "content": "<|tool|>"}]
    found = made(json={"added_tokens": added})
    assert found[f"{P}.tokens"][34] == "  ::="
    assert found[f"{P}.token_type"][34] == TokenType.USER_DEFINED
    assert found[f"{P}.token_type"][35] == TokenType.CONTROL


def test_what_is_put_before_and_behind() -> None:
    ends = [{"SpecialToken": {"id": "<s>"}}, {"Sequence": {"id": "A"}}, {"SpecialToken": {"id": "</s>"}}]
    found = made(json={"post_processor": {"type": "TemplateProcessing", "single": ends}})
    assert found[f"{P}.add_bos_token"] is True
    assert found[f"{P}.add_eos_token"] is True
    assert made(add_bos_token=True)[f"{P}.add_bos_token"] is True


def test_templates() -> None:
    assert made(chat_template="{{x}}")["tokenizer.chat_template"] == "{{x}}"
    named = [{"name": "default", "template": "a"}, {"name": "tool", "template": "b"}]
    found = made(chat_template=named)
    assert found["tokenizer.chat_template"] == "a"
    assert found["tokenizer.chat_template.tool"] == "b"
    assert found["tokenizer.chat_templates"] == ["tool"]


def test_templates_of_every_form() -> None:
    """A list, texts by their names, files; and what is none of them."""
    for said in ({"default": "a", "tool-use": "b"}, [{"name": "tool-use", "template": "b"}]):
        found = made(chat_template=said)
        assert found["tokenizer.chat_template.tool_use"] == "b"  # of letters, digits and _
        assert found["tokenizer.chat_templates"] == ["tool_use"]
    named = replace(files(chat_template="old"), files={"default": "new", "rag": "c"})
    found = tokenizer_metadata(named, vocabulary=VOCABULARY, wordpiece=False)
    assert (found["tokenizer.chat_template"], found["tokenizer.chat_template.rag"]) == ("new", "c")
    back = tokenizer_files(found, None)["tokenizer_config.json"]
    assert back["chat_template"] == [{"name": "default", "template": "new"}, {"name": "rag", "template": "c"}]
    assert tokenizer_files(made(chat_template="x"), None)["tokenizer_config.json"]["chat_template"] == "x"
    for said, words in (
        (3, "is not all text"),
        ([{"name": "default"}, "x"], "is not all text"),
        ({"rag": "c"}, "none of its chat templates is called default"),
        ({"default": "a", "a-b": "b", "a.b": "c"}, "differ in characters"),
    ):
        assert any(words in one for one in remarks(files(chat_template=said))), said
    assert not any("templa" in one for one in remarks(files(chat_template={"default": "a", "b": "c"})))
    assert not any("templa" in one for one in remarks(files()))


def special(**texts: str) -> dict[str, str]:
    return {f"{kind}_token": text for kind, text in texts.items()}


def test_special_tokens_that_the_vocabulary_has_not() -> None:
    """llama.cpp has numbers of its own for a first and a last token that a file does not name."""
    with pytest.raises(Unsupported, match="its eos_token is '<end>', which its vocabulary has not"):
        made(**special(eos="<end>"))
    with pytest.raises(Unsupported, match="its bos_token is '<start>', which its vocabulary has not"):
        made(add_bos_token=True, **special(bos="<start>"))
    said = files(**special(bos="<start>", pad="<hole>"))
    found = tokenizer_metadata(said, vocabulary=VOCABULARY, wordpiece=False)
    assert f"{P}.bos_token_id" not in found
    assert list(absent_tokens(said, found)) == [
        "its bos_token is '<start>', which its vocabulary has not: the file names none",
        "its pad_token is '<hole>', which its vocabulary has not: the file names none",
    ]
    said = replace(files(**special(eos="<end>")), model={"eos_token_id": [5, 6]})
    found = tokenizer_metadata(said, vocabulary=VOCABULARY, wordpiece=False)
    assert found[f"{P}.eos_token_id"] == 5
    assert list(absent_tokens(said, found)) == [
        "its eos_token is '<end>', which its vocabulary has not: 5 stands for it, as config.json says"
    ]
    assert not list(absent_tokens(files(), made()))


def test_wordpiece() -> None:
    found = made("wordpiece")
    assert found[f"{P}.model"] == "bert"
    assert found[f"{P}.tokens"][:5] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "▁a"]
    assert found[f"{P}.tokens"][14] == "a"
    assert found[f"{P}.bos_token_id"] == 2
    assert found[f"{P}.eos_token_id"] == 3
    assert found[f"{P}.add_bos_token"] is True
    assert found[f"{P}.add_eos_token"] is True


FIRST, TEXT = {"SpecialToken": {"id": "<s>"}}, {"Sequence": {"id": "A"}}


@pytest.mark.parametrize(
    ("kind", "json", "said"),
    [
        ("gpt-2", {"model": {"type": "WordLevel"}}, "its kind is 'WordLevel'"),
        ("gpt-2", {"model": {"type": "BPE"}}, "its vocabulary is missing"),
        ("gpt-2", {"model": {"type": "BPE", "vocab": {"a": 40}}}, "its token 'a' has the number 40, of 40"),
        ("gpt-2", {"model": {"type": "BPE", "vocab": {"a": 3}, "merges": [["a"]]}}, "is no pair"),
        ("gpt-2", {"model": {"type": "BPE", "vocab": {}}}, "its vocabulary is missing"),
        ("gpt-2", {"model": {"type": "BPE", "vocab": {"a": 3, "b": 3}}}, "have one number"),
        ("gpt-2", {"model": {"type": "BPE", "vocab": {"a": 3}, "merges": ["a b"]}}, "not of tokens of the vocab"),
        ("gpt-2", {"added_tokens": [{"content": "x"}]}, "has no number"),
        ("gpt-2", {"post_processor": {"type": "TemplateProcessing", "single": "x"}}, "does not say what is put"),
        ("gpt-2", {"post_processor": {"type": "TemplateProcessing", "single": [FIRST, FIRST, TEXT]}}, "several"),
        ("gpt-2", {"normalizer": {"type": "Lowercase"}}, "its normalizer 'Lowercase'"),
        ("wordpiece", {"normalizer": {"type": "Lowercase"}}, "does not divide texts as BERT does"),
        ("wordpiece", {"pre_tokenizer": {"type": "Whitespace"}}, "does not divide texts as BERT does"),
        ("wordpiece", {"normalizer": {"type": "BertNormalizer", "clean_text": False}}, "its clean_text is off"),
        ("wordpiece", {"added_tokens": [{"id": 39, "content": "##a"}]}, "tokens 14 and 39 are both 'a'"),
    ],
)
def test_what_no_file_can_hold(kind: str, json: dict[str, Any], said: str) -> None:
    with pytest.raises(Unsupported, match=said):
        made(kind, json=json)


def test_no_tokenizer_and_one_of_another_model() -> None:
    with pytest.raises(Unsupported, match=r"neither tokenizer\.json nor tokenizer\.model"):
        tokenizer_metadata(TokenizerFiles(), vocabulary=4, wordpiece=False)
    with pytest.raises(Unsupported, match="wants WordPiece of this model"):
        tokenizer_metadata(files(), vocabulary=VOCABULARY, wordpiece=True)


# ---- SentencePiece -------------------------------------------------------------------------------------


def field(number: int, value: bytes | int | float) -> bytes:
    if isinstance(value, bytes):
        return bytes([number << 3 | 2, len(value)]) + value
    if isinstance(value, float):
        return bytes([number << 3 | 5]) + struct.pack("<f", value)
    return bytes([number << 3, value])


PIECES = [("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("<0x0A>", 0.0, 6), ("▁", -3.0, 1), ("a", -1.0, 1), ("▁a", -2.0, 1)]


def model_file(kind: int = 2, *, space: int = 1) -> bytes:
    raw = b"".join(field(1, field(1, text.encode()) + field(2, score) + field(3, of)) for text, score, of in PIECES)
    return raw + field(2, field(3, kind)) + field(3, field(3, space))


def test_sentencepiece() -> None:
    pieces = parse(model_file(space=0))
    found = tokenizer_metadata(TokenizerFiles(pieces=pieces), vocabulary=8, wordpiece=False)
    assert found[f"{P}.model"] == "llama"
    assert found[f"{P}.add_space_prefix"] is False
    assert found[f"{P}.tokens"] == [*(text for text, _, _ in PIECES), "[PAD6]", "[PAD7]"]
    assert found[f"{P}.scores"][3:6] == [-3.0, -1.0, -2.0]
    assert found[f"{P}.token_type"][:3] == [2, 3, 6]
    assert found[f"{P}.add_bos_token"] is True
    assert parse(model_file()).space_before


def test_sentencepiece_of_other_kinds() -> None:
    with pytest.raises(Unsupported, match="neither BPE nor unigrams"):
        tokenizer_metadata(TokenizerFiles(pieces=parse(model_file(3))), vocabulary=8, wordpiece=False)
    with pytest.raises(Unsupported, match="has bytes for unknown characters"):
        tokenizer_metadata(TokenizerFiles(pieces=parse(model_file(1))), vocabulary=8, wordpiece=False)


def test_unigrams_of_sentencepiece() -> None:
    raw = b"".join(
        field(1, field(1, text.encode()) + field(2, score) + field(3, kind))
        for text, score, kind in (("<unk>", 0.0, 2), ("</s>", 0.0, 3), ("▁a", -2.0, 1))
    )
    raw += field(2, field(3, 1)) + field(3, field(2, b"table") + field(4, 0))
    found = tokenizer_metadata(TokenizerFiles(pieces=parse(raw)), vocabulary=4, wordpiece=False)
    assert found[f"{P}.model"] == "t5"
    assert found[f"{P}.tokens"] == ["<unk>", "</s>", "▁a", "[PAD3]"]
    assert found[f"{P}.scores"][2] == -2.0
    assert found[f"{P}.unknown_token_id"] == 0
    assert found[f"{P}.precompiled_charsmap"] == b"table"
    assert found[f"{P}.add_space_prefix"] is True
    assert found[f"{P}.remove_extra_whitespaces"] is False


def unigram_json(**more: Any) -> TokenizerFiles:
    """As T5 has it: a table of characters, spaces joined, and a token at the end."""
    vocab = [["<pad>", 0.0], ["</s>", 0.0], ["<unk>", 0.0], ["▁a", -2.0], ["b", -3.5]]
    model = {"type": "Unigram", "vocab": vocab, "unk_id": 2, "byte_fallback": False}
    normalizer = {"type": "Precompiled", "precompiled_charsmap": "dGFibGU="}
    steps = [{"type": "WhitespaceSplit"}, {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always"}]
    ends = [{"Sequence": {"id": "A"}}, {"SpecialToken": {"id": "</s>"}}]
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    whole = {
        "model": model,
        "normalizer": normalizer,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps},
        "post_processor": {"type": "TemplateProcessing", "single": ends},
        "added_tokens": [{"id": n, "content": vocab[n][0], "special": True, **flags} for n in range(3)],
    }
    return TokenizerFiles(
        whole | more, {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}, {"type_vocab_size": 1}
    )


@pytest.mark.parametrize("wordpiece", [False, True])
def test_unigrams_out_of_tokenizer_json(wordpiece: bool) -> None:
    found = tokenizer_metadata(unigram_json(), vocabulary=6, wordpiece=wordpiece)
    assert found[f"{P}.model"] == "t5"
    assert found[f"{P}.scores"] == [0.0, 0.0, 0.0, -2.0, -3.5, -10000.0]
    assert found[f"{P}.token_type"] == [3, 3, 2, 1, 1, 5]
    assert found[f"{P}.precompiled_charsmap"] == b"table"
    assert found[f"{P}.remove_extra_whitespaces"] is True
    assert (found[f"{P}.add_bos_token"], found[f"{P}.add_eos_token"]) == (False, True)
    back = tokenizer_files(found, None)
    again = TokenizerFiles(
        back["tokenizer.json"], back["tokenizer_config.json"], {"type_vocab_size": 1} if wordpiece else {}
    )
    assert tokenizer_metadata(again, vocabulary=6, wordpiece=wordpiece) == found


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"normalizer": None}, "at tabs and ends of lines"),
        ({"normalizer": {"type": "Precompiled", "precompiled_charsmap": "?"}}, "is no base64"),
        ({"model": {"type": "Unigram", "vocab": [["a", 0.0]]}}, "stands for what is unknown"),
        ({"model": {"type": "Unigram", "vocab": ["a"], "unk_id": 0}}, "token 0 is no text with a score"),
        (
            {"model": {"type": "Unigram", "vocab": [["a", 0.0]], "unk_id": 0, "byte_fallback": True}},
            "has bytes for unknown characters",
        ),
    ],
)
def test_unigrams_that_llama_cpp_does_not_have(more: dict[str, Any], said: str) -> None:
    with pytest.raises(Unsupported, match=said):
        tokenizer_metadata(unigram_json(**more, added_tokens=[]), vocabulary=6, wordpiece=False)


def test_capitals_and_accents_of_wordpiece() -> None:
    keys = {f"{P}.normalizer.lowercase": False}
    accents = {f"{P}.normalizer.strip_accents": False}
    for said, wanted in (
        ({"lowercase": True, "strip_accents": None}, {}),
        ({"lowercase": False}, keys),
        ({"lowercase": True, "strip_accents": False}, accents),
        ({"lowercase": False, "strip_accents": True}, keys | {f"{P}.normalizer.strip_accents": True}),
    ):
        found = made("wordpiece", json={"normalizer": {"type": "BertNormalizer", **said}})
        assert {key: one for key, one in found.items() if ".normalizer." in key} == wanted
        back = tokenizer_files(found, None)
        again = TokenizerFiles(back["tokenizer.json"], back["tokenizer_config.json"])
        assert tokenizer_metadata(again, vocabulary=VOCABULARY, wordpiece=True) == found


def test_what_llama_cpp_does_otherwise_with_texts() -> None:
    flags = {"lstrip": False, "rstrip": True}
    assert list(remarks(files())) == []
    assert "round '<x>'" in next(remarks(files(json={"added_tokens": [{"id": 1, "content": "<x>", **flags}]})))
    divide = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first"}
    (said,) = remarks(spm_json(normalizer=None, pre_tokenizer=divide))
    assert "before texts that begin with one" in said
    raw = model_file()[:-4] + field(3, field(2, b"table"))
    assert "BPE does not" in next(remarks(TokenizerFiles(pieces=parse(raw))))


@pytest.mark.parametrize("cut", [1, 5, 20, 40])
def test_a_tokenizer_model_that_ends_too_early(cut: int) -> None:
    with pytest.raises(ValueError, match=r"ends within|unknown kind|no pieces"):
        parse(model_file()[:-cut] if cut < 8 else model_file()[:cut])


@pytest.mark.parametrize("raw", [b"", b"\x0b", field(1, field(1, b"a") + field(3, 9))])
def test_what_is_no_tokenizer_model(raw: bytes) -> None:
    with pytest.raises(ValueError, match=r"no pieces|unknown kind|unknown type"):
        parse(raw)


def spm_json(**more: Any) -> TokenizerFiles:
    spaces = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    normalizer = {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, spaces]}
    vocab = {text: number for number, (text, _, _) in enumerate(PIECES)} | {"aa": 6}
    model = {"type": "BPE", "vocab": vocab, "merges": ["a a", "▁ a"], "byte_fallback": True, "unk_token": "<unk>"}
    return TokenizerFiles({"model": model, "normalizer": normalizer, "pre_tokenizer": None, **more})


def test_sentencepiece_out_of_tokenizer_json() -> None:
    found = tokenizer_metadata(spm_json(), vocabulary=8, wordpiece=False)
    assert found[f"{P}.model"] == "llama"
    assert found[f"{P}.add_space_prefix"] is True
    scores = dict(zip(found[f"{P}.tokens"], found[f"{P}.scores"], strict=True))
    assert scores["aa"] > scores["▁a"] > scores["a"]
    assert found[f"{P}.token_type"][:3] == [2, 1, 6]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"normalizer": None}, "does not write spaces as ▁"),
        ({"normalizer": {"type": "NFKC"}}, "its normalizer 'NFKC'"),
        ({"pre_tokenizer": {"type": "Whitespace"}}, "its pre_tokenizer 'Whitespace'"),
    ],
)
def test_spaces_that_are_written_otherwise(more: dict[str, Any], said: str) -> None:
    with pytest.raises(Unsupported, match=said):
        tokenizer_metadata(spm_json(**more), vocabulary=8, wordpiece=False)


def test_metaspace() -> None:
    divide = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "never"}
    found = tokenizer_metadata(spm_json(normalizer=None, pre_tokenizer=divide), vocabulary=8, wordpiece=False)
    assert found[f"{P}.add_space_prefix"] is False


# ---- back ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [*KNOWN, "wordpiece"])
def test_the_way_back(kind: str) -> None:
    model = tokenizer(kind)["tokenizer.json"]["model"] | {"ignore_merges": kind in IGNORING}
    before = made(kind, json={"model": model})
    back = tokenizer_files(before, 16)
    again = TokenizerFiles(back["tokenizer.json"], back["tokenizer_config.json"])
    after = tokenizer_metadata(again, vocabulary=VOCABULARY, wordpiece=kind == "wordpiece")
    assert after == before
    assert back["tokenizer_config.json"]["model_max_length"] == 16
    if kind != "wordpiece":
        assert special_numbers(before) == {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": None}


def test_pieces_come_back_as_merges() -> None:
    before = tokenizer_metadata(spm_json(), vocabulary=8, wordpiece=False)
    model = tokenizer_files(before, None)["tokenizer.json"]["model"]
    assert model["merges"] == [["a", "a"], ["▁", "a"]]
    assert model["unk_token"] == PIECES[0][0]
    assert model["byte_fallback"]
    assert "[PAD7]" not in model["vocab"]


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ({f"{P}.model": "none"}, "has none"),
        ({f"{P}.model": "rwkv", f"{P}.tokens": ["a"]}, "its kind is 'rwkv'"),
        ({f"{P}.model": "gpt2", f"{P}.tokens": ["a"], f"{P}.token_type": []}, None),
        ({f"{P}.model": "gpt2", f"{P}.tokens": ["a"], f"{P}.token_type": [1, 1]}, "1 tokens and 2 types"),
        ({f"{P}.model": "gpt2", f"{P}.tokens": ["a"], f"{P}.pre": "strange"}, "divides its texts as 'strange'"),
        ({f"{P}.model": "llama", f"{P}.tokens": ["a"]}, "1 tokens and 0 scores"),
        ({f"{P}.model": "bert", f"{P}.tokens": ["a"]}, "does not say its"),
    ],
)
def test_tokenizers_that_do_not_come_back(said: dict[str, Any], why: str | None) -> None:
    with pytest.raises(Unsupported, match=why or "divides its texts as 'default'"):
        tokenizer_files(said, None)
