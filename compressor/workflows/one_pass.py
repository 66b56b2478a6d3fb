"""One pass over a checkpoint, in five phases; each takes the frozen value that the one before it gives.

open        places are checked, and every file is opened
transform   experts, structured cuts, training and presets: the checkpoint and the recipe that are planned
plan        what happens to each tensor, with exact sizes; surveys that sizes depend on; gates of sizes
write       workers carry the plan out; gates of what was measured; the output gets its name
after       what is made of the finished output: the mask of a pruning
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

from compressor.calibration.opening import files_of as statistics_files_of
from compressor.calibration.opening import open_all
from compressor.calibration.statistics import Statistics
from compressor.checkpoint.checkpoint import Checkpoint, open_checkpoint
from compressor.checkpoint.delta_base import fingerprint_of, open_with_base
from compressor.checkpoint.experts import split_experts
from compressor.checkpoint.joined_experts import join_experts
from compressor.checkpoint.prefixes import strip_prefix
from compressor.checkpoint.pruning_masks import fold_masks
from compressor.checkpoint.upright import upright
from compressor.core.errors import InputError, UsageError
from compressor.core.metrics import Change
from compressor.core.parallel import forked
from compressor.core.parallel.threads import available_workers, local
from compressor.core.text import printable
from compressor.engine.execution.runner import Runner, Surveyed
from compressor.engine.execution.shards import Shards
from compressor.engine.execution.units import Share
from compressor.engine.execution.worker import Worker
from compressor.engine.plan.adapter import makes_adapter
from compressor.engine.plan.experts import divided
from compressor.engine.plan.pairing import check_model
from compressor.engine.plan.plan import Plan
from compressor.engine.plan.planner import make_plan, stores_packed, with_fingerprint
from compressor.engine.plan.request import PlanRequest
from compressor.files.addresses import is_address
from compressor.files.destination import check_apart, container_of
from compressor.files.identity import Identity, identity_of
from compressor.files.layout import Container
from compressor.files.output import Output
from compressor.files.sending import Sending
from compressor.files.source import Source
from compressor.files.staging import check_place
from compressor.files.writing import check_output, open_output, open_part
from compressor.methods.registry import methods_of
from compressor.recipe.archive_store import archive_store
from compressor.recipe.gates import Gates
from compressor.recipe.model import Cut, Recipe, Stage
from compressor.recipe.preset_rules import implied_notes, with_presets
from compressor.recipe.presets import MIXTURES
from compressor.recipe.statistics_files import with_statistics
from compressor.workflows.gating import judge, judge_plan, judge_sizes
from compressor.workflows.gguf_model import ggml_model
from compressor.workflows.inspect import non_finite_tensors
from compressor.workflows.part import part_path, share_of
from compressor.workflows.results import Report, ReportedGateFailed, Verdict
from compressor.workflows.run_options import RunOptions

if TYPE_CHECKING:
    from compressor.engine.execution.archive import Archiving
    from compressor.engine.execution.survey_book import SurveyBook
    from compressor.files.part_folder import PartFile
    from compressor.workflows.model_card import CardFacts

_LARGE = 128 << 20  # bytes of a model that are worth the start of processes


@dataclass(frozen=True, slots=True)
class Origin:
    """What a run of several passes began with: what it is known by, its path, and bytes of its weight files."""

    identity: Identity
    path: str
    size: int


@dataclass(frozen=True, slots=True)
class Order:
    """What is asked for: `recipe` (of one leg, without a budget) from the path `source` to the path `output`.
    `only` these tensors go into the output, where given; `origin` is what the source was made of, where that
    is a step on the way."""

    verb: str
    source: str
    output: str
    recipe: Recipe
    options: RunOptions
    only: frozenset[str] | None = None
    origin: Origin | None = None

    @property
    def teachers(self) -> list[str]:
        """The paths of the stages' teachers."""
        return sorted({stage.teacher for stage in self.recipe.stages if stage.teacher is not None})

    @property
    def beside(self) -> tuple[str, ...]:
        """The paths of everything that is read beside the source."""
        recipe = self.recipe
        examples = () if recipe.training is None else recipe.training.files
        base = () if self.options.base is None else (self.options.base,)
        return (*self.teachers, *examples, *statistics_files_of(recipe), *_files_of_cuts(recipe), *base)


def _files_of_cuts(recipe: Recipe) -> tuple[str, ...]:
    if not recipe.cuts:
        return ()
    from compressor.surgery.make_student import files_of  # here, like others below: most runs have no use for it

    return files_of(recipe.cuts)


