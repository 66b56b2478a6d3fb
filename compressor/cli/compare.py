"""`compressor compare`."""

from __future__ import annotations

import click

from compressor.cli import options
from compressor.cli.streams import emit
from compressor.core.errors import GateFailed


@click.command()
@click.argument("a")
@click.argument("b")
@click.option("--max-error", type=options.Finite(0), help="Gate: largest relative error of any tensor.")
@click.option("--min-sqnr", type=options.Finite(-1000), help="Gate: smallest signal to noise of any tensor, in dB.")
@options.workers
@options.output_format
@options.top
@options.debug
def command(
    a: str,
    b: str,
    max_error: float | None,
    min_sqnr: float | None,
    workers: int | None,
    style: str,
    top: int | None,
) -> int:
    """Measure B against A tensor by tensor, worst first; files that store codes are restored on the way.

    With a gate, a tensor that only one side has, or whose shape differs, fails too.
    """
    from compressor import api
    from compressor.cli.report import render

    report = api.compare(a, b, max_error=max_error, min_sqnr=min_sqnr, workers=workers)
    printed = emit(render(report, style, top=top), essential=True)
    if report.failures:
        raise GateFailed("; ".join(report.failures[:5]))
    return 0 if printed else 4
