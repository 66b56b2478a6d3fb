"""Trying again what may go well the next time: dropped connections, servers that are busy."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import TypeVar

from compressor.core.errors import InputError
from compressor.core.text import printable

T = TypeVar("T")

TRIES = 7  # of which none got any further
FIRST = 0.5  # seconds before the second try; then twice as long each time
LONGEST = 60.0  # seconds that are waited at a time, also where a server asks for more


class Passing(Exception):
    """A failure that may pass. `after`: seconds that the server asks to be left alone."""

    def __init__(self, reason: str, after: float | None = None) -> None:
        super().__init__(reason)
        self.reason, self.after = reason, after


def tried(call: Callable[[], T], path: str, got: Callable[[], int] = lambda: 0) -> T:
    """The result of a call that is made again after failures that may pass; InputError when they do not. `got`
    tells how far it came: as long as that grows it is not given up."""
    failures, reached = 0, got()
    while True:
        try:
            return call()
        except Passing as failure:
            if got() > reached:
                failures, reached = 0, got()
            failures += 1
            if failures >= TRIES:
                raise InputError(
                    f"{printable(failure.reason, 200)}, {failures} times in a row",
                    file=path,
                    remedy="Run again when the connection is better",
                ) from failure
            wait = FIRST * 2 ** (failures - 1) * random.uniform(0.75, 1.25)  # noqa: S311 - no secret
            if failure.after is not None:
                wait = max(wait, failure.after)
            time.sleep(min(wait, LONGEST))
        except InputError as error:
            error.file = error.file or path
            raise
