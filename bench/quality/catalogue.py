"""The figures of `compressor methods`: measures each setting and writes compressor/cli/measured.toml.

Stored bits a weight and relative error on the standard normal weights of `errors.py`; of schemes whose codes are
meant for an archive, the bits that they take there. A minute or so.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

import compressor
from bench.quality.errors import SCHEMES, error, name, weights

PLACE = Path(compressor.__file__).parent / "cli" / "measured.toml"
GGML = (
    *("q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "q2_k", "q3_k", "q4_k", "q5_k", "q6_k"),
    *("iq4_nl", "iq4_xs", "ggml-mxfp4", "tq1_0", "tq2_0", "f16", "f32", "bf16"),
)
IN_AN_ARCHIVE: tuple[dict[str, Any], ...] = tuple(
    {"scheme": scheme, "bits": bits} for scheme in ("uniform", "trellis") for bits in (4.5, 3.0, 2.0)
)
SETTINGS: tuple[dict[str, Any], ...] = (
    *SCHEMES,
    *({"scheme": scheme} for scheme in GGML),
    {"scheme": "factor", "factor": 64},
    {"scheme": "step", "bits": 2},
)


def measured(options: dict[str, Any], values: np.ndarray) -> tuple[float, float]:
    """Relative error, and stored bits a weight."""
    if options in IN_AN_ARCHIVE:
        return archived(options, values)
    with np.errstate(all="ignore"):
        return error(options, values)


def archived(options: dict[str, Any], values: np.ndarray) -> tuple[float, float]:
    """The same of an archive, by its size."""
    with tempfile.TemporaryDirectory() as folder:
        source, output = Path(folder, "in.safetensors"), Path(folder, "out.safetensors")
        save_file({"fc.weight": values}, source)
        report = compressor.quantize(source, output, store="archive", **options)
        assert report.total is not None
        return report.total.error, output.stat().st_size * 8 / values.size


def main() -> int:
    """Write the figures, in the order of SETTINGS."""
    values = weights()["normal"]
    lines = [
        "# Stored bits a weight and relative error on normal weights: written by bench/quality/catalogue.py",
        "figures = [",
    ]
    for options in (*SETTINGS, *IN_AN_ARCHIVE):
        lost, bits = measured(options, values)
        lines.append(f'  ["{name(options)}", {bits:.2f}, {lost:.4f}],')
        print(lines[-1], file=sys.stderr)
    PLACE.write_text("\n".join([*lines, "]", ""]), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
