"""Entropy coding of stored tensors, without loss: pure functions from bytes to bytes.

From below: `bitio` (bits of a chunk's head), `tables` (frequencies, as they are stored and as the coder wants
them), `ans` (the coder, and an own decoder), `contexts` (which neighbours and densities tell of a symbol), `planes`
(a matrix of symbols with the smallest model), `elements` (floats and codes as planes), `chunk` (bytes with their
checksum). `files/archive.py` has the container; docs/formats.md the layout to the bit.
"""
