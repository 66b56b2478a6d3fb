"""The verbs. The command line calls what they call; so can anybody.

Each takes paths and typed keywords, makes a recipe of what they ask and `RunOptions` of how it is to be done, and
runs the one trunk: `run_legs` (or `run_tune`), under it `run_one_pass`. A keyword that a verb does not take is a
UsageError that names the nearest one.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from math import inf
from typing import Any, Unpack

from compressor import reports
from compressor.calibration import run as calibration
from compressor.calibration.result import CalibrationReport
from compressor.core.errors import UsageError
from compressor.core.shown import documents_by
from compressor.core.text import printable, size_of
from compressor.files.survey_file import is_survey
from compressor.methods.structured_cut import is_structured_cut, make_structured_cut
from compressor.recipe.budget import take_budget
from compressor.recipe.gates import Gates
from compressor.recipe.loss_gates import LossGates, flag_of
from compressor.recipe.model import Recipe, recipe_of
from compressor.recipe.stages import make_stage
from compressor.recipe.toml_file import recipe_for
from compressor.recipe.training import FILES, is_training, training_of
from compressor.workflows import compare as comparing
from compressor.workflows import inspect as inspecting
from compressor.workflows import keywords as words
from compressor.workflows import merge as merging
from compressor.workflows import sequential
from compressor.workflows import survey as surveying
from compressor.workflows import written as looking
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
from compressor.workflows.written import WrittenReport

Path = str | os.PathLike[str]
_PATHS = ("mask", "scores", "teacher", "base", "config", *FILES)
_LOSS_INPUT, _LOSS_GATES = ([one.name for one in fields(kind)] for kind in (LossInput, LossGates))
_GATES = tuple(one.name for one in fields(Gates))
_RANGES = {"min_sparsity": "from 0 to 1"}
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
    "report",
    "restore",
    "run_recipe",
    "survey",
    "tune",
]

documents_by(reports)


def prune(source: Path, output: Path, **keywords: Unpack[words.PruneKeywords]) -> Report:
    """Make weights exactly zero, or cut structures out of the model.

    `sparsity=0.8` (a share of each tensor's weights from 0 to 1; `scope="global"`: of all of them together) or
    `threshold=0.01` (in units of the weights) by magnitude; `method="wanda"`, `"sparsegpt"`, `"alps"` with
    `stats=PATH`, or `scores=PATH`, by inputs; `mask=PATH` where another checkpoint is zero.
    `structure="neurons", fraction=0.25` cuts rows and columns out, so that shapes change. `include`, `exclude` and
    `rules` choose tensors by glob;
    those of a method that are not named in it are matrices of shape [out, in, ...], rows being outputs.

    Raises UsageError, InputError, OutputError, and GateFailed (with its `report`) where a gate does not hold;
    then nothing is written.

    >>> import compressor
    >>> compressor.prune("model.safetensors", "sparse.safetensors", sparsity=0.8)
    <prune: sparse.safetensors: written: 1.07 MB → 1.07 MB, 3 tensors treated, relative error 0.505>
    >>> compressor.prune("model.safetensors", "cut.safetensors", structure="neurons", fraction=0.25).ratio > 1.3
    True
    """
    check_keywords("prune", keywords, words.PruneKeywords)
    run, options = _parted(keywords)
    if is_structured_cut("prune", options):
        recipe = Recipe((), cuts=(make_structured_cut(options),))
    else:
        recipe = _recipe("prune", options)
    return run_legs("prune", os.fspath(source), os.fspath(output), recipe, run)


def distill(source: Path, output: Path, **keywords: Unpack[words.DistillKeywords]) -> Report:
    """Carry a teacher's weights into a student, make a student out of a teacher, or train one.

    `teacher=PATH, alpha=0.5` blends tensors of the same names and shapes; `method="residual", rank=16` writes a
    LoRA adapter of what `source` lost; `method="soft-targets", inputs=X.npy` (float32 [samples, ...]) trains the
    student on the teacher's outputs in NumPy; `method="refit", sequential=True, inputs=X.npy` refits its layers
    in their order. Where the student is made of the `source`: `method="low-rank", ratio=0.5` (parameters of the
    factors over those of the matrix), `method="depth", every=2`, `method="subclone", shape="hidden=256,heads=8"`.

    Raises UsageError, InputError, OutputError, and GateFailed (with its `report`) where a gate does not hold.

    >>> import compressor
    >>> compressor.distill("model.safetensors", "thin.safetensors", method="low-rank", ratio=0.5).ratio > 1.9
    True
    """
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
    """Store weights as codes of few bits.

    `bits=4` with `granularity="group"`, `group_size=32`, `scheme="nvfp4"`, `layout="mlx"`, ... choose how; by
    default what compressed-tensors loads (vLLM, transformers), and `loader="mlx"` what that one does. Or a
    budget chooses tensor by tensor: `target_size="300MB"` (bytes, or a text), `target_ratio=4`, `target_bits=4.5`
    (stored bits a weight), `scheme="auto", max_error=0.05`; `tell` is given the choice before it is carried out.
    Errors are relative: ‖W − W'‖ / ‖W‖.

    Raises UsageError, InputError, OutputError, and GateFailed (with its `report`) where a gate (`max_error`,
    `min_ratio`, `max_size`, `min_sparsity`) does not hold; then nothing is written.

    >>> import compressor
    >>> report = compressor.quantize("model.safetensors", "small.safetensors", bits=4, granularity="channel")
    >>> report
    <quantize: small.safetensors: written: 1.07 MB → 137 kB, 3 tensors treated, relative error 0.125>
    >>> [(job.spec.name, round(change.error, 2)) for job, change in report.rows]
    [('fc1.weight', 0.12), ('fc2.weight', 0.13), ('fc3.weight', 0.09)]
    >>> try:
    ...     compressor.quantize("model.safetensors", "o.safetensors", bits=2, granularity="channel", max_error=0.1)
    ... except compressor.GateFailed as error:
    ...     print(error)
    max_error=0.1: the relative error of 'fc2.weight' is 0.4277. Nothing was written
    """
    check_keywords("quantize", keywords, words.QuantizeKeywords)
    run, options = _parted(keywords)
    tell, budget = options.pop("tell", None), take_budget(options, run.gates.max_error)
    recipe = replace(_recipe("quantize", options), budget=budget)
    return run_legs("quantize", os.fspath(source), os.fspath(output), recipe, run, tell=tell)


def pipeline(source: Path, output: Path, **keywords: Unpack[words.PipelineKeywords]) -> Report:
    """Apply a recipe of several stages: a `Recipe`, a TOML file, a ready recipe's name, or `stages` as texts.

    The stages are fused into one pass over the weights but for trainings, which take `inputs` where they name
    none. The recipe's own gates hold where none are given. `store="archive"` entropy-codes the whole output.

    Raises UsageError for a recipe that cannot be (all that is wrong, at once), InputError, OutputError,
    GateFailed.

    >>> import compressor
    >>> stages = ["prune:sparsity=0.5", "quantize:bits=8,granularity=channel"]
    >>> compressor.pipeline("model.safetensors", "both.safetensors", stages=stages)
    <pipeline: both.safetensors: written: 1.07 MB → 270 kB, 3 tensors treated, relative error 0.203>
    """
    check_keywords("pipeline", keywords, words.PipelineKeywords)
    run, asked = _parted(keywords)
    tell, budget = asked.pop("tell", None), asked.pop("budget", None)
    base = _text(asked.pop("base", None))
    store = asked.pop("store", None) or run.store
    run = replace(run, store=store if base is None else "archive", base=base)
    recipe = recipe_for(asked.pop("recipe", None), **asked, bare=run.store == "archive")
    budget = budget or recipe.budget
    if budget is not None and run.gates.max_error is not None:
        budget = replace(budget, max_error=run.gates.max_error)
    recipe = replace(recipe, budget=budget)
    run = replace(run, gates=run.gates.within(recipe.gates))
    return run_legs("pipeline", os.fspath(source), os.fspath(output), recipe, run, tell=tell)


def restore(source: Path, output: Path, **keywords: Unpack[words.RestoreKeywords]) -> Report:
    """Give back dense tensors of the original names, shapes and dtypes, from codes of this tool or another one.

    Also a .gguf from a Hugging Face folder, and a folder from a .gguf. Raises UsageError, InputError where the
    codes cannot be read, OutputError, GateFailed.

    >>> import compressor
    >>> _ = compressor.quantize("model.safetensors", "codes.safetensors", bits=8, granularity="channel")
    >>> compressor.restore("codes.safetensors", "dense.safetensors").plan.size_after
    1066928
    """
    check_keywords("restore", keywords, words.RestoreKeywords)
    return run_legs("restore", os.fspath(source), os.fspath(output), Recipe(()), _run_options(keywords))


def run_recipe(
    verb: str, source: Path, output: Path, recipe: Recipe, **keywords: Unpack[words.RecipeKeywords]
) -> Report:
    """Run a recipe that is made already, in as many passes as it takes, and call that `verb` in the report; `only`
    these tensors are put into the output of a recipe of one pass."""
    check_keywords("run_recipe", keywords, words.RecipeKeywords)
    run, only = _run_options(keywords), keywords.get("only")
    if only is not None:
        return run_one_pass(verb, os.fspath(source), os.fspath(output), recipe, run, only=list(only))
    return run_legs(verb, os.fspath(source), os.fspath(output), recipe, run, tell=keywords.get("tell"))


def tune(source: Path, output: Path, **keywords: Unpack[words.TuneKeywords]) -> Report:
    """The smallest output at which a measure of yours holds.

    `evaluate` is a function that is given the path of an output (with `restored=True` of a dense copy of it,
    under the tensors' own names) and returns a number, higher is better, or a mapping with one under the name
    `metric`; or a command, `"python score.py {path}"`, that prints one. It must be at least `min_metric`. Without
    `evaluate` what the outputs lose is measured, for a `text`, `tokens` (.npy of ids [samples, length]) or
    `inputs` (.npy [samples, ...]), and must keep `max_kld` (nats), `min_agreement`, `max_perplexity_ratio` or
    `min_cosine`. Other keywords are those of `quantize`, or a `recipe`; `tell` is given each output that was
    measured.

    Raises UsageError, InputError, OutputError, GateFailed where not even the best output holds, CommandFailed,
    and whatever the function raises; then nothing is written.

    >>> import compressor, numpy
    >>> from safetensors.numpy import load_file
    >>> def kept(path):
    ...     before, after = load_file("model.safetensors"), load_file(path)
    ...     return 1 - max(numpy.abs(after[name] - before[name]).max() for name in before)
    >>> given = {"candidates": ["int4c", "int8c"], "evaluations": 4}
    >>> report = compressor.tune(
    ...     "model.safetensors", "tuned.safetensors", evaluate=kept, restored=True, min_metric=0.98, **given
    ... )
    >>> report.ratio > 3.9
    True
    """
    check_keywords("tune", keywords, words.TuneKeywords)
    run, options = _parted(keywords)
    tell, recipe = options.pop("tell", None), options.pop("recipe", None)
    search = search_of(options, os.fspath(output))
    if recipe is None:
        budget = take_budget(options, run.gates.max_error, asked=True)
        recipe = replace(_recipe("quantize", options), budget=budget)
    elif options:
        check_keywords("tune with a recipe", dict.fromkeys(options), words.RunKeywords)
    return run_tune(os.fspath(source), os.fspath(output), recipe, search, run, tell=tell)


def calibrate(model: Path | None, output: Path, **keywords: Unpack[words.CalibrateKeywords]) -> CalibrationReport:
    """Write statistics of the inputs of a model's layers to a .safetensors, for methods that go by them.

    Of `inputs` (.npy, float32 [samples, ...]) that run through the model in NumPy, of recorded `activations`, or
    of a `text` that runs through a language model with torch (extra `calibrate`). They are means [in], means of
    squares [in], and with `gram=True` means of products [in, in]. With a `recipe` or `stages` blocks of the
    language model are given what the blocks before them leave once they are compressed so.

    Raises UsageError, InputError where model and inputs do not match, OutputError.

    >>> import compressor, numpy
    >>> numpy.save("x.npy", numpy.random.default_rng(0).random((256, 784), numpy.float32))
    >>> compressor.calibrate("model.safetensors", "stats.safetensors", inputs="x.npy").layers[0].name
    'fc1'
    """
    check_keywords("calibrate", keywords, words.CalibrateKeywords)
    options = calibration.Calibration(**keywords)
    recipe = sequential.recipe_of_blocks(options)
    if recipe is None or model is None:
        return calibration.calibrate(model, os.fspath(output), options)
    compress = sequential.block_by_block(os.fspath(model), os.fspath(output), recipe)
    return calibration.calibrate(model, os.fspath(output), options, compress, sequential.note_of(recipe))


def survey(verb: str, source: Path, output: Path, **keywords: Any) -> SurveyReport:
    """Make one job's share (`part="1/3"`) of the next pass over the whole model that a run of this verb with
    these keywords would make, into a file beside the output's place; `merge` puts those of all jobs
    together, and `surveyed=PATH` takes the result.

    Raises UsageError where the run makes no such pass, InputError, OutputError.

    >>> import compressor
    >>> given = {"sparsity": 0.5, "scope": "global"}
    >>> surveyed = compressor.survey("prune", "model.safetensors", "half.safetensors", part="1/1", **given)
    >>> surveyed.output
    'half.safetensors.survey-1-of-1'
    """
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
    """Publish the output whose parts runs with `part="1/3"`, `part="2/3"`, ... have written, or put surveys
    together.

    All parts have to be there, of one plan and of the same inputs. The bytes are those of one run. Raises
    UsageError for parts that are missing or given twice, InputError for those of another plan, OutputError,
    GateFailed.

    >>> import compressor
    >>> parts = [f"whole.safetensors.part-{number}-of-2" for number in (1, 2)]
    >>> for number in (1, 2):
    ...     _ = compressor.prune("model.safetensors", "whole.safetensors", sparsity=0.5, part=f"{number}/2")
    >>> compressor.merge(parts, "whole.safetensors")
    <merge of 2 parts: whole.safetensors: 1.07 MB → 1.07 MB>
    """
    check_keywords("merge", keywords, words.PartKeywords)
    if parts and is_survey(os.fspath(parts[0])):
        own = {key: bool(keywords.get(key)) for key in ("force", "copies", "remove_parts")}
        return surveying.merge_surveys([os.fspath(part) for part in parts], os.fspath(output), **own)
    return merging.merge(parts, output, **keywords)


def merge_statistics(
    paths: Sequence[Path], output: Path, **keywords: Unpack[words.MergeKeywords]
) -> CalibrationReport:
    """Write the statistics of all samples of several files together, each layer's weighed by its count of rows.

    InputError where they are of other models.

    >>> import compressor, numpy
    >>> numpy.save("x.npy", numpy.random.default_rng(0).random((256, 784), numpy.float32))
    >>> for name in ("a.safetensors", "b.safetensors"):
    ...     _ = compressor.calibrate("model.safetensors", name, inputs="x.npy")
    >>> compressor.merge_statistics(["a.safetensors", "b.safetensors"], "all.safetensors").layers[0].rows
    512
    """
    check_keywords("merge_statistics", keywords, words.MergeKeywords)
    return calibration.merge_statistics(paths, output, **keywords)


def inspect(path: Path, **keywords: Unpack[words.InspectKeywords]) -> InspectReport:
    """What the headers say of an input: names, dtypes, shapes, sizes in bytes, and how tensors are stored.

    `stats=True` reads the data too: range, mean, standard deviation and share of zeros of every tensor;
    `coding=True` tells what an archive's streams take. InputError for what cannot be read, or is no archive.

    >>> import compressor
    >>> [(tensor.spec.name, tensor.spec.shape) for tensor, _ in compressor.inspect("model.safetensors").rows][:2]
    [('fc1.bias', (300,)), ('fc1.weight', (300, 784))]
    """
    check_keywords("inspect", keywords, words.InspectKeywords)
    return inspecting.inspect(path, **keywords)


def compare(a: Path, b: Path, **keywords: Unpack[words.CompareKeywords]) -> ComparisonReport:
    """Measure B against A, tensor by tensor, both restored if they store codes; the worst first.

    Gates are `max_error` (relative) and `min_sqnr` (decibels); a tensor that only one side has, or that differs
    in shape, fails them. Or measure what the outputs lost: for a `text` or `tokens` (models of transformers, run
    in torch), or `inputs` (.npy [samples, ...]; networks that run in NumPy), with the gates `max_kld` (nats),
    `min_agreement`, `max_perplexity_ratio`, `min_cosine`; the report's `loss` says what came of it. A gate that
    does not hold is among `failures` of the report.

    >>> import compressor
    >>> _ = compressor.quantize("model.safetensors", "q.safetensors", bits=8, granularity="channel", force=True)
    >>> compressor.compare("model.safetensors", "q.safetensors", max_error=0.02).failures
    ()
    """
    check_keywords("compare", keywords, words.CompareKeywords)
    given: dict[str, Any] = {**keywords}
    what = LossInput(**{key: given.pop(key) for key in _LOSS_INPUT if key in given})
    gates = LossGates(**{key: given.pop(key) for key in _LOSS_GATES if key in given})
    progress, histograms = given.pop("progress", None), given.pop("histograms", False)
    sides = comparing.Sides(a, b, given.pop("base", None))
    if what.way is not None:
        other = next((key for key in ("max_error", "min_sqnr") if given.get(key) is not None), None)
        if other is not None:
            raise UsageError(f"{flag_of(other)} is of tensors, which are not compared with --{what.way}")
        return comparing.compare_outputs(sides, what, gates, progress)
    for gate in gates.given:
        raise UsageError(f"{flag_of(gate)} is of outputs", remedy="Give --text, --tokens or --inputs")
    return comparing.compare(sides, progress=progress, histograms=histograms, **given)


def report(output: Path, **keywords: Unpack[words.ReportKeywords]) -> WrittenReport:
    """What an output that is there is, by its record and its files; `to_html()` is the document.

    The record names what it was made of by a hash. With that as `source` errors and histograms of both are told;
    InputError where it is another one. Gates, a budget's curve and why tensors were kept are known to the run
    alone.

    >>> import compressor
    >>> _ = compressor.quantize("model.safetensors", "w8.safetensors", bits=8, granularity="channel")
    >>> compressor.report("w8.safetensors", source="model.safetensors")
    <report: w8.safetensors: 1.07 MB → 270 kB, 6 tensors, relative error 0.00904>
    """
    check_keywords("report", keywords, words.ReportKeywords)
    return looking.report(output, **keywords)


_TABLES: dict[Callable[..., Any], type[Any]] = {
    prune: words.PruneKeywords,
    distill: words.DistillKeywords,
    quantize: words.QuantizeKeywords,
    pipeline: words.PipelineKeywords,
    restore: words.RestoreKeywords,
    run_recipe: words.RecipeKeywords,
    tune: words.TuneKeywords,
    calibrate: words.CalibrateKeywords,
    merge: words.PartKeywords,
    merge_statistics: words.MergeKeywords,
    inspect: words.InspectKeywords,
    compare: words.CompareKeywords,
    report: words.ReportKeywords,
}
for _verb, _table in _TABLES.items():
    words.spell_out(_verb, _table)  # so that help() and notebooks show every keyword

# ---- keywords to recipes and options -------------------------------------------------------------------


def _parted(keywords: Mapping[str, Any]) -> tuple[RunOptions, dict[str, Any]]:
    """How to run, and what else was given, paths as texts. `store` is what else: it may be a stage's."""
    run = {key: value for key, value in keywords.items() if key in words.RunKeywords.__annotations__}
    rest = {key: value for key, value in keywords.items() if key not in run}
    rest = {key: _text(value) if key in _PATHS else value for key, value in rest.items()}
    if rest.get("target_size") is not None:
        rest["target_size"] = _size("target_size", rest["target_size"])
    return _run_options(run), rest


def _run_options(keywords: Mapping[str, Any]) -> RunOptions:
    """How to run, with the gates that are keywords, and sizes as numbers."""
    run = dict(keywords)
    limits = {key: run.pop(key, None) for key in _GATES}
    run |= {key: _size(key, run.get(key)) for key in ("max_shard_size", "memory")}
    limits["max_size"] = _size("max_size", limits["max_size"])
    given = [key for key, value in limits.items() if value is not None]
    if given and run.get("gates") is not None:
        raise UsageError(f"{flag_of(given[0])} is a gate, and gates are given too", remedy="Give either")
    for key in given:
        if not 0 <= limits[key] < inf or (key == "min_sparsity" and limits[key] > 1):
            raise UsageError(f"{flag_of(key)} must be {_RANGES.get(key, 'at least 0')}, not {limits[key]:g}")
    return RunOptions.of(run | ({"gates": Gates(**limits)} if given else {}))


def _size(key: str, value: int | str | None) -> int | None:
    """A size in bytes. UsageError for a text that is none."""
    if not isinstance(value, str):
        return value
    found = size_of(value)
    if found is None:
        raise UsageError(f"{flag_of(key)}: '{printable(value, 40)}' is not a size such as 300MB or 1.5GiB")
    return found


def _text(path: Path | None) -> str | None:
    return None if path is None else os.fspath(path)


def _recipe(verb: str, options: dict[str, Any]) -> Recipe:
    """A recipe of one stage."""
    keys = {key: options.pop(key) for key in _STAGE if key in options}
    return recipe_of((make_stage(verb, options, **keys),))
