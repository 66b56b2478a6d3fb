"""Students made out of teachers: the cuts that a method asks for, one by one, and the scaling after them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from compressor.calibration.statistics import Statistics
from compressor.checkpoint.checkpoint import Checkpoint
from compressor.files.folder import CONFIG
from compressor.files.input_file import InputFile
from compressor.files.strict_json import read_object
from compressor.methods.model_method import Reshape
from compressor.methods.structured_cut import StructuredCut
from compressor.recipe.model import Cut
from compressor.surgery.cut import restructure, teacher_of
from compressor.surgery.rescaling import factors, rescaled


def resolved_cuts(cuts: Sequence[Cut], checkpoint: Checkpoint) -> tuple[tuple[Cut, ...], tuple[str, ...]]:
    """The cuts without reference to other files, so that they tell what was done, and what to know of those."""
    found: list[Cut] = []
    notes: list[str] = []
    for cut in cuts:
        if isinstance(cut, Reshape):
            cut, more = cut.expanded(_read, checkpoint.source.config)
            notes += more
        found.append(cut)
    return tuple(found), tuple(notes)


def files_of(cuts: Sequence[Cut]) -> tuple[str, ...]:
    """The files that the cuts refer to."""
    return tuple(_file(cut.reads) for cut in cuts if isinstance(cut, Reshape) and cut.reads is not None)


def _file(path: str) -> str:
    return os.path.join(path, CONFIG) if os.path.isdir(path) else path


def _read(path: str) -> Mapping[str, Any]:
    return read_object(InputFile.open(_file(path)))


def reshaped(
    checkpoint: Checkpoint,
    cuts: Sequence[Cut],
    *,
    workers: int = 1,
    keep_non_finite: bool = False,
    statistics: Mapping[int, Statistics] | None = None,
) -> Checkpoint:
    """The checkpoint after these cuts, each on what the earlier left. `statistics` are those that a cut goes by, by
    its number. UsageError for what cannot be cut, InputError for a model that is not understood."""
    for number, cut in enumerate(cuts):
        if isinstance(cut, StructuredCut):
            checkpoint = restructure(
                checkpoint,
                (cut,),
                workers=workers,
                keep_non_finite=keep_non_finite,
                statistics=(statistics or {}).get(number),
            )
            continue
        teacher = teacher_of(checkpoint, cut.id)
        requests = cut.cuts(teacher)
        checkpoint = restructure(checkpoint, requests, workers=workers, keep_non_finite=keep_non_finite)
        if cut.rescales != "none":
            student = teacher_of(checkpoint, cut.id)
            checkpoint = rescaled(checkpoint, factors(teacher, student, cut.rescales == "hidden"))
    return checkpoint
