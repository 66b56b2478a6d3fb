"""How integer codes are stored, a layout a file."""