@dataclass(frozen=True, slots=True)
class Opened:
    """An order whose files are open: `order.recipe` knows its statistics and no word of archives. `undivided` is
    the checkpoint with fused experts as the file has them; `teachers` are by path; `statistics` of layer inputs by
    the number of the cut or stage that goes by them; `base` is what an archive is coded against; `known`, where the
    checkpoint's files were looked at, the identity of them."""

    order: Order
    container: Container
    archived: bool
    checkpoint: Checkpoint
    undivided: Checkpoint
    teachers: Mapping[str, Checkpoint]
    statistics: Mapping[int, Statistics]
    workers: int
    base: Source | None = None
    known: Identity | None = None


@dataclass(frozen=True, slots=True)
class Transformed:
    """The checkpoint after cuts and training, and the recipe with its presets turned into rules for it."""

    opened: Opened
    recipe: Recipe
    checkpoint: Checkpoint


@dataclass(frozen=True, slots=True)
class Planned:
    """The plan that is carried out, the request that gives it, and the methods that surveys before it concluded
    with, by tensor and place of the step."""

    opened: Opened
    request: PlanRequest
    plan: Plan
    surveyed: Surveyed
    gates: tuple[Verdict, ...] = ()

    @property
    def report(self) -> Report:
        """The report of a dry run: the plan with what gates say of it, and nothing measured."""
        order = self.opened.order
        return Report(order.verb, order.source, _place(order.output, self.plan), self.plan, gates=self.gates)


def run_one_pass(
    verb: str,
    source: str,
    output: str,
    recipe: Recipe,
    options: RunOptions,
    *,
    only: Sequence[str] | None = None,
    origin: Origin | None = None,
) -> Report:
    """Run a recipe of one leg, whose budget is met already, from `source` to `output`.

    Raises UsageError, InputError, OutputError, GateFailed: in each case nothing is written.
    """
    tensors = None if only is None else frozenset(only)
    opened = open_inputs(Order(verb, source, output, recipe, options, tensors, origin))
    transformed = transform(opened)
    planned = make_final_plan(transformed)
    if options.surveys_only:
        with ExitStack() as stack, _naming(source):
            _runner(planned, _worker(planned.request, planned.plan), stack).survey_models()
    if options.dry_run:
        return planned.report
    report = write(planned)
    after(report, options)
    return report


# ---- open ----------------------------------------------------------------------------------------------


def checked(order: Order) -> Order:
    """The order whose stages know the statistics that they go by. UsageError or OutputError where what it writes
    would be what it reads, or could not be written where it is to go."""
    options = order.options
    order = replace(order, recipe=with_statistics(order.recipe, options.stats))
    check_apart(order.output, order.source, *order.beside)
    mask = options.save_mask
    if mask is not None:
        if os.path.splitext(mask)[1] != ".safetensors":
            raise UsageError("--save-mask writes a .safetensors", remedy="End its name so")
        check_apart(mask, order.output, option="--save-mask", of="output")
        check_apart(mask, order.source, *order.beside, option="--save-mask")
        check_place(mask, folder=False, replace=options.force or options.dry_run)
    return order


def open_input(source: str, options: RunOptions) -> Checkpoint:
    """The input of a run, under the names and of the part of it that the options say."""
    if options.base is None or options.store == "archive":
        checkpoint = open_checkpoint(source, options.component)
    else:
        checkpoint = open_with_base(source, options.base, options.component)
    checkpoint = strip_prefix(checkpoint, options.strip_prefix)
    if options.fold_weight_norm or any(name.endswith(("_v", ".original1")) for name in checkpoint.tensors):
        from compressor.checkpoint.weight_norm import fold_weight_norm

        checkpoint = fold_weight_norm(checkpoint, options.fold_weight_norm)
    return checkpoint


def _teacher(path: str, options: RunOptions) -> Checkpoint:
    """A teacher, with weights in place of what a student of its names has weights for."""
    teacher = fold_masks(open_checkpoint(path))
    if options.fold_weight_norm:
        from compressor.checkpoint.weight_norm import folded

        teacher = folded(teacher)
    return teacher


def _check_output(order: Order, container: Container, *, recorded: bool) -> None:
    """OutputError where the output cannot be written to its place; UsageError for options that have none there."""
    options, folder = order.options, container == "folder"
    if is_address(order.output):
        said = f"-o {printable(order.output)}"
        if options.part is not None and order.output.lower().startswith("hf://"):
            raise UsageError(
                f"{said}: a repository of the hub keeps all that was ever in it, parts as well",
                remedy="Write the parts to a disk or to a bucket, and merge them to there",
            )
        if options.scheduler is not None and not options.dry_run and "TMPDIR" not in os.environ:
            raise UsageError(
                f"{said}: workers write a shard to a disk that all of them see, before it is sent",
                remedy="Set TMPDIR to a folder that all of them see",
            )
    if not options.dry_run:
        check_output(order.output, folder=folder, replace=options.force, recorded=recorded)


