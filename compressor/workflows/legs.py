"""A whole run: the legs of a recipe one after the other, each a pass. What one leaves is written out beside the
output, or into the user's work folder, until the next has read it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING

from compressor.checkpoint.checkpoint import open_checkpoint
from compressor.core import cleanup
from compressor.core.errors import CompressorError, UsageError, problems_of
from compressor.core.text import printable, size_text
from compressor.engine.plan.plan import Plan
from compressor.files.addresses import absolute, from_the_root
from compressor.files.destination import check_apart, container_of
from compressor.files.identity import identity_of
from compressor.files.input_file import InputFile
from compressor.files.staging import Staging, check_place
from compressor.files.work_folder import WorkFolder, content_hash
from compressor.files.writing import check_output, place_beside
from compressor.recipe.for_loader import for_loader
from compressor.recipe.legs import (
    asks_for_statistics,
    count_of,
    makes_adapter_of,
    plan_legs,
    rehearsal_of,
    words_of,
)
from compressor.recipe.model import Recipe
from compressor.recipe.preset_rules import for_gguf
from compressor.workflows.adapter_base import alternates, base_recipe
from compressor.workflows.one_pass import Order, Origin, checked, run_one_pass
from compressor.workflows.results import Report
from compressor.workflows.run_options import RunOptions

if TYPE_CHECKING:
    from compressor.workflows.budget.choice import Allocation

Tell = Callable[["Allocation"], None]


def run_legs(
    verb: str, source: str, output: str, recipe: Recipe, options: RunOptions, *, tell: Tell | None = None
) -> Report:
    """Run a recipe from the path `source` to the path `output`: the report of its last leg, with the stages of all.

    Changes, and so the limits of gates, are those of the last leg; sizes go by `source`. A dry run does all but
    train, so that sizes are exact, and leaves nothing behind. `tell` is given what a budget chose before it is
    carried out. Raises UsageError, InputError, OutputError, GateFailed: in each case nothing is written.
    """
    cleanup.begin()
    options.check_work(source, output)
    if options.scheduler is not None:  # its workers are in other folders
        source, recipe, options = from_the_root(source), _absolute(recipe), options.absolute()
    recipe = for_loader(recipe, options.loader)
    legs = plan_legs(recipe, source)
    options.check_part(trained=len(legs) > 1 or legs[0].training is not None)
    if len(legs) == 1:
        return run_leg(verb, source, output, legs[0], options, tell=tell)
    way = _way(verb, legs, source, output, options)
    taken, plans, before = source, list[Plan](), 0
    with _between(way) as place, ExitStack() as names:
        for number, leg in enumerate(legs[:-1]):
            way.announce(number)
            before += count_of(leg)
            if number == way.base_leg:
                plan, taken = _base(way, number, taken)
            else:
                on_the_way = f"{output} (what comes before stage {before + 1})"
                hidden = isinstance(place, str)
                with _calling(way.path(place, number), on_the_way) if hidden else nullcontext():
                    plan, taken = _leg(way, number, taken, place)
                names.enter_context(_calling(taken, f"{source} after stage {before}"))
            plans.append(plan)
        way.announce(len(legs) - 1)
        report = run_leg(verb, taken, output, way.leg(-1), way.last, tell=tell, origin=way.origin)
    return _joined(report, plans, source, adapter=makes_adapter_of(legs))


def _absolute(recipe: Recipe) -> Recipe:
    """The recipe with what is read at paths from the root on."""
    stages = [
        replace(
            stage,
            teacher=None if stage.teacher is None else from_the_root(stage.teacher),
            stats=None if stage.stats is None else absolute(stage.stats),
        )
        for stage in recipe.stages
    ]
    stats = None if recipe.stats is None else absolute(recipe.stats)
    return replace(recipe, stages=tuple(stages), stats=stats)


def run_leg(
    verb: str,
    source: str,
    output: str,
    leg: Recipe,
    options: RunOptions,
    *,
    tell: Tell | None = None,
    origin: Origin | None = None,
) -> Report:
    """Run one leg: under a budget where the leg has one, on a base made anew where its adapter asks for that, else
    as one pass. A note tells where a survey was given of which it could go by no pass."""
    order = Order(verb, source, output, leg, options, origin=origin)
    if options.surveyed is None:
        return _run(order, tell)
    from compressor.engine.execution.survey_book import passes_taken

    with passes_taken() as taken:
        report = _run(order, tell)
    return report if taken else _with_unused_survey(report, options)


def _run(order: Order, tell: Tell | None) -> Report:
    verb, source, output, leg, options = order.verb, order.source, order.output, order.recipe, order.options
    if leg.budget is not None:
        from compressor.workflows.budget.run import run_budget  # here because most runs have none

        return run_budget(verb, source, output, leg, options, tell=tell, origin=order.origin)
    if options.save_base is not None or any(stage.method.rounds for stage in leg.stages):
        source = _alternated(Order(verb, source, output, leg, options))
    if output.lower().endswith(".gguf"):
        leg = for_gguf(leg)
    return run_one_pass(verb, source, output, leg, options, origin=order.origin)


def _with_unused_survey(report: Report, options: RunOptions) -> Report:
    """The report, with a note why none of a survey's passes was used; as it is where nothing was looked at."""
    plan, surveyed = report.plan, options.surveyed
    assert surveyed is not None  # noqa: S101 - who calls looked
    looks = report.allocation is not None or any(
        step.method.reach == "model" for job in plan.jobs for step in job.steps
    )
    why = "nothing in this run looks at the whole model first"
    if looks and options.dry_run and plan.sizes_known:
        return report
    if looks:
        from compressor.workflows.survey_book import differing

        why = f"{differing(surveyed, plan.stages)}, so that this run looked at the whole model itself"
    said = f"no pass of {printable(surveyed)} was used: {why}"
    return replace(report, plan=replace(plan, notes=(*plan.notes, said)))


