"""The command group and the one place where errors become lines and exit codes."""

from __future__ import annotations

import importlib
import os
import resource
import sys
from collections.abc import Sequence
from difflib import get_close_matches

import click

from compressor.cli.help import heading
from compressor.cli.streams import prepare_streams, say
from compressor.core import cleanup
from compressor.core.errors import CompressorError, NothingLeft, NothingWritten, problems_of
from compressor.core.version import __version__

# What the group's help says of each command, in groups. The modules are imported only when their command runs.
_GROUPS = {
    "Make weights smaller": {
        "quantize": "Store weights as codes of few bits.",
        "prune": "Make weights exactly zero, or cut whole neurons, heads, layers.",
        "distill": "Carry a teacher's weights into a student, or make one.",
        "pipeline": "Apply a recipe of several stages in one pass.",
        "tune": "Find the smallest output at which your own measure holds.",
    },
    "See what there is, and what it cost": {
        "inspect": "Show what an input holds, from its headers.",
        "compare": "Measure what B lost against A, worst first.",
        "report": "Write a report to look at of an output that is there.",
        "restore": "Turn stored codes back into dense tensors.",
        "limit": "Refuse files over a size, for hooks of version control.",
    },
    "Find your way": {
        "methods": "Explain what there is to choose from, and when to take it.",
        "recipes": "List the ready recipes, or show one.",
        "completion": "Have a shell complete options, methods and tensor names.",
    },
    "Data, and many machines": {
        "calibrate": "Gather statistics of layer inputs for data-aware methods.",
        "survey": "Make one pass over a whole model by several jobs.",
        "merge": "Put the parts together that several jobs wrote of one output.",
    },
}
_COMMANDS = {name: said for group in _GROUPS.values() for name, said in group.items()}
_MODULES = {"report": "written"}  # commands whose modules are called otherwise
EXAMPLES = (
    "compressor quantize model.safetensors -o small.safetensors --bits 8",
    "compressor compare model.safetensors small.safetensors",
    "compressor quantize --help",
)
_WIDE = 10  # columns for names of commands
_LINES = 20  # of errors that are shown


class LazyGroup(click.Group):
    """A group whose commands are modules of this package."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in _COMMANDS:
            return None
        module = importlib.import_module(f"compressor.cli.{_MODULES.get(name, name)}")
        command: click.Command = module.command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in _COMMANDS and not args[0].startswith("-"):
            close = get_close_matches(args[0], _COMMANDS, 1)
            hint = f" Did you mean {close[0]}?" if close else ""
            ctx.fail(f"there is no command {args[0]!r}.{hint}")
        if ctx.resilient_parsing and args[:1] == ["survey"] and len(args) > 1 and args[1] in _COMMANDS:
            args = args[1:]  # a shell is offered what the verb takes that is surveyed
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for title, commands in _GROUPS.items():
            with formatter.section(heading(title)):
                formatter.write_dl([(name.ljust(_WIDE), said) for name, said in commands.items()])
        with formatter.section(heading("Examples")):
            formatter.write("".join(f"  {line}\n" for line in EXAMPLES))


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Exit codes: 0 done, 1 a gate failed, 2 wrong usage or recipe, 3 input refused, "
    "4 output failed, 70 a bug, 128+N stopped by signal N (docs/command-line.md).",
)
@click.version_option(__version__, message="%(prog)s %(version)s")
def cli() -> None:
    """Make weight files smaller: .safetensors, .gguf, .npy and Hugging Face folders.

    Needs no deep-learning framework and no GPU, and holds a few rows in memory, not the model.
    """


def run(args: Sequence[str]) -> int:
    """Run the command line; the exit code. Nothing but `--debug` ever shows a traceback."""
    prepare_streams()
    debug = "--debug" in args
    cleanup.doubts()  # those of an earlier run
    try:
        code = cli.main(list(args), prog_name="compressor", standalone_mode=False, obj=tuple(args))
        _tell_doubts()
        return int(code or 0)
    except click.exceptions.NoArgsIsHelpError as error:
        sys.stderr.write(f"{error.format_message()}\n")
        return 2
    except click.ClickException as error:
        say("error", error.format_message() + _see_help(error))
        return 2
    except CompressorError as error:
        problems = problems_of(error)
        for problem in problems[:_LINES]:
            _mention_kept(problem)
            say("error", str(problem))
        if len(problems) > _LINES:
            say("error", f"and {len(problems) - _LINES} more")
        return error.exit_code
    except (MemoryError, ImportError) as error:
        if isinstance(error, ImportError) and resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY:
            return _bug(error, debug)
        say("error", "out of memory; --workers 1 needs less")  # libraries that find no room are not imported
        return 4
    except RuntimeError as error:
        if debug or "start new thread" not in str(error):
            return _bug(error, debug)
        say("error", "no more threads can be started; --workers 1 needs none")
        return 4
    except SystemExit as error:  # Click's way out when stdout is a closed pipe, or a shell asks for completions
        return 4 if os.environ.get("_COMPRESSOR_COMPLETE") is None else int(error.code or 0)
    except OSError as error:  # of Click's own printing; ours says more
        if debug:
            raise
        say("error", f"input or output failed: {error.strerror or error}")
        return 4
    except Exception as error:
        return _bug(error, debug)


def _tell_doubts() -> None:
    """Say what is not as it should be though all went well."""
    kernels = sys.modules.get("compressor.core.kernels")
    if kernels is not None:
        kernels.library()  # a worker that found none of use cannot tell
    for said in cleanup.doubts():
        say("warning", said)


def _mention_kept(problem: CompressorError) -> None:
    """Say what is kept in a work folder, or written for an output that failed, instead of that nothing is there."""
    told = ""
    if isinstance(problem, NothingLeft):
        told = cleanup.leftovers()
    elif isinstance(problem, NothingWritten):
        told = cleanup.beside()
    problem.remedy = f"{told[0].upper()}{told[1:]}" if told else problem.remedy


def _bug(error: Exception, debug: bool) -> int:
    if debug:
        raise error
    say("error", f"a bug in compressor: {type(error).__name__}: {error}. Run with --debug and report it")
    return 70


def _see_help(error: click.ClickException) -> str:
    context = getattr(error, "ctx", None)
    return f" (see {context.command_path} --help)" if context is not None else ""
