"""Help: options in groups, the common ones first; `--help` shows those, `--help-all` all of them.

What is common stands in one table here, by the names of options in commands. An option of a method that is in no
group is one of single methods, which `compressor methods NAME` explains.
"""

from __future__ import annotations

import inspect
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import click

_LONG = 100  # characters of a text: two lines
_WIDE = 24  # of the column of options; what is wider has a line of its own
GATES = "Gates (one that does not hold is no output, and exit code 1)"
# Group → the options that everybody needs, and those that few do
GROUPS: Mapping[str, tuple[str, str]] = {
    "Input and output": (
        "output origin merge force dry_run loader remove_parts install",
        "copies component max_shard_size strip_prefix fold_weight_norm no_tokenizer leave_out non_finite save_mask "
        "save_base work keep_work card",
    ),
    "What to do": (
        "recipe stages evaluate metric min_metric scheme method bits granularity group_size layout preset sparsity "
        "threshold pattern scope structure fraction alpha rank store per_tensor coding",
        "energy fallback requantize effort evaluations timeout log sequential gram show_recipe",
    ),
    "Which tensors": ("include exclude rules", "allow_unmatched strict"),
    "Budget (the scheme of each tensor is chosen for it)": (
        "target_size target_ratio target_bits",
        "min_sqnr candidates survey sample curve",
    ),
    "Data": (
        "teacher base stats text inputs labels activations",
        "tokens samples length seed scores mask network teacher_network divide",
    ),
    GATES: (
        "max_error min_ratio max_size max_kld min_agreement",
        "min_sparsity max_perplexity_ratio min_cosine",
    ),
    "Report": ("report_file style wide quiet", "top verbose summary junit log_file"),
    "Running": ("workers memory help_all", "part surveyed scheduler debug"),
}
_OTHERS = "Of single methods"
_BRACKET = re.compile(r" ?\[[^\]]*\]\.?$")  # which methods an option belongs to
_FIRST = re.compile(r"(?<=[a-z0-9)>.])[.] (?=[A-Z`])")  # where a first sentence ends
_ALL = "compressor.help_all"  # in a context: that all options are asked for


def _show_all(context: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted and not context.resilient_parsing:
        context.meta[_ALL] = True
        click.echo(context.get_help(), color=context.color)
        context.exit()


# What commands write, by the names of their parameters
_WRITTEN = frozenset(["output", "report_file", "junit", "log_file", "save_mask", "save_base", "curve", "survey"])


class _Text(click.types.StringParamType):
    """A text for which a shell is offered names or paths."""

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> Any:
        from compressor.cli.completing import offered

        return offered(ctx, param, incomplete)


_TEXT = _Text()


class Command(click.Command):
    """A command whose help has groups, and examples that tests run."""

    def __init__(
        self,
        *args: Any,
        examples: Sequence[str] = (),
        rare: str = "",
        lists: str = "",
        gates: str = "",
        **kwargs: Any,
    ):
        """`rare` are options that few need of this command, whatever the table says, and `gates` ones that are
        gates here; `lists` is the command that tells what there is to choose from."""
        super().__init__(*args, **kwargs)
        self.examples, self.rare, self.lists, self.gates = tuple(examples), rare.split(), lists, gates.split()
        whole = click.Option(
            ["--help-all"],
            is_flag=True,
            is_eager=True,
            expose_value=False,
            callback=_show_all,
            help="All options, with all that is to say of them.",
        )
        self.params.append(whole)
        for param in self.params:
            if param.type is click.STRING:
                param.type = _TEXT

    def invoke(self, ctx: click.Context) -> Any:
        """UsageError where two files that the command writes would be one."""
        written = [
            (one.opts[0], path)
            for one in self.params
            if isinstance(one, click.Option)
            and one.name in _WRITTEN
            and isinstance(path := ctx.params[one.name], str)
        ]
        if len(written) > 1:
            from compressor.files.destination import check_apart

            for place, (option, path) in enumerate(written):
                for other, against in written[:place]:
                    check_apart(path, against, option=option, of="output" if other == "-o" else f"file of {other}")
        return super().invoke(ctx)

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        """`INPUT -o OUTPUT [OPTIONS]`: what must be given comes first."""
        arguments = [one.make_metavar(ctx) for one in self.params if isinstance(one, click.Argument)]
        needed = [one for one in self.params if isinstance(one, click.Option) and one.required]
        return [*arguments, *(f"{one.opts[0]} {one.make_metavar(ctx)}" for one in needed), "[OPTIONS]"]

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        whole = bool(ctx.meta.get(_ALL))
        self.format_usage(ctx, formatter)
        text = inspect.cleandoc(self.help or "")
        put = formatter.write_text
        formatter.write_paragraph()
        with formatter.indentation():
            put(text if whole else text.split("\n\n")[0])
        if self.examples:
            with formatter.section(heading("Examples")):
                for line in self.examples:
                    formatter.write("".join(f"  {part}\n" for part in line.splitlines()))
        left = 0
        for title, rows, hidden in self._groups(ctx, whole):
            left += hidden
            if rows:
                with formatter.section(heading(title)):
                    formatter.write_dl([(first.ljust(_WIDE), said) for first, said in rows], col_max=_WIDE)
        formatter.write_paragraph()
        if left:
            put(f"{left} more options: {ctx.command_path} --help-all")
        if self.lists:
            put(f"What there is to choose from, and when: compressor {self.lists}")

    def _groups(self, ctx: click.Context, whole: bool) -> Iterator[tuple[str, list[tuple[str, str]], int]]:
        """Title, options as (flags, text), and how many more there are; in the order of the table."""
        options = {str(one.name): one for one in self.get_params(ctx) if isinstance(one, click.Option)}
        for title, (common, others) in GROUPS.items():
            names = [one for one in (*common.split(), *others.split()) if title == GATES or one not in self.gates]
            names += self.gates if title == GATES else []
            rows, hidden = [], 0
            for name in names:
                option = options.pop(name, None)
                if option is None:
                    continue
                if whole or (name in common.split() and name not in self.rare):
                    rows.append(_row(option, ctx, whole))
                else:
                    hidden += 1
            yield title, rows, hidden
        single = [_row(one, ctx, whole) for one in options.values() if "--help" not in one.opts]
        yield (_OTHERS, single, 0) if whole else (_OTHERS, [], len(single))


def _row(option: click.Option, ctx: click.Context, whole: bool) -> tuple[str, str]:
    """`--bits NUMBER` and what it is: the first sentence, or the whole of it. Choices that make the first too wide
    are told in the second where there is room."""
    names = ", ".join(option.opts) + "".join(f" / {name}" for name in option.secondary_opts)
    text = option.help or ""
    if not whole:
        text = _FIRST.split(_BRACKET.sub("", text))[0].rstrip(".") + "."
    if option.required and whole:
        text = f"{text[:-1]} (required)."
    if option.is_flag:
        return names, text
    metavar = "NUMBER" if isinstance(option.type, click.IntRange) else option.make_metavar(ctx).strip("[]")
    if "|" in metavar and len(f"{names} {metavar}") > _WIDE and not whole:
        told = f"{text[:-1]}: {', '.join(metavar.split('|'))}."
        return f"{names} NAME", told if len(told) < _LONG else text
    return f"{names} {metavar}", text


def heading(text: str) -> str:
    """A heading, bold where a person looks at it: a weight and no colour, on dark and on light."""
    seen = sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    return click.style(text, bold=True) if seen else text
