"""Inputs and outputs that are on no disk of this machine: fetched by ranges, uploaded file by file."""
