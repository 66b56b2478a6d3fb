"""`compressor tune`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import click

from compressor.budget.request import TARGETS
from compressor.budget.running import run_tune
from compressor.budget.tune import Evaluation, Search
from compressor.cli import budgeting, options
from compressor.cli.streams import say
from compressor.recipe import Recipe, make_stage
from compressor.text import printable, size_text


@click.command()
@options.writing
@click.option(
    "--evaluate",
    required=True,
    metavar="COMMAND",
    help="What measures an output: '{path}' is it; run without a shell.",
)
@click.option("--metric", default="metric", metavar="NAME", help="Its name, where the command prints a JSON line.")
@click.option("--min-metric", type=options.Finite(-1e300), required=True, help="The least that it must be.")
@click.option("--evaluations", type=click.IntRange(1, 1000), default=10, help="Outputs to measure at most [10].")
@click.option("--timeout", type=options.Finite(0.001), default=3600.0, help="Seconds for one of them [3600].")
@click.option("--log", default="", metavar="FILE", help="What was measured; an interrupted search goes on from it.")
@budgeting.details
@options.method_options("quantize")
@options.stats
@options.requantize
@options.selecting
@options.running
def command(input_path: str, output: str, include: Any, exclude: Any, rules: Any, **values: Any) -> int:
    """Find the smallest output at which your own measure holds.

    The command is run on outputs between the smallest and the best that the candidates allow, by bisection; it
    prints a number, or a JSON line with the metric. The limits of budgets (--max-error, --min-sqnr) hold as well.
    """
    from compressor import api  # slow, and no help needs it

    stage_options = {"scheme": "auto", **options.given("quantize", values)}
    names = ("evaluate", "metric", "min_metric", "evaluations", "timeout", "log")
    search = Search(*(values.pop(key) for key in names))
    curve = values.get("curve")
    budgeting.check_curve(curve, force=values["force"])
    values |= dict.fromkeys(TARGETS)
    budget = budgeting.taken(values, stage_options)
    del values["curve"]
    rules = options.parse_rules(rules)
    stage = make_stage("quantize", stage_options, include=include, exclude=exclude, rules=rules, text=True)
    recipe = replace(Recipe((stage,)), budget=budget)

    def tell(one: Evaluation) -> None:
        said = f"{search.metric} {one.metric:g}"
        say("evaluated", f"{size_text(one.size)}: {printable(said, 100)}")

    def work(**settings: Any) -> Any:
        report = run_tune(api.run_recipe, input_path, output, recipe, search, tell=tell, **settings)
        budgeting.draw(curve, report.allocation, replace_it=settings["force"])
        return report

    return options.execute(work, values)
