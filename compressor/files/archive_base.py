"""The base that an archive is coded against: which of its tensors, and whether it is the one that it was."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import groupby

from compressor.core.errors import InputError, UsageError
from compressor.core.lazy import np
from compressor.core.parallel.threads import available_workers, in_order, local
from compressor.core.text import printable
from compressor.files.archive import ArchivedFile, Entry, chunk_shape, chunks_of, marked, rows_of
from compressor.files.entropy.checksum import crc32
from compressor.files.input_file import InputFile
from compressor.files.opening import open_source
from compressor.files.source import Source, SourceFile, StoredTensor

_NAMED = 3  # tensors in a note


def open_base(path: str) -> Source:
    """The checkpoint that another is coded against; any input of this tool but one that has a base itself."""
    base = open_source(path)
    if any(part.file.base for part in base.files):
        raise InputError(
            "is coded against a base itself",
            file=path,
            remedy="Restore it first: compressor restore UPDATE --base BASE -o OUTPUT",
        )
    return base


def matching(source: Source, base: Source) -> Mapping[str, StoredTensor]:
    """The tensors of a base with the name, dtype and shape of one of `source`. UsageError where there is none."""
    found = {
        name: base.tensors[name] for name, one in source.tensors.items() if _alike(one, base.tensors.get(name))
    }
    if not found and any(one.spec.nbytes for one in source.tensors.values()):
        raise UsageError(
            f"--base {printable(base.path)}: has no tensor of the name, dtype and shape of one of the input's",
            remedy="Name the checkpoint that the input was trained from",
        )
    return found


def unmatched_note(source: Source, bases: Mapping[str, StoredTensor]) -> tuple[str, ...]:
    """What is to be said of tensors that the base lacks."""
    lacking = [name for name, one in source.tensors.items() if name not in bases and one.spec.nbytes]
    if not lacking:
        return ()
    shown = ", ".join(printable(name, 60) for name in lacking[:_NAMED])
    more = f" and {len(lacking) - _NAMED} more" if len(lacking) > _NAMED else ""
    return (f"stored whole, since the base has none of that name, dtype and shape: {shown}{more}",)


def _alike(one: StoredTensor, other: StoredTensor | None) -> bool:
    if other is None or not one.spec.nbytes or not one.contiguous or not other.contiguous:
        return False
    return (one.spec.dtype, one.spec.shape) == (other.spec.dtype, other.spec.shape)


def with_base(source: Source, path: str) -> Source:
    """An input whose archives are read with the base at `path`. UsageError where it has none, InputError where that
    base is another one: every tensor that is needed of it is read for that."""
    coded = [part for part in source.files if part.file.base]
    if not coded:
        raise UsageError(f"--base {printable(path)}: the input is not coded against a base", remedy="Leave it out")
    base = open_base(path)
    files = dict(zip(map(id, coded), _bound(coded, base), strict=True))
    bound = tuple(replace(part, file=files[id(part)]) if id(part) in files else part for part in source.files)
    by_file = {id(old.file): new.file for old, new in zip(source.files, bound, strict=True)}
    tensors = {name: replace(one, file=by_file.get(id(one.file), one.file)) for name, one in source.tensors.items()}
    return replace(source, files=bound, tensors=tensors)


def _bound(coded: Sequence[SourceFile], base: Source) -> list[InputFile]:
    found: list[InputFile] = []
    wanted: list[tuple[ArchivedFile, Entry, StoredTensor]] = []
    for part in coded:
        file = part.file
        assert isinstance(file, ArchivedFile)  # noqa: S101 - others have no base
        own = [(file, entry, _of_base(file, entry, base)) for entry in file.entries if entry.mark is not None]
        found.append(replace(file, bases={entry.spec.name: one for _, entry, one in own}, kept={}))
        wanted += own
    _check_marks(wanted, base)
    return found


def _of_base(file: ArchivedFile, entry: Entry, base: Source) -> StoredTensor:
    one = base.tensors.get(entry.spec.name)
    if (
        one is None
        or not one.contiguous
        or (one.spec.dtype, one.spec.shape) != (entry.spec.dtype, entry.spec.shape)
    ):
        has = "none of that name" if one is None else f"{one.spec.dtype} {list(one.spec.shape)} of that name"
        raise _another(
            file, entry, f"{base.path} has {has}, where {entry.spec.dtype} {list(entry.spec.shape)} belongs"
        )
    return one


def _check_marks(wanted: Sequence[tuple[ArchivedFile, Entry, StoredTensor]], base: Source) -> None:
    count = available_workers()

    def tasks() -> Iterator[partial[tuple[int, int]]]:
        for at, (_, entry, one) in enumerate(wanted):
            for number in range(chunks_of(entry.spec, entry.form)):
                yield partial(_check, at, entry, one, number)

    with local(count) as executor:
        for at, checks in groupby(in_order(executor, tasks(), 2 * count), key=lambda pair: pair[0]):
            mark = 0
            for _, check in checks:
                mark = marked(mark, check)
            file, entry, _ = wanted[at]
            if mark != entry.mark:
                raise _another(file, entry, f"{base.path} has other numbers there")


def _check(at: int, entry: Entry, one: StoredTensor, number: int) -> tuple[int, int]:
    _, width, each = rows_of(entry.spec, entry.form)
    rows = np.empty(chunk_shape(entry.spec, number, entry.form), np.uint8)
    one.file.read_into(rows.reshape(-1).data, one.placed.offset + number * each * width)
    return at, crc32(rows)


def _another(file: ArchivedFile, entry: Entry, reason: str) -> InputError:
    return InputError(
        f"is coded against another base: {printable(reason, 300)}",
        file=file.path,
        tensor=entry.spec.name,
        remedy="Give the base that it was made with",
    )
