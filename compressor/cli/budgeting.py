"""Options of budgets, and what is printed of a choice before it is carried out.

`--max-error` is one option with one meaning, the largest relative error of any tensor: a gate where the scheme is
given, and a limit of the choice as well (with the gate after it) where a budget chooses.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import click

from compressor.cli.options import Decorator, Finite, Size, chain
from compressor.cli.streams import emit
from compressor.core.errors import UsageError
from compressor.recipe.budget import SAMPLE, TARGETS, Budget, check_open

targets: Decorator = chain(
    click.option("--target-size", type=Size(), help="Size of the output, such as 300MB; never more."),
    click.option("--target-ratio", type=Finite(1e-9), help="How many times smaller than the input."),
    click.option("--target-bits", type=Finite(1e-9), help="Stored bits of a weight on average, such as 4.5."),
)
details: Decorator = chain(
    click.option("--min-sqnr", type=Finite(-1e9), help="Least SQNR of any tensor, in decibels."),
    click.option(
        "--candidate",
        "candidates",
        multiple=True,
        metavar="NAME",
        help="What a tensor may become: dense, int4g64, int8c, mxfp4, SCHEME:KEY=VALUE,...; repeatable.",
    ),
    click.option("--survey", metavar="FILE", help="Keep what was measured there, and use it again."),
    click.option(
        "--sample",
        type=click.IntRange(0),
        help=f"Weights of a tensor that are measured: {SAMPLE} by default; 0 is all.",
    ),
    click.option("--curve", metavar="FILE.svg", help="Draw error against size."),
)
weighing: Decorator = click.option(
    "--text",
    metavar="FILE",
    help="Of a budget: weigh errors by what they cost the outputs on this text (needs the extra calibrate).",
)


def taken(
    values: dict[str, Any], options: dict[str, Any] | None = None, base: Budget | None = None
) -> Budget | None:
    """Take the options of a budget out of `values`; the budget they make, on top of a recipe's own; None where none
    is asked for. `options` are those of the stage: scheme auto asks for a budget, another one forbids it."""
    given: dict[str, Any] = {key: values.pop(key) for key in (*TARGETS, "min_sqnr", "survey", "sample", "text")}
    given = {key: value for key, value in given.items() if value is not None}
    names = tuple(part for text in values.pop("candidates") for part in text.split())
    auto = options is not None and options.get("scheme") == "auto"
    targeted = [key for key in TARGETS if key in given]
    if base is None and not auto and not targeted:
        other = next(iter(given), None) or ("candidate" if names else "curve" if values.get("curve") else None)
        if other is not None:
            how = (
                "--scheme auto, or --target-size"
                if options is not None
                else "--target-size, or a recipe's [budget]"
            )
            raise UsageError(f"--{other.replace('_', '-')} is for a budget", remedy=f"Ask for one with {how}")
        return None
    if options is not None:
        if auto:
            del options["scheme"]
        check_open(options)
    if values.get("max_error") is not None:
        given["max_error"] = values["max_error"]
    if names:
        given["candidates"] = names
    if targeted and base is not None:
        base = replace(base, target_size=None, target_ratio=None, target_bits=None)
    return replace(base or Budget(), **given)


def prepared(
    values: dict[str, Any], options: dict[str, Any] | None = None, base: Budget | None = None
) -> tuple[Budget | None, Callable[[Any], None] | None]:
    """The budget that is asked for, and what shows its choice; None twice where none is. Takes what is the budget's
    alone out of `values`."""
    budget = taken(values, options, base)
    check_curve(values["curve"], force=values["force"])
    tell = telling(values) if budget is not None else None
    del values["curve"]
    return budget, tell


def telling(values: dict[str, Any]) -> Callable[[Any], None]:
    """What shows a choice before it is carried out: a table, and the curve as a picture where asked."""
    curve, force = values["curve"], values["force"]
    shown = values["style"] != "json" and not values["quiet"]
    top, wide = values["top"], values["wide"]

    def tell(allocation: Any) -> None:
        from compressor.cli.report.allocation import render_allocation
        from compressor.cli.report.progress import aside

        if shown:
            with aside():
                emit(render_allocation(allocation, top=top, wide=wide), essential=False)
        draw(curve, allocation, replace_it=bool(force))

    return tell


def draw(curve: str | None, allocation: Any, *, replace_it: bool) -> None:
    """The curve as a picture, where one was asked for."""
    if curve is not None:
        from compressor.files.text_files import write_document
        from compressor.reports.curve import render_curve

        write_document(curve, render_curve(allocation).encode(), replace=replace_it)


def check_curve(curve: str | None, *, force: bool) -> None:
    """Before anything is read: whether the picture can be written."""
    if curve is not None:
        from compressor.files.staging import check_place

        if not curve.endswith(".svg"):
            raise UsageError("--curve writes an SVG", remedy="End its name in .svg")
        check_place(curve, folder=False, replace=force)