def _alternated(order: Order) -> str:
    """Make the base that an adapter wants in place of the student, out of its teacher: the path of that base, or in
    a dry run of the student. UsageError where no stage wants one."""
    options, base = order.options, order.options.save_base
    method = alternates(order.recipe, save_base=base is not None)
    order = checked(order)
    if method is None or base is None:
        return order.source
    student, replaces = open_checkpoint(order.source), options.force or options.dry_run
    check_apart(base, order.output, order.source, *order.beside, option="--save-base", of="output or input")
    check_place(base, folder=container_of(base, student.source) == "folder", replace=replaces)
    recipe = base_recipe(student, method)
    if options.dry_run:
        return order.source
    check_output(order.output, folder=True, replace=options.force)
    settings = replace(_on_the_way(options), progress=None, force=options.force, stats=order.recipe.stages[0].stats)
    settings = replace(settings, card=options.card)
    run_one_pass(order.verb, order.teachers[0], base, recipe, settings)
    cleanup.as_unfinished(printable(base))
    return base


# ---- several legs --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Way:
    """Several legs and where they leave what they make. `last` are the options of the last leg, `others` those of
    the legs before it; `base` is where the last but one writes the base of an adapter, if it does; `stats` are for
    legs that ask for some; `origin` is the source, None in a dry run; `work` is the user's folder
    for what legs leave, and `keep_work` whether it stays."""

    verb: str
    legs: Sequence[Recipe]
    source: str
    output: str
    last: RunOptions
    others: RunOptions
    base: str | None
    stats: str | None
    origin: Origin | None
    work: str | None
    keep_work: bool
    folder: bool  # whether the source is one

    @property
    def rehearsed(self) -> bool:
        return self.last.dry_run

    @property
    def _suffix(self) -> str:
        """Of what legs on the way write: a container that keeps what the output's needs."""
        if self.folder:
            return ""
        kinds = {os.path.splitext(path)[1].lower() for path in (self.source, self.output)}
        return ".gguf" if kinds == {".gguf"} else ".safetensors"

    @property
    def base_leg(self) -> int | None:
        """The number of the leg that writes the base."""
        return None if self.base is None else len(self.legs) - 2

    def leg(self, number: int) -> Recipe:
        """A leg, of a rehearsal without the training itself."""
        leg = replace(self.legs[number], stats=None)
        return rehearsal_of(leg) if self.rehearsed else leg

    def options(self, number: int) -> RunOptions:
        """The options of a leg on the way."""
        asks = asks_for_statistics(self.legs[number])
        return replace(self.others, stats=self.stats if asks else None)

    def path(self, place: str | WorkFolder, number: int) -> str:
        """Where a leg on the way writes what it makes."""
        folder = place if isinstance(place, str) else place.path
        return os.path.join(folder, f"{number}{self._suffix}")

    def announce(self, number: int) -> None:
        self.last.announce(f"pass {number + 1} of {len(self.legs)}: {words_of(self.legs[number])}")


