"""`compressor distill`."""

from __future__ import annotations

from functools import partial
from typing import Any

import click

from compressor import api
from compressor.cli import options
from compressor.errors import UsageError
from compressor.recipe import Recipe, make_stage
from compressor.training.request import METHOD


@click.command()
@options.writing
@options.method_options("distill", METHOD)
@options.teacher
@options.training
@options.stats
@options.selecting
@options.running
def command(input_path: str, output: str, include: Any, exclude: Any, rules: Any, **values: Any) -> int:
    """Carry the weights of a teacher into a student of the same shapes, tensor by tensor of the same name.

    Vectors (biases, norms) are left alone unless included.

    With --method soft-targets a student of any shape is trained on the teacher's outputs for unlabelled --inputs.
    """
    training = options.given_training(values)
    if training is not None:
        for key, value in (("include", include), ("exclude", exclude), ("set", rules), ("stats", values["stats"])):
            if value:
                raise UsageError(f"--{key} has no meaning for --method {METHOD}, which trains the whole network")
        return options.execute(
            partial(api.run_recipe, "distill", input_path, output, Recipe((), training=training)), values
        )
    stage = make_stage(
        "distill",
        options.given("distill", values),
        include=include,
        exclude=exclude,
        rules=options.parse_rules(rules),
        teacher=values.pop("teacher"),
        text=True,
    )
    return options.execute(partial(api.run_recipe, "distill", input_path, output, Recipe((stage,))), values)
