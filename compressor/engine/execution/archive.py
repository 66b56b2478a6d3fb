"""`store = archive`: the finished files of an output are entropy-coded before the output gets its name."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from hashlib import sha256
from itertools import pairwise
from typing import Any, NamedTuple

from compressor.checkpoint import record
from compressor.checkpoint.checkpoint import Checkpoint, Tensor
from compressor.core.errors import InputError, UsageError
from compressor.core.lazy import np
from compressor.core.metrics import Change, count_stored_zeros
from compressor.core.parallel.threads import in_order, local
from compressor.core.tensor import DTYPES
from compressor.core.workspace import Array, Workspace
from compressor.engine.plan.plan import Job, Plan
from compressor.files import archive, safetensors
from compressor.files.archive import ArchivedFile, chunk_shape, chunks_of, rows_of
from compressor.files.archive_regions import Regions, regions_of
from compressor.files.archive_writing import ArchiveWriter
from compressor.files.entropy.checksum import crc32
from compressor.files.entropy.chunk import encode_chunk
from compressor.files.entropy.elements import Form, delta_form, likely_form, possible
from compressor.files.input_file import InputFile
from compressor.files.layout import Container, Placed
from compressor.files.output import Output
from compressor.files.source import Source, StoredTensor
from compressor.files.suffixes import PICKLES, READERS
from compressor.recipe.archive_store import Effort

_READ = 8 << 20  # bytes that are hashed at once
_SAMPLE = 1 << 16  # bytes that tell the form of a tensor
_NOTE = "an archive: `compressor restore` gives its tensors back; loaders do not read it"
_OF_BASE = (
    "an archive against a base: `compressor restore` gives its files back, with --base; loaders do not read it"
)


@dataclass(frozen=True)
class Coding:
    """How tensors are coded: with which effort, and against which tensors of a base, by their names."""

    effort: Effort
    bases: Mapping[str, StoredTensor] = field(default_factory=dict)


def as_stored(checkpoint: Checkpoint, container: Container) -> Checkpoint:
    """The input without an eye on what its tensors are parts of, for an archive of it as it is."""
    source = checkpoint.source
    if source.kind == "gguf" and (container == "folder" or len(source.files) > 1):
        raise UsageError(
            "an archive of a .gguf is one file, of one file",
            remedy="Let the output end in .safetensors"
            if container == "folder"
            else "Join the parts with llama-gguf-split --merge",
        )
    if container != source.kind and checkpoint.compression and source.config is not None:
        raise UsageError("a single file would lose the config.json that tells of its codes", remedy="Name a folder")
    tensors = {
        name: Tensor(stored.spec, {"": stored}, source.file_of[name]) for name, stored in source.tensors.items()
    }
    if container == "folder":
        source = with_others(source)
    return replace(checkpoint, source=source, tensors=tensors, compression="", dropped=(), stored=True)


def as_it_was(checkpoint: Checkpoint, container: Container) -> Checkpoint | None:
    """The input as files that come back byte for byte, whose tensors are the regions of these; None unless all are
    archives of such files."""
    source = checkpoint.source
    if container not in (source.kind, "file"):
        return None
    found: dict[str, Tensor] = {}
    files, kinds = [], set[str]()
    for number, part in enumerate(source.files):
        file = part.file
        if not isinstance(file, ArchivedFile) or file.original is None:
            return None
        kinds.add(file.original.suffix)
        inside, _, name = part.name.rpartition("/")
        called = os.path.join(inside, file.original.name or name)
        files.append(replace(part, name=called))
        regions = [Placed(one.spec, one.begin) for one in file.entries if one is not file.original.plain]
        empty = [one for one in part.header.tensors if not one.spec.nbytes]
        for one in (*regions, *(Placed(one.spec, one.offset) for one in empty)):
            title = one.spec.name if one.spec.name not in found else f"{called}: {one.spec.name}"
            stored = StoredTensor(file, replace(one, spec=replace(one.spec, name=title)))
            found[title] = Tensor(stored.spec, {"": stored}, number)
    if container == "folder" and not (kinds == {".safetensors"} or kinds <= {*PICKLES}):
        return None
    tensors = {name: found[name] for name in sorted(found)}
    # the index of pickles lies beside that of their archives
    source = replace(with_others(source), files=tuple(files))
    if kinds != {".safetensors"}:
        source = replace(source, index="", own_index=None)
    return replace(checkpoint, source=source, tensors=tensors, compression="", dropped=(), verbatim=True)


def with_others(source: Source) -> Source:
    """A folder with the files that lie in it beside what is read: weights in other formats, and indices of such."""
    taken = {*(part.name for part in source.files), source.index}
    others = {name: opened() for name, opened in source.others.items() if name not in taken}
    left = {name: why for name, why in source.left.items() if name not in others}
    return replace(source, carried={**source.carried, **others}, left=left)


@dataclass
class Archiving:
    """Archives in the place of the container files that `sink` has, in this `way`: of the tensors that these
    hold or, where a `checkpoint` is given, of its own as they lie there. `plan` has the sizes that came of it and
    `changes` the zeros, of each of its jobs."""

    sink: Output
    plan: Plan
    way: Coding
    workers: int
    checkpoint: Checkpoint | None = None
    progress: Callable[[int], None] | None = None
    changes: list[Change] = field(init=False)

    def __post_init__(self) -> None:
        self.changes = [Change() for _ in self.plan.jobs]

    def code(self, files: Mapping[int, Sequence[Job]]) -> None:
        """Put an archive in the place of each of these files, by their numbers, of some of its jobs. OutputError
        where writing fails."""
        sink, plan, checkpoint = self.sink, self.plan, self.checkpoint
        coded: dict[str, int] = {}
        changes: dict[str, Change] = {}
        archived = list(plan.files)
        with local(self.workers) as executor:
            for number, mine in files.items():
                file = plan.files[number]
                name = sink.layouts[number][0]
                with ExitStack() as used:
                    if checkpoint is None:
                        written = used.enter_context(sink.reading(name))
                        header = safetensors.read_header(written)
                        held = {spec.name for job in mine for spec in job.part_specs}
                        placed = [one for one in header.tensors if one.spec.name in held]
                        stored, metadata = [StoredTensor(written, one) for one in placed], header.metadata
                        original = None
                    else:
                        metadata = file.layout.metadata
                        original = _AsItIs.of(checkpoint, plan, number)
                        stored = (
                            [checkpoint.tensors[job.spec.name].whole for job in mine]
                            if original is None
                            else original.regions_among(mine, plan.by_file[number])
                        )
                    writer = ArchiveWriter(used.enter_context(sink.rewriting(name)))
                    hashed = None if original is None else executor.submit(original.sha256)
                    for tensor, change in _archive(
                        stored, writer, self.way, executor, self.workers + 2, as_it_is=original is not None
                    ):
                        changes.setdefault(tensor, Change()).merge(change)
                        self._tell(change.size * DTYPES[writer.tensors[tensor][0]].bits // 8)
                    if original is not None and hashed is not None:
                        original.add(writer, hashed.result(), self.way.effort)
                        writer.finish({})
                        for tied, first in original.regions.shared.items():
                            changes.setdefault(tied, Change()).merge(changes.get(first, Change()))
                    else:
                        _finish(writer, metadata, name)
                    coded |= writer.coded()
                with sink.reading(name) as finished:
                    archived[number] = replace(file, layout=replace(file.layout, size=finished.size))
        done = {job.spec.name for mine in files.values() for job in mine}
        counted = (
            replace(job, coded=sum(coded.get(spec.name, 0) for spec in job.part_specs))
            if job.spec.name in done
            else job
            for job in plan.jobs
        )
        for job, change in zip(plan.jobs, self.changes, strict=True):
            change.merge(changes.get(job.spec.name, Change()))
        self.plan = replace(plan, files=tuple(archived), jobs=tuple(counted))

    def _tell(self, nbytes: int) -> None:
        if self.progress is not None:
            self.progress(nbytes)


def merge_archives(sink: Output, name: str, parts: Sequence[InputFile]) -> None:
    """Write the archive `name` of the tensors that several archives of the same file have. InputError for one that
    is damaged, OutputError where writing fails."""
    found = [archive.directory_of(part, safetensors.read_header(part)) for part in parts]
    every = sorted(
        ((entry, part) for part, own in zip(parts, found, strict=True) for entry in own.entries),
        key=lambda one: one[0].spec.name,
    )
    original = found[0].original
    with sink.rewriting(name) as fd:
        writer = ArchiveWriter(fd)
        for entry, part in every:
            writer.begin(entry.spec, entry.form.text, None if original is None else entry.begin)
            for chunk in _chunks(entry, part):
                writer.add(entry.spec.name, chunk)
        if original is None:
            _finish(writer, found[0].metadata, name)
        else:
            writer.original(original.said, original.plain.form.text, list(_chunks(original.plain, parts[0])))
            writer.finish({})


def _chunks(entry: archive.Entry, part: InputFile) -> Iterator[bytes]:
    """The coded chunks of a tensor of an archive."""
    for begin, end in pairwise(entry.places):
        yield part.read(begin, end - begin)


# ---- files as they are ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class _AsItIs:
    """A file of the input that an output file is to be the archive of, and what its container is."""

    file: InputFile
    said: Mapping[str, Any]
    size: int
    regions: Regions

    @classmethod
    def of(cls, checkpoint: Checkpoint, plan: Plan, number: int) -> _AsItIs | None:
        """The file of this number; None where the output's has other tensors."""
        source = checkpoint.source
        alike = len(source.files) == len(plan.files) and len(source.tensors) == len(plan.jobs)
        if not alike or any(job.file != source.file_of[job.spec.name] for job in plan.jobs):
            return None
        file, header = source.files[number].file, source.files[number].header
        name = os.path.basename(file.path)
        suffix, size = os.path.splitext(name)[1].lower(), file.size
        if isinstance(file, ArchivedFile):
            if file.original is None:
                return None
            suffix, size, name = file.original.suffix, file.original.size, file.original.name
        if suffix not in READERS:  # a blob of a cache, whose name is its content's
            return None
        called = source.kind == "folder" and suffix in PICKLES and name
        said = {"suffix": suffix, "size": size, **({"name": name} if called else {})}
        return cls(file, said, size, regions_of(header.tensors, size))

    def regions_among(self, mine: Sequence[Job], all_of_it: Sequence[Job]) -> list[StoredTensor]:
        """The regions for an archive of some jobs of the file, by name: theirs, and with its first job those of no
        tensor."""
        own = {job.spec.name for job in mine}
        if not all_of_it or all_of_it[0].spec.name in own:
            own |= self.regions.unnamed
        named = sorted(self.regions.placed, key=lambda one: one.spec.name)
        return [StoredTensor(self.file, one) for one in named if one.spec.name in own]

    def sha256(self) -> str:
        """The SHA-256 of all of it."""
        return _sha256(self.file, self.size)

    def add(self, writer: ArchiveWriter, digest: str, effort: Effort) -> None:
        """Add to an archive of its tensors what makes it one of this very file."""
        runs = ((one.offset, one.offset + one.spec.nbytes) for one in self.regions.placed if one.spec.nbytes)
        pieces = archive.between(runs, self.size)
        plain = archive.plain_spec(sum(end - begin for begin, end in pieces))
        raw = np.empty(plain.nbytes, np.uint8)
        done = 0
        for begin, end in pieces:
            self.file.read_into(raw[done : done + end - begin].data, begin)
            done += end - begin
        form, each = possible("U8")[0], archive.chunk_shape(plain, 0)[1]
        starts = range(0, plain.nbytes, max(each, 1))
        chunks = [encode_chunk(raw[None, start : start + each], form, effort) for start in starts]
        writer.original({**self.said, "sha256": digest}, form.text, chunks)


