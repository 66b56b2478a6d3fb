"""`compressor survey`."""

from __future__ import annotations

import importlib

import click

from compressor.cli import options

_VERBS = ("prune", "distill", "quantize", "pipeline")


@click.command(context_settings={"ignore_unknown_options": True, "help_option_names": []})
@click.argument("verb", type=click.Choice([*_VERBS, "-h", "--help"]), metavar="VERB")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="[ARGUMENTS OF THE VERB]...")
@click.pass_context
def command(context: click.Context, verb: str, arguments: tuple[str, ...]) -> int:
    """Make one pass over the whole model that a run would make, by several jobs.

    Global pruning, nvfp4 and budgets look at all tensors before they treat any. `survey` before the command of
    the run, with --part K/N, has job K look at its share, and writes OUTPUT.survey-K-of-N. `compressor merge` puts
    those of all jobs together into a file for --surveyed: of the run, whose bytes are the same with it and without,
    or of the next survey, where a run takes several passes.

    \b
    Example, two jobs:
      compressor survey prune model -o small --sparsity 0.5 \\
        --scope global --part 1/2
      compressor survey prune model -o small --sparsity 0.5 \\
        --scope global --part 2/2
      compressor merge small.survey-*-of-2 -o small.survey
      compressor prune model -o small --sparsity 0.5 \\
        --scope global --surveyed small.survey
    """
    if verb not in _VERBS:
        click.echo(context.get_help())
        return 0
    asked: click.Command = importlib.import_module(f"compressor.cli.{verb}").command
    # beside this command, so that help and messages are those of the verb
    with asked.make_context(verb, list(arguments), parent=context.parent, obj=options.SURVEY) as inner:
        return int(asked.invoke(inner) or 0)
