"""What an input holds: `inspect`, and the search for tensors with NaN or Inf."""

from __future__ import annotations

import os
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from compressor.checkpoint.checkpoint import Checkpoint, Tensor, open_as_stored, open_checkpoint
from compressor.checkpoint.delta_base import open_with_base
from compressor.checkpoint.finite import blocks_of
from compressor.core.errors import UnreadCodes
from compressor.core.lazy import np
from compressor.core.metrics import Moments
from compressor.core.parallel.threads import available_workers, in_order, local
from compressor.core.shown import Shown
from compressor.core.tensor import DTYPES
from compressor.core.workspace import Workspace
from compressor.engine.plan.plan import Plan
from compressor.workflows.archive_contents import CodingGain, check_archive, code

Path = str | os.PathLike[str]


@dataclass(frozen=True, repr=False)
class InspectReport(Shown):
    """`inspect`: what the headers say, and per-tensor moments, or an archive's codings, where asked."""

    path: str
    kind: str
    size: int
    compression: str
    rows: tuple[tuple[Any, Any], ...]
    metadata: dict[str, str] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)
    codings: tuple[CodingGain, ...] = ()


def inspect(
    path: Path, *, stats: bool = False, coding: bool = False, base: Path | None = None, workers: int | None = None
) -> InspectReport:
    """What the headers say of an input; with `stats` also range, moments and sparsity of every tensor, with
    `coding` what an archive's streams take (InputError where it is none); `base` is what an archive is coded
    against, without which headers are read all the same."""
    try:
        checkpoint = open_checkpoint(path) if base is None else open_with_base(path, os.fspath(base))
    except UnreadCodes as error:  # what lies there can be shown all the same
        checkpoint = replace(open_as_stored(path), compression=error.reason)
    tensors = list(checkpoint.tensors.values())
    moments: list[Moments | None] = [None] * len(tensors)
    coded: tuple[CodingGain, ...] = ()
    if coding:
        check_archive(checkpoint)
    if stats or coding:
        count = available_workers() if workers is None else workers
        with local(count) as executor:
            tasks = (partial(_moments, tensor) for tensor in tensors)
            moments = list(in_order(executor, tasks, 2 * count))
            if coding:
                pairs = (partial(code, *pair) for pair in zip(tensors, map(_kept, tensors, moments), strict=True))
                coded = tuple(in_order(executor, pairs, 2 * count))
        checkpoint.source.check_unchanged()
    source = checkpoint.source
    metadata = {key: value for file in source.files for key, value in file.header.metadata.items()}
    if source.fields:
        from compressor.files.gguf.reading import RECORD

        metadata |= {key: value.shown for key, value in source.fields.items() if key != RECORD}
    return InspectReport(
        os.fspath(path),
        source.kind,
        source.nbytes,
        ", ".join(filter(None, (checkpoint.compression, _based(checkpoint)))),
        tuple(zip(tensors, moments if stats else [None] * len(tensors), strict=True)),
        metadata,
        dict(source.left),
        coded,
    )


def _based(checkpoint: Checkpoint) -> str:
    """By what the bases are known that files of it are coded against, "" where none is."""
    known = {part.file.base: None for part in checkpoint.source.files if part.file.base}
    known |= {record.base: None for record in checkpoint.records if record.base}
    return f"coded against the base {', '.join(known)}" if known else ""


def _kept(tensor: Tensor, moments: Moments | None) -> int:
    """Weights that are not zero; all of a tensor whose numbers are not looked at."""
    return tensor.spec.size - (moments.zeros if moments is not None else 0)


def _moments(tensor: Tensor) -> Moments | None:
    if not DTYPES[tensor.spec.dtype].storage or tensor.spec.dtype == "C64":
        return None
    moments = Moments()
    with np.errstate(all="ignore"):
        for block in blocks_of(tensor, Workspace(), tensor.align):
            moments.add(block)
    return moments


def non_finite_tensors(checkpoint: Checkpoint, plan: Plan, executor: Executor) -> dict[str, str]:
    """The tensors that the plan treats although they hold NaN or Inf, with the reason to leave them alone.

    A teacher's NaN has no such way out: InputError names it when its turn comes.
    """
    names = [job.spec.name for job in plan.jobs if job.steps]
    tasks = (partial(_moments, checkpoint.tensors[name]) for name in names)
    held = {}
    for name, moments in zip(names, in_order(executor, tasks, 8), strict=True):
        if moments is not None and moments.non_finite:
            held[name] = f"holds {moments.non_finite} NaN or infinite values (--non-finite keep)"
    return held
