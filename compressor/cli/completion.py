"""`compressor completion`: what a shell needs to complete this command line, printed or put in its place."""

from __future__ import annotations

import os

import click

from compressor.cli import options
from compressor.cli.help import Command
from compressor.cli.streams import emit
from compressor.core.text import printable

VARIABLE = "_COMPRESSOR_COMPLETE"
# Shell → where it looks, under what variable of the environment or else below the home folder
_PLACES = {
    "bash": ("XDG_DATA_HOME", ".local/share", "bash-completion/completions/compressor"),
    "zsh": ("XDG_DATA_HOME", ".local/share", "zsh/site-functions/_compressor"),
    "fish": ("XDG_CONFIG_HOME", ".config", "fish/completions/compressor.fish"),
}
_READ = {
    "bash": "new shells read it if they have bash-completion; else add to ~/.bashrc: source {path}",
    "zsh": "add to ~/.zshrc: fpath+=({folder}); autoload -Uz compinit; compinit",
    "fish": "new shells read it",
}


@click.command(
    cls=Command,
    examples=(
        "compressor completion bash --install",
        'eval "$(compressor completion bash)"',
    ),
)
@click.argument("shell", type=click.Choice(list(_PLACES)), metavar="bash|zsh|fish")
@click.option("--install", is_flag=True, help="Put it where the shell looks for it.")
@click.option("--force", is_flag=True, help="Replace a file that is there.")
@options.debug
def command(shell: str, install: bool, force: bool) -> int:
    """Print what makes a shell complete commands, options, paths, methods, layouts, recipes and, after --include or
    --exclude, the tensors of INPUT.
    """
    script = _script(shell)
    if not install:
        return 0 if emit(script, essential=True) else 4
    from compressor.files.text_files import write_document

    variable, below, name = _PLACES[shell]
    root = os.environ.get(variable) or os.path.join(os.path.expanduser("~"), below)
    path = os.path.join(root, name)
    write_document(path, script.encode(), replace=force, folders=True)
    told = _READ[shell].format(path=printable(path), folder=printable(os.path.dirname(path)))
    emit(f"wrote {printable(path)}; {told}\n", essential=False)
    return 0


def _script(shell: str) -> str:
    from click.shell_completion import ShellComplete, get_completion_class

    known = get_completion_class(shell)
    assert known is not None  # noqa: S101 - click has these three
    # bash's own would start one to ask for its version
    return (
        ShellComplete.source(known(click.get_current_context().find_root().command, {}, "compressor", VARIABLE))
        + "\n"
    )
