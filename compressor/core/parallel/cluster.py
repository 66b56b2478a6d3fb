"""A running Dask cluster: tasks run where its workers are, which read and write the files themselves.

What is `shared` (the objects that tasks are about) is sent to each worker once, and a task refers to it by number;
the rest of a task and its result are small. A task may run twice, where a worker was lost: tasks write the same
bytes to the same places whenever they run. The machines see the same files under the same paths.
"""

from __future__ import annotations

import importlib
import io
import pickle
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future
from contextlib import contextmanager, suppress
from functools import cache
from hashlib import sha256
from threading import Lock
from typing import Any, TypeVar

from threadpoolctl import ThreadpoolController

from compressor.core import cleanup
from compressor.core.errors import OutputError, UsageError
from compressor.core.parallel.forked import SharedPickler, SharedUnpickler
from compressor.core.text import printable
from compressor.core.version import __version__

T = TypeVar("T")

_WAIT = 30  # seconds for the scheduler to answer, and for the first worker to be there
_KEPT = 2  # runs whose shared objects a worker keeps


@contextmanager
def cluster(address: str, shared: Sequence[Any]) -> Iterator[ClusterExecutor]:
    """Like `local`, on the cluster of the scheduler at this address. UsageError where the package is missing,
    OutputError where nobody answers or no worker has this version."""
    try:
        import distributed
    except ImportError as error:
        raise UsageError(
            "--scheduler takes the package distributed", remedy="Install it with pip install 'compressor[dask]'"
        ) from error
    try:
        client: Any = distributed.Client(  # type: ignore[no-untyped-call]
            address, timeout=_WAIT, set_as_default=False
        )
    except (OSError, ValueError, TimeoutError) as error:
        raise OutputError(f"--scheduler {printable(address, 100)}: no scheduler answers there") from error
    with cleanup.registered(lambda: _close(client)), _controller().limit(limits=1):
        try:
            executor = ClusterExecutor(client, address, shared)
            yield executor
        finally:
            _close(client)


def _close(client: Any) -> None:
    """Leave the cluster, which then drops what it has not begun."""
    with suppress(Exception):
        client.close(timeout=2)


class ClusterExecutor(Executor):
    """Runs tasks on the workers that a Dask `client` has; `workers` is how many tasks these do at a time, `chunks`
    how many chunks a task had better have: one costs a millisecond or two whatever it does."""

    chunks = 4

    def __init__(self, client: Any, address: str, shared: Sequence[Any]) -> None:
        self._client, self._address = client, printable(address, 100)
        self._numbers = {id(thing): number for number, thing in enumerate(shared)}
        self._shared, self._objects = None, shared
        self.workers = self._count()

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        text = io.BytesIO()
        SharedPickler(text, self._numbers).dump((fn, args, kwargs))
        found: Future[T] = Future()
        found.set_running_or_notify_cancel()
        try:
            if self._shared is None:  # when the first task is known, all that is shared is complete
                content = pickle.dumps(list(self._objects), pickle.HIGHEST_PROTOCOL)
                # a task, so that it is made again where a worker that had it is lost
                self._shared = self._client.submit(_Shared, sha256(content).hexdigest(), content, pure=False)
            task = self._client.submit(run_task, __version__, self._shared, text.getvalue(), pure=False)
        except Exception as error:
            raise self._lost() from error
        task.add_done_callback(lambda done: self._finish(done, found))
        return found

    def _finish(self, task: Any, found: Future[Any]) -> None:
        """Hand the result of a task on."""
        try:
            done, result = task.result()
        except BaseException as error:
            found.set_exception(self._failed(error))
            return
        if done:
            found.set_result(result)
        else:
            found.set_exception(result)

    def _failed(self, error: BaseException) -> OutputError:
        """What the user sees where the cluster, and not a task, has failed."""
        import distributed
        from distributed.client import FutureCancelledError

        if isinstance(error, FutureCancelledError | OSError | TimeoutError):
            return self._lost()
        if isinstance(error, distributed.KilledWorker):
            return OutputError(
                "workers of the cluster were lost again and again, perhaps because memory was short",
                remedy="Give each fewer threads or more memory",
            )
        said = printable(f"{type(error).__name__}: {error}".splitlines()[0], 200)
        return OutputError(f"a worker of the cluster failed ({said})", remedy="Give all workers the same packages")

    def _lost(self) -> OutputError:
        return OutputError(
            f"the scheduler at {self._address} was lost",
            remedy="Run again when there is one; --work FOLDER (of pipeline) goes on from what is finished",
        )

    def _count(self) -> int:
        """How many threads the workers have, all of this version. OutputError where there are none."""
        try:
            self._client.wait_for_workers(1, timeout=_WAIT)
            versions = self._client.run(version_here)
        except TimeoutError as error:
            raise OutputError(f"the scheduler at {self._address} has no workers") from error
        except Exception as error:
            said = printable(f"{type(error).__name__}: {error}".splitlines()[0], 200)
            raise OutputError(
                f"the workers of {self._address} cannot run compressor {__version__} ({said})",
                remedy="Install it there too",
            ) from error
        for worker, version in versions.items():
            if version != __version__:
                raise OutputError(
                    f"the worker {printable(worker, 100)} has compressor {version}, and this is {__version__}",
                    remedy="Install the same version",
                )
        threads: int = sum(self._client.nthreads().values())
        return max(threads, 1)


# ---- on the workers ------------------------------------------------------------------------------------


@cache
def _controller() -> ThreadpoolController:
    importlib.import_module("numpy")  # whose threads are to be held
    return ThreadpoolController()


def version_here() -> str:
    """The version that a worker has."""
    return __version__


class _Shared:
    """What all tasks of a run are about, pickled; `key` tells runs apart."""

    def __init__(self, key: str, content: bytes) -> None:
        self.key, self.content = key, content

    def objects(self) -> Sequence[Any]:
        """The objects, which all tasks of the run in this process have in common."""
        with _lock:
            if self.key not in _known:
                _known[self.key] = SharedUnpickler(io.BytesIO(self.content), ()).load()
                while len(_known) > _KEPT:
                    _known.popitem(last=False)
            return _known[self.key]


_known: OrderedDict[str, Sequence[Any]] = OrderedDict()
_lock = Lock()


def run_task(version: str, shared: _Shared, task: bytes) -> tuple[bool, Any]:
    """Do a task here: whether it went well, and its result or what was raised. A process that joined later is held
    to the version too."""
    if version != __version__:
        said = f"a worker has compressor {__version__}, and the run {version}"
        return False, OutputError(said, remedy="Install the same version")
    with _controller().limit(limits=1):
        try:
            fn, args, kwargs = SharedUnpickler(io.BytesIO(task), shared.objects()).load()
            return True, fn(*args, **kwargs)
        except Exception as error:
            error.__traceback__ = None
            return False, error