def _from_gguf(checkpoint: Checkpoint, container: Container) -> Checkpoint:
    """A GGUF input with the shapes, and for a folder the names, that other containers have."""
    from compressor.checkpoint.gguf.from_file import as_folder, is_file_of_a_model
    from compressor.checkpoint.gguf.reshaped import with_original_shapes

    checkpoint = with_original_shapes(checkpoint)
    return as_folder(checkpoint) if container == "folder" and is_file_of_a_model(checkpoint) else checkpoint


def _archived_as_it_is(checkpoint: Checkpoint, container: Container, options: RunOptions) -> Checkpoint:
    """The input for an archive of it; UsageError where options would change its tensors."""
    if options.strip_prefix is not None or options.fold_weight_norm:
        said = "--strip-prefix and --fold-weight-norm: an archive of a file has its tensors"
        raise UsageError(said, remedy="Leave them out")
    from compressor.engine.execution.archive import as_stored

    return as_stored(checkpoint, container)


def _against_base(
    checkpoint: Checkpoint, options: RunOptions, *, archived: bool
) -> tuple[Checkpoint, Source | None]:
    """The input for an archive against a base, with what is to be said of that, and the base."""
    if options.base is None or not archived:
        return checkpoint, None
    if not checkpoint.stored:
        raise UsageError(
            "--base is for an archive of a checkpoint as it is, and stages change it",
            remedy="Archive what they leave: compressor pipeline MODEL -o UPDATE --base BASE",
        )
    if options.part is not None:
        raise UsageError("--base: an archive against a base is written by one job", remedy="Leave --part out")
    from compressor.files.archive_base import matching, open_base, unmatched_note

    base = open_base(options.base)
    note = unmatched_note(checkpoint.source, matching(checkpoint.source, base))
    return replace(checkpoint, notes=(*checkpoint.notes, *note)), base


def _identity(order: Order, checkpoint: Checkpoint) -> Identity:
    """What the record calls the source."""
    return identity_of(checkpoint.source) if order.origin is None else order.origin.identity


def _as_it_was(checkpoint: Checkpoint, container: Container, order: Order) -> tuple[Checkpoint, Container]:
    """The input, and the container that it goes into; where it is archives of files as they were, and nothing is
    asked of them, for these very files."""
    options, found = order.options, None
    asked = options.strip_prefix, options.max_shard_size, order.only, options.component or None, options.loader
    asked_for = options.fold_weight_norm or any(one is not None for one in (*asked, checkpoint.base))
    if not asked_for and all(part.file.stands_for for part in checkpoint.source.files):
        from compressor.engine.execution.archive import as_it_was

        found = as_it_was(checkpoint, container)
    if found is not None:
        return found, container
    return checkpoint, container_of(order.output, checkpoint.source) if container == "file" else container


def open_inputs(order: Order) -> Opened:
    """Open everything that is read. UsageError, InputError or OutputError for what cannot be read, or written."""
    order = checked(order)
    options, recipe = order.options, order.recipe
    checkpoint = open_input(order.source, options)
    changes = bool(recipe.stages or recipe.cuts or recipe.training)
    container = container_of(order.output, checkpoint.source, as_it_was=not changes and options.store != "archive")
    if container == "gguf" and options.max_shard_size is not None and is_address(order.output):
        raise UsageError("--max-shard-size: a .gguf in an object store is one file", remedy="Leave it out")
    if container != "gguf" and checkpoint.source.kind == "gguf":
        checkpoint = _from_gguf(checkpoint, container)
    seen, known = checkpoint.source, None
    if changes and container != "npy" and not options.dry_run:  # else nothing records it
        checkpoint = replace(checkpoint, identity=_identity(order, checkpoint))
        known = checkpoint.identity if order.origin is None else None
    recipe, archived = archive_store(recipe, options.store, container)
    if archived and options.loader is not None:
        raise UsageError(f"--for {options.loader}: it loads no archives", remedy="Leave --store archive out")
    if archived and not changes:
        checkpoint = _archived_as_it_is(checkpoint, container, options)
    checkpoint, base = _against_base(checkpoint, options, archived=archived)
    if not (archived or changes):
        checkpoint, container = _as_it_was(checkpoint, container, order)
    coding = [stage.store for stage in recipe.stages if stage.method.verb == "quantize"]
    if container == "npz" and "dense" in coding:
        raise UsageError("an .npz output holds codes", remedy="Leave --store out, or end the output otherwise")
    if archived and options.work is not None and is_address(order.output):
        raise UsageError("--work keeps finished shards: an archive elsewhere has none", remedy="Leave --work out")
    _check_output(order, container, recorded=changes)
    statistics, undivided = _by_names(open_all(recipe), checkpoint, container), checkpoint
    if changes and not checkpoint.stored:
        checkpoint = fold_masks(checkpoint)
    storing = [stage for stage in recipe.stages if container != "gguf" and stores_packed(stage, container)]
    checkpoint = divided(checkpoint, storing, options.loader)
    if not (changes or checkpoint.stored or checkpoint.verbatim):
        checkpoint = join_experts(checkpoint)
    teachers = {path: _teacher(path, options) for path in order.teachers}
    if checkpoint.fused:
        teachers = {path: split_experts(teacher) for path, teacher in teachers.items()}
    if makes_adapter(recipe.stages):
        checkpoint = upright(checkpoint)
        teachers = {path: upright(teacher, like=checkpoint) for path, teacher in teachers.items()}
    if recipe.training is not None:
        teachers[recipe.training.teacher] = _teacher(recipe.training.teacher, options)
    read = [one.source for one in (checkpoint, *teachers.values())] + ([] if base is None else [base])
    for one in read:  # links in a folder may lead to where the output would be
        check_apart(order.output, *one.guarded)
    return Opened(
        replace(order, recipe=recipe),
        container,
        archived,
        checkpoint,
        undivided,
        teachers,
        statistics,
        available_workers() if options.workers is None else options.workers,
        base,
        known if checkpoint.source is seen else None,
    )


