"""`compressor pipeline`."""

from __future__ import annotations

from functools import partial
from typing import Any

import click

from compressor import api
from compressor.cli import budgeting, options
from compressor.cli.streams import emit
from compressor.recipe import load_recipe, parse_recipe, ready_recipes


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
@budgeting.targets
@budgeting.details
@options.teacher
@options.stats
@options.requantize
@options.running
def command(input_path: str, output: str, **values: Any) -> int:
    """Apply the stages of a recipe in their order, fused: every tensor is read once and written once.

    Stages that look at the whole model first (global magnitude) read it beforehand. With --target-size,
    --target-ratio or --target-bits, or a [budget] in the recipe, the last stage's scheme is chosen by tensor.
    """
    keys = {key: values.pop(key) for key in ("recipe", "stages", "teacher")}
    recipe = load_recipe(keys["recipe"], keys["teacher"]) if keys["recipe"] and not keys["stages"] else None
    keys |= {"recipe": recipe or keys["recipe"]}
    settings = budgeting.prepared(values, base=None if recipe is None else recipe.budget)
    return options.execute(partial(api.pipeline, input_path, output, **keys, **settings), values)
