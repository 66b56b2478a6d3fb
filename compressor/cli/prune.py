"""`compressor prune`."""

from __future__ import annotations

from typing import Any

import click

from compressor.cli import options
from compressor.cli.help import Command
from compressor.methods.structured_cut import make_structured_cut
from compressor.recipe.model import Recipe
from compressor.recipe.stages import make_stage


@click.command(
    cls=Command,
    examples=(
        "compressor prune model.safetensors -o sparse.safetensors --sparsity 0.5",
        "compressor prune MODEL -o SPARSE --method nm --pattern 2:4",
        "compressor prune MODEL -o SMALL --structure neurons --fraction 0.25",
    ),
    rare="granularity",
    lists="methods prune",
)
@options.writing
@options.method_options("prune")
@options.structure
@options.stats
@options.scores
@options.mask
@options.save_mask
@options.store_pruned
@options.effort
@options.selecting
@options.for_loader
@options.show_recipe
@options.part
@options.running
def command(input_path: str, output: str, include: Any, exclude: Any, rules: Any, **values: Any) -> int:
    """Make weights exactly zero: those under a threshold, or the given share of smallest magnitude.

    Such a file is as large as before, unless --store leaves the zeros out; then `compressor restore` reads it.
    Vectors (biases, norms), embeddings, output heads and routers are left alone unless included.

    With --structure whole neurons, heads, layers, experts or channels go, and the dense model gets smaller.
    """
    store, mask, scores = (values.pop(key) for key in ("store", "mask", "scores"))
    cut = options.given_structure(values)
    if cut:
        written = ("store", store not in (None, "dense")), ("mask", mask), ("save-mask", values["save_mask"])
        stage_only = ("include", include), ("exclude", exclude), ("set", rules), *written, ("scores", scores)
        besides = [key for key, value in stage_only if value]
        recipe = Recipe((), cuts=(make_structured_cut(cut, text=True, stage_keys=besides),))
        return options.execute("prune", input_path, output, recipe, values)
    stage = make_stage(
        "prune",
        options.given("prune", values),
        include=include,
        exclude=exclude,
        rules=options.parse_rules(rules),
        store=store,
        mask=mask,
        scores=scores,
        text=True,
    )
    recipe = Recipe((stage,))
    return options.execute("prune", input_path, output, recipe, values)
