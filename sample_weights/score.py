"""Score LeNet weight files on 2,000 images of the MNIST test set.

    python sample_weights/score.py [--json] FILE [FILE ...]

Prints one line a file: name, bytes, accuracy, errors; or with --json an object with these. A network is three
fully connected layers with ReLU between them, `fc1`, `fc2` and `fc3`, weights [out, in] in F32, F16 or BF16; its
widths are read from the shapes. Exit code 2 when a file is not such a network.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, deserialize, safe_open

TEST_SET = Path(__file__).resolve().parent / "mnist_test_2000.npz"
PIXELS, CLASSES = 28 * 28, 10
LAYERS = ("fc1", "fc2", "fc3")
DTYPES = ("F32", "F16", "BF16")
NAMES = {f"{layer}.{part}" for layer in LAYERS for part in ("weight", "bias")}
REMEDY = "If compressor packed it, run `compressor restore` on it first and score the result"


class NotANetworkError(ValueError):
    """The file cannot be scored. The text is one line that says why and what to do."""


def _check(path: Path) -> None:
    """Refuse, from the header alone, what is not three fitting layers."""
    with safe_open(path, framework="np") as file:
        if set(file.keys()) != NAMES:
            raise NotANetworkError(f"{path}: its tensors are not fc1 to fc3, weight and bias. {REMEDY}")
        slices = {name: file.get_slice(name) for name in sorted(NAMES)}
        dtypes = {name: piece.get_dtype() for name, piece in slices.items()}
        shapes = {name: list(piece.get_shape()) for name, piece in slices.items()}
    for name, dtype in dtypes.items():
        if dtype not in DTYPES:
            raise NotANetworkError(f"{path}: {name} is {dtype}, not one of {', '.join(DTYPES)}. {REMEDY}")
    wide = PIXELS
    for layer in LAYERS:
        weight, bias = shapes[f"{layer}.weight"], shapes[f"{layer}.bias"]
        out = CLASSES if layer == LAYERS[-1] else bias[0] if len(bias) == 1 else 0
        if out == 0 or weight != [out, wide] or bias != [out]:
            raise NotANetworkError(
                f"{path}: {layer} has weight {weight} and bias {bias}, expected [out, {wide}] and [out]"
                f"{f' with {CLASSES} outputs' if layer == LAYERS[-1] else ''}. {REMEDY}"
            )
        wide = out


def _floats(entry: dict[str, Any]) -> np.ndarray:
    """One tensor of a safetensors file as float32."""
    if entry["dtype"] == "BF16":  # the upper half of a float32
        values = (np.frombuffer(entry["data"], "<u2").astype(np.uint32) << 16).view(np.float32)
    else:
        values = np.frombuffer(entry["data"], "<f4" if entry["dtype"] == "F32" else "<f2").astype(np.float32)
    return values.reshape(entry["shape"])


def load(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """The six tensors as float32. Raises NotANetworkError, or OSError where the file cannot be read."""
    path = Path(path)
    if path.is_dir():
        raise NotANetworkError(f"{path}: is a folder, expected a .safetensors file")
    try:
        _check(path)
        tensors = {name: _floats(entry) for name, entry in deserialize(path.read_bytes())}
    except SafetensorError as error:
        reason = ascii(str(error))[:200]
        raise NotANetworkError(f"{path}: not a readable safetensors file ({reason})") from error
    for name, values in sorted(tensors.items()):
        if not np.isfinite(values).all():
            raise NotANetworkError(f"{path}: {name} holds NaN or infinite values, there is nothing to score")
    return tensors


def predict(tensors: dict[str, np.ndarray], images: np.ndarray) -> np.ndarray:
    """Classes [n] of uint8 images [n, 28, 28]."""
    hidden = images.reshape(len(images), PIXELS).astype(np.float32) / 255
    for layer in LAYERS:
        hidden = hidden @ tensors[f"{layer}.weight"].T + tensors[f"{layer}.bias"]
        if layer != LAYERS[-1]:
            hidden = np.maximum(hidden, 0)
    return hidden.argmax(axis=1)


def errors(path: str | os.PathLike[str]) -> tuple[int, int]:
    """How many images the network gets wrong, and out of how many."""
    tensors = load(path)
    with np.load(TEST_SET) as test:
        images, labels = test["x"], test["y"]
    return int((predict(tensors, images) != labels).sum()), len(labels)


def accuracy(path: str | os.PathLike[str]) -> float:
    """Percent of the test images that the network gets right. Raises as `load` does."""
    wrong, count = errors(path)
    return 100 * (count - wrong) / count


def main() -> int:
    """Score every file that can be scored; return 2 when one could not."""
    parser = argparse.ArgumentParser(description="Score LeNet files on 2,000 images of the MNIST test set.")
    parser.add_argument("files", nargs="+", metavar="FILE", help="a .safetensors file with fc1, fc2 and fc3")
    parser.add_argument("--json", action="store_true", help="print one JSON object a file")
    arguments = parser.parse_args()
    files = arguments.files
    width = max(map(len, files))
    failed = False
    for file in files:
        try:
            wrong, count = errors(file)
        except NotANetworkError as error:
            print(f"score: {error}", file=sys.stderr)
            failed = True
        except OSError as error:
            reason = error if error.filename is None else f"{error.filename}: {error.strerror}"
            print(f"score: {reason}", file=sys.stderr)
            failed = True
        else:
            size, percent = Path(file).stat().st_size, 100 * (count - wrong) / count
            if arguments.json:
                print(json.dumps({"file": file, "bytes": size, "accuracy": percent, "errors": wrong}))
                continue
            print(f"{file:{width}}  {size:>9,} bytes  {percent:6.2f} %  {wrong:>4} errors")
    return 2 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
