"""Text as windows of token ids, as a language model reads it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from compressor.core.errors import InputError
from compressor.files.input_file import InputFile
from compressor.networks.samples import choose

_MOST = 16_000_000  # bytes of text that are read


@dataclass(frozen=True)
class Windows:
    """Token ids, all windows of one length, in the order of the text; `notes` on how they were cut."""

    ids: list[list[int]]
    notes: tuple[str, ...]

    @property
    def length(self) -> int:
        """Tokens of a window."""
        return len(self.ids[0])


def read_windows(path: str, tokenizer: Any, samples: int, length: int, seed: int) -> Windows:
    """Cut a text into windows of `length` tokens, the model's special ones (such as [CLS]) included, and take
    `samples` of them by the seed. InputError when the text is none, or empty."""
    text, notes = read_text(path)
    before, after = _special(tokenizer)
    ids = [int(one) for one in tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]]
    if not ids:
        raise InputError("holds no text", file=path)
    inside = max(1, length - len(before) - len(after))
    count = len(ids) // inside
    if count == 0:
        notes.append(f"the text has {len(ids)} tokens, which is one sample shorter than {length}")
        return Windows([[*before, *ids, *after]], tuple(notes))
    if count < samples:
        notes.append(f"the text has {len(ids)} tokens: {count} samples of {length}, where {samples} were asked for")
    chosen = choose(count, samples, seed)
    return Windows([[*before, *ids[at * inside : (at + 1) * inside], *after] for at in chosen], tuple(notes))


def read_text(path: str) -> tuple[str, list[str]]:
    """The text of a file, up to 16 MB of it, with a note where it is longer. InputError where it is not UTF-8."""
    file = InputFile.open(path)
    raw = file.read(0, min(file.size, _MOST))
    notes = [f"the first {_MOST // 10**6} MB of the text are used"] if file.size > _MOST else []
    try:
        if notes:  # the end may have cut a character in two
            return raw.decode("utf-8", errors="ignore") if _is_text(raw) else raw.decode("utf-8"), notes
        return raw.decode("utf-8"), notes
    except UnicodeDecodeError as error:
        raise InputError("is not UTF-8 text", file=path) from error


def _is_text(raw: bytes) -> bool:
    """Whether nothing but the last few bytes is no UTF-8."""
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError as error:
        return error.start >= len(raw) - 3
    return True


def _special(tokenizer: Any) -> tuple[list[int], list[int]]:
    """The special tokens before and after a text."""
    bare = list(tokenizer("a", add_special_tokens=False)["input_ids"])
    whole = list(tokenizer("a")["input_ids"])
    for at in range(len(whole) - len(bare) + 1):
        if whole[at : at + len(bare)] == bare:
            return whole[:at], whole[at + len(bare) :]
    return [], []
