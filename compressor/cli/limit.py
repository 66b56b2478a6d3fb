"""`compressor limit`: files that are too large, for hooks of version control."""

from __future__ import annotations

import os

import click

from compressor.cli import options
from compressor.cli.help import Command
from compressor.cli.streams import emit
from compressor.core.errors import GateFailed, InputError
from compressor.core.text import printable, size_text


@click.command(
    cls=Command,
    examples=(
        "compressor limit --max-size 50MB model.safetensors",
        "git ls-files '*.gguf' | xargs compressor limit --max-size 50MB",
    ),
)
@click.argument("paths", metavar="FILE...", nargs=-1)
@click.option("--max-size", type=options.Size(), required=True, help="Largest size of a file, such as 50MB.")
@options.debug
def command(paths: tuple[str, ...], max_size: int) -> int:
    """Refuse files over a size, and name them: for a pre-commit hook, or a CI.

    Sizes of files are looked at, and nothing is read. The exit code is 0 where all are within the limit.
    """
    large = []
    for path in paths:
        try:
            size = os.stat(path).st_size
        except OSError as error:
            raise InputError(error.strerror or str(error), file=path) from error
        if size > max_size:
            large.append((size, path))
    for size, path in sorted(large, reverse=True):
        emit(f"{size_text(size)}  {printable(path)}\n", essential=True)
    if large:
        count = f"{len(large)} of {len(paths)} files {'is' if len(large) == 1 else 'are'}"
        raise GateFailed(
            f"--max-size {size_text(max_size)}: {count} larger",
            remedy="compressor quantize makes them smaller; or keep them out of the repository",
        )
    return 0
