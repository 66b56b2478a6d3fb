"""Structured cuts: whole neurons, heads, layers, experts or channels go, and the dense model gets smaller.

A cut is a *virtual checkpoint*: tensors with fewer rows and columns than the files have, which every later stage
reads as if they lay on disk so. `architectures` knows which dimensions of a model are the same dimension,
`importance` measures them, `selecting` decides, `restructure` puts the new checkpoint together.
"""
