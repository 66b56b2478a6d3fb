"""What a shell offers for a value: names of tensors, methods, layouts and recipes; else paths."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise

from click import Argument, Context, Parameter
from click.shell_completion import CompletionItem, split_arg_string

from compressor.core.errors import CompressorError
from compressor.methods.options import SELECTOR, VERBS, choices_of, options_of
from compressor.methods.registry import methods_of

# A shell puts what it is offered into its line as it is: nothing that it would carry out
_HARMLESS = re.compile(r"[\w./:@+=-]{1,300}", re.ASCII)
_NAME = re.compile(r"[\w./:@+-]*", re.ASCII)
_PATHS = re.compile(r"FILE|PATH|FOLDER|MODEL|TEACHER|STUDENT|INPUT|OUTPUT|PART|NAME\|FILE")
_VERB = {"tune": "quantize"}  # whose methods a command has


def offered(context: Context, param: Parameter, incomplete: str) -> list[CompletionItem]:
    """What may stand where `incomplete` is; a path where nothing else is known."""
    if param.name == "rules" and ":" in incomplete:
        known: Iterable[str] = _settings(context, incomplete)
    else:
        known = (name for name in _NAMES.get(str(param.name), _choices)(context, param) if _NAME.fullmatch(name))
    found = sorted(
        name for name in dict.fromkeys(known) if name.startswith(incomplete) and _HARMLESS.fullmatch(name)
    )
    items = [CompletionItem(name) for name in found]
    if isinstance(param, Argument) or _PATHS.search(param.make_metavar(context)):
        items += [CompletionItem(incomplete, type="file")] if not items or os.sep in incomplete else []
    return items


def _choices(context: Context, param: Parameter) -> Iterator[str]:
    """The values that some method of the verb allows for this option."""
    verb = _VERB.get(str(context.info_name), str(context.info_name))
    if verb in VERBS:
        if param.name == SELECTOR[verb]:
            yield from methods_of(verb)
        for method in methods_of(verb).values():
            if param.name in options_of(method):
                hint, _ = options_of(method)[str(param.name)]
                yield from (str(one) for one in choices_of(hint) if one is not None)
    yield from (one for one in (param.metavar or "").split("|") if one.islower())


def _settings(context: Context, incomplete: str) -> Iterator[str]:
    """`NAME:KEY=` with the options of the verb's methods, and the values that they allow."""
    verb, last = _VERB.get(str(context.info_name), str(context.info_name)), incomplete.rpartition(":")[2]
    before, (key, equals, _) = incomplete[: len(incomplete) - len(last)], last.partition("=")
    for method in methods_of(verb).values() if verb in VERBS else ():
        for name, (hint, _) in options_of(method).items():
            if not equals:
                yield f"{before}{name}="
            elif name == key:
                yield from (f"{before}{key}={one}" for one in choices_of(hint) if one is not None)


def _tensors(context: Context, _: Parameter) -> Iterable[str]:
    """The tensors of the input that stands in the line already."""
    from compressor.checkpoint.checkpoint import open_checkpoint

    path = context.params.get("input_path") or _first_path(split_arg_string(os.environ.get("COMP_WORDS", "")))
    if not path:
        return ()
    try:
        return tuple(open_checkpoint(path).tensors)
    except CompressorError:
        return ()


def _first_path(words: Sequence[str]) -> str:
    """The first word of a line that is a path and no option's value: click does not parse a line that ends in an
    option without its value."""
    for before, word in pairwise(words[1:]):
        if not before.startswith("-") and not word.startswith("-") and os.path.exists(word):
            return word
    return ""


def _recipes(_: Context, __: Parameter) -> Iterable[str]:
    from compressor.recipe.toml_file import ready_recipes

    return ready_recipes()


def _presets(_: Context, __: Parameter) -> Iterable[str]:
    from compressor.recipe.presets import PRESETS

    return PRESETS


def _topics(_: Context, __: Parameter) -> Iterable[str]:
    from compressor.cli.catalogue import PLURALS, entries

    return (*VERBS, *PLURALS, *(one.name for one in entries()))


_NAMES: Mapping[str, Callable[[Context, Parameter], Iterable[str]]] = {
    **dict.fromkeys(("include", "exclude", "rules", "leave_out"), _tensors),
    "recipe": _recipes,
    "recipe_name": _recipes,
    "preset": _presets,
    "topic": _topics,
}
