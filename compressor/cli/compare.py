"""`compressor compare`."""

from __future__ import annotations

import os
import warnings
from typing import Any

import click

from compressor.cli import documents, losing, options
from compressor.cli.help import Command
from compressor.cli.streams import emit
from compressor.core.errors import GateFailed


@click.command(
    cls=Command,
    examples=(
        "compressor compare model.safetensors small.safetensors --max-error 0.2",
        "compressor compare MODEL SMALL --text text.txt --max-kld 0.05",
    ),
    gates="min_sqnr",
)
@click.argument("a")
@click.argument("b")
@options.read_with_base
@losing.tokens
@losing.recorded
@losing.sampling
@losing.seed
@click.option("--per-tensor", is_flag=True, help="Also what each tensor's compression alone costs, on a sample.")
@click.option("--max-error", type=options.Finite(0), help="Gate: largest relative error of any tensor.")
@click.option("--min-sqnr", type=options.Finite(-1000), help="Gate: smallest signal to noise of any tensor, in dB.")
@losing.gates
@options.workers
@documents.report_option
@documents.junit_option
@click.option("--force", is_flag=True, help="Replace the files of --report and --junit.")
@options.output_format
@options.top
@options.wide
@options.quiet
@options.verbose
@options.debug
def command(a: str, b: str, style: str, top: int | None, **values: Any) -> int:
    """Measure B against A tensor by tensor, worst first; files that store codes are restored on the way.

    With --text, --tokens or --inputs: what B's outputs lost against A's, and in which blocks. Both run block by
    block, whatever they are stored as (folders, quantized ones, archives, GGUF files).

    With a gate of tensors, a tensor that only one side has, or whose shape differs, fails too.
    """
    from compressor import api
    from compressor.cli.report import progress, render

    hush, wide = values.pop("quiet"), values.pop("wide")
    beside = documents.Documents.taken(values)
    values.pop("force")
    beside.check_apart(a, b)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before the libraries look: folders have all that is needed
    with warnings.catch_warnings(), progress.bar(enabled=not hush, verbose=values.pop("verbose")) as advance:
        if values["text"] is not None or values["tokens"] is not None:
            warnings.simplefilter("ignore")  # torch's and transformers', of what is theirs
        report = api.compare(a, b, **values, progress=advance, histograms=beside.report is not None)
    printed = emit(render(report, style, top=top, quiet=hush, wide=wide), essential=True)
    beside.conclude(report, GateFailed("; ".join(report.failures[:5])) if report.failures else None)
    return 0 if printed else 4