def _by_names(
    opened: Mapping[int, Statistics], checkpoint: Checkpoint, container: Container
) -> Mapping[int, Statistics]:
    """The statistics by the names that the checkpoint has; of one that becomes a GGUF file later."""
    if not opened or (container == "gguf" and checkpoint.source.config is not None):
        return opened
    from compressor.calibration.renamed import by_names_of  # here because most runs have none

    return {number: by_names_of(one, checkpoint) for number, one in opened.items()}


# ---- transform -----------------------------------------------------------------------------------------


def transform(opened: Opened) -> Transformed:
    """What changes the checkpoint as a whole: cuts, one by one, then a training. InputError for a model that is not
    understood, or that statistics and teachers are not of; UsageError for what cannot be cut."""
    order, checkpoint = opened.order, opened.checkpoint
    options, training = order.options, order.recipe.training
    cuts, notes = _resolved_cuts(opened)
    for_cuts = [one for number, one in opened.statistics.items() if number < len(cuts)]
    notes += check_model(for_cuts, checkpoint, opened.undivided)
    if any(stage.teacher is not None and stage.method.verb == "distill" for stage in order.recipe.stages):
        from compressor.workflows.awq import scaled_note

        notes += scaled_note(checkpoint)
    if cuts:
        from compressor.surgery.make_student import reshaped

        checkpoint = reshaped(
            checkpoint,
            cuts,
            workers=opened.workers,
            keep_non_finite=options.non_finite == "keep",
            statistics=opened.statistics,
        )
    for_stages = [one for number, one in opened.statistics.items() if number >= len(cuts)]
    notes += check_model(for_stages, checkpoint, checkpoint if cuts else opened.undivided)
    checkpoint = replace(checkpoint, notes=tuple(dict.fromkeys((*checkpoint.notes, *notes))))
    if training is not None:
        from compressor.networks.training.student import trained

        checkpoint = trained(
            checkpoint,
            opened.teachers[training.teacher],
            training,
            workers=opened.workers,
            dry=options.dry_run,
            progress=options.progress,
        )
    if opened.container == "gguf":
        opened, checkpoint = _for_gguf(opened, checkpoint)
    specs, model = [tensor.spec for tensor in checkpoint.tensors.values()], ggml_model(checkpoint.source.fields)
    checkpoint = replace(checkpoint, notes=(*checkpoint.notes, *implied_notes(order.recipe, model)))
    recipe = with_presets(replace(order.recipe, cuts=cuts), specs, model, allow_unmatched=options.allow_unmatched)
    return Transformed(opened, recipe, checkpoint)


def _resolved_cuts(opened: Opened) -> tuple[tuple[Cut, ...], tuple[str, ...]]:
    cuts = opened.order.recipe.cuts
    if not cuts:
        return (), ()
    from compressor.surgery.make_student import resolved_cuts

    return resolved_cuts(cuts, opened.checkpoint)


def _for_gguf(opened: Opened, checkpoint: Checkpoint) -> tuple[Opened, Checkpoint]:
    """The checkpoint and the teachers as GGUF has them, where they are of another container."""
    from compressor.checkpoint.gguf.to_file import Wishes, as_file, becomes_file

    options = opened.order.options
    wishes = Wishes(not options.no_tokenizer, options.leave_out)
    if not becomes_file(checkpoint):
        return opened, checkpoint
    teachers = {path: as_file(one, wishes) if becomes_file(one) else one for path, one in opened.teachers.items()}
    statistics, made = opened.statistics, as_file(checkpoint, wishes)
    if statistics:
        from compressor.calibration.renamed import for_file

        statistics = {number: for_file(one, made, checkpoint) for number, one in statistics.items()}
    return replace(opened, teachers=teachers, statistics=statistics), made


