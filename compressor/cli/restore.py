"""`compressor restore`."""

from __future__ import annotations

from functools import partial
from typing import Any

import click

from compressor.cli import options


@click.command()
@options.writing
@options.running
def command(input_path: str, output: str, **values: Any) -> int:
    """Turn stored codes back into dense tensors of the original names, shapes and dtypes.

    Reads any output of this tool, and compressed-tensors folders of integer codes.
    """
    from compressor import api

    return options.execute(partial(api.restore, input_path, output), values)
