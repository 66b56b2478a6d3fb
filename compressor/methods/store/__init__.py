"""Layouts that hold the non-zero elements of a matrix only; one file a layout. Here is what they share."""

from __future__ import annotations

from compressor.methods.store._sparse import Sparse, SparseParts, Storing

__all__ = ["Sparse", "SparseParts", "Storing"]
