"""A model compressed block by block while statistics of it are taken, so that later blocks are given what they will
be given in the end."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from compressor.calibration.fingerprint import fingerprint
from compressor.calibration.run import Calibration
from compressor.calibration.statistics import write_statistics
from compressor.checkpoint.checkpoint import Tensor, open_checkpoint
from compressor.core import cleanup
from compressor.core.errors import UsageError
from compressor.core.layer_inputs import Layer
from compressor.core.tensor import TensorSpec
from compressor.core.text import printable
from compressor.files.staging import Staging
from compressor.files.writing import place_beside
from compressor.methods.contract import Method, Scheme
from compressor.recipe.legs import words_of
from compressor.recipe.model import Recipe
from compressor.recipe.statistics_files import with_statistics
from compressor.recipe.toml_file import recipe_for
from compressor.workflows.one_pass import run_one_pass
from compressor.workflows.run_options import RunOptions

if TYPE_CHECKING:
    from compressor.calibration.language_model import Compress

_PLAIN = "Leave --recipe and --stage out: the statistics are then those of the model as it is"


def recipe_of_blocks(options: Calibration) -> Recipe | None:
    """The recipe by which each block is compressed before the next one runs; None where none is given. UsageError
    for one that does not treat every block by itself, or that goes by no statistics."""
    if options.recipe is None and not options.stages:
        return None
    recipe = recipe_for(options.recipe, options.stages)
    why = _unfit(recipe)
    if why:
        raise UsageError(f"calibrate compresses block by block, and {why}", remedy=_PLAIN)
    try:
        with_statistics(recipe, "statistics")
    except UsageError as error:
        raise UsageError("calibrate: no stage of the recipe goes by statistics", remedy=_PLAIN) from error
    return recipe


def _unfit(recipe: Recipe) -> str:
    """Why a recipe cannot be carried out block by block; "" where it can."""
    if recipe.budget is not None:
        return "a budget looks at the whole model"
    if len(recipe.legs) > 1 or recipe.cuts or recipe.training is not None:
        return "the recipe has more than one pass, a structured cut or a training"
    for stage in recipe.stages:
        called = f"{stage.method.verb} {stage.method.id}"
        if stage.stats is not None:
            return f"{called} names statistics of its own"
        if stage.teacher is not None:
            return f"{called} has a teacher"
        if stage.method.verb != "quantize":
            return f"{called} gains nothing by that"
        if any(map(_looks_at_all, stage.methods)):
            return f"{called} looks at the whole model first"
        if stage.balances:
            return f"{called} scales the model before anything is rounded"
    return ""


def _looks_at_all(method: Method) -> bool:
    """Whether what it makes of a tensor hangs on all others; what layers share that loaders store as one does not
    count: such layers are of one block."""
    some = TensorSpec("layer.weight", "F32", (64, 64))
    return method.reach == "model" and not (isinstance(method, Scheme) and method.for_block(some, 1.0) is not None)


def block_by_block(model: str, output: str, recipe: Recipe) -> Compress:
    """How the blocks of a model are compressed while its statistics are written to `output`: by this recipe, as a
    run of it over the whole model will do it that goes by them."""
    return _Blocks(model, output, recipe, fingerprint(open_checkpoint(model)))


@dataclass(frozen=True)
class _Blocks:
    """The compression of one block at a time, in a hidden folder beside the output."""

    model: str
    output: str
    recipe: Recipe
    known: tuple[str, str]  # the model's fingerprints

    @contextmanager
    def __call__(self, names: Sequence[str], found: Mapping[str, Layer]) -> Iterator[Mapping[str, Tensor]]:
        """The tensors that it leaves of a block of these, which the statistics found of its layers are for."""
        staging = Staging(place_beside(self.output, "block"), folder=True, replace=True, final=False)
        try:
            stats, made = (os.path.join(staging.path, name) for name in ("statistics.safetensors", "block"))
            write_statistics(stats, found.items(), model=self.known[0], weights=self.known[1])
            run_one_pass("pipeline", self.model, made, self.recipe, RunOptions(stats=stats, card=False), only=names)
            cleanup.as_unfinished()
            yield open_checkpoint(made).tensors
        finally:
            staging.discard()


def note_of(recipe: Recipe) -> str:
    """What the user should know of statistics that were taken so."""
    called = printable(recipe.name, 60) or words_of(recipe)
    return (
        f"blocks were given what the blocks before them leave once compressed ({called}): they are for a run of "
        "these stages, and of little use to others"
    )
