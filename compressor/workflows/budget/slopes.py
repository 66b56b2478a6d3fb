"""Errors of tensors weighed by what they cost the model's outputs.

That a tensor alone is replaced by a coarser one of relative squared error t² raises the KL divergence of the
outputs by a · t² for small t, and the costs of several tensors add up (the linearity theorem of HIGGS, Malinovskii
et al. 2024, arXiv 2411.17525). So one measurement of each tensor tells its slope a, and a budget that makes
Σ a · t² least makes the divergence least. Of encoders it is 1 − the mean cosine of embeddings.

Slopes are measured where they will be used: all tensors are stored for a trial, under a hidden name beside the
output, by the candidate whose bits are nearest to the target, and read back one by one.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from math import fsum

from compressor.checkpoint.checkpoint import open_checkpoint
from compressor.core.errors import UsageError
from compressor.files.staging import Staging
from compressor.files.writing import place_beside
from compressor.recipe.loss_gates import LossGates
from compressor.workflows.budget.allocate import Option
from compressor.workflows.budget.fit import Fitting, Unit
from compressor.workflows.budget.survey import measure_of
from compressor.workflows.model_loss import LossInput, measure_loss

TOKENS, LENGTH = 256, 32  # that are run, in windows of so many: several short ones see more than a long one
_ARCHIVED = 4.0  # bits a weight of the trial for an archive whose target is no number of bits
_LEAST = 1e-3  # of the mean slope: below that a slope is within the noise of its measurement


def check_for_slopes(found: Fitting) -> None:
    """UsageError where slopes cannot be measured: other stages, or names that are not the model's own."""
    if found.takers.container == "gguf":
        raise UsageError(
            "--text weighs budgets of folders and .safetensors, whose names are the model's",
            remedy="Leave it out for a .gguf",
        )
    if len(found.recipe.stages) > 1 or found.recipe.cuts:
        raise UsageError("--text weighs budgets of quantization alone, with no stages before it")


def by_slopes(found: Fitting, text: str) -> Fitting:
    """The surveyed input with losses weighed by slopes, in the unit that they had: were all weights worth the same,
    nothing would change. A hidden trial is written and removed."""
    check_for_slopes(found)
    picked = _trial(found)
    costs = _costs(found, picked, text)
    slopes: dict[str, float] = {}
    for number, unit in enumerate(found.units):
        one = found.candidates[unit.place(picked[number])]
        for spec in unit.specs:
            loss = measure_of(one, spec, found.measured).loss
            slopes[spec.name] = costs.get(spec.name, 0.0) / loss if loss else 0.0
    sizes = {spec.name: spec.size for unit in found.units for spec in unit.specs}
    total = fsum(slopes.values())
    if not total:
        raise UsageError(
            "no tensor's compression costs the outputs anything on this text", remedy="Leave --text out"
        )
    least = _LEAST * total / found.weights
    unit_of_loss = found.weights / total
    weighed = {name: max(slope, least * sizes[name]) * unit_of_loss for name, slope in slopes.items()}
    return replace(found, units=tuple(_weighed(found, unit, weighed) for unit in found.units), sloped=True)


def _trial(found: Fitting) -> list[int]:
    """For each unit the option whose bits a weight are nearest to what the budget gives all of them."""
    bits = found.budget.target_bits
    if bits is None:
        bits = _ARCHIVED if found.archived else found.bytes_of(found.choice()) * 8 / found.weights
    return [_nearest(unit, bits) for unit in found.units]


def _nearest(unit: Unit, bits: float) -> int:
    """The lossy option whose bits a weight are nearest; the first where none loses anything."""
    size = sum(spec.size for spec in unit.specs)
    lossy = [(abs(one.size * 8 / size - bits), n) for n, one in enumerate(unit.options) if one.loss]
    return min(lossy)[1] if lossy else 0


def _costs(found: Fitting, picked: list[int], text: str) -> dict[str, float]:
    """What each tensor of the trial alone costs the outputs, by its name."""
    errand = replace(found.errand, options=replace(found.errand.options, store="stages"))
    staging = Staging(place_beside(errand.place, "slopes"), folder=True, replace=False)
    try:
        path = os.path.join(staging.path, os.path.basename(errand.place))
        recipe = found.recipe_for(picked)
        errand.trial(replace(recipe, stages=tuple(replace(stage, store="packed") for stage in recipe.stages)), path)
        what = LossInput(text=text, samples=TOKENS // LENGTH, length=LENGTH, per_tensor=True)
        loss = measure_loss(open_checkpoint(errand.source), open_checkpoint(path), what, LossGates())
    finally:
        staging.discard()
    return {one.name: one.lost for one in loss.tensors}


def _weighed(found: Fitting, unit: Unit, slopes: Mapping[str, float]) -> Unit:
    """A unit whose options lose what their errors cost."""
    options = []
    for n, option in enumerate(unit.options):
        one = found.candidates[unit.place(n)]
        rows = [measure_of(one, spec, found.measured).loss * slopes[spec.name] for spec in unit.specs]
        options.append(Option(option.size, fsum(rows)))
    return replace(unit, options=tuple(options))
