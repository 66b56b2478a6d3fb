"""The verbs. The command line calls these and nothing else; so can anybody.

Each opens the inputs, plans, runs under an engine, and publishes the output only when everything held.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, Literal

from compressor.calibration.run import calibrate, merge_statistics
from compressor.checkpoint.checkpoint import open_checkpoint
from compressor.checkpoint.experts import split_experts
from compressor.checkpoint.pruning_masks import fold_masks
from compressor.checkpoint.upright import upright
from compressor.core.errors import InputError, UsageError
from compressor.core.parallel.threads import available_workers, local
from compressor.engine.execution import archive as archiving
from compressor.engine.execution.runner import Resolved, Runner
from compressor.engine.execution.session import counting, engine, finish, in_file, sealed
from compressor.engine.execution.shards import Shards
from compressor.engine.execution.worker import Worker
from compressor.engine.plan import pairing
from compressor.engine.plan.adapter import makes_adapter
from compressor.engine.plan.experts import divided
from compressor.engine.plan.plan import Known, Plan
from compressor.engine.plan.planner import make_plan, stores_packed
from compressor.files.destination import check_apart, container_of
from compressor.files.identity import Identity, identity_of
from compressor.files.output import Sink
from compressor.files.staging import as_unfinished, check_place
from compressor.methods.registry import methods_of
from compressor.networks.training.student import trained
from compressor.recipe.budget import Budget, take_budget
from compressor.recipe.gates import Gates
from compressor.recipe.model import Recipe, Stage, recipe_of
from compressor.recipe.preset_rules import with_presets
from compressor.recipe.stages import make_stage
from compressor.recipe.statistics_files import with_statistics
from compressor.recipe.structured_cut import is_request, make_request
from compressor.recipe.toml_file import recipe_for
from compressor.recipe.training import FILES, is_training, training_of
from compressor.surgery.students.make import files_of, reshaped, settled
from compressor.workflows import gating
from compressor.workflows.adapter_base import alternates, base_recipe
from compressor.workflows.awq import balanced, balances, scaled_note
from compressor.workflows.budget.run import run_budget, run_tune
from compressor.workflows.budget.tune import Search
from compressor.workflows.inspect import compare, inspect, non_finite_tensors
from compressor.workflows.legs import relay
from compressor.workflows.results import Report, ReportedGateFailed

Path = str | os.PathLike[str]
NonFinite = Literal["error", "keep"]

__all__ = [
    "calibrate",
    "compare",
    "distill",
    "inspect",
    "merge_statistics",
    "pipeline",
    "prune",
    "quantize",
    "restore",
    "run_recipe",
    "tune",
]


def prune(source: Path, output: Path, **options: Any) -> Report:
    """Make weights exactly zero. `method="threshold", threshold=0.01`, `method="magnitude", sparsity=0.9,
    scope="global"` or `scores=PATH`, `method="wanda", stats=PATH`, or `mask=PATH`; `save_mask=PATH`; further
    keywords as `run_recipe` and `include`, `exclude`, `rules` as `make_stage`. Or cut structures out:
    `structure="neurons", fraction=0.25`, with the options of a `Request`, and `stats=PATH` to go by inputs."""
    if is_request("prune", options):
        settings = {key: options.pop(key) for key in list(options) if key in _SETTINGS}
        return run_recipe("prune", source, output, Recipe((), cuts=(make_request(options),)), **settings)
    return _one_stage("prune", source, output, options)


def distill(source: Path, output: Path, *, teacher: Path | None = None, **options: Any) -> Report:
    """Carry a teacher's weights into a student: `method="blend", alpha=0.5`, `method="reweight"`, or as an adapter
    `method="residual", rank=16`. Or train it on the teacher's outputs: `method="soft-targets", inputs=PATH`, with
    the options of a `Training`. Or refit its layers in their order: `method="refit", sequential=True, inputs=PATH`.
    Or make the student out of the teacher, which is then the `source`: `method="low-rank", ratio=0.5`,
    `method="depth", every=2` or `method="subclone", shape="hidden=256,heads=8"`."""
    mentor = None if teacher is None else os.fspath(teacher)
    if is_training("distill", options):
        settings = {key: options.pop(key) for key in list(options) if key in _SETTINGS}
        files = {key: path for key in FILES if (path := options.pop(key, None)) is not None}
        paths = {"teacher": mentor, **{key: os.fspath(path) for key, path in files.items()}}
        training = training_of(options, paths)
        return run_recipe("distill", source, output, Recipe((), training=training), **settings)
    if "config" in options:
        options["config"] = os.fspath(options["config"])
    return _one_stage("distill", source, output, {"teacher": mentor, **options})


def quantize(source: Path, output: Path, **options: Any) -> Report:
    """Make weights codes of few bits: `bits=4`, `scheme="nvfp4"`, `granularity="group"`, `store="packed"`, …
    Or let a budget choose tensor by tensor: `target_bits=4.5`, with the fields of a `Budget`."""
    return _one_stage("quantize", source, output, options)


def pipeline(
    source: Path,
    output: Path,
    *,
    recipe: Recipe | str | None = None,
    stages: Iterable[str] = (),
    teacher: Path | None = None,
    inputs: Path | None = None,
    **settings: Any,
) -> Report:
    """Apply a recipe (a `Recipe`, a TOML file, a ready recipe's name) or stage texts, fused into one pass but for
    trainings, which take `inputs` where they name none. The recipe's own gates hold where none are given."""
    found = recipe_for(recipe, stages, teacher, inputs, bare=settings.get("store") == "archive")
    settings["gates"] = (settings.get("gates") or Gates()).within(found.gates)
    return run_legs(source, output, found, **settings)


def run_legs(
    source: Path, output: Path, recipe: Recipe, *, budget: Budget | None = None, **settings: Any
) -> Report:
    """Run a recipe as `pipeline` does, with `run`'s keywords: in several passes where it trains."""
    recipe = replace(recipe, budget=budget or recipe.budget)
    return relay(run, os.fspath(source), os.fspath(output), recipe, settings)


def restore(source: Path, output: Path, **settings: Any) -> Report:
    """Give back dense tensors of the original names, shapes and dtypes, from what this tool or another one
    stored as codes."""
    return run_recipe("restore", source, output, Recipe(()), **settings)


def tune(
    source: Path,
    output: Path,
    *,
    evaluate: str,
    min_metric: float,
    metric: str = "metric",
    recipe: Recipe | None = None,
    evaluations: int = 10,
    timeout: float = 3600.0,
    log: Path | None = None,
    **options: Any,
) -> Report:
    """The smallest output at which your own measure holds: `evaluate="python score.py {path}"` prints a number or a
    JSON line with `metric`. Further keywords as `quantize`'s, or a `recipe`."""
    search = Search(evaluate, metric, min_metric, evaluations, timeout, "" if log is None else os.fspath(log))
    settings = {key: options.pop(key) for key in list(options) if key in _SETTINGS}
    if recipe is None:
        stage_keys = {key: options.pop(key) for key in _STAGE_KEYS if key in options}
        budget = take_budget(options) or Budget()
        recipe = replace(recipe_of((make_stage("quantize", options, **stage_keys),)), budget=budget)
    return run_tune(run_recipe, source, output, recipe, search, **settings)


def _one_stage(verb: str, source: Path, output: Path, options: dict[str, Any]) -> Report:
    settings = {key: options.pop(key) for key in list(options) if key in _SETTINGS}
    stage_keys = {key: options.pop(key) for key in _STAGE_KEYS if key in options}
    for key in ("mask", "scores"):
        if stage_keys.get(key) is not None:
            stage_keys[key] = os.fspath(stage_keys[key])
    budget = take_budget(options) if verb == "quantize" else None
    stage = make_stage(verb, options, **stage_keys)
    return run(verb, source, output, replace(recipe_of((stage,)), budget=budget), **settings)


def run(verb: str, source: Path, output: Path, recipe: Recipe, **settings: Any) -> Report:
    """`run_recipe`, where the recipe has a budget under that."""
    if recipe.budget is None:
        return run_recipe(verb, source, output, recipe, **settings)
    return run_budget(run_recipe, verb, source, output, recipe, **settings)


_STAGE_KEYS = ("include", "exclude", "rules", "store", "teacher", "mask", "scores", "fallback", "preset")
_SETTINGS = (
    "requantize",
    "force",
    "dry_run",
    "strict",
    "non_finite",
    "gates",
    "workers",
    "progress",
    "processes",
    "save_mask",
    "save_base",
    "stats",
    "effort",
)


def run_recipe(
    verb: str,
    source: Path,
    output: Path,
    recipe: Recipe,
    *,
    force: bool = False,
    dry_run: bool = False,
    strict: bool = False,
    requantize: bool = False,
    non_finite: NonFinite = "error",
    gates: Gates | None = None,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    processes: bool = False,
    save_mask: Path | None = None,
    stats: Path | None = None,
    save_base: Path | None = None,
    only: Sequence[str] | None = None,
    store: Literal["stages", "archive"] = "stages",
    effort: archiving.Effort = "fast",
    origin: Identity | None = None,
    work: Path | None = None,
    keep_work: bool = False,
) -> Report:
    """Run a recipe from `source` to `output`.

    `force` replaces an existing output; `dry_run` ends with the plan; `strict` refuses to leave weight matrices
    alone by default; `requantize` quantizes a source that is quantized already; `non_finite="keep"` carries
    tensors with NaN or Inf over; `progress(done, total)` is called
    in bytes read; `processes` allows workers to be forked for large models, which a program with threads of its
    own had better not; `save_mask` is a .safetensors for the bits of which pruned weights stay, written when the
    output is complete; `save_base` is where `alternate` writes the base that the adapter is for, before it is made;
    `stats` are statistics of layer inputs, for stages that go by some and name none; `only`
    these tensors are put into the output; `store="archive"` entropy-codes all of it, `effort="small"` slower and
    smaller; `origin` is what the record calls the source, where that is a step on the way; `work` keeps
    finished shards when the run is stopped, and `keep_work` also when it is not. Raises UsageError, InputError,
    OutputError, GateFailed: in each case nothing is written.
    """
    source, output, gates = os.fspath(source), os.fspath(output), gates or Gates()
    recipe = with_statistics(recipe, None if stats is None else os.fspath(stats))
    teachers = sorted({stage.teacher for stage in recipe.stages if stage.teacher is not None})
    training = recipe.training
    examples = () if training is None else training.files
    beside = (*teachers, *examples, *pairing.files_of(recipe), *files_of(recipe.cuts))
    check_apart(output, source, *beside)
    if save_mask is not None:
        _check_mask(os.fspath(save_mask), output, (source, *beside), force=force or dry_run)
    asked = alternates(recipe, save_base=save_base is not None)
    if asked is not None and save_base is not None:
        base, student = os.fspath(save_base), open_checkpoint(source)
        check_apart(base, output, source, *beside, option="--save-base", of="output or input")
        check_place(base, folder=container_of(base, student.source) == "folder", replace=force or dry_run)
        stages = base_recipe(student, asked)
        if not dry_run:
            check_place(output, folder=True, replace=force)
            settings = {"force": force, "workers": workers, "non_finite": non_finite, "processes": processes}
            run_recipe(verb, teachers[0], base, stages, stats=recipe.stages[0].stats, **settings)  # type: ignore[arg-type]
            as_unfinished(base)
            source = base
    checkpoint = open_checkpoint(source)
    container, changes_it = container_of(output, checkpoint.source), recipe.stages or recipe.cuts or recipe.training
    if changes_it and container != "npy" and not dry_run:  # else nothing records it
        checkpoint = replace(checkpoint, identity=origin or identity_of(checkpoint.source))
    recipe, archived = archiving.settled(recipe, store, container)
    if archived and not changes_it:
        checkpoint = archiving.as_stored(checkpoint, container)
    coding = [stage.store for stage in recipe.stages if stage.method.verb == "quantize"]
    if container == "npz" and any(store in ("dense", "packed") for store in coding):
        raise UsageError("an .npz output holds codes", remedy="Use --store codes, or end the output otherwise")
    if not dry_run:
        check_place(output, folder=container == "folder", replace=force)
    statistics, whole = pairing.open_all(recipe), checkpoint
    checkpoint = fold_masks(checkpoint) if changes_it and not checkpoint.stored else checkpoint
    checkpoint = divided(checkpoint, [stage for stage in recipe.stages if stores_packed(stage, container)])
    mentors = {path: fold_masks(open_checkpoint(path)) for path in teachers}
    if checkpoint.fused:
        mentors = {path: split_experts(mentor) for path, mentor in mentors.items()}
    if makes_adapter(recipe.stages):
        checkpoint = upright(checkpoint)
        mentors = {path: upright(mentor, like=checkpoint) for path, mentor in mentors.items()}
    for read in (checkpoint, *mentors.values()):  # links in a folder may lead to where the output would be
        check_apart(output, *read.source.guarded)
    count = available_workers() if workers is None else workers
    cuts, told = settled(recipe.cuts, checkpoint)
    recipe = replace(recipe, cuts=cuts)
    first = [one for number, one in statistics.items() if number < len(cuts)]
    told += pairing.check_model(first, checkpoint, whole)
    if any(stage.teacher is not None and stage.method.verb == "distill" for stage in recipe.stages):
        told += scaled_note(checkpoint)
    checkpoint = reshaped(
        checkpoint, cuts, workers=count, keep_non_finite=non_finite == "keep", statistics=statistics
    )
    later = [one for number, one in statistics.items() if number >= len(cuts)]
    told += pairing.check_model(later, checkpoint, checkpoint if cuts else whole)
    checkpoint = replace(checkpoint, notes=tuple(dict.fromkeys((*checkpoint.notes, *told))))
    if training is not None:
        mentors[training.teacher] = fold_masks(open_checkpoint(training.teacher))
        check_apart(output, *mentors[training.teacher].source.guarded)
        checkpoint = trained(
            checkpoint, mentors[training.teacher], training, workers=count, dry=dry_run, progress=progress
        )
    recipe = with_presets(recipe, list(checkpoint.tensors))
    hold: dict[str, str] = {}
    resolved: Resolved = {}
    by_stage = {
        number: mentors[stage.teacher]
        for number, stage in enumerate(recipe.stages, len(recipe.cuts))
        if stage.teacher is not None
    }

    def plan_now(held: Mapping[str, str], known: Known | None = None) -> Plan:
        return make_plan(
            checkpoint,
            recipe,
            container,
            os.path.basename(output.rstrip("/")),
            teachers=mentors,
            statistics=statistics,
            hold=held,
            known=known,
            only=only,
            strict=strict,
            requantize=requantize,
        )

    with ExitStack() as stack:
        plan = plan_now(hold)
        if non_finite == "keep":
            with local(count) as executor:
                hold = non_finite_tensors(checkpoint, plan, executor)
            plan = plan_now(hold) if hold else plan
        if balances(plan):
            importlib.import_module("numpy")
            dry = dry_run and plan.counted  # else sizes go by the scales
            checkpoint, statistics = balanced(checkpoint, plan, statistics, workers=count, dry=dry, strict=strict)
            plan = plan_now(hold)
        if not plan.counted:
            importlib.import_module("numpy")
            worker = Worker(plan, checkpoint, by_stage, None, statistics)
            with engine(count, worker, processes=processes) as executor, in_file(source):
                counter = Runner(worker, executor, 2 * count + 2)
                plan = plan_now(hold, counter.count())
                resolved = counter.resolved
        plan = archiving.noted(plan, dry=dry_run) if archived else plan
        early = replace(gates, min_ratio=None, max_size=None) if archived else gates
        report = Report(verb, source, output, plan, failures=tuple(gating.judge_plan(early, plan)))
        if report.failures:
            raise ReportedGateFailed(report)
        if dry_run:
            return report
        importlib.import_module("numpy")  # if that cannot be, then before anything is written
        plan = sealed(plan)
        layouts = [(file.name, file.layout) for file in plan.files]
        sink = Sink(output, container, layouts, replace=force)
        try:
            shards = None
            if work is not None:
                shards = Shards.of(os.fspath(work), sink, plan, checkpoint, mentors.values())
                stack.callback(shards.folder.release)
            worker = Worker(plan, checkpoint, by_stage, sink, statistics, shards)
            failures: list[str] = []
            if checkpoint.stored:
                coder = stack.enter_context(local(count))
                advance = counting(plan, progress)
                plan, changes = archiving.archive_files(
                    sink, plan, effort, coder, count + 2, checkpoint=checkpoint, progress=advance
                )
            else:
                executor = stack.enter_context(engine(count, worker, processes=processes))
                changes = Runner(worker, executor, 2 * count + 2, counting(plan, progress), resolved).run()
                if archived:
                    coder = stack.enter_context(local(count))
                    plan, _ = archiving.archive_files(sink, plan, effort, coder, count + 2)
            if archived:
                failures = gating.judge_plan(gates, plan)
            report = Report(verb, source, output, plan, changes)
            failures += gating.judge(gates, report)
            if failures:
                raise ReportedGateFailed(Report(verb, source, output, plan, changes, tuple(failures)))
            for one in statistics.values():
                one.file.check_unchanged()
            finish(sink, plan, checkpoint, mentors.values())
            if shards is not None and not keep_work:
                shards.folder.clear()
        except BaseException as error:
            stack.close()  # workers must have stopped before their files go
            sink.discard()
            if isinstance(error, InputError):
                error.file = error.file or source  # a method knows the tensor, not the file
            raise
    if save_mask is not None:
        pruned = [job.spec.name for job in plan.jobs if any(step.method.verb == "prune" for step in job.steps)]
        stage = Stage(methods_of("store")["mask"](), include=("*",), store="packed")
        run_recipe("prune", output, save_mask, Recipe((stage,)), force=force, workers=workers, only=pruned)
    return report


def _check_mask(save_mask: str, output: str, inputs: Iterable[str], *, force: bool) -> None:
    """Before anything is done: whether the mask can be written where it is to go."""
    if os.path.splitext(save_mask)[1] != ".safetensors":
        raise UsageError("--save-mask writes a .safetensors", remedy="End its name so")
    check_apart(save_mask, output, *inputs)
    check_place(save_mask, folder=False, replace=force)
