"""What holds for all tests, said before any of them imports NumPy."""

import os
from collections.abc import Iterator

# The command does without BLAS's own threads (compressor/__main__.py). They would be most of what the tests take:
# two wait for each other at every small product, and there is a test process for each processor already.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.pop("COLUMNS", None)  # tables are compared as they are where nothing says how wide they may be

import pytest
from hypothesis import HealthCheck, settings
from support import clock

# No example is judged by how long it took, for that depends on what else the machine does. In CI the examples are
# the same in every run, so that what fails there fails again.
settings.register_profile(
    "compressor",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    derandomize=bool(os.environ.get("CI")),
)
settings.load_profile("compressor")
os.environ.pop("CI", None)  # where pytest finds it, it lists in full what differs: hours for two arrays


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Times are judged in the long tests only."""
    clock.judging = item.get_closest_marker("faults") is not None


@pytest.fixture(autouse=True)
def unpublished() -> Iterator[None]:
    """Earlier runs in this process must not look like the one under test, and none leaves anything to undo."""
    from compressor.core import cleanup

    cleanup.begin()
    yield
    cleanup.begin()
    assert not cleanup._entries
