"""`compressor inspect`."""

from __future__ import annotations

from typing import Any

import click

from compressor.cli import options
from compressor.cli.help import Command
from compressor.cli.streams import emit


@click.command(
    cls=Command,
    examples=(
        "compressor inspect model.safetensors",
        "compressor inspect MODEL --stats --top 5",
    ),
)
@options.input_argument
@click.option("--stats", is_flag=True, help="Read the data too: sparsity, range, mean, deviation.")
@click.option(
    "--coding", is_flag=True, help="Of an archive: the bits of values and positions, before coding and coded."
)
@options.read_with_base
@options.workers
@options.output_format
@options.top
@options.wide
@options.quiet
@options.debug
def command(
    input_path: str, stats: bool, coding: bool, base: str | None, workers: int | None, style: str, **shown: Any
) -> int:
    """Show the tensors of an input: name, dtype, shape, size. Reads headers only, so it is instant."""
    from compressor import api
    from compressor.cli.report import render

    report = api.inspect(input_path, stats=stats, coding=coding, base=base, workers=workers)
    return 0 if emit(render(report, style, **shown), essential=True) else 4