def _sha256(file: InputFile, size: int) -> str:
    total, buffer = sha256(), bytearray(_READ)
    for offset in range(0, size, _READ):
        view = memoryview(buffer)[: min(_READ, size - offset)]
        file.read_into(view, offset)
        total.update(view)
    return total.hexdigest()


def check_original(sink: Output, number: int, checkpoint: Checkpoint) -> None:
    """InputError unless a file that was written is that which the archive of it as it was is of."""
    (name, layout), source = sink.layouts[number], checkpoint.source.files[number]
    assert isinstance(source.file, ArchivedFile)  # noqa: S101 - as it was found to be
    assert source.file.original is not None  # noqa: S101 - the same
    with sink.reading(name) as written:
        if _sha256(written, layout.size) != source.file.original.sha256:
            raise InputError(
                "is damaged in the archive: the file in it has another SHA-256",
                file=source.file.path,
                remedy="Archive or download it again",
            )


def _finish(writer: ArchiveWriter, metadata: Mapping[str, str], name: str) -> None:
    said = record.from_metadata(metadata, name).tensors
    writer.finish(metadata, sum(spec.nbytes for spec, _ in said))


def noted(plan: Plan, *, dry: bool, based: bool = False) -> Plan:
    """The plan with what is to be known of archives."""
    more = ("sizes are those before entropy coding, which only a run can tell",) if dry else ()
    return replace(plan, notes=(*plan.notes, _OF_BASE if based else _NOTE, *more))


