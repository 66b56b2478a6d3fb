"""A student that is quantized anew against its adapter (LoftQ's idea): what to do to the teacher for that.

The student says how it was quantized, in its metadata. The same is done to the teacher again, after a stage that
alternates quantizer and adapter tensor by tensor. What comes out is the base that the adapter is then made for.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING

from compressor.checkpoint.checkpoint import Checkpoint
from compressor.checkpoint.upright import upright
from compressor.core.errors import InputError, UsageError
from compressor.recipe.model import Recipe, Stage
from compressor.recipe.stages import stage_of

if TYPE_CHECKING:
    from compressor.methods.distill.residual import Residual


def alternates(recipe: Recipe, *, save_base: bool) -> Residual | None:
    """The method that asks for it, if any does. UsageError where it lacks a rank, or a place for the base."""
    found = [stage.method for stage in recipe.stages if stage.method.rounds]
    if not found:
        if save_base:
            raise UsageError("--save-base is for --alternate, which is not given")
        return None
    method: Residual = found[0]  # type: ignore[assignment]  # no other method has the option
    if method.rank is None:
        raise UsageError("--alternate needs --rank: an error or energy would not stand still between the rounds")
    if not save_base:
        raise UsageError("--alternate makes another base", remedy="Give --save-base FOLDER for it")
    return method


def base_recipe(student: Checkpoint, method: Residual) -> Recipe:
    """What makes the base of the teacher. InputError where the student does not say how it was quantized."""
    from compressor.methods.unlisted.alternating import Alternating

    upright(student)  # refuses what no adapter is made for
    stages = next((record.stages for record in student.records if record.stages), ())
    said = "; --alternate needs a student that this tool has quantized, in one stage and without other files"
    remedy = "Quantize the teacher with `compressor quantize`, and give that as the student"
    if len(stages) != 1 or stages[0].get("kind") != "quantize":
        done = ", ".join(str(stage.get("kind"))[:20] for stage in stages) or "not quantized by this tool"
        raise InputError(f"is {done}{said}", file=student.path, remedy=remedy)
    try:
        quantizing = stage_of(stages[0], "its metadata: ")
    except UsageError as error:
        raise InputError(f"does not say how it was quantized: {error.reason}", file=student.path) from error
    coded = {name: tensor.encoder for name, tensor in student.tensors.items() if tensor.encoder is not None}
    schemes = {}
    for name, encoder in coded.items():
        scheme = encoder.scheme
        if scheme is None or scheme.verb != "quantize" or scheme.reach != "tensor" or scheme.statistics:
            raise InputError(f"is stored as {encoder.label}{said}", file=student.path, tensor=name, remedy=remedy)
        schemes[name] = scheme
    if not coded:
        raise InputError(f"holds no codes{said}", file=student.path, remedy=remedy)
    adapter = replace(method, alternate=None)
    made = {name: Alternating(adapter, scheme, method.rounds) for name, scheme in schemes.items()}
    usual, patterns = next(iter(made.values())), {name: f"re:{re.escape(name)}" for name in made}
    rules = tuple((patterns[name], other) for name, other in made.items() if other != usual)
    return Recipe((Stage(usual, include=tuple(patterns.values()), rules=rules), quantizing))
