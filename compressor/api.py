"""The verbs. The command line calls what they call; so can anybody.

Each takes paths and typed keywords, makes a recipe of what they ask and `RunOptions` of how it is to be done, and
runs the one trunk: `run_legs` (or `run_tune`), under it `run_one_pass`. A keyword that a verb does not take is a
UsageError that names the nearest one.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any, Unpack

from compressor import reports
from compressor.calibration import run as calibration
from compressor.calibration.result import CalibrationReport
from compressor.core.errors import UsageError
from compressor.core.shown import documents_by
from compressor.core.text import printable
from compressor.files.survey_file import is_survey
from compressor.methods.structured_cut import is_structured_cut, make_structured_cut
from compressor.recipe.budget import Budget, take_budget
from compressor.recipe.loss_gates import LossGates, flag_of
from compressor.recipe.model import Recipe, recipe_of
from compressor.recipe.stages import make_stage
from compressor.recipe.toml_file import recipe_for
from compressor.recipe.training import FILES, is_training, training_of
from compressor.workflows import compare as comparing
from compressor.workflows import inspect as inspecting
from compressor.workflows import keywords as words
from compressor.workflows import merge as merging
from compressor.workflows import survey as surveying
from compressor.workflows.budget.run import run_tune
from compressor.workflows.budget.search import search_of
from compressor.workflows.compare import ComparisonReport
from compressor.workflows.inspect import InspectReport
from compressor.workflows.keywords import check_keywords
from compressor.workflows.legs import run_legs
from compressor.workflows.merge_report import MergeReport
from compressor.workflows.model_loss import LossInput
from compressor.workflows.one_pass import run_one_pass
from compressor.workflows.results import Report
from compressor.workflows.run_options import RunOptions
from compressor.workflows.survey import SurveyReport

Path = str | os.PathLike[str]
_PATHS = ("mask", "scores", "teacher", "config", *FILES)
_LOSS_INPUT, _LOSS_GATES = ([one.name for one in fields(kind)] for kind in (LossInput, LossGates))
_STAGE = ("include", "exclude", "rules", "store", "teacher", "mask", "scores", "fallback", "preset")

__all__ = [
    "calibrate",
    "compare",
    "distill",
    "inspect",
    "merge",
    "merge_statistics",
    "pipeline",
    "prune",
    "quantize",
    "restore",
    "run_recipe",
    "survey",
    "tune",
]

documents_by(reports)


def prune(source: Path, output: Path, **keywords: Unpack[words.PruneKeywords]) -> Report:
    """Make weights exactly zero. `method="threshold", threshold=0.01`, `method="magnitude", sparsity=0.9,
    scope="global"` or `scores=PATH`, `method="wanda", stats=PATH`, or `mask=PATH`; `save_mask=PATH`; `include`,
    `exclude` and `rules` choose tensors. Or cut structures out: `structure="neurons", fraction=0.25`, with the
    options of a `StructuredCut`, and `stats=PATH` to go by inputs."""
    check_keywords("prune", keywords, words.PruneKeywords)
    run, options = _parted(keywords)
    if is_structured_cut("prune", options):
        recipe = Recipe((), cuts=(make_structured_cut(options),))
    else:
        recipe = _recipe("prune", options)
    return run_legs("prune", os.fspath(source), os.fspath(output), recipe, run)


def distill(source: Path, output: Path, **keywords: Unpack[words.DistillKeywords]) -> Report:
    """Carry a teacher's weights into a student: `method="blend", alpha=0.5`, `method="reweight"`, or as an adapter
    `method="residual", rank=16`. Or train it on the teacher's outputs: `method="soft-targets", inputs=PATH`, with
    the options of a `Training`. Or refit its layers in their order: `method="refit", sequential=True, inputs=PATH`.
    Or make the student out of the teacher, which is then the `source`: `method="low-rank", ratio=0.5`,
    `method="depth", every=2` or `method="subclone", shape="hidden=256,heads=8"`."""
    check_keywords("distill", keywords, words.DistillKeywords)
    run, options = _parted(keywords)
    if is_training("distill", options):
        paths = {key: options.pop(key, None) for key in ("teacher", *FILES)}
        given = {key: path for key, path in paths.items() if path is not None or key == "teacher"}
        recipe = Recipe((), training=training_of(options, given))
    else:
        recipe = _recipe("distill", options)
    return run_legs("distill", os.fspath(source), os.fspath(output), recipe, run)


def quantize(source: Path, output: Path, **keywords: Unpack[words.QuantizeKeywords]) -> Report:
    """Make weights codes of few bits: `bits=4`, `scheme="nvfp4"`, `granularity="group"`, `store="packed"`, …
    Or let a budget choose tensor by tensor: `target_bits=4.5`, with the fields of a `Budget`; `tell` is given the
    choice before it is carried out."""
    check_keywords("quantize", keywords, words.QuantizeKeywords)
    run, options = _parted(keywords)
    tell, budget = options.pop("tell", None), take_budget(options)
    recipe = replace(_recipe("quantize", options), budget=budget)
    return run_legs("quantize", os.fspath(source), os.fspath(output), recipe, run, tell=tell)


def pipeline(source: Path, output: Path, **keywords: Unpack[words.PipelineKeywords]) -> Report:
    """Apply a recipe (a `Recipe`, a TOML file, a ready recipe's name) or stage texts, fused into one pass but for
    trainings, which take `inputs` where they name none. The recipe's own gates hold where none are given."""
    check_keywords("pipeline", keywords, words.PipelineKeywords)
    run, asked = _parted(keywords)
    tell, budget = asked.pop("tell", None), asked.pop("budget", None)
    run = replace(run, store=asked.pop("store", None) or run.store)
    recipe = recipe_for(asked.pop("recipe", None), **asked, bare=run.store == "archive")
    recipe = replace(recipe, budget=budget or recipe.budget)
    run = replace(run, gates=run.gates.within(recipe.gates))
    return run_legs("pipeline", os.fspath(source), os.fspath(output), recipe, run, tell=tell)


def restore(source: Path, output: Path, **keywords: Unpack[words.RestoreKeywords]) -> Report:
    """Give back dense tensors of the original names, shapes and dtypes, from what this tool or another one
    stored as codes."""
    check_keywords("restore", keywords, words.RestoreKeywords)
    return run_legs("restore", os.fspath(source), os.fspath(output), Recipe(()), RunOptions.of(keywords))


def run_recipe(
    verb: str, source: Path, output: Path, recipe: Recipe, **keywords: Unpack[words.RecipeKeywords]
) -> Report:
    """Run a recipe that is made already, in as many passes as it takes, and call that `verb` in the report; `only`
    these tensors are put into the output of a recipe of one pass."""
    check_keywords("run_recipe", keywords, words.RecipeKeywords)
    run, only = RunOptions.of(keywords), keywords.get("only")
    if only is not None:
        return run_one_pass(verb, os.fspath(source), os.fspath(output), recipe, run, only=list(only))
    return run_legs(verb, os.fspath(source), os.fspath(output), recipe, run, tell=keywords.get("tell"))


def tune(source: Path, output: Path, **keywords: Unpack[words.TuneKeywords]) -> Report:
    """The smallest output at which your own measure holds: `evaluate="python score.py {path}"` prints a number or a
    JSON line with `metric`, which must be at least `min_metric`. Or without a command what the outputs lost:
    `text`, `tokens` or `inputs` of a `LossInput`, and limits of `LossGates` such as `max_kld=0.01`. Further
    keywords as `quantize`'s, or a `recipe`; `tell` is given each output that was measured."""
    check_keywords("tune", keywords, words.TuneKeywords)
    run, options = _parted(keywords)
    tell, recipe = options.pop("tell", None), options.pop("recipe", None)
    search = search_of(options, os.fspath(output))
    if recipe is None:
        budget = take_budget(options) or Budget()
        recipe = replace(_recipe("quantize", options), budget=budget)
    elif options:
        check_keywords("tune with a recipe", dict.fromkeys(options), words.RunKeywords)
    return run_tune(os.fspath(source), os.fspath(output), recipe, search, run, tell=tell)


def calibrate(model: Path | None, output: Path, **keywords: Unpack[words.CalibrateKeywords]) -> CalibrationReport:
    """Write the statistics of a model's layer inputs to a .safetensors: of `inputs` (.npy) that run through the
    model in NumPy, of recorded `activations`, or of a `text` that runs through a language model with torch. The
    other keywords are those of a `Calibration`."""
    check_keywords("calibrate", keywords, words.CalibrateKeywords)
    return calibration.calibrate(model, os.fspath(output), calibration.Calibration(**keywords))


def survey(verb: str, source: Path, output: Path, **keywords: Any) -> SurveyReport:
    """Make one job's share (`part`) of the next pass over the whole model that a run of this verb with these
    keywords would make, into a file beside the output's place, for `merge` and then for `surveyed`."""
    verbs: dict[str, Callable[..., Report]] = {
        "prune": prune,
        "distill": distill,
        "quantize": quantize,
        "pipeline": pipeline,
    }
    if verb not in verbs:
        raise UsageError(f"{printable(verb, 40)} makes no survey", remedy=f"These do: {', '.join(verbs)}")
    run, _ = _parted(keywords)
    teacher = keywords.get("teacher")
    teachers = [] if teacher is None else [os.fspath(teacher)]

    def start(options: RunOptions) -> Report:
        more = {"part": options.part, "dry_run": True, "surveys_only": True}
        return verbs[verb](source, output, **{**keywords, **more})

    return surveying.run_survey(os.fspath(source), os.fspath(output), run, start, teachers)


def merge(
    parts: Sequence[Path], output: Path, **keywords: Unpack[words.PartKeywords]
) -> MergeReport | SurveyReport:
    """Publish the output whose parts runs with `part="1/3"`, `part="2/3"`, … have written: all of them, of one plan
    and of the same inputs. The bytes are those of one run. Or write what surveys of all jobs gathered together."""
    check_keywords("merge", keywords, words.PartKeywords)
    if parts and is_survey(os.fspath(parts[0])):
        own = {key: bool(keywords.get(key)) for key in ("force", "copies", "remove_parts")}
        return surveying.merge_surveys([os.fspath(part) for part in parts], os.fspath(output), **own)
    return merging.merge(parts, output, **keywords)


def merge_statistics(
    paths: Sequence[Path], output: Path, **keywords: Unpack[words.MergeKeywords]
) -> CalibrationReport:
    """Write the statistics of all samples of several files together. InputError where they are of other models."""
    check_keywords("merge_statistics", keywords, words.MergeKeywords)
    return calibration.merge_statistics(paths, output, **keywords)


def inspect(path: Path, **keywords: Unpack[words.InspectKeywords]) -> InspectReport:
    """What the headers say of an input; with `stats` also range, moments and sparsity of every tensor, with
    `coding` what an archive's streams take (InputError where it is none)."""
    check_keywords("inspect", keywords, words.InspectKeywords)
    return inspecting.inspect(path, **keywords)


def compare(a: Path, b: Path, **keywords: Unpack[words.CompareKeywords]) -> ComparisonReport:
    """Measure B against A, tensor by tensor, both restored if they store codes; worst first. With a gate, a tensor
    that only one side has, or that differs in shape, fails too. Or measure what the outputs lost: for a `text` or
    `tokens` (models of transformers, run in torch), or `inputs` (networks that run in NumPy), with the fields of a
    `LossInput`; the gates are then those of `LossGates`, and the report's `loss` says what came of it."""
    check_keywords("compare", keywords, words.CompareKeywords)
    given: dict[str, Any] = {**keywords}
    what = LossInput(**{key: given.pop(key) for key in _LOSS_INPUT if key in given})
    gates = LossGates(**{key: given.pop(key) for key in _LOSS_GATES if key in given})
    progress = given.pop("progress", None)
    if what.way is not None:
        other = next((key for key in ("max_error", "min_sqnr") if given.get(key) is not None), None)
        if other is not None:
            raise UsageError(f"{flag_of(other)} is of tensors, which are not compared with --{what.way}")
        return comparing.compare_outputs(a, b, what, gates, progress)
    for gate in gates.given:
        raise UsageError(f"{flag_of(gate)} is of outputs", remedy="Give --text, --tokens or --inputs")
    return comparing.compare(a, b, **given)


# ---- keywords to recipes and options -------------------------------------------------------------------


def _parted(keywords: Mapping[str, Any]) -> tuple[RunOptions, dict[str, Any]]:
    """How to run, and what else was given, paths as texts. `store` is what else: it may be a stage's."""
    run = {key: value for key, value in keywords.items() if key in words.RunKeywords.__annotations__}
    rest = {key: value for key, value in keywords.items() if key not in run}
    return RunOptions.of(run), {key: _text(value) if key in _PATHS else value for key, value in rest.items()}


def _text(path: Path | None) -> str | None:
    return None if path is None else os.fspath(path)


def _recipe(verb: str, options: dict[str, Any]) -> Recipe:
    """A recipe of one stage."""
    keys = {key: options.pop(key) for key in _STAGE if key in options}
    return recipe_of((make_stage(verb, options, **keys),))