def _archive(
    stored: Sequence[StoredTensor],
    writer: ArchiveWriter,
    way: Coding,
    executor: Executor,
    window: int,
    *,
    as_it_is: bool,
) -> Iterator[tuple[str, Change]]:
    """Write the chunks of these tensors, and where they lie if the file is to come `as_it_is`; of each chunk its
    tensor's name, and how many zeros it has."""
    bases = {one.spec.name: way.bases[one.spec.name] for one in stored if _is_as_in(way.bases, one)}
    forms = {one.spec.name: delta_form(one.spec.dtype) if one.spec.name in bases else _form(one) for one in stored}

    def tasks() -> Iterator[partial[_Coded]]:
        for one in stored:
            name = one.spec.name
            for number in range(chunks_of(one.spec, forms[name])):
                yield partial(_chunk, one, bases.get(name), number, forms[name], way.effort)

    for one in stored:
        name = one.spec.name
        writer.begin(one.spec, forms[name].text, one.placed.offset if as_it_is else None, based=name in bases)
    for done in in_order(executor, tasks(), window):
        writer.add(done.name, done.chunk, done.check)
        yield done.name, done.change


def _is_as_in(bases: Mapping[str, StoredTensor], one: StoredTensor) -> bool:
    base = bases.get(one.spec.name)
    return base is not None and base.spec.shape == one.spec.shape


