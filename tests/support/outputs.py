"""What the package writes in this process, as hashes: the golden files, and more of every method.

`PYTHONPATH=tests python -m support.outputs golden wide` prints them as JSON, with what NumPy and OpenBLAS say of
the processor; `tests/test_processors.py` runs it as if on others. All inputs are made from whole random numbers by
exact arithmetic: NumPy's normal ones go through the C library's logarithm.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from collections.abc import Callable, Sequence
from math import prod
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

import numpy as np
import numpy.typing as npt
from golden import make_golden
from numpy._core._multiarray_umath import __cpu_features__
from threadpoolctl import threadpool_info

from compressor import api
from compressor.checkpoint import record as provenance
from compressor.core import kernels
from compressor.core.errors import CompressorError
from compressor.core.layer_inputs import Layer
from compressor.core.tensor import TensorSpec
from compressor.methods.contract import Encoder
from support import archives, laws

SAMPLES = Path(__file__).parents[2] / "sample_weights"
# Rows that are no whole sets of lanes; whole groups of any size; rows longer than a run of sums, and odd in it.
ODD, GROUPED, LONG = (19, 133), (8, 384), (3, 4224)
ARRAYS = (("F64", ODD), ("F64", LONG), ("F32", ODD), ("F32", GROUPED), ("F32", LONG), ("BF16", GROUPED))


def processor() -> dict[str, Any]:
    """Which instructions NumPy uses, whose kernels OpenBLAS takes, and whether ours are there."""
    cores = [pool["architecture"] for pool in threadpool_info() if "architecture" in pool]
    features = sorted(name for name, there in __cpu_features__.items() if there)
    return {"cores": cores, "features": features, "kernels": kernels.library() is not None}


def weights(shape: tuple[int, ...], seed: int) -> npt.NDArray[np.float64]:
    """About normally distributed numbers of deviation 1/32 with long tails and zeros of both signs, exact."""
    random = np.random.default_rng(seed)
    count = prod(shape)
    drawn = random.integers(0, 1 << 40, (12, count)).sum(axis=0) - (6 << 40)
    exponents = np.minimum(np.bitwise_count(random.integers(0, 1 << 9, count)), 4).astype(np.int64) - 49
    found = np.ldexp(drawn.astype(np.float64), exponents)
    found[random.integers(0, count, count // 10)] = 0.0
    found[random.integers(0, count, count // 50)] = -0.0
    return found.reshape(shape)


def golden(folder: Path) -> dict[str, str]:
    """Of every golden file what is made today."""
    found = {}
    for name in make_golden.CASES:
        path = make_golden.produce(name, folder)
        found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def of_methods() -> dict[str, str]:
    """Of every method that needs no linear algebra what it makes of arrays of some thousand weights."""
    found, arrays = {}, []
    for dtype, shape in ARRAYS:
        other = np.abs(weights(shape, 8)) + 2.0**-9
        arrays.append((dtype, laws.store(weights(shape, 7), dtype), laws.store(other, dtype)))
    for said, method in laws.combinations():
        if method.linear_algebra:
            continue
        for dtype, raw, other in arrays:
            spec = TensorSpec("w", dtype, raw.shape)
            squares = np.square(weights(raw.shape[1:], 9)) + 2.0**-20
            inputs = Layer(100, np.zeros_like(squares), squares)
            teacher = laws.numbers(other, dtype)
            try:
                _ = method.check(spec) if isinstance(method, Encoder) else method.skip(spec)
                made = laws.run(method, spec, raw, teacher=teacher, inputs=inputs)
            except CompressorError:  # groups that do not divide the row, codes that do not fit
                continue
            total = hashlib.sha256(made.restored.tobytes())
            for suffix, content in sorted((made.parts or {}).items()):
                total.update(suffix.encode() + content.tobytes())
            found[f"{said} {dtype} {raw.shape}"] = total.hexdigest()
    return found


def of_runs(folder: Path) -> dict[str, str]:
    """Of whole runs what depends on choices: budgets, an archive's models, units that are cut."""
    tensors = {}
    for number, (dtype, shape) in enumerate((("F32", (96, 160)), ("BF16", (120, 256)), ("F64", (33, 160)))):
        raw = laws.store(weights(shape, number) * 2.0**-number, dtype)
        raw.reshape(shape)[:, ::7] = 0  # columns that an archive tells apart
        tensors[f"{'abc'[number]}.weight"] = (dtype, raw)
    source, model = archives.write(folder / "in.safetensors", tensors), SAMPLES / "tiny-llama"
    of_files: dict[str, Callable[[Path], Any]] = {
        "archive": lambda out: api.prune(source, out, sparsity=0.7, store="archive", effort="small"),
        "archive of codes": lambda out: api.quantize(source, out, bits=3, group_size=32, store="archive"),
        "even steps": lambda out: api.quantize(source, out, scheme="uniform", scope="model", sparsity=0.4),
        "budget": lambda out: api.quantize(source, out, target_bits=4.2, sample=0),
        "budget of an archive": lambda out: api.quantize(source, out, target_ratio=5.0, store="archive"),
    }
    of_folders: dict[str, Callable[[Path], Any]] = {
        "budget of a model": lambda out: api.quantize(model, out, target_ratio=2.2),
        "neurons": lambda out: api.prune(model, out, structure="neurons", fraction=0.3),
        "width": lambda out: api.prune(model, out, structure="hidden", fraction=0.25, importance="l1"),
        "layers": lambda out: api.prune(model, out, method="layer-adaptive", sparsity=0.6),
    }
    found = {}
    for name, run in (of_files | of_folders).items():
        out = folder / ("out" if name in of_folders else "out.safetensors")
        run(out)
        files = [out] if out.is_file() else sorted(path for path in out.rglob("*") if path.is_file())
        total = hashlib.sha256()
        for path in files:
            total.update(path.name.encode() + path.read_bytes())
        found[name] = total.hexdigest()
        if out.is_dir():
            shutil.rmtree(out)
        else:
            out.unlink()
    return found


def everything(kinds: Sequence[str]) -> dict[str, Any]:
    """Hashes of `golden` files, or `wide`: of methods and whole runs. The version in outputs is the golden one."""
    found: dict[str, Any] = {"processor": processor()}
    with mock.patch.object(provenance, "__version__", make_golden.VERSION), TemporaryDirectory() as folder:
        if "golden" in kinds:
            found["golden"] = golden(Path(folder))
        if "wide" in kinds:
            found |= {"methods": of_methods(), "runs": of_runs(Path(folder))}
    return found


if __name__ == "__main__":
    json.dump(everything(sys.argv[1:]), sys.stdout)