def _on_the_way(options: RunOptions) -> RunOptions:
    """What of a run's options is for all of its passes, and not for the last alone."""
    return RunOptions(
        workers=options.workers,
        memory=options.memory,
        progress=options.progress,
        processes=options.processes,
        scheduler=options.scheduler,
        non_finite=options.non_finite,
        card=False,
    )


def _way(verb: str, legs: Sequence[Recipe], source: str, output: str, options: RunOptions) -> _Way:
    """How several legs are run. UsageError or OutputError, before the legs on the way, which take long, for what
    the last could not do."""
    base = _base_of(legs, source, output, options)
    of_last = not makes_adapter_of(legs) or legs[-1].stages[0].method.rounds  # else a leg before it writes the base
    save_base = options.save_base if of_last else None
    stats = options.stats or legs[-1].stats
    if stats is not None and not any(map(asks_for_statistics, legs)):
        raise UsageError("--stats: no stage takes it", remedy="Leave it out")
    if options.component or options.strip_prefix is not None or options.fold_weight_norm:
        raise UsageError(
            "--component, --strip-prefix and --fold-weight-norm are for recipes of one pass",
            remedy="Give the component's own folder, or the output of `compressor restore` with these options",
        )
    check_apart(output, source, *(path for leg in legs if leg.training for path in leg.training.files))
    opened = open_checkpoint(source).source
    if not options.dry_run:
        check_output(output, folder=container_of(output, opened) == "folder", replace=options.force)
    for written in filter(None, (base, save_base)):
        if options.work is not None:
            check_apart(options.work, written, option="--work", of="base")
    last = replace(
        options,
        save_base=save_base,
        stats=stats if asks_for_statistics(legs[-1]) else None,
        work=None,
        keep_work=False,
    )
    work = None if options.dry_run else options.work
    origin = None if options.dry_run else Origin(identity_of(opened), source, opened.nbytes)
    others = _on_the_way(options)
    return _Way(
        verb,
        legs,
        source,
        output,
        last,
        others,
        base,
        stats,
        origin,
        work,
        options.keep_work,
        opened.kind == "folder",
    )


def _base_of(legs: Sequence[Recipe], source: str, output: str, options: RunOptions) -> str | None:
    """Where the last leg but one writes the base of an adapter; None where there is none, or another is made of it.
    UsageError where a run would leave none."""
    if not makes_adapter_of(legs):
        return None
    if legs[-1].budget is not None:
        raise UsageError(
            "a budget is for recipes without a teacher", remedy="Make the base under it, then the adapter"
        )
    method, base = legs[-1].stages[0].method, options.save_base
    if options.dry_run:
        return None
    if base is None:
        raise UsageError(
            f"distill {method.id} makes an adapter, for a base that the stages before it make",
            remedy="Give --save-base FOLDER for it",
        )
    if method.rounds:
        return None
    check_apart(base, source, option="--save-base")
    check_apart(base, output, option="--save-base", of="output")
    folder = container_of(base, open_checkpoint(source).source) == "folder"
    check_place(base, folder=folder, replace=options.force)
    return base


