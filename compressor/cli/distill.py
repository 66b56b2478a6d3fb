"""`compressor distill`."""

from __future__ import annotations

from typing import Any

import click

from compressor.cli import options
from compressor.cli.help import Command
from compressor.core.errors import UsageError
from compressor.recipe.matched_norms import METHOD as MATCHED
from compressor.recipe.model import Recipe, recipe_of
from compressor.recipe.stages import make_stage
from compressor.recipe.training import METHOD


@click.command(
    cls=Command,
    examples=(
        "compressor distill small.safetensors -o better.safetensors \\\n  --teacher model.safetensors",
        "compressor distill --from MODEL -o STUDENT --method depth --count 1",
    ),
    rare="stats sparsity labels",
    lists="methods distill",
)
@click.argument("input_path", metavar="[STUDENT]", required=False)
@options.output_option
@click.option(
    "--from", "origin", metavar="TEACHER", help="In place of STUDENT, where the method makes the student."
)
@options.method_options("distill", METHOD, MATCHED)
@options.teacher
@options.training
@options.store_distilled
@click.option(
    "--save-base", metavar="PATH", help="Where --alternate writes the base that the adapter is for [residual]."
)
@options.stats
@options.selecting
@options.for_loader
@options.show_recipe
@options.part
@options.running
def command(
    input_path: str | None, origin: str | None, output: str, include: Any, exclude: Any, rules: Any, **values: Any
) -> int:
    """Carry the weights of a teacher into a student of the same shapes, tensor by tensor of the same name; or
    make a student of a teacher; or train one.

    residual writes what the student lost as an adapter, a PEFT folder.

    Vectors (biases, norms) are left alone unless included.

    With --method soft-targets a student of any shape is trained on the teacher's outputs for unlabelled --inputs.
    With --method refit --sequential one of the teacher's shapes is solved for them, layer after layer; with
    --method batch-norm only its norms and biases are matched with the teacher's.

    Or make the student: --method depth keeps some of the teacher's layers, --method subclone also fewer neurons,
    heads and channels, as a start for training.
    """
    training = options.given_training(values)
    source = origin if input_path is None else input_path
    if source is None or None not in (input_path, origin):
        raise UsageError(
            "give either a STUDENT or --from TEACHER", remedy="Methods that make the student take --from"
        )
    if training is not None:
        besides = (
            ("include", include),
            ("exclude", exclude),
            ("set", rules),
            ("from", origin),
            ("stats", values["stats"]),
            ("store", values.pop("store")),
            ("save-base", values["save_base"]),
        )
        for key, value in besides:
            if value:
                raise UsageError(
                    f"--{key} has no meaning for --method {training.label}, which takes a whole STUDENT"
                )
        recipe = Recipe((), training=training)
        return options.execute("distill", source, output, recipe, values)
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
    recipe = recipe_of((stage,))
    return options.execute("distill", source, output, recipe, values)
