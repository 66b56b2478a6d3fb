"""What llama.cpp calls the ways in which byte-level BPE tokenizers divide text before they merge.

llama.cpp knows each by a name (`tokenizer.ggml.pre`) and its converter finds that by a hash over the ids of a test
text, which only the very vocabulary gives that the name was made for. Here it goes by what tokenizer.json says is
done, which a vocabulary with more tokens, or of another language, leaves as it is, and which needs no tokenizer to
run. Names that llama.cpp treats alike stand here once (llama-vocab.cpp: the regular expressions by name).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

Step = tuple[str, ...]
Signature = tuple[Step, ...]

_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_TAIL = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_LEAD = r"[^\r\n\p{L}\p{N}]?"
_CASED_TAIL = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_PUNCTUATION = r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~]"""

_BYTES: Step = ("bytes",)  # ByteLevel that only spells bytes
_WORDS: Step = ("words",)  # ByteLevel that divides as GPT-2 did, too
_DIGITS: Step = ("digits",)
_ALPHABETS: Step = ("alphabets",)  # every letter that has a case, one by one: two thousand characters of a pattern
_ALPHABETS_BEGIN = r"\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿ"
_ALPHABETS_SHORT = r"\s?[\p{Lu}\p{Ll}\p{Lt}]+"  # the same, but for letters that Unicode has had since


def _split(regex: str) -> Step:
    return ("split", regex)


def _cased(end: str) -> str:
    """Words that begin with capitals or have none."""
    return f"{_LEAD}{_UPPER}*{_LOWER}+{end}|{_LEAD}{_UPPER}+{_LOWER}*{end}"


