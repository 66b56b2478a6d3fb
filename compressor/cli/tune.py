"""`compressor tune`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import click

from compressor.cli import budgeting, losing, options
from compressor.cli.help import Command
from compressor.cli.streams import say
from compressor.core.errors import OutputError
from compressor.core.text import printable, size_text
from compressor.recipe.budget import TARGETS
from compressor.recipe.model import Recipe
from compressor.recipe.stages import make_stage

store = click.option(
    "--store",
    type=click.Choice(["auto", "archive"]),
    default="auto",
    help="Packed codes, or archive: packed, then the whole file entropy-coded, with even steps as candidates.",
)


@click.command(
    cls=Command,
    examples=(
        "compressor tune model.safetensors -o small.safetensors \\\n"
        "  --evaluate 'python score.py --json {restored}' \\\n  --metric accuracy --min-metric 0.97",
        "compressor tune MODEL -o SMALL --text text.txt --max-kld 0.01",
    ),
    rare="granularity group_size layout labels",
    lists="methods quantize",
)
@options.writing
@click.option(
    "--evaluate",
    metavar="COMMAND",
    help="A program that measures {path}, the output. Or {restored}, a dense copy of it; with its arguments. No "
    "shell is used.",
)
@click.option(
    "--metric",
    metavar="NAME",
    help="Its name in the JSON line that it prints [metric].",
)
@click.option("--min-metric", type=options.Finite(-1e300), help="The least that the metric must be.")
@click.option(
    "--evaluations", type=click.IntRange(1, 1000), default=10, help="How many outputs are measured at most [10]."
)
@click.option("--timeout", type=options.Finite(0.001), help="Seconds that one measurement may take [3600].")
@click.option(
    "--log",
    default="",
    metavar="FILE",
    help="Where measurements are kept, for a search that was interrupted [OUTPUT.tune.jsonl].",
)
@losing.tokens
@losing.recorded
@losing.sampling
@losing.gates
@budgeting.details
@options.method_options("quantize")
@options.stats
@store
@options.effort
@options.requantize
@options.selecting
@options.for_loader
@options.running
def command(input_path: str, output: str, include: Any, exclude: Any, rules: Any, **values: Any) -> int:
    """Find the smallest output at which your own measure holds.

    Outputs of different sizes are written, and the --evaluate command is run on each: first on the best that the
    candidates allow, then half-way between the largest that failed and the smallest that held. Where it says {path}
    it gets the path of such an output, a file or a folder as OUTPUT will be, hidden beside it and removed
    afterwards. It prints a number, higher is better, or a JSON object that has one under the name of --metric; the
    last such line counts, and it must end with exit code 0. The smallest output whose metric is at least
    --min-metric becomes OUTPUT. Limits of budgets (--max-error, --min-sqnr) hold as well. {restored} is a sibling
    of {path} with dense tensors under their own names, which any script loads.

    Without a command --text, --tokens or --inputs measure what an output lost against INPUT, as `compare` does, and
    --max-kld, --min-agreement, --max-perplexity-ratio or --min-cosine are the limit.
    """
    from compressor.workflows.budget.choice import Evaluation
    from compressor.workflows.budget.run import run_tune
    from compressor.workflows.budget.search import OPTIONS, search_of

    stage_options = {"scheme": "auto", **options.given("quantize", values)}
    search = search_of({key: values.pop(key) for key in OPTIONS}, output)
    curve = values.get("curve")
    budgeting.check_curve(curve, force=values["force"])
    values |= dict.fromkeys((*TARGETS, "text"))
    budget = budgeting.taken(values, stage_options)
    del values["curve"]
    if values["store"] == "auto":
        values["store"] = "stages"  # as `RunOptions` calls it
    rules = options.parse_rules(rules)
    stage = make_stage("quantize", stage_options, include=include, exclude=exclude, rules=rules, text=True)
    recipe = replace(Recipe((stage,)), budget=budget)

    def tell(one: Evaluation) -> None:
        score = f"{search.metric} {one.metric:.6g}"
        say("evaluated", f"{size_text(one.size)}: {printable(score, 100)}")

    force = values["force"]
    with options.session(values, recipe, (input_path, output)) as run:
        run.report = run_tune(input_path, output, recipe, search, run.options, tell=tell)
    if run.report is not None:
        try:
            budgeting.draw(curve, run.report.allocation, replace_it=force)
        except OutputError as error:
            error.remedy = f"{printable(output)} is complete all the same"
            raise
    return 0
