"""`python -m compressor` and the console script."""

from __future__ import annotations

import gc
import os
import resource
import sys
from types import ModuleType

from compressor.cli.signals import ignore, install


def _little_space() -> ModuleType | None:
    """What a limit of address space needs; None where there is no limit, or not even room for that."""
    if resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY:
        return None
    try:
        from compressor.cli import little_space
    except (ImportError, MemoryError):
        return None
    little_space.prepare()
    return little_space


def main() -> None:
    """Run the command line and leave with its exit code."""
    install()  # before anything slow is imported: a signal must always end in one line and 128+N
    from compressor.cli.main import run

    # One worker is one thread: BLAS, when it is loaded, must not start its own beside ours.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    little = _little_space()
    # The plan of a model is millions of objects that live to the end: no use in looking for garbage among them.
    gc.set_threshold(200_000, 50, 1000)
    # Workers yield to each other where they compute and read; being interrupted costs more than it gives.
    sys.setswitchinterval(0.05)
    code = run(sys.argv[1:])
    ignore()
    gc.freeze()  # nor at the end, where it would take a tenth of a second
    if little is not None:
        little.leave(code)
    sys.exit(code)


if __name__ == "__main__":
    main()
