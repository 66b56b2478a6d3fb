"""How models that transformers knows are called, laid out and described in GGUF files, as llama.cpp reads them.

Facts from llama.cpp's converter (its folder `conversion/`) and from its package `gguf`, read in 2026.
"""
