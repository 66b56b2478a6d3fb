"""Distillation: what a teacher knows is carried into a student."""