def _base(way: _Way, number: int, taken: str) -> tuple[Plan, str]:
    """The leg that writes the base of an adapter, from `taken`: its plan, and the base."""
    assert way.base is not None  # noqa: S101 - `base_leg` says so
    options = replace(way.options(number), force=way.last.force, card=way.last.card)
    report = run_leg(way.verb, taken, way.base, way.leg(number), options, origin=way.origin)
    cleanup.as_unfinished(printable(way.base))
    return report.plan, way.base


def _leg(way: _Way, number: int, taken: str, place: str | WorkFolder) -> tuple[Plan, str]:
    """One leg on the way, from `taken`: its plan and what it wrote, now or in an earlier run."""
    leg, options, written, key = way.leg(number), way.options(number), way.path(place, number), ""
    if isinstance(place, WorkFolder):
        dry = replace(options, dry_run=True)
        plan = run_leg(way.verb, taken, written, rehearsal_of(leg), dry, origin=way.origin).plan
        files = leg.training.files if leg.training is not None else ()
        key = f"{plan.fingerprint}:{content_hash([*_read(taken), *chain.from_iterable(map(_read, files))])}"
        if place.finished(os.path.basename(written), key):
            return plan, written
    report = run_leg(way.verb, taken, written, leg, options, origin=way.origin)
    cleanup.as_unfinished()
    if isinstance(place, WorkFolder):
        place.note(os.path.basename(written), key)
        cleanup.as_unfinished()
    return report.plan, written


def _read(path: str) -> list[InputFile]:
    """The files that are read of an input, which may be a folder, or of an array."""
    if os.path.isfile(path):
        return [InputFile.open(path)]
    return [file.as_stored() for file in open_checkpoint(path).source.opened]


def _joined(report: Report, plans: Sequence[Plan], source: str, *, adapter: bool) -> Report:
    """The report of all legs: `plans` are those of the legs before the one that `report` is of."""
    every = [*plans, report.plan]
    if adapter:
        return replace(report, plan=replace(report.plan, notes=(_together(every), *report.plan.notes)))
    plan = replace(
        report.plan,
        source=every[0].source,
        size_before=every[0].size_before,
        stages=tuple(stage for plan in every for stage in plan.stages),
        notes=tuple(dict.fromkeys(note for plan in every for note in plan.notes)),
        cuts=tuple(cut for plan in every for cut in plan.cuts),
    )
    return replace(report, input=source, plan=plan)


def _together(plans: Sequence[Plan]) -> str:
    """What base and adapter come to."""
    before, base, adapter = plans[0].size_before, plans[-2].size_after, plans[-1].size_after
    sizes = f"{size_text(before)} → {size_text(base)} and {size_text(adapter)}"
    return f"base and adapter: {sizes}, together {before / (base + adapter):.3g}× smaller"


@contextmanager
def _calling(path: str, name: str) -> Iterator[None]:
    """Errors of a file or folder on the way have the name that the user knows instead of its path."""
    try:
        yield
    except CompressorError as error:
        for problem in problems_of(error):
            if problem.file == path:
                problem.file = name
            elif problem.file is not None and problem.file.startswith(f"{path}/"):
                problem.file = f"{name}: {problem.file[len(path) + 1 :]}"
        raise


@contextmanager
def _between(way: _Way) -> Iterator[str | WorkFolder]:
    """A hidden folder beside the output, gone in the end whatever happens; or the user's, gone when all is done."""
    if way.work is not None:
        folder = WorkFolder(way.work)
        try:
            yield folder
            if not way.keep_work:
                folder.clear()
        finally:
            folder.release()
        return
    staging = Staging(place_beside(way.output, "legs"), folder=True, replace=True)
    try:
        yield staging.path
    finally:
        staging.discard()
