"""The suffixes of files that are read, by which modules."""

PICKLES = (".bin", ".pt", ".pth", ".ckpt")  # of PyTorch

READERS = {
    ".npy": "npy",
    ".npz": "npz",
    ".safetensors": "safetensors",
    ".gguf": "gguf.reading",
    **dict.fromkeys(PICKLES, "torch_state"),
}
