"""Whole runs made of plans: one pass, several legs, budgets and searches, inspecting and comparing."""
