"""What deltas leave of a fine-tune, beside quantizing the fine-tune itself: `deltas.py MODEL [--steps 20]`.

MODEL is the folder of a language model, which is the base: SmolLM2-135M-Instruct of the package llm-
smollm2, say, once `compressor restore` has made a folder of its .gguf. It is fine-tuned here, by AdamW for
a few steps on pages of this project's documentation, all weights, in float32, and stored in bfloat16; other
pages judge. So it is a small training on one subject, and no instruction-tuned model of somebody's. Needs
torch and transformers. The measure is the mean KL divergence (nats) of the next token from what the fine-
tune says, and perplexity; sizes are those of the weight files.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import compressor

DOCS = Path(__file__).parents[2] / "docs"
TRAINED_ON = ("methods", "gguf", "budgets", "statistics", "networks", "remote", "command-line", "loaders")
JUDGED_ON = ("recipes", "formats", "cluster")
LENGTH, BATCH, JUDGED = 128, 2, 16
DELTAS: tuple[dict[str, Any], ...] = (
    {"bits": 1},
    {"bits": 2},
    *({"form": "mixed", "bits": bits} for bits in (0.5, 1, 2)),
)
QUANTIZED: tuple[dict[str, Any], ...] = (
    *({"scheme": "uniform", "bits": bits, "store": "archive"} for bits in (1.0, 2.0, 3.0)),
    {"bits": 4, "group_size": 64, "layout": "compressor"},
)


def samples(tokenizer: Any, pages: tuple[str, ...]) -> torch.Tensor:
    """Tokens of these pages [samples, LENGTH]."""
    text = "\n".join((DOCS / f"{page}.md").read_text(encoding="utf-8") for page in pages)
    found = torch.tensor(tokenizer(text)["input_ids"])
    return found[: len(found) // LENGTH * LENGTH].reshape(-1, LENGTH)


def tuned(model: Path, out: Path, steps: int) -> None:
    """Fine-tune the model, and write it in bfloat16."""
    torch.manual_seed(0)
    net = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    tokens = samples(AutoTokenizer.from_pretrained(model), TRAINED_ON)
    optimizer = torch.optim.AdamW(net.parameters(), lr=5e-5, weight_decay=0.0)
    for step in range(steps):
        batch = tokens[torch.randint(len(tokens), (BATCH,))]
        loss = net(input_ids=batch, labels=batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step % 10 == 0:
            print(f"step {step}: loss {loss.item():.3f}", flush=True)
    net.to(torch.bfloat16).save_pretrained(out)


def answers(model: Path, tokens: torch.Tensor) -> torch.Tensor:
    """Logarithms of probabilities [samples, LENGTH, vocabulary] in float16, in float32 that of a sample."""
    net = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    with torch.no_grad():
        return torch.stack([net(input_ids=one[None]).logits[0].log_softmax(-1).half() for one in tokens])


def told(name: str, size: int, weights: int, found: torch.Tensor, true: torch.Tensor, tokens: torch.Tensor) -> str:
    """A line of the table."""
    lost, surprise = 0.0, 0.0
    for own, other, sample in zip(found, true, tokens, strict=True):
        own, other = own.float(), other.float()
        lost += float((other.exp() * (other - own)).sum(-1).mean())
        surprise -= float(own[:-1].gather(1, sample[1:, None]).mean())
    perplexity = float(torch.tensor(surprise / len(tokens)).exp())
    return f"| {name} | {size / 1e6:.1f} | {8 * size / weights:.2f} | {lost / len(tokens):.4f} | {perplexity:.2f} |"


def size_of(folder: Path) -> int:
    """Bytes of a folder's weight files."""
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def lines(model: Path, steps: int, work: Path) -> Iterator[str]:
    """The table."""
    base, fine = work / "base", work / "fine"
    compressor.quantize(model, base, scheme="bf16", include=["*"], store="dense")
    tuned(base, fine, steps)
    tokens = samples(AutoTokenizer.from_pretrained(model), JUDGED_ON)[:JUDGED]
    true = answers(fine, tokens)
    weights = sum(row[0].spec.size for row in compressor.inspect(fine).rows)
    yield "| | MB | bits a weight | KL divergence | perplexity |"
    yield "|---|---|---|---|---|"
    yield told("the fine-tune", size_of(fine), weights, true, true, tokens)
    yield told("its base", 0, weights, answers(base, tokens), true, tokens)
    for options in DELTAS:
        compressor.distill(fine, work / "delta", method="delta", base=base, force=True, **options)
        compressor.restore(work / "delta", work / "back", base=base, force=True)
        said = " ".join(f"--{key} {value}" for key, value in options.items())
        found = answers(work / "back", tokens)
        yield told(f"`distill --method delta {said}`", size_of(work / "delta"), weights, found, true, tokens)
    for options in QUANTIZED:
        compressor.quantize(fine, work / "codes", include=["*"], force=True, **options)
        compressor.restore(work / "codes", work / "back", force=True)
        said = " ".join(f"--{key.replace('_', '-')} {value}" for key, value in options.items())
        found = answers(work / "back", tokens)
        yield told(f"`quantize {said}`", size_of(work / "codes"), weights, found, true, tokens)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--steps", type=int, default=20)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for line in lines(given.model, given.steps, Path(folder)):
            print(line, flush=True)


if __name__ == "__main__":
    main()
