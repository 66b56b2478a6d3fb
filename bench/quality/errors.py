"""The table of errors in docs/methods.md: `errors.py [--check]` measures every row of SCHEMES and writes it there.

Relative Frobenius error of what is stored, on seeded float32 weights of 512 × 4096: standard normal, Student-t of
5 degrees, and the same with one column in a hundred eight times as large. A minute or so. With --check nothing is
written, and the exit code tells whether the page is up to date (to a unit in the last digit).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np

from compressor.core.tensor import TensorSpec
from compressor.core.workspace import Workspace
from compressor.methods.contract import Block, Encoder, Survey
from compressor.methods.registry import methods_of

PAGE = Path(__file__).resolve().parents[2] / "docs" / "methods.md"
BEGIN, END = "<!-- errors: written by bench/quality/errors.py -->", "<!-- /errors -->"
SHAPE = (512, 4096)
ROWS = 64  # of a block

# Options as on the command line, without `--scheme` where it is int
SCHEMES: tuple[dict[str, Any], ...] = (
    {"bits": 8, "granularity": "channel", "method": "absmax"},
    {"bits": 8, "granularity": "channel"},
    {"bits": 8, "group_size": 128, "method": "absmax"},
    {"bits": 8, "group_size": 128},
    {"bits": 6, "group_size": 64},
    {"bits": 4, "granularity": "tensor"},
    {"bits": 4, "granularity": "channel"},
    {"bits": 4, "group_size": 128, "method": "absmax"},
    {"bits": 4, "group_size": 128},
    {"bits": 4, "group_size": 128, "signed_scales": True},
    {"bits": 4, "group_size": 128, "symmetric": False, "method": "absmax"},
    {"bits": 4, "group_size": 128, "symmetric": False, "method": "hqq"},
    {"bits": 4, "group_size": 128, "symmetric": False},
    {"bits": 4, "group_size": 32},
    {"bits": 4, "group_size": 32, "symmetric": False},
    {"bits": 3, "group_size": 128},
    {"bits": 3, "group_size": 128, "signed_scales": True},
    {"bits": 3, "group_size": 128, "symmetric": False},
    {"bits": 2, "group_size": 64},
    {"bits": 2, "group_size": 64, "signed_scales": True},
    {"bits": 2, "group_size": 64, "symmetric": False},
    {"scheme": "fp8", "method": "absmax"},
    {"scheme": "fp8"},
    {"scheme": "fp8", "granularity": "block"},
    {"scheme": "mxfp8"},
    {"scheme": "nvfp4", "method": "absmax"},
    {"scheme": "nvfp4"},
    {"scheme": "mxfp4", "method": "absmax"},
    {"scheme": "mxfp4"},
    {"scheme": "nf4", "method": "absmax"},
    {"scheme": "nf4"},
    {"scheme": "nf4", "signed_scales": True},
    {"scheme": "nf4", "double_quant": True},
    {"scheme": "codebook", "entries": 16},
    {"scheme": "codebook", "entries": 256},
    {"scheme": "ternary"},
    {"scheme": "binary"},
)


def name(options: dict[str, Any]) -> str:
    """The scheme and its options as one would give them: `int --bits 4 --group-size 128 --asymmetric`."""
    said = [str(options.get("scheme", "int"))]
    for key, value in options.items():
        if key == "symmetric":
            said.append("--symmetric" if value else "--asymmetric")
        elif value is True:
            said.append(f"--{key.replace('_', '-')}")
        elif key != "scheme":
            said.append(f"--{key.replace('_', '-')} {value}")
    return " ".join(said)


def weights() -> dict[str, np.ndarray]:
    """Weights of three kinds, by the title of their column."""
    random = np.random.default_rng(0)
    normal, tailed = random.standard_normal(SHAPE), random.standard_t(5, SHAPE)
    outlying = tailed.copy()
    outlying[:, random.choice(SHAPE[1], SHAPE[1] // 100, replace=False)] *= 8
    found = {"normal": normal, "Student-t5": tailed, "t5, outlier columns": outlying}
    return {title: values.astype(np.float32) for title, values in found.items()}


def error(options: dict[str, Any], values: np.ndarray) -> tuple[float, float]:
    """Relative error, and stored bits a weight."""
    given = {key: value for key, value in options.items() if key != "scheme"}
    asked: Any = methods_of("quantize")[options.get("scheme", "int")](**given)
    spec, work = TensorSpec("w", "F32", values.shape), Workspace()
    blocks = [Block(values[row : row + ROWS], row, spec, work, {}) for row in range(0, len(values), ROWS)]
    encoder: Any = asked.prepare([spec])
    while isinstance(encoder, Survey):
        stats = encoder.start()
        for block in blocks:
            stats = encoder.observe(block, stats)
        encoder = encoder.conclude(stats)
    assert isinstance(encoder, Encoder)
    lost = 0.0
    for block in blocks:
        restored = np.empty_like(block.values)
        encoder.encode(block, None, restored)
        lost += float(np.square(block.values - restored, dtype=np.float64).sum())
    # scales of float32 weights are float32; a checkpoint's are mostly of 16 bits, and are counted so
    half = TensorSpec("w", "BF16", values.shape)
    parts = [part for part in encoder.decoder.parts(half) if part.value is None]
    stored = sum(TensorSpec("", part.dtype, part.shape).nbytes for part in parts)
    return (lost / float(np.square(values, dtype=np.float64).sum())) ** 0.5, stored * 8 / values.size


def table() -> str:
    """The rows of SCHEMES as Markdown."""
    columns = weights()
    lines = [f"| `quantize --scheme` | bits/w | {' | '.join(columns)} |", f"|---|{'---|' * (len(columns) + 1)}"]
    for options in SCHEMES:
        found = [error(options, values) for values in columns.values()]
        lines.append(f"| `{name(options)}` | {found[0][1]:.2f} | {' | '.join(f'{e:.4f}' for e, _ in found)} |")
        print(lines[-1], file=sys.stderr)
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure the table of errors in docs/methods.md.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 when the page differs")
    args = parser.parse_args()
    text = PAGE.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    held, after = rest.split(END)
    with np.errstate(all="ignore"):
        made = table()
    if args.check:
        return int(not alike(held, made))
    PAGE.write_text(f"{before}{BEGIN}\n\n{made}\n\n{END}{after}", encoding="utf-8")
    return 0


def alike(held: str, made: str) -> bool:
    """Whether two tables say the same, but for a unit in the last digit: sums may be ordered otherwise."""
    cells = [[cell for line in text.strip().splitlines() for cell in line.split("|")] for text in (held, made)]
    if len(cells[0]) != len(cells[1]):
        return False

    def same(a: str, b: str) -> bool:
        try:
            return abs(float(a) - float(b)) < 1.5e-4
        except ValueError:
            return a == b

    return all(same(a, b) for a, b in zip(*cells, strict=True))


if __name__ == "__main__":
    sys.exit(main())