# ---- plan ----------------------------------------------------------------------------------------------


def make_final_plan(transformed: Transformed) -> Planned:
    """The plan with exact sizes. Where those depend on data (scales of inputs, sparse layouts, tensors to hold
    back) it is planned first, the data looked at, and planned again. ReportedGateFailed where sizes miss a
    limit."""
    opened = transformed.opened
    order, options = opened.order, opened.order.options
    request = PlanRequest(
        checkpoint=transformed.checkpoint,
        recipe=transformed.recipe,
        container=opened.container,
        output_name=os.path.basename(order.output.rstrip("/")),
        teachers=opened.teachers,
        statistics=opened.statistics,
        only=order.only,
        mixture=next((stage.preset for stage in reversed(order.recipe.stages) if stage.preset in MIXTURES), ""),
        loader=options.loader,
        strict=options.strict,
        requantize=options.requantize,
        allow_unmatched=options.allow_unmatched,
        max_shard_size=options.max_shard_size,
    )
    plan = make_plan(request)
    if options.non_finite == "keep":
        with local(opened.workers) as executor:
            request = replace(request, hold=non_finite_tensors(request.checkpoint, plan, executor))
        plan = make_plan(request)
    if plan.balances:
        request = _with_scales(opened, request, plan)
        plan = make_plan(request)
    opened = _within_memory(opened, plan, request.statistics)
    surveyed: Surveyed = {}
    if not plan.sizes_known:
        importlib.import_module("numpy")
        worker = _worker(request, plan)
        with _engine(opened, worker) as executor, _naming(order.source):
            window, chunks = _tasks_of(executor, opened)
            runner = Runner(worker, executor, window, book=_book(opened), chunks_each=chunks)
            runner.surveying = _surveying(options)
            request = replace(request, sizes_known=runner.count())
        plan, surveyed = make_plan(request), runner.surveyed
        opened = _within_memory(opened, plan, request.statistics)
    return _judged(Planned(opened, request, plan, surveyed))


def _with_scales(opened: Opened, request: PlanRequest, plan: Plan) -> PlanRequest:
    """The request for the checkpoint whose layers' inputs are scaled, by as many workers as --memory allows."""
    from compressor.workflows.awq import balanced, searching_memory

    importlib.import_module("numpy")
    options, workers = opened.order.options, opened.workers
    if options.memory is not None:
        from compressor.engine.plan.memory import workers_holding

        workers = workers_holding(options.memory, searching_memory(plan, request.statistics), workers)
    dry = options.dry_run and plan.sizes_known  # else sizes go by the scales
    checkpoint, statistics = balanced(
        request.checkpoint, plan, request.statistics, workers=workers, dry=dry, strict=options.strict
    )
    return replace(request, checkpoint=checkpoint, statistics=statistics)


def _within_memory(opened: Opened, plan: Plan, statistics: Mapping[int, Statistics]) -> Opened:
    """With as many workers as --memory allows. UsageError where it does not do for one."""
    options = opened.order.options
    if options.memory is None:
        return opened
    from compressor.engine.plan.memory import workers_within

    forks = int(options.processes and forked.available)  # of processes there is one more
    return replace(
        opened, workers=workers_within(options.memory, plan.jobs, statistics, opened.workers, more=forks)
    )


def _judged(planned: Planned) -> Planned:
    """The plan, where its sizes keep the gates; those of an archive are known when it is written."""
    gates, plan = planned.opened.order.options.gates, planned.plan
    if planned.opened.archived:
        gates = replace(gates, min_ratio=None, max_size=None)
        from compressor.engine.execution.archive import noted

        dry, based = planned.opened.order.options.dry_run, planned.opened.base is not None
        planned = replace(planned, plan=noted(plan, dry=dry, based=based))
    planned = replace(planned, gates=tuple(judge_plan(gates, plan)))
    if planned.report.failures:
        raise ReportedGateFailed(planned.report)
    return planned


def _worker(request: PlanRequest, plan: Plan, sink: Output | None = None, shards: Shards | None = None) -> Worker:
    """Who treats the tensors of a plan; without a `sink` it only looks at them."""
    teachers = {
        number: request.teachers[stage.teacher]
        for number, stage in enumerate(request.recipe.stages, len(request.recipe.cuts))
        if stage.teacher is not None
    }
    return Worker(plan, request.checkpoint, teachers, sink, request.statistics, shards)


