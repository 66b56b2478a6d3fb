"""`compressor restore`."""

from __future__ import annotations

from typing import Any

import click

from compressor.cli import options
from compressor.cli.help import Command
from compressor.recipe.model import Recipe


@click.command(
    cls=Command,
    examples=(
        "compressor restore small.safetensors -o dense.safetensors",
        "compressor restore SMALL -o model.gguf",
        "compressor restore update --base BASE -o TRAINED",
    ),
)
@options.writing
@options.read_with_base
@options.part
@options.running
def command(input_path: str, output: str, **values: Any) -> int:
    """Turn stored codes back into dense tensors of the original names, shapes and dtypes.

    Reads any output of this tool, and compressed-tensors folders of integer codes. An update that was coded against
    a base (`pipeline --base`) comes back byte for byte.
    """
    return options.execute("restore", input_path, output, Recipe(()), values)
