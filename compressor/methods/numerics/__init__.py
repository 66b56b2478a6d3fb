"""Numerics that several methods share: arrays in, arrays out, no tensor specs."""