def _form(stored: StoredTensor) -> Form:
    """How a tensor is best seen, from some of its first rows."""
    if not stored.spec.nbytes:
        return possible(stored.spec.dtype)[0]
    rows, width = chunk_shape(stored.spec, 0)
    return likely_form(_read(stored, 0, (min(rows, max(1, _SAMPLE // width)), width)), stored.spec.dtype)


class _Coded(NamedTuple):
    """A chunk of a tensor, what is to be told of it, and the CRC-32 of the base's where it has one."""

    name: str
    chunk: bytes
    change: Change
    check: int = 0


def _chunk(stored: StoredTensor, base: StoredTensor | None, number: int, form: Form, effort: Effort) -> _Coded:
    spec = stored.spec
    _, width, each = rows_of(spec, form)
    place, shape = number * each * width, chunk_shape(spec, number, form)
    data = _read(stored, place, shape)
    storage = DTYPES[spec.dtype].storage
    zeros = count_stored_zeros(data.view(storage), spec, Workspace()) if storage else 0
    change = Change(data.size * 8 // DTYPES[spec.dtype].bits, zeros, zeros)
    if base is None:
        return _Coded(spec.name, encode_chunk(data, form, effort), change)
    from compressor.files.entropy.deltas import encode_delta  # here because few archives have a base

    other = _read(base, place, shape)
    chunk = encode_delta(data, other, form, possible(spec.dtype)[0], effort)
    return _Coded(spec.name, chunk, change, crc32(other))


def _read(stored: StoredTensor, offset: int, shape: tuple[int, int]) -> Array:
    """Bytes of a tensor from a place in it, as rows."""
    if not stored.contiguous:
        return _gathered(stored, offset, shape)
    data: Array = np.empty(shape, np.uint8)
    stored.file.read_into(data.reshape(-1).data, stored.placed.offset + offset)
    return data


def _gathered(stored: StoredTensor, offset: int, shape: tuple[int, int]) -> Array:
    """The same of a tensor that lies in another order: out of whole rows of it."""
    _, columns = stored.spec.matrix
    width, end = columns * DTYPES[stored.spec.dtype].bits // 8, offset + shape[0] * shape[1]
    first = offset // width
    rows = stored.read_rows(columns, first, -(-end // width), Workspace(), "rows")
    return rows.reshape(-1).view(np.uint8)[offset - first * width : end - first * width].reshape(shape)
