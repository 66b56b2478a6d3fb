"""Seconds and memory, beside rivals in the same run."""
