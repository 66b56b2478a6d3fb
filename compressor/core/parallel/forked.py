"""Forked processes: every worker has its own interpreter, so that short NumPy calls never wait for a lock.

Workers are forked when the first task is submitted. What is `shared` (the objects that tasks are about) they have
from then on, and a task that is sent refers to it by number; the rest of a task and its result are small.
Pickles go through our own socket pairs only. A worker ends when its socket closes, so it never outlives us, and it
is ended at once when a signal ends us, before half-written files are removed.

One worker more is forked than was asked for: some always wait for the disk.
"""

from __future__ import annotations

import gc
import io
import os
import pickle
import signal
import socket
import struct
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from queue import SimpleQueue
from typing import Any, NoReturn, TypeVar

from threadpoolctl import threadpool_limits

from compressor.core import cleanup
from compressor.core.errors import OutputError

T = TypeVar("T")

available = hasattr(os, "fork") and sys.platform == "linux"  # elsewhere system libraries may not survive a fork

_LENGTH = struct.Struct("<Q")
_SIGNALS = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGXCPU}


@contextmanager
def forked(workers: int, shared: Sequence[Any]) -> Iterator[Executor]:
    """Like `local`, with processes: `shared` are the objects that tasks hold without being sent."""
    with threadpool_limits(limits=1):
        executor = ForkedExecutor(workers, shared)
        try:
            yield executor
        finally:
            executor.shutdown(cancel_futures=True)


class ForkedExecutor(Executor):
    """Runs tasks in `workers` processes, and one. `shared`: objects that tasks may hold without being sent.
    `chunks`: how many a task had better have, of a large model: to send one costs a tenth of treating a chunk."""

    chunks = 6

    def __init__(self, workers: int, shared: Sequence[Any]) -> None:
        self._count = workers + 1
        self._shared = shared
        self._numbers = {id(thing): number for number, thing in enumerate(shared)}
        self._sockets: list[socket.socket] = []
        self._pids: list[int] = []
        self._entry: cleanup.Entry | None = None
        self._idle: SimpleQueue[socket.socket] = SimpleQueue()
        self._threads = ThreadPoolExecutor(self._count, thread_name_prefix="compressor")

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        if not self._pids:
            self._fork()
        return self._threads.submit(self._call, (fn, args, kwargs))

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Wait for the tasks that run, then for the workers' ends."""
        self._threads.shutdown(wait=True, cancel_futures=cancel_futures)
        for end in self._sockets:
            end.close()
        for pid in self._pids:
            with suppress(OSError):
                os.waitpid(pid, 0)
        self._pids.clear()
        if self._entry is not None:
            self._entry.forget()

    def _stop(self) -> None:
        """For a signal: end every worker at once."""
        for pid in self._pids:
            with suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        for pid in self._pids:
            with suppress(OSError):
                os.waitpid(pid, 0)

    def _fork(self) -> None:
        held = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)  # a signal finds a worker listed or not there
        try:
            self._entry = cleanup.add(self._stop)
            for _ in range(self._count):
                ours, theirs = socket.socketpair()
                try:
                    pid = os.fork()
                except OSError as error:
                    ours.close()
                    theirs.close()
                    if not self._pids:
                        remedy = "--workers 1 needs none"
                        raise OutputError("no more processes can be started", remedy=remedy) from error
                    break  # fewer will do
                if pid == 0:
                    for end in (*self._sockets, ours):  # or a worker would keep its siblings from noticing our end
                        end.close()
                    self._serve(theirs, held)
                theirs.close()
                self._pids.append(pid)
                self._sockets.append(ours)
                self._idle.put(ours)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, held)

    def _serve(self, end: socket.socket, mask: Any) -> NoReturn:  # pragma: no cover - in another process
        try:
            for number in _SIGNALS:
                signal.signal(number, signal.SIG_IGN if number == signal.SIGINT else signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            gc.freeze()  # what came with the fork is not looked through, which would copy its pages
            while True:
                fn, args, kwargs = self._receive(end)
                try:
                    reply = True, fn(*args, **kwargs)
                except Exception as error:
                    error.__traceback__ = None
                    reply = False, error
                _send(end, pickle.dumps(reply, pickle.HIGHEST_PROTOCOL))
        except (EOFError, OSError):
            pass  # nobody listens any more
        finally:
            os._exit(0)

    def _call(self, task: Any) -> Any:
        end = self._idle.get()
        try:
            text = io.BytesIO()
            SharedPickler(text, self._numbers).dump(task)
            _send(end, text.getbuffer())
            done, result = self._receive(end)
        except (EOFError, OSError) as error:
            raise OutputError(
                "a worker process was ended from outside, perhaps because memory was short",
                remedy="--workers 1 needs less",
            ) from error
        finally:
            self._idle.put(end)
        if not done:
            raise result
        return result

    def _receive(self, end: socket.socket) -> Any:
        (size,) = _LENGTH.unpack(_take(end, _LENGTH.size))
        return SharedUnpickler(io.BytesIO(_take(end, size)), self._shared).load()


class SharedPickler(pickle.Pickler):
    """Writes the number of what is shared in its place."""

    def __init__(self, file: io.BytesIO, numbers: Mapping[int, int]) -> None:
        super().__init__(file, pickle.HIGHEST_PROTOCOL)
        self._numbers = numbers

    def persistent_id(self, obj: Any) -> int | None:
        return self._numbers.get(id(obj))


class SharedUnpickler(pickle.Unpickler):
    """Puts what is shared in the place of its number."""

    def __init__(self, file: io.BytesIO, shared: Sequence[Any]) -> None:
        super().__init__(file)
        self._shared = shared

    def persistent_load(self, pid: Any) -> Any:
        return self._shared[pid]


def _send(end: socket.socket, content: bytes | memoryview) -> None:
    end.sendall(_LENGTH.pack(len(content)))
    end.sendall(content)


def _take(end: socket.socket, size: int) -> bytearray:
    buffer = bytearray(size)
    with memoryview(buffer) as left:
        while left:
            got = end.recv_into(left)
            if not got:
                raise EOFError
            left = left[got:]
    return buffer
