"""Checkpoints of Hugging Face folders seen as those of GGUF files, and back."""
