"""`python -m compressor` and the console script."""

from __future__ import annotations

import sys

from compressor.cli.signals import install


def main() -> None:
    """Run the command line and leave with its exit code."""
    install()  # before anything slow is imported: a signal must always end in one line and 128+N
    from compressor.cli.main import run

    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
