"""`compressor calibrate`."""

from __future__ import annotations

import os
import warnings
from typing import Any

import click

from compressor.cli import options
from compressor.cli.help import Command
from compressor.cli.streams import emit
from compressor.core.errors import UsageError


@click.command(
    cls=Command,
    examples=(
        "compressor calibrate MODEL -o stats.safetensors --text text.txt",
        "compressor calibrate model.safetensors -o stats.safetensors --inputs x.npy",
        "compressor calibrate --merge a.safetensors b.safetensors -o all.safetensors",
    ),
)
@click.argument("paths", nargs=-1, metavar="[MODEL]")
@click.option(
    "-o",
    "--output",
    required=True,
    metavar="FILE",
    help="The statistics, a .safetensors; or a .gguf, llama.cpp's importance matrix.",
)
@click.option("--inputs", metavar="FILE", help="Run these inputs (.npy) through the model, in NumPy.")
@click.option(
    "--activations",
    metavar="PATH",
    help="Recorded inputs of layers: a folder of LAYER.npy, or .safetensors of layer names.",
)
@click.option("--text", metavar="FILE", help="Run this text through a language model (needs the extra calibrate).")
@click.option("--merge", is_flag=True, help="Join the statistics that are given in place of MODEL: A B ...")
@click.option(
    "--network",
    metavar="NAME|FILE",
    help="What the network is, where tensors do not tell: lenet300, lenet5, lenet5-relu, or a TOML [--inputs].",
)
@click.option("--divide", type=options.Finite(1e-30), help="Divide the inputs by this, such as 255 [--inputs].")
@click.option(
    "--samples", type=click.IntRange(1, 10**9), help="How many samples [--text: 128; --inputs: all], by the seed."
)
@click.option("--length", type=click.IntRange(2, 10**7), help="Tokens of a sample [--text: 512].")
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), help="Which samples are taken: 0 by default.")
@click.option(
    "--gram/--diagonal",
    "gram",
    default=None,
    help="The gram of every layer, or only its diagonal; by default the former for layers up to 8192 wide.",
)
@click.option(
    "--recipe",
    metavar="FILE|NAME",
    help="Compress each block so before the next one runs, for what later layers are given then [--text].",
)
@click.option(
    "--stage",
    "stages",
    multiple=True,
    metavar="KIND:KEY=VALUE,...",
    help="The same, by stages; repeatable [--text].",
)
@click.option("--force", is_flag=True, help="Replace the output if it exists, whole and at the end.")
@options.output_format
@options.top
@options.wide
@options.quiet
@options.verbose
@options.debug
def command(paths: tuple[str, ...], output: str, **values: Any) -> int:
    """Gather statistics of the inputs of a model's linear layers, which methods with --stats go by.

    Three ways: --inputs for small networks, --text for Hugging Face language models, --activations for anything
    else. With --merge, files of statistics of several samples become one. With --recipe or --stage blocks are given
    what they will be given in the compressed model: `pipeline` with the same and these statistics makes that.
    """
    from compressor import api
    from compressor.cli.report import progress, render

    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before the libraries look: folders have all that is needed
    style, rows, hush, merge = (values.pop(key) for key in ("style", "top", "quiet", "merge"))
    wide, verbose = values.pop("wide"), values.pop("verbose")
    force = values.pop("force")
    given = [{"stages": "stage"}.get(key, key) for key, value in values.items() if value not in (None, ())]
    with warnings.catch_warnings(), progress.bar(enabled=not hush, verbose=verbose) as advance:
        warnings.simplefilter("ignore")  # torch's and transformers', of what is theirs
        if merge and given:
            raise UsageError(
                f"--merge takes files of statistics and no --{'diagonal' if given[0] == 'gram' else given[0]}"
            )
        if merge and len(paths) < 2:
            raise UsageError(
                "--merge takes two files of statistics or more", remedy="compressor calibrate --merge A B -o OUT"
            )
        if merge:
            report = api.merge_statistics(paths, output, force=force)
        elif len(paths) > 1:
            raise UsageError("calibrate takes one model", remedy="--merge joins files of statistics")
        else:
            report = api.calibrate(paths[0] if paths else None, output, force=force, progress=advance, **values)
    emit(render(report, style, top=rows, quiet=hush, wide=wide), essential=False)
    return 0
