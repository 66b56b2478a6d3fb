"""Training a student on what its teacher makes of inputs, in NumPy: for networks that `compressor.networks` runs.

A whole network is trained, and methods see rows; so, as structured cuts do, this makes a virtual checkpoint, and
all that follows (plan, sizes, writing) knows nothing of it.
"""