def _engine(opened: Opened, worker: Worker) -> AbstractContextManager[Executor]:
    """Workers of a cluster where one is named, processes where it pays to start them, else threads."""
    scheduler = opened.order.options.scheduler
    if scheduler is not None:
        from compressor.core.parallel.cluster import cluster

        if worker.sink is not None:
            worker.sink.spread = True
        return cluster(scheduler, [worker, *worker.plan.jobs])
    allowed = opened.order.options.processes and forked.available and opened.workers > 1
    away = is_address(opened.order.output)
    away |= any(one.source.fetched for one in (opened.checkpoint, *opened.teachers.values()))
    if allowed and not away and worker.plan.size_before >= _LARGE:  # what is fetched and sent is this process's
        methods = [step.method for job in worker.plan.jobs for step in job.steps if step.method.verb == "store"]
        return forked.forked(opened.workers, [worker, *worker.plan.jobs, *methods])
    return local(opened.workers)


def _book(opened: Opened) -> SurveyBook | None:
    """What earlier surveys of these inputs found, and of a run that surveys what it is to find itself; None where
    neither is asked for. InputError for a survey of others."""
    options = opened.order.options
    if options.surveyed is None and not options.surveys_only:
        return None
    from compressor.workflows.survey_book import book_of

    return book_of(options, (opened.checkpoint, *opened.teachers.values()))


def _tasks_of(executor: Executor, opened: Opened) -> tuple[int, int]:
    """How many tasks are to be under way, and how many chunks they are to have: of an engine that says so."""
    return 2 * getattr(executor, "workers", opened.workers) + 2, getattr(executor, "chunks", 1)


@contextmanager
def _naming(source: str) -> Iterator[None]:
    """Name the file in what is refused: a method knows the tensor only."""
    try:
        yield
    except InputError as error:
        error.file = error.file or source
        raise


# ---- write ---------------------------------------------------------------------------------------------


def write(planned: Planned) -> Report:
    """Carry the plan out and give the output its name, unless a gate fails (ReportedGateFailed) or an input changed
    meanwhile (InputError)."""
    importlib.import_module("numpy")  # if that cannot be, then before anything is written
    opened, request = planned.opened, planned.request
    order, checkpoint = opened.order, request.checkpoint
    plan = _on_base(with_fingerprint(planned.plan, request), request)
    if order.options.part is not None:
        return _write_part(planned, plan, share_of(order.options.part, whole=opened.archived))
    for file in plan.files[1:]:  # of a split .gguf
        read = (one.source for one in (checkpoint, *request.teachers.values()))
        beside = os.path.join(os.path.dirname(order.output), file.name)
        check_apart(beside, *(path for source in read for path in source.guarded))
    sink = _output(opened, plan)
    try:
        with ExitStack() as stack, _naming(order.source):  # workers must have stopped before their files go
            shards = None
            if order.options.work is not None:
                shards = Shards.of(order.options.work, sink, plan, checkpoint, request.teachers.values())
                stack.callback(shards.folder.release)
            worker = _worker(request, plan, sink, shards)
            worker.histograms = order.options.histograms
            runner = _runner(planned, worker, stack)
            fingerprint = plan.fingerprint  # that of the record; an archive's plan has the sizes that came of it
            plan, changes = _carried_out(planned, runner, sink, lambda number: sink.send(sink.layouts[number][0]))
            report = Report(order.verb, order.source, _place(order.output, plan), plan, changes)
            gates = order.options.gates
            sizes = judge_sizes(gates, plan.size_before, plan.size_after) if opened.archived else []
            measured = judge(gates, report.measured, report.total)
            report = replace(report, gates=(*planned.gates, *sizes, *measured))
            if report.failures:
                raise ReportedGateFailed(report)
            plan = _with_card(report, planned, fingerprint)
            _finish(sink, plan, request)
            report = replace(
                report, beside=tuple((name, len(text)) for name, text in plan.texts[len(report.plan.texts) :])
            )
            if shards is not None and not order.options.keep_work:
                shards.folder.clear()
    except BaseException:
        sink.discard()
        raise
    return report


def _on_base(plan: Plan, request: PlanRequest) -> Plan:
    """The plan with what the base is known by in its headers, where tensors are stored as differences from one."""
    differences = [job for job in plan.jobs if job.encoder is not None and job.encoder.on_base]
    if not differences:
        return plan
    from compressor.engine.plan.output_files import with_base

    first = len(request.recipe.cuts)
    under = {}
    for job in differences:
        step = job.steps[-1]
        teacher = request.recipe.stages[step.stage - first].teacher
        (name,) = step.partners.values()
        under[job.spec.name] = request.teachers[teacher or ""].tensors[name]
    fingerprint = fingerprint_of(under)
    return replace(plan, files=tuple(with_base(file, fingerprint) for file in plan.files))


def _place(output: str, plan: Plan) -> str:
    """Where the output is found: a .gguf that is split by its first part."""
    if plan.container != "gguf" or len(plan.files) == 1:
        return output
    return os.path.join(os.path.dirname(output), plan.files[0].name)


