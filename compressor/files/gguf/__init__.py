"""The GGUF container (ggml, docs/gguf.md): typed metadata, a table of tensors by ggml's types, aligned data.

`values.py` is the metadata, `reading.py` the header of a stranger's file, `split.py` a model in several files, and
`writing.py` lays out a file.
"""
