"""Quantization: weights become codes of few bits, and come back as floats."""
