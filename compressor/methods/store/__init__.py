"""Layouts that hold the non-zero elements of a matrix only; one file a layout."""
