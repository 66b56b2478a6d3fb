"""Write docs/python.md out of the functions of `compressor`: their docstrings, and of every keyword its type and
what the command line's help says of it.

    python -m bench.pages.python
"""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

import click

from compressor import api
from compressor.cli.main import cli
from compressor.workflows import keywords

PAGE = Path(__file__).parents[2] / "docs" / "python.md"
HEAD = """<!-- the whole page: written by bench/pages/python.py -->
# Python

The verbs of the command line are functions. Their keywords are the options, with `_` for `-` (`--for` is
`loader`, `--set` is `rules`, `--candidate` is `candidates`), and mean the same. Type checkers and editors
know them, `help()` and notebooks show them, and a word that a function does not take is a `UsageError` that
names the nearest.

```python
import compressor

report = compressor.quantize("model.safetensors", "small.safetensors", bits=4, granularity="channel")
report  # one line; in a notebook a table
report.to_dict()  # what --format json prints
report.to_html()  # what --report writes; with histograms=True its histograms too
```

Paths are those of the command line: `.safetensors`, `.gguf`, `.npy`, `.npz`, Hugging Face folders. Sizes are
bytes, or texts such as `"300MB"`. Errors are subclasses of `compressor.CompressorError`: `UsageError`,
`InputError`, `OutputError` and `GateFailed`, whose `report` (of a run) says what the output would have been.
An output is complete or absent.

"""
# Keywords that no option of the command line stands for
OWN = {
    "gates": "Limits of the result as one `compressor.Gates`, in place of keywords.",
    "processes": "Workers may be forked processes, which a program with threads of its own had better not have.",
    "progress": "Called with bytes that are done, and of how many.",
    "histograms": "Count histograms of what is treated, for `to_html()`.",
    "surveys_only": "Stop once the passes over the whole model are made.",
    "only": "Put these tensors into the output, and no others.",
    "tell": "Called with what a budget chose, or with each output that `tune` measured.",
    "card": "README.md of an output folder is a model card; with False it stays as the input has it.",
    "budget": "A `compressor.recipe.budget.Budget` in place of the recipe's own.",
    "stages": "Stages as texts, such as `prune:sparsity=0.5`.",
    "restored": "`evaluate` is given the path of a dense copy.",
    "recipe": "A `Recipe`, a TOML file, or a ready recipe's name.",
    "teacher": "The teacher: any container, tensors paired by name.",
    "component": "Of a pipeline of diffusers: which folder to treat.",
}
COMMANDS = (
    "prune",
    "distill",
    "quantize",
    "pipeline",
    "restore",
    "tune",
    "calibrate",
    "inspect",
    "compare",
    "report",
    "merge",
)
FUNCTIONS = (*COMMANDS, "survey", "merge_statistics")


def page() -> str:
    """The whole page."""
    parts = [HEAD, "## Keywords of every run\n\n", *_table("quantize", list(keywords.RunKeywords.__annotations__))]
    for name in FUNCTIONS:
        function = getattr(api, name)
        signature = inspect.signature(function)
        places = [one for one in signature.parameters.values() if one.kind is not inspect.Parameter.KEYWORD_ONLY]
        shown = ", ".join(str(one).replace("'", "") for one in places)
        own = [key for key in _keywords(signature) if key not in keywords.RunKeywords.__annotations__]
        every = len(own) < len(_keywords(signature))
        told = inspect.getdoc(function) or ""
        text, _, example = told.partition("\n\n>>>")
        code = textwrap.dedent(f">>>{example}").rstrip()
        parts.append(f"## `{name}`\n\n`{name}({shown}, ...)`\n\n{text}\n\n```pycon\n{code}\n```\n\n")
        if every:
            parts.append(
                "Keywords are those of every run, and:\n\n" if own else "Keywords are those of every run.\n\n"
            )
        parts += _table(name, own) if own else []
    return "".join(parts).rstrip() + "\n"


def _keywords(signature: inspect.Signature) -> list[str]:
    return [one.name for one in signature.parameters.values() if one.kind is inspect.Parameter.KEYWORD_ONLY]


def _table(verb: str, names: list[str]) -> Iterator[str]:
    helps, types = _helps(verb), inspect.signature(getattr(api, verb)).parameters
    yield "| keyword | type | what |\n|---|---|---|\n"
    for name in names:
        said = OWN.get(name) or helps.get(name) or ""
        # not between backticks, where renderers differ on what a bar is that has to be escaped
        kind = escape(str(types[name].annotation), quote=False).replace("|", "&#124;")
        yield f"| `{name}` | <code>{kind}</code> | {_cell(said)} |\n"
    yield "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("*", "\\*").replace("\n", " ").replace("<", "&lt;")


def _helps(verb: str) -> dict[str, str]:
    """What the command says of its options, by their names in Python; where it has none, what another one says."""
    found: dict[str, str] = {}
    for name in (*COMMANDS, verb if verb in COMMANDS else "quantize"):
        options: list[Any] = cli.get_command(click.Context(cli), name).params
        found |= {one.name: one.help for one in options if getattr(one, "help", None)}
    return found


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
