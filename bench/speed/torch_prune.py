"""Pruning as one would write it well with torch: `torch_prune.py 2:4|global SOURCE OUTPUT`.

Shard by shard, in the weights' own dtype, on all processors. `global` zeroes half of the weights of all shards
together, exactly, by a histogram of bfloat16 patterns; of equal magnitudes those first by name and place. What is
left alone is what `compressor` leaves alone.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

Counts = dict[str, torch.Tensor]


def treated(name: str, weight: torch.Tensor) -> bool:
    return weight.ndim == 2 and "embed" not in name and "lm_head" not in name


def two_of_four(weight: torch.Tensor) -> torch.Tensor:
    """Of every four weights of a row the two largest."""
    blocks = weight.reshape(-1, 4)
    places = blocks.abs().topk(2, dim=1, sorted=False).indices
    return torch.zeros_like(blocks).scatter_(1, places, blocks.gather(1, places)).reshape(weight.shape)


def patterns(weight: torch.Tensor) -> torch.Tensor:
    """Magnitudes as integers that sort like them."""
    return weight.view(torch.int16) & 0x7FFF


def counted(shards: list[Path]) -> Counts:
    """How many weights of each tensor have each magnitude."""
    found = {}
    for shard in shards:
        with safe_open(shard, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118 - it is no mapping
                weight = opened.get_tensor(name)
                if treated(name, weight):
                    found[name] = torch.bincount(patterns(weight).reshape(-1), minlength=1 << 15)
    return found


def below(weight: torch.Tensor, level: int, ties: int) -> torch.Tensor:
    """Without the weights under a magnitude, and without the first so many of that magnitude."""
    found = patterns(weight)
    out = torch.where(found < level, 0, weight)
    if ties:
        places = (found.reshape(-1) == level).nonzero()[:ties, 0]
        out.reshape(-1)[places] = 0
    return out


def main() -> None:
    """Every shard, then the index and the config."""
    job, source, output = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    shards = sorted(source.glob("*.safetensors"))
    output.mkdir()
    level, ties = 0, {}
    if job == "global":
        counts = counted(shards)
        total = sum(counts.values(), torch.zeros(1 << 15, dtype=torch.int64))
        under = total.cumsum(0)
        rank = round(0.5 * int(under[-1]))
        level = int(torch.searchsorted(under, rank))
        left = rank - int(under[level] - total[level])
        for name in sorted(counts):
            ties[name] = min(left, int(counts[name][level]))
            left -= ties[name]
    for shard in shards:
        tensors = load_file(shard)
        for name, weight in tensors.items():
            if treated(name, weight):
                tensors[name] = two_of_four(weight) if job == "2:4" else below(weight, level, ties[name])
        save_file(tensors, output / shard.name, metadata={"format": "pt"})
    for beside in source.glob("*.json"):
        shutil.copy(beside, output)


if __name__ == "__main__":
    main()
