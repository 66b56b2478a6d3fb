"""`compressor pipeline`."""

from __future__ import annotations

from functools import partial
from typing import Any

import click

from compressor import api
from compressor.cli import options
from compressor.cli.streams import emit
from compressor.recipe import parse_recipe, ready_recipes


def _list(context: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted:
        from compressor.report.table import render_recipes

        recipes = {name: parse_recipe(text, name) for name, text in ready_recipes().items()}
        context.exit(0 if emit(render_recipes(recipes), essential=True) else 4)


@click.command()
@options.writing
@click.option("--recipe", metavar="FILE|NAME", help="A TOML file, or the name of a ready recipe.")
@click.option(
    "--stage",
    "stages",
    multiple=True,
    metavar="KIND:KEY=VALUE,...",
    help="A stage, such as prune:method=magnitude,sparsity=0.5; repeatable, in order.",
)
@click.option(
    "--list", is_flag=True, is_eager=True, expose_value=False, callback=_list, help="List the ready recipes."
)
@options.teacher
@options.stats
@options.store_archive
@options.effort
@options.requantize
@options.running
def command(input_path: str, output: str, **values: Any) -> int:
    """Apply the stages of a recipe in their order, fused: every tensor is read once and written once.

    Stages that look at the whole model first (global magnitude) read it beforehand.
    """
    keys = {key: values.pop(key) for key in ("recipe", "stages", "teacher")}
    return options.execute(partial(api.pipeline, input_path, output, **keys), values)
