"""Pruning: weights become exactly zero."""
