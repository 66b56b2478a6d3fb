"""Recipes with training after other stages, run in legs: a network is trained whole, so what comes before it must
be complete, and is written out beside the output until the next leg has read it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from itertools import chain
from typing import Any

from compressor.checkpoint.checkpoint import open_checkpoint
from compressor.core.errors import CompressorError, Problems, UsageError
from compressor.core.text import size_text
from compressor.engine.plan.plan import Plan
from compressor.files.destination import check_apart, container_of
from compressor.files.identity import identity_of
from compressor.files.staging import Staging, as_unfinished, check_place
from compressor.files.work_folder import WorkFolder, content_hash
from compressor.recipe.model import Recipe, Stage
from compressor.recipe.structured_cut import Request
from compressor.workflows.results import Report

Run = Callable[..., Report]


def legs(recipe: Recipe, source: str) -> list[Recipe]:
    """The recipe in parts that are each one pass; who needs a teacher and names none learns from `source`.
    UsageError where that would be the student itself."""
    found = []
    for number, part in enumerate(recipe.legs):
        if any(stage.teacher == "" for stage in part.stages):
            if not number:
                method = next(stage.method.id for stage in part.stages if stage.teacher == "")
                raise UsageError(f"method {method} needs a teacher", remedy="Give --teacher PATH")
            part = replace(part, stages=tuple(_taught(stage, source) for stage in part.stages))
        training = part.training
        if training is not None and not training.teacher:
            training = replace(training, teacher=source)
        found.append(replace(part, training=training))
    return found


def _asks(part: Recipe) -> bool:
    """Whether a stage of it takes statistics that it does not name, or a cut may."""
    cuts = [cut for cut in part.cuts if isinstance(cut, Request) and cut.stats is None and cut.layers is None]
    return any(stage.statistics and stage.stats is None for stage in part.stages) or any(
        cut.importance in ("inputs", "auto") for cut in cuts
    )


def _named(part: Recipe) -> str:
    """What a pass does, in the words of its recipe."""
    cuts = [str(cut.describe().get("kind")) for cut in part.cuts]
    trained = [f"distill {part.training.label}"] if part.training is not None else []
    return ", ".join([*cuts, *trained, *(f"{stage.method.verb} {stage.method.id}" for stage in part.stages)])


def _taught(stage: Stage, teacher: str) -> Stage:
    return replace(stage, teacher=teacher) if stage.teacher == "" else stage


def relay(run: Run, source: str, output: str, recipe: Recipe, settings: dict[str, Any]) -> Report:
    """Run the legs one after the other with `run_recipe`; the report of the last, with the stages of all.

    Its changes, and so the limits of gates, are those of the last leg; sizes go by `source`. A dry run does all but
    train, so that sizes are exact, and leaves nothing behind. `work` is a folder that keeps what legs left when the
    run is stopped, and that it goes on from; `keep_work` leaves it when all is done.
    """
    parts = legs(recipe, source)
    work, keep = settings.pop("work", None), settings.pop("keep_work", False)
    if keep and work is None:
        raise UsageError("--keep-work is for the folder that --work names, and none is given")
    bare = next((one for part in parts if (one := part.training) is not None and not one.inputs), None)
    if bare is not None:
        raise UsageError(f"method {bare.label} needs example inputs", remedy="Give --inputs FILE.npy")
    if len(parts) == 1:
        if work is not None and not settings.get("dry_run"):
            settings |= {"work": apart(os.fspath(work), source, output), "keep_work": keep}
        return run("pipeline", source, output, parts[0], **settings)
    base = base_of(parts, source, output, settings)
    stats = settings.pop("stats", None) or recipe.stats
    asking = [_asks(part) for part in parts]
    if stats is not None and not any(asking):
        raise UsageError("--stats: no stage takes it", remedy="Leave it out")
    check_apart(output, source, *(path for part in parts if part.training for path in part.training.files))
    if not settings.get("dry_run"):  # before the legs on the way, which take long
        folder = container_of(output, open_checkpoint(source).source) == "folder"
        check_place(output, folder=folder, replace=settings.get("force", False))
    if work is not None:
        work = apart(os.fspath(work), source, output)
        if base or settings.get("save_base"):
            check_apart(work, base or os.fspath(settings["save_base"]), option="--work", of="base")
    own: dict[str, Any] = {
        key: settings[key] for key in ("workers", "progress", "processes", "non_finite") if key in settings
    }
    rehearsed = settings.get("dry_run", False)
    taken, plans = source, list[Plan]()
    own |= {} if rehearsed else {"origin": identity_of(open_checkpoint(source).source)}
    say: Callable[[str], None] = getattr(settings.get("progress"), "stage", lambda text: None)
    with _between(output, None if rehearsed else work, keep=keep) as place, ExitStack() as names:
        before = 0  # stages that are done
        for number, part in enumerate(parts):
            leg = replace(part, stats=None), {"stats": stats if asking[number] else None}
            say(f"pass {number + 1} of {len(parts)}: {_named(part)}")
            if number == len(parts) - 1:
                stages = _rehearsal(leg[0]) if rehearsed else leg[0]
                report = run("pipeline", taken, output, stages, **{**settings, **own}, **leg[1])
                break
            name = f"{number}{'.safetensors' if os.path.isfile(source) else ''}"
            count = len(part.cuts) + (part.training is not None) + len(part.stages)
            if base is not None and number == len(parts) - 2:
                made = run("pipeline", taken, base, part, **own, **leg[1], force=settings.get("force", False))
                as_unfinished(base)
                plan, taken = made.plan, base
            elif isinstance(place, str):
                on_the_way = f"{output} (what comes before stage {before + count + 1})"
                with _calling(os.path.join(place, name), on_the_way):
                    plan, taken = _leg(run, taken, place, name, leg, own, rehearsed=rehearsed)
            else:
                plan, taken = _leg(run, taken, place, name, leg, own, rehearsed=rehearsed)
            plans.append(plan)
            before += count
            if taken != base:
                names.enter_context(_calling(taken, f"{source} after stage {before}"))
    said = [*plans, report.plan]
    if adapts(parts):
        return replace(report, plan=replace(report.plan, notes=(_together(said), *report.plan.notes)))
    plan = replace(
        report.plan,
        source=said[0].source,
        size_before=said[0].size_before,
        stages=tuple(stage for one in said for stage in one.stages),
        notes=tuple(dict.fromkeys(note for one in said for note in one.notes)),
        cuts=tuple(cut for one in said for cut in one.cuts),
    )
    return replace(report, input=source, plan=plan)


def apart(work: str, source: str, output: str) -> str:
    """A work folder that is neither input nor output. UsageError where it is."""
    check_apart(work, source, option="--work")
    check_apart(work, output, option="--work", of="output")
    return work


def adapts(parts: Sequence[Recipe]) -> bool:
    """Whether the last part makes an adapter for what the parts before it leave."""
    return len(parts) > 1 and any(stage.adapts for stage in parts[-1].stages)


def base_of(parts: Sequence[Recipe], source: str, output: str, settings: dict[str, Any]) -> str | None:
    """Where the last part but one writes the base of an adapter; None where there is none, or another is made of
    it. UsageError where a run would leave none."""
    if not adapts(parts):
        return None
    if parts[-1].budget is not None:
        raise UsageError(
            "a budget is for recipes without a teacher", remedy="Make the base under it, then the adapter"
        )
    base, stage = settings.get("save_base"), parts[-1].stages[0]
    if settings.get("dry_run"):
        settings.pop("save_base", None)
        if stage.method.rounds:
            settings["save_base"] = base
        return None
    if base is None:
        raise UsageError(
            f"distill {stage.method.id} makes an adapter, for a base that the stages before it make",
            remedy="Give --save-base FOLDER for it",
        )
    if stage.method.rounds:
        return None
    base = str(os.fspath(settings.pop("save_base")))
    check_apart(base, source, option="--save-base")
    check_apart(base, output, option="--save-base", of="output")
    check_place(
        base,
        folder=container_of(base, open_checkpoint(source).source) == "folder",
        replace=settings.get("force", False),
    )
    return base


def _together(plans: Sequence[Plan]) -> str:
    """What base and adapter come to."""
    before, base, adapter = plans[0].size_before, plans[-2].size_after, plans[-1].size_after
    sizes = f"{size_text(before)} → {size_text(base)} and {size_text(adapter)}"
    return f"base and adapter: {sizes}, together {before / (base + adapter):.3g}× smaller"


def _leg(
    run: Run,
    taken: str,
    place: str | WorkFolder,
    name: str,
    leg: tuple[Recipe, dict[str, Any]],
    own: dict[str, Any],
    *,
    rehearsed: bool,
) -> tuple[Plan, str]:
    """One leg on the way, from `taken`: its plan and what it wrote, now or in an earlier run."""
    part, given = leg
    if isinstance(place, str):
        written, key = os.path.join(place, name), ""
    else:
        written = os.path.join(place.path, name)
        plan = run("pipeline", taken, written, _rehearsal(part), dry_run=True, **own, **given).plan
        files = part.training.files if part.training is not None else ()
        key = f"{plan.fingerprint}:{content_hash([*_read(taken), *chain.from_iterable(map(_read, files))])}"
        if place.finished(name, key):
            return plan, written
    report = run("pipeline", taken, written, _rehearsal(part) if rehearsed else part, **own, **given)
    as_unfinished()
    if not isinstance(place, str):
        place.note(name, key)
        as_unfinished()
    return report.plan, written


def _read(path: str) -> list[str]:
    """The files that are read of an input, which may be a folder, or of an array."""
    return [file.path for file in open_checkpoint(path).source.opened] if os.path.isdir(path) else [path]


def _rehearsal(part: Recipe) -> Recipe:
    """All of it but the training itself."""
    return part if part.training is None else replace(part, training=replace(part.training, rehearsal=True))


@contextmanager
def _calling(path: str, said: str) -> Iterator[None]:
    """Errors of a file or folder on the way name what the user knows instead of its path."""
    try:
        yield
    except CompressorError as error:
        for problem in error.problems if isinstance(error, Problems) else (error,):
            if problem.file == path:
                problem.file = said
            elif problem.file is not None and problem.file.startswith(f"{path}/"):
                problem.file = f"{said}: {problem.file[len(path) + 1 :]}"
        raise


@contextmanager
def _between(output: str, work: str | None, *, keep: bool) -> Iterator[str | WorkFolder]:
    """A hidden folder beside the output, gone in the end whatever happens; or the user's, gone when all is done."""
    if work is not None:
        folder = WorkFolder(work)
        try:
            yield folder
            if not keep:
                folder.clear()
        finally:
            folder.release()
        return
    staging = Staging(f"{output.rstrip('/')}.legs", folder=True, replace=True)
    try:
        yield staging.path
    finally:
        staging.discard()