def _output(opened: Opened, plan: Plan) -> Output:
    """The output under construction, on a disk or elsewhere."""
    order, layouts = opened.order, [(file.name, file.layout) for file in plan.files]
    sending = Sending(plan.fingerprint[:16], keeps=order.options.work is not None)
    replace, recorded = order.options.force, bool(plan.stages)
    return open_output(order.output, opened.container, layouts, sending, replace=replace, recorded=recorded)


def _write_part(planned: Planned, plan: Plan, share: Share) -> Report:
    """Carry out a share of the plan, and write it down as a part for `merge`, by which the gates are judged."""
    from compressor.engine.execution.parts import inputs_of, measured, written_file
    from compressor.files.part_folder import PartRecord
    from compressor.workflows.model_card import NAME as CARD

    opened, request = planned.opened, planned.request
    order, options = opened.order, opened.order.options
    changed = [one.changed_by() for one in request.statistics.values()]
    more = [order.verb, *changed, *([options.effort] if opened.archived else ())]
    inputs, times = inputs_of((opened.checkpoint, *opened.teachers.values()), more, opened.known)
    target = part_path(order.output, share)
    with ExitStack() as stack, _naming(order.source):
        worker = _worker(request, plan)
        worker.histograms = options.histograms
        runner = _runner(planned, worker, stack, share)
        layouts = [(file.name, file.layout) for file in plan.files]
        sink = open_part(target, layouts, runner.files, Sending(plan.fingerprint[:16]), replace=options.force)
        files: dict[int, PartFile] = {}

        def finished(number: int) -> None:
            files[number] = written_file(runner, sink, number, archived=opened.archived)

        try:
            runner.worker.sink, sink.spread = sink, options.scheduler is not None
            done, changes = _carried_out(planned, runner, sink, finished)
            facts = _card_facts(planned, done) if share.number == 1 else None
            if facts is not None:
                done = replace(done, carried=tuple(name for name in done.carried if name != CARD))
            small = _small_files(sink, done, request) if share.number == 1 else []
            record = PartRecord(
                number=share.number,
                count=share.count,
                plan=plan.fingerprint,
                inputs=inputs,
                times=times,
                container=opened.container,
                names=tuple(file.name for file in plan.files),
                files=tuple(files[number] for number in sorted(files)),
                small=tuple(map(sink.whole, small)),
                said={
                    "archived": opened.archived,
                    "recorded": bool(plan.stages),
                    "size_before": plan.size_before,
                    "stages": [dict(stage) for stage in plan.stages],
                    "gates": asdict(options.gates),
                    "tensors": measured(runner, done, changes),
                    "card": None if facts is None else asdict(facts),
                },
            )
            _check_unchanged(request)
            sink.finish(record)
        except BaseException:
            stack.close()  # workers must have stopped before their files go
            sink.discard()
            raise
    said = f"part {share.number} of {share.count}: `compressor merge` makes the output of all parts"
    if options.gates != Gates():
        said += ", and judges the gates"
    own = [job for jobs in runner.files.values() for job in jobs]
    done = replace(done, notes=(said, *done.notes))
    return Report(order.verb, order.source, target, done, changes, part={job.spec.name for job in own})


def _runner(planned: Planned, worker: Worker, stack: ExitStack, share: Share | None = None) -> Runner:
    """Who carries the plan out that `worker` knows, until the stack is left."""
    opened, stored = planned.opened, worker.checkpoint.stored
    executor = stack.enter_context(local(1) if stored else _engine(opened, worker))
    window, chunks = _tasks_of(executor, opened)
    runner = Runner(worker, executor, window, surveyed=dict(planned.surveyed), share=share, chunks_each=chunks)
    runner.book = _book(opened)
    total = sum(job.spec.nbytes for job in worker.plan.jobs)
    if share is not None:
        total = sum(unit.nbytes for unit in runner.units)
    runner.progress = _counting(total, opened.order.options.progress)
    runner.surveying = _surveying(opened.order.options)
    return runner


def _carried_out(
    planned: Planned, runner: Runner, sink: Output, finished: Callable[[int], None]
) -> tuple[Plan, Sequence[Change]]:
    """Write all container files, and tell the number of each that is `finished`, where they are sent elsewhere
    before the next is begun: the plan with the sizes that they have, and what happened to each of its jobs."""
    opened, checkpoint = planned.opened, runner.worker.checkpoint
    files = dict(enumerate(runner.worker.plan.by_file)) if runner.share is None else runner.files
    archiving = _archiving(opened, runner, sink) if opened.archived else None
    changes: Sequence[Change] = []

    def complete(number: int) -> None:
        if checkpoint.verbatim and runner.share is None:  # before it is sent, and no more here
            from compressor.engine.execution.archive import check_original

            check_original(sink, number, checkpoint)
        if archiving is not None and sink.sends:
            archiving.code({number: files[number]})
        finished(number)

    if not checkpoint.stored:
        changes = runner.run(complete if sink.sends else None)
    if archiving is not None and not sink.sends:
        archiving.code(files)
    if checkpoint.stored or not sink.sends:
        for number in files:
            complete(number)
    if opened.base is not None:
        opened.base.check_unchanged()
    if archiving is None:
        return runner.worker.plan, changes
    return archiving.plan, archiving.changes if checkpoint.stored else changes


