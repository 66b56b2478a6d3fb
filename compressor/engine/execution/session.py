"""What surrounds the doing of a plan: where it runs, what it counts, how it ends."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace

from compressor.checkpoint import record as provenance
from compressor.checkpoint.checkpoint import Checkpoint
from compressor.core.errors import InputError, OutputError
from compressor.core.parallel import forked
from compressor.core.parallel.threads import local
from compressor.engine.execution.worker import Worker
from compressor.engine.plan.plan import Plan
from compressor.files.output import Sink

_LARGE = 128 << 20  # bytes of a model that are worth the start of processes


@contextmanager
def in_file(source: str) -> Iterator[None]:
    """Name the file in what is refused: a method knows the tensor only."""
    try:
        yield
    except InputError as error:
        error.file = error.file or source
        raise


def engine(count: int, worker: Worker, *, processes: bool) -> AbstractContextManager[Executor]:
    """Processes where it pays to start them, else threads."""
    if processes and forked.available and count > 1 and worker.plan.size_before >= _LARGE:
        methods = [step.method for job in worker.plan.jobs for step in job.steps if step.method.verb == "store"]
        return forked.forked(count, [worker, *worker.plan.jobs, *methods])
    return local(count)


def sealed(plan: Plan) -> Plan:
    """The plan with its fingerprint in the headers of its files. OutputError where metadata that the input brought
    imitates the place for it."""
    if not plan.stages or plan.container == "npy":  # nothing is recorded: what looks like the mark is the input's
        return plan
    mark, own = provenance.PLAN_LATER.encode(), plan.fingerprint.encode()
    files = []
    for file in plan.files:
        found = sum(piece.count(mark) for _, piece in file.layout.pieces)
        if found > 1:
            raise OutputError("its header would hold the mark of the plan's fingerprint", file=file.name)
        pieces = tuple((offset, piece.replace(mark, own)) for offset, piece in file.layout.pieces)
        files.append(replace(file, layout=replace(file.layout, pieces=pieces)))
    return replace(plan, files=tuple(files))


def finish(sink: Sink, plan: Plan, checkpoint: Checkpoint, mentors: Iterable[Checkpoint]) -> None:
    """Small files, a last look at the inputs, then the name."""
    for name in plan.carried:
        sink.copy(name, checkpoint.source.carried[name])
    for name, content in plan.texts:
        sink.add_text(name, content)
    checkpoint.source.check_unchanged()
    for mentor in mentors:
        mentor.source.check_unchanged()
    sink.publish()


def counting(plan: Plan, progress: Callable[[int, int], None] | None) -> Callable[[int], None]:
    """Turn 'this many bytes more' into 'so many of so many'."""
    total = sum(job.spec.nbytes for job in plan.jobs)
    done = 0

    def count(more: int) -> None:
        nonlocal done
        done += more
        if progress is not None:
            progress(done, total)

    return count
