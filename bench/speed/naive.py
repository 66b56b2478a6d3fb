"""The three jobs as one would write them with NumPy in an afternoon: `naive.py JOB SOURCE OUTPUT`.

Whole arrays, float32 expressions, shard by shard; what is left alone is what `compressor` leaves alone. It
measures no error, checks nothing, and writes in place.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import ml_dtypes  # also lets safetensors read bfloat16
import numpy as np
from safetensors.numpy import load_file, save_file

Tensors = dict[str, Any]


def int8(name: str, weight: Any) -> Tensors:
    """8 bits, a scale for each row."""
    w = weight.astype(np.float32)
    scale = (np.abs(w).max(axis=1, keepdims=True) / 127.5).astype(ml_dtypes.bfloat16)
    codes = np.clip(np.round(w / scale.astype(np.float32)), -128, 127).astype(np.int8)
    return {name: codes, f"{name}_scale": scale}


def int4(name: str, weight: Any) -> Tensors:
    """4 bits, a scale for each 128 weights of a row, eight codes to a word."""
    w = weight.astype(np.float32).reshape(len(weight), -1, 128)
    scale = (np.abs(w).max(axis=2, keepdims=True) / 7.5).astype(ml_dtypes.bfloat16)
    codes = np.clip(np.round(w / scale.astype(np.float32)) + 8, 0, 15).astype(np.uint8).reshape(weight.shape)
    words = (codes[:, 0::2] | codes[:, 1::2] << 4).view(np.int32)
    return {
        f"{name}_packed": words,
        f"{name}_scale": scale[:, :, 0],
        f"{name}_shape": np.array(weight.shape, np.int64),
    }


def prune(name: str, weight: Any) -> Tensors:
    """Zero where the magnitude is below 0.01."""
    w = weight.astype(np.float32)
    return {name: np.where(np.abs(w) < 0.01, 0, w).astype(ml_dtypes.bfloat16)}


def main() -> None:
    """Every shard, then the index and the config."""
    job = {"int8": int8, "int4": int4, "prune": prune}[sys.argv[1]]
    source, output = Path(sys.argv[2]), Path(sys.argv[3])
    output.mkdir()
    weight_map: dict[str, str] = {}
    total = 0
    for shard in sorted(source.glob("*.safetensors")):
        tensors: Tensors = {}
        for name, weight in load_file(shard).items():
            treated = weight.ndim == 2 and "embed" not in name and "lm_head" not in name
            tensors |= job(name, weight) if treated else {name: weight}
        save_file(tensors, output / shard.name, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, shard.name)
        total += sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (output / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
    shutil.copy(source / "config.json", output)


if __name__ == "__main__":
    main()
