"""Fetching ahead: values that are on their way before they are asked for, in threads that nobody waits for."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from queue import SimpleQueue
from threading import Lock, Thread
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Ahead(Generic[T]):
    """The values of the last `kept` keys, fetched by at most `threads` threads. These end with the process, in the
    midst of whatever they fetch."""

    def __init__(self, threads: int, kept: int) -> None:
        self._most, self._kept = threads, kept
        self._started = 0
        self._values: OrderedDict[Hashable, Future[T]] = OrderedDict()
        self._lock = Lock()
        self._queue: SimpleQueue[tuple[Future[Any], Callable[[], Any]]] = SimpleQueue()

    def begin(self, key: Hashable, fetch: Callable[[], T]) -> None:
        """Have a value fetched in the background, unless it is there or on its way."""
        with self._lock:
            if key in self._values:
                return
            future: Future[T] = Future()
            self._keep(key, future)
        self._submit(future, fetch)

    def get(self, key: Hashable, fetch: Callable[[], T]) -> T:
        """The value: what is there or on its way, else fetched here. Raises what fetching raised."""
        with self._lock:
            future = self._values.get(key)
            mine = future is None
            if future is None:
                future = Future()
                self._keep(key, future)
            self._values.move_to_end(key)
        if mine:
            _settle(future, fetch)
        return self._result(key, future)

    def known(self, key: Hashable) -> bool:
        """Whether the value is there or on its way."""
        with self._lock:
            return key in self._values

    def together(self, fetches: Sequence[Callable[[], Any]]) -> None:
        """Make these calls, some in the background. Raises what the first to fail raised, when all have ended."""
        futures: list[Future[Any]] = [Future() for _ in fetches]
        for future, fetch in zip(futures[1:], fetches[1:], strict=True):
            self._submit(future, fetch)
        for future, fetch in zip(futures[:1], fetches[:1], strict=True):
            _settle(future, fetch)
        for problem in [future.exception() for future in futures]:
            if problem is not None:
                raise problem

    def _keep(self, key: Hashable, future: Future[T]) -> None:
        self._values[key] = future
        while len(self._values) > self._kept:
            self._values.popitem(last=False)

    def _result(self, key: Hashable, future: Future[T]) -> T:
        try:
            return future.result()
        except BaseException:
            with self._lock:
                if self._values.get(key) is future:
                    del self._values[key]
            raise

    def _submit(self, future: Future[Any], fetch: Callable[[], Any]) -> None:
        self._queue.put((future, fetch))
        with self._lock:
            if self._started < self._most:
                self._started += 1
                Thread(target=self._serve, name="compressor-ahead", daemon=True).start()

    def _serve(self) -> None:
        while True:
            future, fetch = self._queue.get()
            _settle(future, fetch)
            del future, fetch  # or the value would be held until the next


def _settle(future: Future[Any], fetch: Callable[[], Any]) -> None:
    try:
        future.set_result(fetch())
    except BaseException as error:
        future.set_exception(error)
