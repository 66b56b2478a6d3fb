"""What holds for all tests, said before any of them imports NumPy."""

import os

# The command does without BLAS's own threads (compressor/__main__.py). They would be most of what the tests take:
# two wait for each other at every small product, and there is a test process for each processor already.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.pop("COLUMNS", None)  # tables are compared as they are where nothing says how wide they may be
