"""Serial and threaded execution on this machine.

Threads suffice: NumPy, `pread` and `pwrite` release the interpreter lock. BLAS is held to one thread for the
time, because its threads and ours would multiply, and so that sums do not depend on its mood.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

from threadpoolctl import threadpool_limits

T = TypeVar("T")
Task = Callable[[], T] | Future[T]  # to be done, or done already


class SerialExecutor(Executor):
    """Runs each task where it is submitted."""

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        future: Future[T] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


def available_workers() -> int:
    """Processors that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not Linux
        return os.cpu_count() or 1


@contextmanager
def local(workers: int) -> Iterator[Executor]:
    """An executor with that many workers; waits for what runs, cancels what does not, when left by an error."""
    with threadpool_limits(limits=1):
        if workers <= 1:
            yield SerialExecutor()
            return
        executor = ThreadPoolExecutor(workers, thread_name_prefix="compressor")
        try:
            yield executor
        finally:
            executor.shutdown(wait=True, cancel_futures=True)


def in_order(executor: Executor, tasks: Iterable[Task[T]], window: int) -> Iterator[T]:
    """Results of `tasks` in their order, at most `window` of them under way or waiting at a time."""
    pending: deque[Future[T]] = deque()
    for task in tasks:
        pending.append(task if isinstance(task, Future) else executor.submit(task))
        while len(pending) >= window or (pending and pending[0].done()):
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()
