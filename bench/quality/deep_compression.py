"""Deep Compression's networks by the recipes that ship, beside the bars: `deep_compression.py [NAME] [--write]`.

The data lie in a folder of their own, beside the repository or `--data`; without it nothing is done. Labels serve
for scoring alone, and to train LeNet-5's teacher, of which there is none in the data. NAME is one of the rows.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from contextlib import chdir
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from bench.quality.soft_targets import score, verdict
from compressor import api
from compressor.cli.report import render
from compressor.recipe.toml_file import parse_recipe

SMALLER = """extends = "lenet300"
[[stage]]
name = "train"
sparsity = 0.9685
[[stage]]
name = "share"
entries = 6
[[stage]]
name = "codes"
entries = 6
"""
ROWS = {  # recipe, at least so many times smaller, at most so many points lost
    "lenet300": ('extends = "lenet300"', 75, 0.05),
    "smaller": (SMALLER, 120, 0.3),
    "lenet5": ('extends = "lenet5"', 80, 0.05),
}
HERE = Path(__file__).resolve().parents[1]
PAGE = HERE.parent / "docs" / "deep-compression.md"
MARKS = "<!-- {}: written by bench/quality/deep_compression.py -->", "<!-- {}: end -->"
SLOWEST = 600  # seconds
LENET5 = {"conv1": (20, 1, 5, 5), "conv2": (50, 20, 5, 5), "fc1": (500, 800), "fc2": (10, 500)}


def lenet5_teacher(made: Path) -> None:
    """A LeNet-5 trained on labels from a random start as LeNet-300-100's teacher was: 20 epochs of Adam, the last
    one kept, images as they are."""
    tensors = {f"{name}.weight": np.ones(shape, np.float32) for name, shape in LENET5.items()}
    tensors |= {f"{name}.bias": np.zeros(shape[0], np.float32) for name, shape in LENET5.items()}
    save_file(tensors, "shapes.safetensors")
    api.distill(
        "shapes.safetensors",
        made,
        teacher="shapes.safetensors",
        method="soft-targets",
        network="lenet5-relu",
        init="random",
        inputs="inputs.npy",
        labels="labels.npy",
        label_weight=1.0,
        holdout=0.0,
        epochs=20,
        learning_rate=0.001,
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("name", nargs="?", choices=ROWS)
    parser.add_argument("--data", type=Path, default=HERE.parent.parent / "shared" / "data")
    parser.add_argument("--teacher", type=Path, help="LeNet-5's; trained where there is no such file yet")
    parser.add_argument("--write", action="store_true", help="put what was measured into docs/deep-compression.md")
    asked = parser.parse_args()
    asked.data = asked.data.resolve()
    if not (asked.data / "mnist" / "mnist_train.npz").exists():
        print(f"no data at {asked.data}: nothing measured")
        return 0
    reached = True
    if asked.teacher is not None:
        asked.teacher = asked.teacher.resolve()
    with tempfile.TemporaryDirectory() as folder, chdir(folder):
        train = np.load(asked.data / "mnist" / "mnist_train.npz")
        np.save("inputs.npy", train["x"])
        np.save("labels.npy", train["y"].astype(np.int64))
        for name in ROWS if asked.name is None else [asked.name]:
            teacher = asked.data / "lenet300" / "teacher.safetensors"
            if name == "lenet5":
                teacher = asked.teacher or Path("teacher.safetensors")
                if not teacher.exists():
                    lenet5_teacher(teacher)
            said, held = row(name, teacher, asked.data)
            print(said, flush=True)
            reached &= held
            if asked.write:
                write(name, said)
    return 0 if reached else 1


def row(name: str, teacher: Path, data: Path) -> tuple[str, bool]:
    """Run a recipe: what came of it, in Markdown, and whether its bars are reached."""
    recipe, ratio, points = ROWS[name]
    small, dense = "small.safetensors", Path("restored.safetensors")
    start, spent = time.perf_counter(), time.process_time()
    report = api.pipeline(teacher, small, recipe=parse_recipe(recipe, name), inputs="inputs.npy", force=True)
    seconds, spent = time.perf_counter() - start, time.process_time() - spent
    load = os.getloadavg()[1]
    api.restore(small, dense, force=True)
    network = "lenet5-relu" if name == "lenet5" else None
    (before, _), (after, zeros) = score(teacher, data, network), score(dense, data, network)
    whole, left = teacher.stat().st_size, Path(small).stat().st_size
    bars = (
        (f"{whole / left:.1f} times smaller", f"at least {ratio}", whole / left >= ratio),
        (
            f"{before:.2f} to {after:.2f} % right on the 10,000 test images",
            f"at most {points:g} points less",
            before - after <= points + 1e-9,
        ),
        (f"{seconds:.0f} s", f"at most {SLOWEST}", seconds <= SLOWEST),
    )
    lines = [
        f"{whole:,} to {left:,} bytes, {zeros:.1f} % zeros. The run took {spent:.0f} s of processor time on "
        f"{os.cpu_count()} processors, whose load was {load:.1f} with what else they did.",
        "",
        "| measured | bar | |",
        "|---|---|---|",
        *(f"| {found} | {bar} | {verdict(held)} |" for found, bar, held in bars),
        "",
        "What the training stages say of inputs held out:",
        "",
        *(f"- {note}" for note in report.plan.notes if "choose alike" in note),
        "",
        f"```\n$ compressor inspect {small} --coding",
        render(api.inspect(small, coding=True), "table").rstrip(),
        "```",
    ]
    return "\n".join(lines), all(held for *_, held in bars)


def write(name: str, said: str) -> None:
    """Put what was measured of a network in its place on the page."""
    text = PAGE.read_text(encoding="utf-8")
    begin, end = (mark.format(name) for mark in MARKS)
    before, rest = text.split(begin)
    PAGE.write_text(f"{before}{begin}\n\n{said}\n\n{end}{rest.split(end)[1]}", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
