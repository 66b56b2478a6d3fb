"""Specs and a recipe in, an immutable plan out: nothing here reads tensor data."""
