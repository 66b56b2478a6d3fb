"""`store = archive`: the finished files of an output are entropy-coded before the output gets its name."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import replace
from functools import partial
from typing import Literal

from compressor.checkpoint import Checkpoint, Tensor
from compressor.engines.local import in_order
from compressor.entropy.chunk import encode_chunk
from compressor.entropy.damage import NeedsPackage
from compressor.entropy.elements import Form, likely_form
from compressor.errors import UsageError
from compressor.files import safetensors
from compressor.files.archive import chunk_shape, chunks_of, rows_of
from compressor.files.archive_writing import ArchiveWriter
from compressor.files.handle import InputFile
from compressor.files.layout import Placed
from compressor.files.sink import Sink
from compressor.lazy import np
from compressor.plan import Container, Plan
from compressor.recipe import Recipe
from compressor.workspace import Array

Effort = Literal["fast", "small"]
_SAMPLE = 1 << 16  # bytes that tell the form of a tensor
_NOTE = "an archive: this tool reads it, and `compressor restore` gives its tensors back; loaders do not"


def settled(recipe: Recipe, store: str, container: Container) -> tuple[Recipe, bool]:
    """The recipe without the word `archive`, and whether its output is to be one. UsageError where that cannot be."""
    asked = [number for number, stage in enumerate(recipe.stages) if stage.store == "archive"]
    if asked and asked != [len(recipe.stages) - 1]:
        raise UsageError(
            f"stage {asked[0]} stores an archive, which holds the whole output", remedy="Put it on the last stage"
        )
    if not asked and store != "archive":
        return recipe, False
    if container not in ("safetensors", "folder"):
        raise UsageError(f"an .{container} holds no archive", remedy="Write .safetensors, or a folder")
    stages = tuple(replace(stage, store="auto") if stage.store == "archive" else stage for stage in recipe.stages)
    return replace(recipe, stages=stages), True


def as_stored(checkpoint: Checkpoint, container: Container) -> Checkpoint:
    """The input without an eye on what its tensors are parts of, for an archive of it as it is."""
    source = checkpoint.source
    if container != source.kind and checkpoint.compression and source.config is not None:
        raise UsageError("a single file would lose the config.json that tells of its codes", remedy="Name a folder")
    tensors = {
        name: Tensor(stored.spec, {"": stored}, source.file_of[name]) for name, stored in source.tensors.items()
    }
    return replace(checkpoint, tensors=tensors, compression="", dropped=(), stored=True)


def archive_files(sink: Sink, plan: Plan, effort: Effort, executor: Executor, window: int) -> Plan:
    """Put an archive in the place of every container file; the plan with the sizes that this gave.

    Raises UsageError where a package is missing, OutputError where writing fails.
    """
    coded: dict[str, int] = {}
    files = []
    for file in plan.files:
        with sink.rewriting(file.name) as fd:
            try:
                coded |= _archive(sink.path(file.name), ArchiveWriter(fd), effort, executor, window)
            except NeedsPackage as error:
                raise UsageError(
                    f"--store archive takes the package {error}",
                    remedy="Install it with pip install 'compressor[entropy]'",
                ) from error
        size = InputFile.open(sink.path(file.name)).size
        files.append(replace(file, layout=replace(file.layout, size=size)))
    jobs = (replace(job, coded=sum(coded[spec.name] for spec in job.part_specs())) for job in plan.jobs)
    return replace(plan, files=tuple(files), jobs=tuple(jobs))


def noted(plan: Plan, *, dry: bool) -> Plan:
    """The plan with what is to be known of archives."""
    more = ("sizes are those before entropy coding, which only a run can tell",) if dry else ()
    return replace(plan, notes=(*plan.notes, _NOTE, *more))


def _archive(path: str, writer: ArchiveWriter, effort: Effort, executor: Executor, window: int) -> dict[str, int]:
    file = InputFile.open(path)
    header = safetensors.read_header(file)
    forms = {placed.spec.name: _form(file, placed) for placed in header.tensors}

    def tasks() -> Iterator[partial[tuple[str, bytes]]]:
        for placed in header.tensors:
            for number in range(chunks_of(placed.spec)):
                yield partial(_chunk, file, placed, number, forms[placed.spec.name], effort)

    for placed in header.tensors:
        writer.begin(placed.spec, forms[placed.spec.name].text)
    for name, chunk in in_order(executor, tasks(), window):
        writer.add(name, chunk)
    writer.finish(header.metadata)
    return writer.coded()


def _form(file: InputFile, placed: Placed) -> Form:
    """How a tensor is best seen, from some of its rows."""
    rows, width, _ = rows_of(placed.spec)
    count = min(rows, max(1, _SAMPLE // max(width, 1)), -(-placed.spec.nbytes // max(width, 1)))
    whole = rows * width == placed.spec.nbytes
    shape = (count, width) if whole or count < rows else (1, min(width, placed.spec.nbytes))
    return likely_form(_read(file, placed.offset, shape), placed.spec.dtype)


def _chunk(file: InputFile, placed: Placed, number: int, form: Form, effort: Effort) -> tuple[str, bytes]:
    _, width, each = rows_of(placed.spec)
    data = _read(file, placed.offset + number * each * width, chunk_shape(placed.spec, number))
    return placed.spec.name, encode_chunk(data, form, effort)


def _read(file: InputFile, offset: int, shape: Sequence[int]) -> Array:
    data: Array = np.empty(shape, np.uint8)
    file.read_into(data.reshape(-1).data, offset)
    return data
