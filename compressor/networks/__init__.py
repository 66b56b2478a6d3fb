"""Feed-forward networks that run, forwards and backwards, in NumPy: described in TOML, or recognised."""
