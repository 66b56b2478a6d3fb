"""Fused experts as the matrices that loaders of quantized models know, where the plan stores codes of them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

from compressor.checkpoint.checkpoint import Checkpoint
from compressor.checkpoint.experts import split_experts
from compressor.core.errors import UsageError
from compressor.core.text import printable
from compressor.recipe.model import Stage
from compressor.recipe.selection import matches


def divided(checkpoint: Checkpoint, stages: Sequence[Stage]) -> Checkpoint:
    """The checkpoint with its experts split, if one of these stages, which store codes, treats any of them.

    UsageError for a pattern that means the fused tensors and would miss the matrices.
    """
    split = split_experts(checkpoint) if stages else checkpoint
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
    return split if treated or not split.fused else checkpoint
