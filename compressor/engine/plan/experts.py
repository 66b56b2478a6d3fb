"""Fused experts as the matrices that loaders of quantized models know, where the plan stores codes of them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

from compressor.architectures.fused_experts import fused_experts
from compressor.architectures.loaders import READERS, Loader
from compressor.checkpoint.checkpoint import Checkpoint
from compressor.checkpoint.experts import split_experts
from compressor.core.errors import UsageError
from compressor.core.text import printable
from compressor.recipe.model import Stage
from compressor.recipe.selection import matches


def divided(checkpoint: Checkpoint, stages: Sequence[Stage], loader: Loader | None = None) -> Checkpoint:
    """The checkpoint with its experts split, if one of these stages, which store codes, treats any of
    them, and the `loader`, where one is named, knows them so.

    UsageError for a pattern that means the fused tensors and would miss the matrices.
    """
    split = split_experts(checkpoint) if stages else checkpoint
    family = fused_experts(checkpoint.source.config or {})
    if loader is not None and family is not None and not (READERS[loader].splits or family.codes):
        return checkpoint
    named = [(*stage.include, *stage.exclude, *(rule for rule, _ in stage.rules)) for stage in stages]
    for text in chain.from_iterable(named):
        for fused, names in split.fused.items():
            if matches(fused, (text,)) and not all(matches(name, (text,)) for name in names):
                raise UsageError(
                    f"pattern '{printable(text, 60)}' names fused experts, and each expert is stored alone",
                    tensor=fused,
                    remedy=f"Write it for names such as '{printable(names[0], 120)}'",
                )
    treated = any(
        stage.leaves(split.tensors[name].spec) is None
        for stage in stages
        for names in split.fused.values()
        for name in names
    )
    # whose experts transformers makes linear layers of, codes or none, where anything in the folder is codes
    apart = bool(stages) and family is not None and family.codes and not family.merges
    return split if treated or apart or not split.fused else checkpoint
