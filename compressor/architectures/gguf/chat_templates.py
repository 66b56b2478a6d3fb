"""Chat templates as metadata of a GGUF file: one, or several that have names.

transformers takes chat_template.jinja and additional_chat_templates/NAME.jinja, else `chat_template` of
tokenizer_config.json: a text, a list of `{"name": …, "template": …}`, or texts by their names. llama.cpp reads
`tokenizer.chat_template`, the names of the others in `tokenizer.chat_templates`, and each of these in
`tokenizer.chat_template.NAME`, a name being of letters, digits and `_`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

KEY, NAMES = "tokenizer.chat_template", "tokenizer.chat_templates"
_DEFAULT = "default"


def metadata(said: object) -> dict[str, Any]:
    """The keys of GGUF for what a tokenizer's files say; none for what is no template."""
    named = {re.sub(r"[^a-zA-Z0-9]", "_", name): text for name, text in _by_name(said).items()}
    made: dict[str, Any] = {KEY if name == _DEFAULT else f"{KEY}.{name}": text for name, text in named.items()}
    others = [name for name in named if name != _DEFAULT]
    return made | ({NAMES: others} if others else {})


def of_metadata(said: Mapping[str, Any]) -> str | list[dict[str, str]] | None:
    """What tokenizer_config.json has to say, for these keys of GGUF; None where there is no template."""
    names, first = said.get(NAMES), said.get(KEY)
    named = {_DEFAULT: first} if isinstance(first, str) else {}
    for name in names if isinstance(names, list) else ():
        text = said.get(f"{KEY}.{name}")
        if isinstance(text, str):
            named[str(name)] = text
    if list(named) == [_DEFAULT]:
        return named[_DEFAULT]
    return [{"name": name, "template": text} for name, text in named.items()] or None


def remarks(said: object) -> Iterator[str]:
    """What of it a file cannot hold, or llama.cpp does not take as transformers does."""
    if not said:
        return
    named = _by_name(said)
    entries = len(said) if isinstance(said, (list, Mapping)) else 1
    if len(named) < entries:
        yield "its chat_template is not all text, or not all of it has a name: the rest is not in the file"
    if len({re.sub(r"[^a-zA-Z0-9]", "_", name) for name in named}) < len(named):
        yield "names of its chat templates differ in characters that GGUF has not: one of each is in the file"
    if named and _DEFAULT not in named:
        yield f"none of its chat templates is called {_DEFAULT}: llama.cpp takes one of its own unless it is told"


def _by_name(said: object) -> dict[str, str]:
    """Templates by their names; one without is the default."""
    if isinstance(said, str):
        return {_DEFAULT: said} if said else {}
    if isinstance(said, list):
        dicts = [one for one in said if isinstance(one, Mapping)]
        said = {one["name"]: one.get("template") for one in dicts if isinstance(one.get("name"), str)}
    if not isinstance(said, Mapping):
        return {}
    return {str(name): text for name, text in said.items() if isinstance(text, str) and name}