_THREES = rf"{_CONTRACTIONS}|{_LEAD}\p{{L}}+|\p{{N}}{{1,3}}|{_TAIL}"
_ONES = rf"{_CONTRACTIONS}|{_LEAD}\p{{L}}+|\p{{N}}|{_TAIL}"
_MARKS = (
    rf"{_CONTRACTIONS}|{_LEAD}[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_GPT4O = _cased(f"{_CONTRACTIONS}?") + rf"|\p{{N}}{{1,3}}|{_CASED_TAIL}"
_SEED_CODER = rf"{_CONTRACTIONS}|{_LEAD}\p{{L}}+|\p{{N}}{{1}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+"
_BAILING = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]"
    r"|\s+(?!\S)|\s+"
)
_MINICPM = rf"{_CONTRACTIONS}|{_LEAD}\p{{L}}+|\p{{N}}+|{_TAIL}"
_TEKKEN = _cased("") + rf"|\p{{N}}|{_CASED_TAIL}"
_DEEPSEEK3 = (
    rf"{_PUNCTUATION}[A-Za-z]+|[^\r\n\p{{L}}\p{{P}}\p{{S}}]?[\p{{L}}\p{{M}}]+| ?[\p{{P}}\p{{S}}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_CJK = "[一-龥\u3040-ゟ゠-ヿ]+"
_ASIAN_MARKS = r"\s?[!-/:-~！-／：-～‘-‟　-。]+"
_IDEOGRAPHS = "[一-龥ࠀ-一가-\ud7ff]+"

# The first name that fits is written, so those that also say `ignore_merges` stand before the others
_NAMES: tuple[tuple[str, Signature, bool | None], ...] = (
    ("llama-bpe", (_split(_THREES), _BYTES), True),
    ("dbrx", (_split(_THREES), _BYTES), None),
    ("qwen2", (_split(_ONES), _BYTES), None),
    ("qwen35", (_split(_MARKS), _BYTES), None),
    ("gpt-4o", (_split(_GPT4O), _BYTES), None),
    ("tekken", (_split(_TEKKEN), _BYTES), None),
    ("deepseek-v3", (_split(r"\p{N}{1,3}"), _split(_CJK), _split(_DEEPSEEK3), _BYTES), None),
    (
        "deepseek-llm",
        (
            _split(r"[\r\n]"),
            _ALPHABETS,
            _split(_ASIAN_MARKS),
            _split(r"\s+$"),
            _split(_IDEOGRAPHS),
            _DIGITS,
            _BYTES,
        ),
        None,
    ),
    (
        "deepseek-coder",
        (
            _split(r"[\r\n]"),
            _split(r"\s?\p{L}+"),
            _split(r"\s?\p{P}+"),
            _split(_IDEOGRAPHS),
            _DIGITS,
            _BYTES,
        ),
        None,
    ),
    ("seed-coder", (_split(_SEED_CODER), _BYTES), None),
    ("bailingmoe", (_split(_BAILING), _BYTES), None),
    ("minicpm5", (_split(r"\p{N}{1,3}"), _split(_MINICPM), _BYTES), True),
    ("smollm", (_DIGITS, _WORDS), None),
    ("gpt-2", (_WORDS,), None),
)
# Names of files that others wrote, by those above
_ALIASES: Mapping[str, str] = {
    **dict.fromkeys(("llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"), "llama-bpe"),
    **dict.fromkeys(("smaug-bpe", "glm4", "chatglm-bpe"), "dbrx"),
    **dict.fromkeys(
        (
            "stablelm2",
            "deepseek-r1-qwen",
            "hunyuan",
            "megrez",
            "kormo",
            "f2llmv2",
            "solar-open",
            "grok-2",
        ),
        "qwen2",
    ),
    **dict.fromkeys(("llama4", "kanana2", "minimax-m2", "talkie"), "gpt-4o"),
    **dict.fromkeys(("hunyuan-dense", "joyai-llm", "hy_v4"), "deepseek-v3"),
    **dict.fromkeys(("bailingmoe2", "llada-moe"), "bailingmoe"),
    **dict.fromkeys(("starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b", "mellum2"), "smollm"),
    **dict.fromkeys(
        (
            *("gpt2", "mpt", "olmo", "jais", "phi-2", "roberta-bpe", "modern-bert", "granite-docling", "a.x-4.0"),
            *("mellum", "gigachat", "exaone4", "trillion", "jina-es", "jina-de", "jina-v2-es", "jina-v2-de"),
            *("jina-v1-en", "jina-v2-code"),
        ),
        "gpt-2",
    ),
}


def signature(pre_tokenizer: Mapping[str, Any] | None) -> Signature:
    """What the `pre_tokenizer` of a tokenizer.json does, step by step; what is not known keeps its name."""
    return tuple(_steps(pre_tokenizer or {}))


def _steps(one: Mapping[str, Any]) -> Iterator[Step]:
    kind = one.get("type")
    if kind == "Sequence":
        for inner in one.get("pretokenizers") or ():
            yield from _steps(inner)
    elif kind == "ByteLevel" and not one.get("add_prefix_space", True):
        yield _WORDS if one.get("use_regex", True) else _BYTES
    elif kind == "Digits" and one.get("individual_digits"):
        yield _DIGITS
    elif kind == "Split" and one.get("behavior") == "Isolated" and not one.get("invert"):
        pattern = one.get("pattern") or {}
        regex = str(pattern.get("Regex", pattern))
        alphabets = regex == _ALPHABETS_SHORT or regex.startswith(_ALPHABETS_BEGIN)
        yield _ALPHABETS if alphabets else _split(regex)
    else:
        yield ("other", str(kind))


def name_of(pre_tokenizer: Mapping[str, Any] | None, *, ignore_merges: bool) -> str | None:
    """What llama.cpp calls it; None where it knows no such way."""
    found = signature(pre_tokenizer)
    for name, known, ignores in _NAMES:
        if found == known and ignores in (None, ignore_merges):
            return name
    return None


def pre_tokenizer_of(name: str) -> dict[str, Any] | None:
    """A `pre_tokenizer` for tokenizer.json that does what llama.cpp calls so; None where the name is not known."""
    known = next((steps for one, steps, _ in _NAMES if one == _ALIASES.get(name, name)), None)
    if known is None:
        return None
    made = [_spelled(step) for step in known]
    return made[0] if len(made) == 1 else {"type": "Sequence", "pretokenizers": made}


def ignores_merges(name: str) -> bool:
    """Whether a whole word that is a token is one, whatever the merges would make of it."""
    return _ALIASES.get(name, name) in ("llama-bpe", "tekken", "minicpm5")


def _spelled(step: Step) -> dict[str, Any]:
    if step == _DIGITS:
        return {"type": "Digits", "individual_digits": True}
    if step == _ALPHABETS:
        step = _split(_ALPHABETS_SHORT)
    if step[0] == "split":
        return {"type": "Split", "pattern": {"Regex": step[1]}, "behavior": "Isolated", "invert": False}
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": step == _WORDS}
