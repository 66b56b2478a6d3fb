"""Times in tests. What `make test` proves must not hang on what else the machine does, so no time is judged there;
the long tests (marker `faults`) say how long a thing may take."""

from __future__ import annotations

judging = False  # set for each test by conftest.py

HANGS = 900.0  # seconds after which something hangs and is not slow, on a machine with a load of twenty


def at_most(seconds: float, limit: float, told: object = None) -> None:
    """That something took less than `limit` seconds, where times are judged."""
    assert not judging or seconds < limit, told
