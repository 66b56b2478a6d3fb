"""The files of an output: what goes into which, at which offset, what is copied along and what stays behind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from compressor.checkpoint import dialects, record
from compressor.checkpoint.checkpoint import Checkpoint
from compressor.core.errors import OutputError
from compressor.engine.plan.adapter import adapter_files, makes_adapter
from compressor.engine.plan.plan import Job, OutputFile
from compressor.engine.plan.request import PlanRequest
from compressor.engine.plan.sharding import shard_names
from compressor.files import growth, safetensors
from compressor.files.folder import SINGLE, index_bytes, json_bytes
from compressor.files.layout import Container, FileLayout
from compressor.files.ours import RECORD
from compressor.recipe.model import Recipe

Stages = Sequence[Mapping[str, Any]]
Texts = tuple[tuple[str, bytes], ...]


def lay_out(
    request: PlanRequest, jobs: Sequence[Job], stages: Stages, *, fingerprint: str = record.NO_PLAN
) -> tuple[tuple[OutputFile, ...], Texts]:
    """Every container file with its layout, and the texts that go with a folder.

    `fingerprint` (64 hexadecimal digits) is the plan's own, which the headers record. It depends on all offsets and
    no offset on it, so a plan is laid out without it first, and once more with it before anything is written.
    OutputError for content that a container cannot hold.
    """
    checkpoint, container = request.checkpoint, request.container
    if makes_adapter(request.recipe.stages):
        return adapter_files(jobs, checkpoint, stages, fingerprint)
    if checkpoint.verbatim:
        return _as_they_were(request, jobs)
    if container == "npy":
        from compressor.files import npy

        return (OutputFile(request.output_name, npy.layout(jobs[0].part_specs[0])),), ()
    if container == "npz":
        return (OutputFile(request.output_name, _npz_layout(jobs[0], stages, checkpoint, fingerprint)),), ()
    if container == "gguf":
        from compressor.engine.plan.gguf_file import gguf_files

        said = _record(checkpoint, _origins(request, 0), (), stages, fingerprint)
        return gguf_files(request, jobs, said.get(RECORD)), ()
    names, index = _names(request, jobs)
    members: list[list[Job]] = [[] for _ in names]
    for job in jobs:
        members[job.file].append(job)
    stored = [(job.spec, job.encoder) for job in jobs if job.encoder is not None]
    form = dialects.metadata_format(stored)
    files = []
    for number, own in enumerate(members):
        origins = _origins(request, number)
        metadata = _kept_metadata(checkpoint, origins)
        if not checkpoint.stored:
            metadata = _metadata(metadata, form) | _record(checkpoint, origins, own, stages, fingerprint)
        specs = [spec for job in own for spec in job.part_specs]
        files.append(OutputFile(names[number], safetensors.layout(specs, metadata)))
    _check_growth(stored, files)
    return tuple(files), _texts(jobs, files, checkpoint, index) if container == "folder" else ()


def _as_they_were(request: PlanRequest, jobs: Sequence[Job]) -> tuple[tuple[OutputFile, ...], Texts]:
    """The very files that archives of them as they were are of."""
    from compressor.files.archive import ArchivedFile  # here because few runs have any

    source = request.checkpoint.source
    names, index = _names(request, jobs)
    files = []
    offsets: list[dict[str, int]] = [{} for _ in names]
    for title, tensor in request.checkpoint.tensors.items():
        offsets[tensor.file][title] = tensor.whole.placed.offset
    for name, part, own in zip(names, source.files, offsets, strict=True):
        assert isinstance(part.file, ArchivedFile)  # noqa: S101 - who made the checkpoint looked
        assert part.file.original is not None  # noqa: S101 - the same
        pieces = tuple(part.file.plain())
        files.append(OutputFile(name, FileLayout(part.file.original.size, pieces, own, part.header.metadata)))
    return tuple(files), _texts(jobs, files, request.checkpoint, index) if request.container == "folder" else ()


def fingerprinted(file: OutputFile, fingerprint: str) -> OutputFile:
    """A safetensors file of a plan with the plan's fingerprint in its header, if that records anything."""
    metadata = record.with_plan(file.layout.metadata, fingerprint)
    return (
        file
        if metadata == file.layout.metadata
        else replace(file, layout=safetensors.relabelled(file.layout, metadata))
    )


def with_base(file: OutputFile, fingerprint: str) -> OutputFile:
    """A safetensors file of a plan with what its base is known by in its header, if it has one."""
    metadata = record.with_base(file.layout.metadata, fingerprint)
    if metadata == file.layout.metadata:
        return file
    return replace(file, layout=safetensors.relabelled(file.layout, metadata))


def _check_growth(stored: dialects.Stored, files: Sequence[OutputFile]) -> None:
    """OutputError where the parts would stand for more than readers believe that a file can."""
    most = growth.most(sum(file.layout.size for file in files))
    if sum(spec.nbytes for spec, _ in stored) > most:
        raise OutputError(
            f"would stand for more than {growth.FREE >> 20} MiB and {growth.GROWTH} times its own size, which no "
            "reader here believes",
            tensor=max(stored, key=lambda one: one[0].nbytes)[0].name,
            remedy="Store it dense",
        )


