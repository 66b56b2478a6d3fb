"""`compressor distill`."""

from __future__ import annotations

from functools import partial
from typing import Any

import click

from compressor import api
from compressor.cli import options
from compressor.errors import UsageError
from compressor.recipe import make_stage, recipe_of


@click.command()
@click.argument("input_path", metavar="[STUDENT]", required=False)
@options.output_option
@click.option(
    "--from", "origin", metavar="TEACHER", help="In place of STUDENT, where the method makes the student."
)
@options.method_options("distill")
@options.teacher
@options.store_distilled
@click.option(
    "--save-base", metavar="PATH", help="Where --alternate writes the base that the adapter is for [residual]."
)
@options.stats
@options.selecting
@options.running
def command(
    input_path: str | None, origin: str | None, output: str, include: Any, exclude: Any, rules: Any, **values: Any
) -> int:
    """Carry the weights of a teacher into a student of the same shapes, tensor by tensor of the same name. residual
    writes what the student lost as an adapter, a PEFT folder.

    Vectors (biases, norms) are left alone unless included.

    Or make the student: --method depth keeps some of the teacher's layers, --method subclone also fewer neurons,
    heads and channels, as a start for training.
    """
    source = origin if input_path is None else input_path
    if source is None or None not in (input_path, origin):
        raise UsageError(
            "give either a STUDENT or --from TEACHER", remedy="Methods that make the student take --from"
        )
    stage = make_stage(
        "distill",
        options.given("distill", values),
        include=include,
        exclude=exclude,
        rules=options.parse_rules(rules),
        teacher=values.pop("teacher"),
        store=values.pop("store"),
        text=True,
    )
    return options.execute(partial(api.run_recipe, "distill", source, output, recipe_of((stage,))), values)
