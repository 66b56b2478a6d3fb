"""What loaders take as one layer, fused parts and all experts of a layer: these have one scheme, or none."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

from compressor.architectures.fused_layers import experts_module, one_scheme
from compressor.checkpoint.checkpoint import Checkpoint
from compressor.core.errors import CompressorError, UsageError, raise_all
from compressor.core.text import printable
from compressor.engine.plan.plan import Job
from compressor.methods.contract import Method, Scheme
from compressor.methods.declared import declared
from compressor.recipe.model import Recipe


def agreed(jobs: Sequence[Job], recipe: Recipe) -> list[Job]:
    """The jobs, where the same was asked of all parts of what loaders take as one layer, and shapes made different
    schemes of it: with one of these for all of them, where it is one that all their shapes allow."""
    changed: dict[str, Job] = {}
    for members in fused_jobs(jobs).values():
        alike = len({_asked(job, recipe) for job in members}) == 1
        if not alike or not all(map(_is_loaded, members)) or len({_scheme(job) for job in members}) == 1:
            continue
        for leader in members:
            with suppress(UsageError):
                changed |= {job.spec.name: _as(job, leader) for job in members}
                break
    return [changed.get(job.spec.name, job) for job in jobs]


def _asked(job: Job, recipe: Recipe) -> tuple[int, Method] | None:
    """The stage that stores the tensor, and the method that it has for it before the shape is looked at."""
    if not job.steps:
        return None
    number = job.steps[-1].stage
    return number, recipe.stages[number - len(recipe.cuts)].method_for(job.spec.name)


def _as(job: Job, leader: Job) -> Job:
    """The job with the scheme of another one. UsageError where its shape does not allow that."""
    last, chosen = job.steps[-1], leader.steps[-1]
    if _scheme(job) == _scheme(leader) or not isinstance(chosen.method, Scheme):
        return job
    decoder = chosen.method.decoder_for(job.spec)
    if decoder is None:
        return job
    why = f"as '{printable(leader.spec.name, 100)}', which loaders take as one layer with it"
    step = replace(last, method=chosen.method, instead=why)
    return replace(job, steps=(*job.steps[:-1], step), parts=decoder.parts(job.spec))


def check_fused(jobs: Sequence[Job], checkpoint: Checkpoint) -> None:
    """What loaders take as one layer has one scheme, or stays dense as a whole: the parts that they fuse, and all
    experts of a layer.

    Looked at where any part is stored as codes for loaders. UsageError that names the parts and what each would be.
    """
    problems: list[CompressorError] = []
    for whole, members in fused_jobs(jobs).items():
        schemes: dict[str, list[Job]] = {}
        for job in members:
            schemes.setdefault(_scheme(job), []).append(job)
        if len(schemes) == 1 or any(_is_sparse(job) for job in members):
            continue  # no loader takes a folder of sparse codes
        problems.append(
            UsageError(
                f"loaders take these as one layer '{printable(whole, 100)}', which has one scheme: "
                + ", ".join(map(_listed, schemes.values())),
                file=checkpoint.path,
                remedy="Name them together, in --set or --exclude, by "
                f"'{printable(_pattern(whole, members), 200)}'",
            )
        )
    raise_all(problems)


def fused_jobs(jobs: Sequence[Job]) -> dict[str, list[Job]]:
    """The matrices that loaders take as one layer, by what that is called, where codes for loaders are among
    them."""
    spoken = {declared(job.encoder, job.spec).dialect for job in jobs if job.encoder is not None}
    groups: dict[str, list[Job]] = {}
    for job in jobs:
        whole = one_scheme(job.spec.name, spoken)
        if whole is not None and len(job.spec.shape) == 2:
            groups.setdefault(whole, []).append(job)
    return {whole: members for whole, members in groups.items() if any(map(_is_loaded, members))}


def _is_loaded(job: Job) -> bool:
    return job.encoder is not None and bool(declared(job.encoder, job.spec).dialect)


def _is_sparse(job: Job) -> bool:
    return job.stores_parts and job.steps[-1].method.verb == "store"


def _scheme(job: Job) -> str:
    return "" if job.encoder is None else declared(job.encoder, job.spec).text


def _listed(jobs: Sequence[Job]) -> str:
    """Tensors of one scheme: the first by name."""
    more = f" and {len(jobs) - 1} more" if len(jobs) > 1 else ""
    return f"'{printable(jobs[0].spec.name, 100)}'{more} {jobs[0].dtype_after}"


def _pattern(whole: str, members: Sequence[Job]) -> str:
    """What selects these tensors and those like them in every layer."""
    if experts_module(members[0].spec.name) is not None:
        return "*.experts.*" if "." in whole else "experts.*"
    parent = whole.rpartition(".")[0].rpartition(".")[2]
    parts = sorted({job.spec.name.removesuffix(".weight").rpartition(".")[2] for job in members})
    return rf"re:(.*\.)?{re.escape(parent)}\.({'|'.join(map(re.escape, parts))})\.weight"