def carried_over(
    checkpoint: Checkpoint, container: Container, texts: Texts, recipe: Recipe
) -> tuple[tuple[str, ...], tuple[tuple[str, str], ...]]:
    """The input's other files: those that go along, and those that stay behind with the reason. An adapter goes
    alone."""
    if makes_adapter(recipe.stages):
        return (), ()
    carried = tuple(name for name in checkpoint.source.carried if name not in dict(texts))
    left = tuple(checkpoint.source.left.items())
    if checkpoint.compression:
        why = "says how the source's weights were quantized"
        left += tuple((name, why) for name in carried if name in dialects.SIDECARS)
        carried = tuple(name for name in carried if name not in dialects.SIDECARS)
    if container != "folder":
        why = "a .gguf has no place for it" if container == "gguf" else f"a single .{container} holds tensors only"
        left += tuple((name, why) for name in carried)
        carried = ()
    return carried, left


def _origins(request: PlanRequest, number: int) -> range:
    """The numbers of the input's files whose tensors go to a file of the output: one of a folder's, or all."""
    source = request.checkpoint.source
    alike = request.container == source.kind == "folder" and request.max_shard_size is None
    return range(number, number + 1) if alike else range(len(source.files))


def _names(request: PlanRequest, jobs: Sequence[Job]) -> tuple[list[str], str]:
    """What the files of weights are called, and the index ("" where there is none)."""
    source = request.checkpoint.source
    if request.container != "folder":
        return [request.output_name], ""
    own = [file.name for file in source.files] if source.kind == "folder" else [SINGLE]
    if request.max_shard_size is None:
        return own, source.index
    return shard_names(1 + max((job.file for job in jobs), default=0), own)


def _kept_metadata(checkpoint: Checkpoint, origins: range) -> dict[str, str]:
    """What the input's own headers say."""
    files = [checkpoint.source.files[one] for one in origins]
    return {key: value for file in files for key, value in file.header.metadata.items()}


def _metadata(metadata: Mapping[str, str], form: str | None) -> dict[str, str]:
    """The input's metadata without its record, and the `format` that loaders of the codes go by, else the
    input's."""
    kept = {key: value for key, value in metadata.items() if key != RECORD}
    kept.setdefault("format", "pt")
    kept["format"] = form or kept["format"]
    return kept


def _record(
    checkpoint: Checkpoint, origins: range, jobs: Sequence[Job], stages: Stages, fingerprint: str
) -> dict[str, str]:
    """What a file of these jobs says of how it was made."""
    records = [checkpoint.records[one] for one in origins]
    earlier = next((one.stages for one in records if one.stages), ())
    if stages:
        stored = [(job.spec, job.encoder) for job in jobs if job.encoder is not None]
        return record.to_metadata([*earlier, *stages], stored, checkpoint.identity, fingerprint)
    if earlier and not checkpoint.compression:
        return record.to_metadata(earlier, ())
    return {}


def _npz_layout(job: Job, stages: Stages, checkpoint: Checkpoint, fingerprint: str) -> FileLayout:
    members = [
        (part.suffix.lstrip(".") or "weight", spec) for part, spec in zip(job.parts, job.part_specs, strict=True)
    ]
    listed = [[member, spec.name, spec.dtype, spec.shape] for member, spec in members]
    stored = [(job.spec, job.encoder)] if job.encoder is not None else []
    texts = {} if job.encoder is None else {name: text.decode() for name, text in job.encoder.members.items()}
    more = {"texts": texts} if texts else {}
    said = record.to_metadata(stages, stored, checkpoint.identity, fingerprint, members=listed, **more)
    from compressor.files import npz

    return npz.layout(members, said[RECORD].encode(), texts)


def _texts(jobs: Sequence[Job], files: Sequence[OutputFile], checkpoint: Checkpoint, index: str) -> Texts:
    """config.json where it changes, then the index of that name."""
    source = checkpoint.source
    texts = list(source.texts.items())
    packed = [(job.spec, job.encoder) for job in jobs if job.encoder is not None]
    changed = source.config_name not in source.carried  # by a structured cut
    if source.config is not None and (packed or checkpoint.compression or changed):
        dense = [job.spec for job in jobs if job.encoder is None]
        config = dialects.configure(source.config, packed, dense) if packed else dialects.without(source.config)
        texts.append((source.config_name, json_bytes(config)))
    as_it_was = checkpoint.stored or checkpoint.verbatim
    if index and as_it_was and source.own_index is not None:
        texts.append((index, source.own_index.read(0, source.own_index.size)))
    elif index:
        names = {
            spec.name: files[job.file].name.removeprefix(source.inside) for job in jobs for spec in job.part_specs
        }
        metadata = {
            key: value
            for key, value in source.index_metadata.items()
            if key != "total_parameters" or not checkpoint.cuts
        }
        texts.append((index, index_bytes(names, sum(job.size_after for job in jobs), metadata)))
    return tuple(texts)
