"""How tensors are spread over the files of a folder, where the user says how large one may be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from compressor.engine.plan.plan import Job
from compressor.files.folder import SINGLE, stem_of


def resharded(jobs: Sequence[Job], size: int) -> list[Job]:
    """The jobs with the numbers of files that hold at most `size` bytes of tensors each, in the order of the jobs;
    a tensor that is larger has a file of its own."""
    spread: list[Job] = []
    number, held = 0, 0
    for job in jobs:
        more = job.size_after if job.parts else job.spec.nbytes  # where it is not yet known
        if held and held + more > size:
            number, held = number + 1, 0
        spread.append(replace(job, file=number))
        held += more
    return spread


def shard_names(count: int, like: Sequence[str]) -> tuple[list[str], str]:
    """What so many files of weights are called, and their index ("" for one), after the input's files `like`."""
    stem = stem_of(like[0]) if like else stem_of(SINGLE)
    if count == 1:
        return [f"{stem}.safetensors"], ""
    names = [f"{stem}-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]
    return names, f"{stem}.safetensors.index.json"