def _archiving(opened: Opened, runner: Runner, sink: Output) -> Archiving:
    from compressor.engine.execution.archive import Archiving, Coding

    checkpoint, base, way = runner.worker.checkpoint, opened.base, Coding(opened.order.options.effort)
    if base is not None:
        from compressor.files.archive_base import matching

        way = replace(way, bases=matching(checkpoint.source, base))
    of = (checkpoint, runner.progress) if checkpoint.stored else (None, None)
    return Archiving(sink, runner.worker.plan, way, opened.workers, *of)


def _finish(sink: Output, plan: Plan, request: PlanRequest) -> None:
    """Small files, a last look at the inputs, then the name."""
    _small_files(sink, plan, request)
    _check_unchanged(request)
    sink.publish()


def _card_facts(planned: Planned, plan: Plan) -> CardFacts | None:
    """What the output's model card says beside figures; None where it has none."""
    opened, checkpoint = planned.opened, planned.request.checkpoint
    order, options = opened.order, opened.order.options
    as_it_was = checkpoint.stored or checkpoint.verbatim
    if not options.card or opened.container != "folder" or as_it_was or makes_adapter(order.recipe.stages):
        return None
    from compressor.workflows.model_card import NAME, card_facts

    source = checkpoint.source
    if source.config is None:
        return None
    file = source.carried.get(NAME)
    before = b"" if file is None else bytes(file.read(0, file.size))
    earlier = next((record.stages for record in checkpoint.records if record.stages), ())
    origin = order.origin
    base = order.source if origin is None else origin.path
    said = {"archived": opened.archived, "last": origin is not None}
    return card_facts(plan, before, source.config, base, earlier, **said)


def _with_card(report: Report, planned: Planned, fingerprint: str) -> Plan:
    """The plan with the model card among its small files, where there is one."""
    plan, facts = report.plan, _card_facts(planned, report.plan)
    if facts is None or report.total is None or report.everything is None:
        return plan
    from compressor.workflows.model_card import NAME, CardFigures, model_card

    origin = planned.opened.order.origin
    figures = CardFigures(
        fingerprint,
        (plan.size_before if origin is None else origin.size, plan.size_after),
        len(report.rows),
        len(plan.jobs),
        report.bits_per_weight,
        (report.total.error, report.everything.error),
    )
    carried = tuple(name for name in plan.carried if name != NAME)
    return replace(plan, carried=carried, texts=(*plan.texts, (NAME, model_card(facts, figures))))


def _small_files(sink: Output, plan: Plan, request: PlanRequest) -> list[str]:
    """Write the files beside those of weights: their names."""
    for name in plan.carried:
        sink.copy(name, request.checkpoint.source.carried[name])
    for name, content in plan.texts:
        sink.add_text(name, content)
    return [*plan.carried, *(name for name, _ in plan.texts)]


def _check_unchanged(request: PlanRequest) -> None:
    """InputError where anything that was read was changed meanwhile."""
    for statistics in request.statistics.values():
        statistics.file.check_unchanged()
    bases = [] if request.checkpoint.base is None else [request.checkpoint.base]
    for source in (*(one.source for one in (request.checkpoint, *request.teachers.values())), *bases):
        source.check_unchanged()


def _surveying(options: RunOptions) -> Callable[[int, int], None]:
    """Tell how far a pass over the whole model is, which comes before weights are written."""
    begun = False

    def tell(done: int, total: int) -> None:
        nonlocal begun
        if options.progress is None:
            return
        if not begun:
            options.announce("survey of the whole model")
        options.progress(done, total)
        begun = done < total
        if not begun:
            options.announce("weights")

    return tell


def _counting(total: int, progress: Callable[[int, int], None] | None) -> Callable[[int], None]:
    """Turn 'this many bytes more' into 'so many of so many'."""
    done = 0

    def count(more: int) -> None:
        nonlocal done
        done = min(done + more, total)
        if progress is not None:
            progress(done, total)

    return count


# ---- after ---------------------------------------------------------------------------------------------


def after(report: Report, options: RunOptions) -> None:
    """Write the mask of what was pruned, where one is asked for."""
    if options.save_mask is None:
        return
    pruned = [job.spec.name for job in report.plan.jobs if any(step.method.verb == "prune" for step in job.steps)]
    stage = Stage(methods_of("store")["mask"](), include=("*",), store="packed")
    settings = RunOptions(force=options.force, workers=options.workers)
    run_one_pass("prune", report.output, options.save_mask, Recipe((stage,)), settings, only=pruned)
