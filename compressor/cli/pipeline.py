"""`compressor pipeline`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import click

from compressor.cli import budgeting, options
from compressor.cli.help import Command
from compressor.cli.streams import emit


def _list(context: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted and not context.resilient_parsing:
        from compressor.cli.recipes import listed

        context.exit(0 if emit(listed(), essential=True) else 4)


@click.command(
    cls=Command,
    examples=(
        "compressor pipeline MODEL -o SMALL --recipe w4a16",
        "compressor pipeline model.safetensors -o small.safetensors \\\n"
        "  --stage prune:sparsity=0.5 --stage quantize:bits=8",
        "compressor pipeline MODEL -o update --base BASE",
    ),
    rare="inputs",
    lists="recipes list",
)
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
@budgeting.weighing
@options.teacher
@click.option("--inputs", metavar="FILE", help="Example inputs (.npy) for stages that train and name none.")
@click.option(
    "--save-base", metavar="PATH", help="Where the base goes that a last stage residual makes its adapter for."
)
@click.option(
    "--work", metavar="FOLDER", help="Keep what finished passes left here, and go on from it when stopped."
)
@click.option("--keep-work", is_flag=True, help="Leave the --work folder when all is done.")
@options.stats
@options.store_archive
@options.coded_against
@options.effort
@options.requantize
@options.allow_unmatched
@options.for_loader
@options.show_recipe
@options.part
@options.running
def command(input_path: str, output: str, **values: Any) -> int:
    """Apply the stages of a recipe in their order, fused: every tensor is read once and written once.

    Stages that look at the whole model first (global magnitude) read it beforehand. A stage that trains works on
    the whole model that the stages before it leave; its teacher, unless one is given, is INPUT. With --target-size,
    --target-ratio or --target-bits, or a [budget] in the recipe, the last stage's scheme is chosen by tensor.
    """
    from compressor.recipe.archive_store import shown_as_archive
    from compressor.recipe.toml_file import recipe_for

    if values["base"] is not None:
        values["store"] = "archive"
    keys = {key: values.pop(key) for key in ("recipe", "stages", "teacher", "inputs")}
    recipe = recipe_for(**keys, bare=values["store"] == "archive")
    budget, tell = budgeting.prepared(values, base=recipe.budget)
    recipe = replace(recipe, budget=budget)
    if values["show_recipe"] and values["store"] == "archive":
        recipe = shown_as_archive(recipe)
    return options.execute("pipeline", input_path, output, recipe, values, tell)
