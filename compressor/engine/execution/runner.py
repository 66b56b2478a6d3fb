"""Doing what the plan says: cut the work into tasks, hand them to an engine, gather what they measured.

Surveys run first: those of a whole model over all its tensors, those of a tensor when its turn comes.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cached_property, partial
from hashlib import sha256
from typing import TYPE_CHECKING, Any, TypeVar

from compressor.core.errors import InputError, UsageError
from compressor.core.metrics import Change
from compressor.core.parallel.threads import Task, in_order
from compressor.core.tensor import DTYPES
from compressor.engine.execution import units as dividing
from compressor.engine.execution.cut import Slice
from compressor.engine.execution.joined import Joined, join
from compressor.engine.execution.units import Batch, Chunk, Share, Unit, units_of
from compressor.engine.execution.worker import Done, Finished, Piece, Worker
from compressor.engine.plan.plan import Counted, Job, SizesKnown
from compressor.methods.contract import SMALL, ByTensor, Encoder, Survey, TensorMethod, Transform, Treatment

if TYPE_CHECKING:
    from compressor.engine.execution.survey_book import SurveyBook

_Rows = tuple[Job, int, Slice, int, int]  # rows of a tensor, and the place of the step that a pass is for


@dataclass(frozen=True, slots=True)
class _Look:
    """What one task of a pass over the model looks at."""

    rows: Sequence[_Rows]
    small: bool

    @property
    def continues(self) -> bool:
        """Whether the one before it is of the same tensor."""
        return not self.small and self.rows[0][3] > 0

    @property
    def nbytes(self) -> int:
        """About how many bytes of the input it reads."""
        each = (job.spec.nbytes * (stop - start) // max(cut.rows, 1) for job, _, cut, start, stop in self.rows)
        return 512 * len(self.rows) + sum(each)


T = TypeVar("T")
Progress = Callable[[int], None]
Surveyed = dict[tuple[str, int], Survey[Any] | Treatment]  # by tensor and place of the step


@dataclass
class Runner:
    """One run of the plan that `worker` knows, or a `share` of it; at most `window` tasks are under way at a
    time, each of `chunks_each` chunks."""

    worker: Worker
    executor: Executor
    window: int
    progress: Progress = lambda done: None
    surveying: Callable[[int, int], None] = lambda done, total: None
    surveyed: Surveyed = field(default_factory=dict)
    share: Share | None = None
    pieces: list[Change] = field(default_factory=list)
    book: SurveyBook | None = None
    chunks_each: int = 1

    def count(self) -> SizesKnown:
        """For a plan whose sizes are not known: the last steps by tensor, knowing what they will store. What else
        was found out on the way is in `surveyed`, for the run of the plan that is made with it."""
        self.survey_models()
        sizes = {}
        for job in self.worker.plan.jobs:
            if job.sizes_known:
                continue
            fold = _fold_here if job.spec.size <= SMALL else self._fold
            *before, last = self._treatments(job, fold)
            assert isinstance(last, Encoder)  # noqa: S101 - no other has parts that could be counted
            sizes[job.spec.name] = Counted(job.steps[-1].stage, last)
            self.surveyed |= {(job.spec.name, place): one for place, one in enumerate(before)}
            self.surveyed.pop((job.spec.name, len(before)), None)  # the plan will have it itself
        return sizes

    def run(self, each: Callable[[int], None] | None = None) -> list[Change]:
        """Treat and write every tensor, or this run's share of them; what happened to each, in the order of the
        plan's jobs. Where `each` is to be told the number of each file that is finished, it is so before another
        is begun, and by this process."""
        self.survey_models()
        plan, shards = self.worker.plan, self.worker.shards
        changes = {job.spec.name: Change() for job in plan.jobs}
        taken = {} if shards is None else shards.taken()
        for found in taken.values():
            changes |= found
            self.progress(sum(self._jobs[name].spec.nbytes for name in found))
        units = {number: own for number, own in self.units_by_file.items() if number not in taken}
        finish = deque(self.empty_files - taken.keys())

        def finished(file: Finished) -> None:
            if shards is not None:
                own = {job.spec.name: changes[job.spec.name] for job in plan.jobs if job.file == file.file}
                shards.note(file.file, file.content, own)

        if each is not None:
            for number, own in (dict[int, list[Unit]]((number, []) for number in finish) | units).items():
                deque(self._written(deque(), own, changes), maxlen=0)  # none of `finish` is finished by a worker
                finished(self.worker.finish(number))
                each(number)
            return list(changes.values())
        for file in self._written(finish, [unit for own in units.values() for unit in own], changes):
            finished(file)
        for file in in_order(
            self.executor, (partial(self.worker.finish, number) for number in finish), self.window
        ):
            finished(file)
        return list(changes.values())

    def _written(self, finish: deque[int], units: Sequence[Unit], changes: dict[str, Change]) -> Iterator[Finished]:
        """Treat and write the tensors of these units, and put down in `changes` what happened to each: the files of
        `finish` that are finished on the way, which gets the numbers of more."""
        waiting = Counter(unit.jobs[0].file for unit in units)
        for done in in_order(self.executor, self._tasks(finish, units), self.window):
            if isinstance(done, Finished):
                yield done
                continue
            for name, change in done:
                if name == self.divided:
                    self.pieces.append(deepcopy(change))
                changes[name].merge(change)
                self.progress(change.size * DTYPES[self._jobs[name].spec.dtype].bits // 8)
            number = self._jobs[done[0][0]].file
            waiting[number] -= len(done) if self._jobs[done[0][0]].spec.size > SMALL else 1
            if not waiting[number]:
                finish.append(number)

    @cached_property
    def _jobs(self) -> dict[str, Job]:
        return {job.spec.name: job for job in self.worker.plan.jobs}

    @cached_property
    def units_by_file(self) -> dict[int, list[Unit]]:
        """What is to be done by this run, by the number of the file that it is written to."""
        found: dict[int, list[Unit]] = {}
        for unit in self.units:
            found.setdefault(unit.jobs[0].file, []).append(unit)
        return found

    @cached_property
    def units(self) -> Sequence[Unit]:
        """What is to be done by this run."""
        units = list(units_of(self.worker))
        return units if self.share is None else self.share.of(units)

    @property
    def empty_files(self) -> set[int]:
        """The numbers of the files without a tensor that this run has to write: the first share's."""
        if self.share is not None and self.share.number > 1:
            return set()
        plan = self.worker.plan
        return set(range(len(plan.files))) - {job.file for job in plan.jobs}

    @property
    def files(self) -> dict[int, list[Job]]:
        """The files of which this run writes anything, by number: the tensors of which it does, in their order."""
        own = {job.spec.name for unit in self.units for job in unit.jobs}
        found = {
            number: [job for job in jobs if job.spec.name in own]
            for number, jobs in enumerate(self.worker.plan.by_file)
        }
        return {number: jobs for number, jobs in found.items() if jobs or number in self.empty_files}

    @cached_property
    def divided(self) -> str | None:
        """The tensor whose first rows are another share's and whose next ones are this run's, if there is one:
        what happened to these is in `pieces`, unit by unit, so that it can be added to what happened before."""
        first = self.units[0] if self.units else None
        return first.job.spec.name if isinstance(first, Chunk) and first.start else None

    # ---- cutting work into tasks -------------------------------------------------------------------

    def _tasks(self, finish: deque[int], units: Sequence[Unit]) -> Iterator[Task[list[Done] | Finished]]:
        """A task for each unit; files whose tensors are all written are synced between them, while other tensors
        are computed. Small tensors are treated here, by who hands out the tasks: they are all interpreter, and two
        threads of that are slower than one."""
        job: Job | None = None
        treatments: list[Treatment] = []
        places: list[tuple[int, int]] = []
        for unit in units:
            while finish:
                yield partial(self.worker.finish, finish.popleft())
            if isinstance(unit, Batch):
                yield _ready(self._small(unit.jobs))
                continue
            if unit.job is not job:
                job, treatments = unit.job, self._treatments(unit.job, self._fold)
            places.append((unit.start, unit.stop))
            if len(places) == self.chunks_each or unit.stop >= unit.cut.rows or unit is units[-1]:
                yield partial(self.worker.chunks, unit.job, unit.cut, treatments, tuple(places))
                places = []

    def _small(self, jobs: Sequence[Job]) -> list[Done]:
        """Whole tensors, one after the other, surveys included; alike neighbours at once."""
        done: list[Done] = []
        alone = self.worker.histograms  # as each is measured
        for item in jobs if alone else join(jobs, self.worker.checkpoint, self._known):
            if isinstance(item, Joined):
                done += self._joined(item)
            else:
                done.append(self._one(item))
        return done

    def _one(self, job: Job) -> Done:
        treatments, cut, total = self._treatments(job, _fold_here), self.worker.cut(job), Change()
        for start, stop in cut.chunks:
            for _, change in self.worker.chunk(job, cut, treatments, start, stop):
                total.merge(change)
        return job.spec.name, total

    def _joined(self, joined: Joined) -> list[Done]:
        """Neighbours as one; if something is wrong with one of them, each alone, so that it is named."""
        with suppress(InputError, UsageError):
            return self.worker.joined(joined)
        return [self._one(member) for member in joined.members]

    def _known(self, job: Job) -> list[TensorMethod | Survey[Any] | Treatment]:
        """What is known of the job's steps: as asked, or as surveys of whole models have resolved them."""
        return [
            self.surveyed.get((job.spec.name, place)) or step.found or step.method
            for place, step in enumerate(job.steps)
        ]

    # ---- surveys -----------------------------------------------------------------------------------

    def survey_models(self) -> None:
        """Resolve every method that looks at all tensors of its stage together."""
        for number in range(len(self.worker.plan.stages)):
            groups: dict[TensorMethod, list[tuple[Job, int]]] = {}
            for job in self.worker.plan.jobs:
                for place, step in enumerate(job.steps):
                    if (
                        step.stage == number
                        and step.method.reach == "model"
                        and step.found is None
                        and (job.spec.name, place) not in self.surveyed
                    ):
                        groups.setdefault(step.method, []).append((job, place))
            for method, jobs in groups.items():
                found = method.prepare([job.spec for job, _ in jobs])
                key = _key(method, jobs, self.worker)
                while isinstance(found, Survey):
                    found = found.conclude(self._model_stats(found, jobs, key))
                    key = sha256(f"{key} and the next".encode()).hexdigest()
                for job, place in jobs:
                    own = job.steps[place].method
                    self.surveyed[job.spec.name, place] = (
                        found.of(job.spec, own) if isinstance(found, ByTensor) else found
                    )

    def _model_stats(self, survey: Survey[Any], jobs: Sequence[tuple[Job, int]], key: str) -> Any:
        """What a pass over all tensors of a stage gathers. Paused, with what this run's share of it gathered, where
        the run is there for that."""
        book = self.book
        if book is None:
            return self._looked(survey, self._looks(survey, jobs))
        known = book.known(key, survey)
        if known is not None:
            return known
        looks = self._looks(survey, jobs)
        if book.share is None:
            return self._looked(survey, looks)
        from compressor.engine.execution.survey_book import Paused

        own = book.share.of(looks)
        raise Paused(self.worker.plan, key, self._looked(survey, own))

    def _looked(self, survey: Survey[Any], looks: Sequence[_Look]) -> Any:
        """What these looks gather together; `surveying` is told the bytes that are looked at, of how many."""
        joined = list(self._together(looks))
        done, total, stats = 0, sum(look.nbytes for look in joined), survey.start()
        tasks = self._survey_tasks(survey, joined)
        for look, more in zip(joined, in_order(self.executor, tasks, self.window), strict=True):
            stats = survey.merge(stats, more)
            done += look.nbytes
            self.surveying(done, total)
        return stats

    def _looks(self, survey: Survey[Any], jobs: Sequence[tuple[Job, int]]) -> list[_Look]:
        """What a pass looks at, a task each: some rows of a large tensor, or a batch of small ones."""
        found: list[_Look] = []
        batch: list[_Rows] = []
        held = 0
        for job, place in jobs:
            if not survey.wants(job.spec):
                continue
            cut = self.worker.cut(job)
            own = [(job, place, cut, start, stop) for start, stop in cut.sampled(survey.sample)]
            if job.spec.size > SMALL:
                found += [_Look([rows], small=False) for rows in own]
                continue
            batch += own
            held += job.spec.size + 512
            if held >= dividing.BATCH:
                found.append(_Look(batch, small=True))
                batch, held = [], 0
        return [*found, _Look(batch, small=True)] if batch else found

    def _together(self, looks: Sequence[_Look]) -> Iterator[_Look]:
        """As many looks at one tensor at once as a task has chunks."""
        held: list[_Rows] = []
        for look in looks:
            if held and (look.small or not look.continues or len(held) >= self.chunks_each):
                yield _Look(held, small=False)
                held = []
            if look.small:
                yield look
            else:
                held += look.rows
        if held:
            yield _Look(held, small=False)

    def _survey_tasks(self, survey: Survey[Any], looks: Sequence[_Look]) -> Iterator[Task[Any]]:
        for look in looks:
            pieces: list[Piece] = [
                (job, cut, self._treatments(job, self._fold, before=place), start, stop)
                for job, place, cut, start, stop in look.rows
            ]
            if look.small:  # they are treated here as in `_tasks`
                yield _ready(self.worker.observe(survey, pieces))
            else:
                yield partial(self.worker.observe, survey, pieces)

    def _treatments(self, job: Job, fold: Fold, before: int | None = None) -> list[Treatment]:
        """What treats the job's tensor, knowing all it needs, up to (not including) a place."""
        treatments: list[Treatment] = []
        for place, step in enumerate(job.steps[:before]):
            found = self.surveyed.get((job.spec.name, place)) or step.found or step.method.prepare([job.spec])
            while isinstance(found, Survey):
                cut = self.worker.cut(job)
                earlier = list(treatments)
                tasks = (
                    partial(self.worker.observe, found, [(job, cut, earlier, start, stop)])
                    for start, stop in cut.sampled(found.sample)
                )
                found = found.conclude(fold(found, tasks))
            assert isinstance(found, Transform | Encoder)  # noqa: S101 - one tensor needs nothing by tensor
            if before is not None:
                self.surveyed[job.spec.name, place] = found
            treatments.append(found)
        return treatments

    def _fold(self, survey: Survey[Any], tasks: Iterator[Task[Any]]) -> Any:
        stats = survey.start()
        for more in in_order(self.executor, tasks, self.window):
            stats = survey.merge(stats, more)
        return stats


def _key(method: TensorMethod, jobs: Sequence[tuple[Job, int]], worker: Worker) -> str:
    """What the first pass of a method over these tensors is known by: all that it goes by but the weights."""
    said = sha256(repr(method).encode())
    for job, place in jobs:
        steps = [(step.method, step.partners, step.inputs) for step in job.steps[: place + 1]]
        said.update(repr((job.spec, steps)).encode())
    changed = [statistics.changed_by() for statistics in worker.statistics.values()]
    said.update(repr([changed, worker.plan.cuts, list(worker.plan.stages)]).encode())
    return said.hexdigest()


Fold = Callable[[Survey[Any], Iterator[Callable[[], Any]]], Any]


def _fold_here(survey: Survey[Any], tasks: Iterator[Callable[[], Any]]) -> Any:
    stats = survey.start()
    for task in tasks:
        stats = survey.merge(stats, task())
    return stats


def _ready(result: T) -> Future[T]:
    """A task that is done already."""
    future: Future[T] = Future()
    future.set_result(result)
    return future
