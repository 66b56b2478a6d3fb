"""Threads: results in order, errors that are the caller's, as many workers as there are processors."""

from __future__ import annotations

import os
import threading
from functools import partial

import pytest
from support.clock import HANGS

from compressor.core.parallel.threads import SerialExecutor, available_workers, in_order, local


def test_results_come_in_order_and_few_wait() -> None:
    running, most = 0, 0
    lock = threading.Lock()
    later = [threading.Event() for _ in range(15)]

    def task(number: int) -> int:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        if number % 2:
            later[number // 2].set()
        else:  # ends after the one that comes after it
            assert later[number // 2].wait(HANGS)
        with lock:
            running -= 1
        return number

    with local(2) as executor:
        assert list(in_order(executor, (partial(task, n) for n in range(30)), 4)) == list(range(30))
    assert most == 2


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_in_a_task_is_the_callers(workers: int) -> None:
    def fail() -> int:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"), local(workers) as executor:
        list(in_order(executor, [fail, fail], 2))


def test_serial_executor_runs_at_once() -> None:
    assert SerialExecutor().submit(lambda: 3).result() == 3


def test_workers_where_the_system_does_not_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    assert available_workers() >= 1
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert available_workers() == 1
