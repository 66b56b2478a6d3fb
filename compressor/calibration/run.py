"""Ways to statistics of layer inputs: a network in NumPy, recorded activations, a language model.

`calibration/statistics.py` has the file that they make.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from compressor.calibration.fingerprint import fingerprint
from compressor.calibration.result import CalibrationReport, Task, gathered, report_of
from compressor.calibration.statistics import merge_statistics as write_merged
from compressor.calibration.statistics import open_statistics
from compressor.checkpoint.checkpoint import Checkpoint, open_checkpoint
from compressor.checkpoint.gguf.to_file import becomes_file, layers_of_file
from compressor.core.errors import InputError, UsageError
from compressor.files.destination import check_apart
from compressor.files.writing import check_output
from compressor.recipe.model import Recipe

if TYPE_CHECKING:
    from compressor.calibration.language_model import Compress

Path = str | os.PathLike[str]
_OWN = {  # options that only some ways have
    "network": ("inputs",),
    "divide": ("inputs",),
    "samples": ("inputs", "text"),
    "length": ("text",),
    "seed": ("inputs", "text"),
    "recipe": ("text",),
    "stages": ("text",),
}


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What runs through a model, and how its statistics are kept.

    One of `inputs` (.npy, which run through the model in NumPy), recorded `activations`, and a `text` that runs
    through a language model with torch. `network` describes the model where its tensors do not tell; `divide` the
    inputs by this; `samples`, chosen by `seed`, of the inputs, or windows of `length` tokens (128 of 512); `gram`:
    XᵀX for all layers or for none, by default for layers up to 8192 wide; `progress(done, total)` in samples.

    A block of a language model is given what the blocks before it leave once they are compressed by `recipe`, which
    is one of one pass, a TOML file or a ready one's name, or by `stages` as texts.
    """

    inputs: Path | None = None
    activations: Path | None = None
    text: Path | None = None
    network: str | None = None
    divide: float | None = None
    samples: int | None = None
    length: int | None = None
    seed: int | None = None
    gram: bool | None = None
    recipe: Recipe | Path | None = None
    stages: Sequence[str] = ()
    force: bool = False
    progress: Callable[[int, int], None] | None = None

    @property
    def way(self) -> str:
        """Which of the three. UsageError where that is not one, or another option is for another way."""
        ways = [way for way in ("inputs", "activations", "text") if getattr(self, way) is not None]
        if len(ways) != 1:
            raise UsageError(
                "give one of --inputs, --activations and --text",
                remedy="docs/statistics.md says which suits what model",
            )
        for key, owners in _OWN.items():
            if getattr(self, key) not in (None, ()) and ways[0] not in owners:
                raise UsageError(
                    f"--{key} is for {' and '.join(f'--{one}' for one in owners)}, not for --{ways[0]}"
                )
        return ways[0]


def calibrate(
    model: Path | None, output: str, options: Calibration, compress: Compress | None = None, note: str = ""
) -> CalibrationReport:
    """Write the statistics of a model's layer inputs to a .safetensors; `compress` leaves of each block what the
    next one is given, which a `note` tells. Raises UsageError, InputError, OutputError: nothing is written then."""
    way = options.way
    if model is None and way != "activations":
        raise UsageError(
            f"--{way} runs a model, and none is given", remedy=f"compressor calibrate MODEL --{way} FILE"
        )
    source = os.fspath(getattr(options, way))
    beside = [source, *([] if model is None else [os.fspath(model)])]
    _check_output(output, beside, (".safetensors", ".gguf"), force=options.force)
    checkpoint = None if model is None else open_checkpoint(model)
    task = Task(output, options.gram, force=options.force)
    if note:
        task.note(note)
    if options.progress is not None:
        task.progress = options.progress
    try:
        if checkpoint is not None:
            task.model, task.weights = fingerprint(checkpoint)
            if task.imatrix and becomes_file(checkpoint):
                task.weights_of_file = layers_of_file(checkpoint)
        _gather(task, checkpoint, source, way, options, compress)
    except InputError as error:
        error.file = error.file or source
        raise
    return task.report()


def _gather(
    task: Task,
    checkpoint: Checkpoint | None,
    source: str,
    way: str,
    options: Calibration,
    compress: Compress | None,
) -> None:
    """Run what there is through the model, in the way that is asked for."""
    seed = options.seed or 0
    if way == "activations":
        from compressor.calibration.small_network import from_recorded

        from_recorded(task, checkpoint, source)
    elif checkpoint is not None and way == "inputs":
        from compressor.calibration.small_network import through_network

        network, divide, samples = options.network, options.divide, options.samples
        through_network(task, checkpoint, source, network=network, divide=divide, samples=samples, seed=seed)
    elif checkpoint is not None:
        from compressor.calibration.language_model import through_model

        asked = {"samples": options.samples, "length": options.length}
        through_model(task, checkpoint, source, **asked, seed=seed, compress=compress)


def merge_statistics(paths: Sequence[Path], output: Path, *, force: bool = False) -> CalibrationReport:
    """Write the statistics of all samples of several files together. InputError where they are of other models."""
    output = os.fspath(output)
    _check_output(output, [os.fspath(path) for path in paths], (".safetensors",), force=force)
    write_merged(paths, output, force=force)
    made = open_statistics(output)
    layers = [
        gathered(layer, made.counts[layer], width, gram=layer in made.grams) for layer, width in made.widths.items()
    ]
    return report_of(output, made.source, layers, [])


def _check_output(output: str, inputs: Sequence[str], suffixes: Sequence[str], *, force: bool) -> None:
    if os.path.splitext(output)[1].lower() not in suffixes:
        raise UsageError(f"statistics are a {' or a '.join(suffixes)}", remedy="End the output's name so")
    check_apart(output, *inputs)
    check_output(output, folder=False, replace=force)
