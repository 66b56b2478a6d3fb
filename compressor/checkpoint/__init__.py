"""An input as tensors, whatever it is stored as."""
