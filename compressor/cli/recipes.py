"""`compressor recipes`: the ready recipes, and what one of them says."""

from __future__ import annotations

from difflib import get_close_matches
from textwrap import wrap

import click

from compressor.cli import options
from compressor.cli.help import Command
from compressor.cli.streams import emit
from compressor.core.errors import UsageError
from compressor.core.text import printable


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def command() -> None:
    """Ready recipes for `compressor pipeline --recipe NAME`: list them, or show one as the TOML that it is."""


@command.command("list", cls=Command, examples=("compressor recipes list",))
@options.debug
def list_them() -> int:
    """Name all ready recipes, each with what it is for."""
    return 0 if emit(listed(), essential=True) else 4


@command.command("show", cls=Command, examples=("compressor recipes show w4a16",))
@click.argument("recipe_name", metavar="NAME")
@options.debug
def show(recipe_name: str) -> int:
    """Print a ready recipe: a file to copy, to change, and to give to --recipe."""
    from compressor.recipe.toml_file import ready_recipes

    known = ready_recipes()
    if recipe_name not in known:
        close = get_close_matches(recipe_name, known, 1)
        hint = f"Did you mean {close[0]}?" if close else f"There are {', '.join(known)}"
        raise UsageError(f"there is no ready recipe '{printable(recipe_name, 60)}'", remedy=hint)
    return 0 if emit(known[recipe_name], essential=True) else 4


def listed() -> str:
    """The ready recipes with what they say of themselves."""
    from compressor.recipe.toml_file import parse_recipe, ready_recipes

    lines = []
    for name, text in ready_recipes().items():
        lines += [
            name,
            *wrap(parse_recipe(text, name).description, 80, initial_indent="  ", subsequent_indent="  "),
        ]
    return "\n".join(lines) + "\n"
