"""How scales (and codes) of integers are chosen, a way a file."""
