"""What the figures of the documentation come from: `python -m bench.speed.…`, `python -m bench.quality.…`."""
