"""Students made out of their teacher: fewer layers, or smaller ones."""
