"""`compressor quantize`."""

from __future__ import annotations

from typing import Any

import click

from compressor.cli import budgeting, options
from compressor.cli.help import Command
from compressor.recipe.model import Recipe
from compressor.recipe.stages import make_stage


@click.command(
    cls=Command,
    examples=(
        "compressor quantize model.safetensors -o small.safetensors --bits 8",
        "compressor quantize MODEL -o SMALL --bits 4 --for vllm",
        "compressor quantize MODEL -o SMALL --target-bits 4.5",
    ),
    lists="methods quantize",
    rare="sparsity scope text",
)
@options.writing
@budgeting.targets
@budgeting.details
@budgeting.weighing
@options.method_options("quantize")
@options.stats
@options.preset
@options.store
@options.effort
@options.fallback
@options.requantize
@options.selecting
@options.for_loader
@options.show_recipe
@options.part
@options.running
def command(input_path: str, output: str, include: Any, exclude: Any, rules: Any, **values: Any) -> int:
    """Store weights as codes of few bits, in files that loaders take as they are. Vectors, embeddings, output
    heads and routers are left alone unless included.

    Integers of 4 and 8 bits and small floats (fp8, nvfp4, mxfp4, mxfp8) are stored as compressed-tensors does
    (vLLM, transformers), other widths in a layout of our own that `compressor restore` reads;
    `--layout mlx` and `--layout gptq` are what their names say.

    With --target-size, --target-ratio or --target-bits (or --scheme auto and limits: --max-error, --min-sqnr) the
    scheme of every tensor is chosen for a budget, and told before it is carried out.
    """
    stage_options = options.given("quantize", values)
    budget, tell = budgeting.prepared(values, stage_options)
    stage = make_stage(
        "quantize",
        stage_options,
        include=include,
        exclude=exclude,
        rules=options.parse_rules(rules),
        store=values.pop("store"),
        fallback=values.pop("fallback"),
        preset=values.pop("preset"),
        text=True,
    )
    recipe = Recipe((stage,), budget=budget)
    return options.execute("quantize", input_path, output, recipe, values, tell)
