"""Opening an input: one `.npy`, one `.safetensors`, a `.gguf` with its parts, or a Hugging Face folder of shards.

All headers are read and checked here, before anything else happens. Data is read later, by rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any

from compressor.core.errors import InputError
from compressor.core.lazy import np
from compressor.core.tensor import DTYPES, TensorSpec
from compressor.core.workspace import Array, Workspace
from compressor.files.gguf.values import Value
from compressor.files.input_file import InputFile
from compressor.files.layout import Header, Placed


@dataclass(frozen=True)
class SourceFile:
    """One container file of an input; `name` is what it is called within a folder."""

    name: str
    file: InputFile
    header: Header


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file, readable by rows."""

    file: InputFile
    placed: Placed

    @property
    def spec(self) -> TensorSpec:
        """Name, dtype and shape of the tensor."""
        return self.placed.spec

    @property
    def contiguous(self) -> bool:
        """Whether the file holds the bytes in the order and endianness in which we write them."""
        return not self.placed.fortran and not self.placed.big_endian and self.placed.strides is None

    def read_rows(self, columns: int, start: int, stop: int, work: Workspace, key: str) -> Array:
        """Rows [start, stop) of the tensor seen as a matrix of `columns` columns, in its storage type."""
        storage = np.dtype(DTYPES[self.spec.dtype].storage)
        if self.placed.fortran:
            raw = self._gather(start, stop, work, key)
        elif self.placed.strides is not None:
            raw = self._stride(columns, start, stop, work, key)
        else:
            raw = work.array(key, (stop - start, columns), storage.str)
            offset = self.placed.offset + start * columns * storage.itemsize
            self.file.read_into(raw.reshape(-1).view(np.uint8).data, offset)
        if self.placed.big_endian:
            raw.byteswap(inplace=True)
        return raw

    def read_columns(self, start: int, stop: int, work: Workspace, key: str) -> Array:
        """Columns [start, stop) of a stored matrix, in its storage type."""
        rows, columns = self.spec.shape
        storage = np.dtype(DTYPES[self.spec.dtype].storage)
        raw = work.array(key, (rows, stop - start), storage.str)
        first = self.placed.offset + start * storage.itemsize
        runs = raw.view(np.uint8)
        self.file.read_runs((run.data, first + row * columns * storage.itemsize) for row, run in enumerate(runs))
        return raw

    def read_bytes(self, start: int, stop: int, work: Workspace, key: str) -> Array:
        """Bytes [start, stop) of the tensor as uint8, whatever its dtype."""
        raw = work.array(key, (stop - start,), "|u1")
        self.file.read_into(raw.data, self.placed.offset + start)
        return raw

    def _gather(self, start: int, stop: int, work: Workspace, key: str) -> Array:
        """Rows of a tensor whose first axis varies fastest: one short run of elements for each column."""
        shape = self.spec.shape
        columns, rows = prod(shape[1:]), stop - start
        storage = np.dtype(DTYPES[self.spec.dtype].storage)
        runs = work.array(f"{key}.runs", (columns, rows), storage.str)
        size, first = storage.itemsize, self.placed.offset + start * storage.itemsize
        self.file.read_runs(
            (run.data, first + column * shape[0] * size) for column, run in enumerate(runs.view(np.uint8))
        )
        raw = work.array(key, (rows, columns), storage.str)
        axes = tuple(range(len(shape) - 1, -1, -1))
        np.copyto(raw.reshape(rows, *shape[1:]), runs.reshape(*reversed(shape[1:]), rows).transpose(axes))
        return raw

    def _stride(self, columns: int, start: int, stop: int, work: Workspace, key: str) -> Array:
        """Rows of a tensor that is a part of a larger one: a run of the file for each row or, where rows lie closer
        to each other than columns, for each column."""
        assert self.placed.strides is not None  # noqa: S101 - who calls looked
        by_row, by_column = self.placed.strides
        storage = np.dtype(DTYPES[self.spec.dtype].storage)
        raw = work.array(key, (stop - start, columns), storage.str)
        if not raw.size:
            return raw
        first = self.placed.offset + start * by_row * storage.itemsize
        target, near, far = (raw, by_column, by_row) if by_column <= by_row else (raw.T, by_row, by_column)
        count, length = target.shape
        runs = work.array(f"{key}.runs", (count, (length - 1) * near + 1), storage.str)
        self.file.read_runs(
            (run.data, first + number * far * storage.itemsize) for number, run in enumerate(runs.view(np.uint8))
        )
        np.copyto(target, runs[:, ::near])
        return raw


@dataclass(frozen=True)
class Source:
    """An opened input. `tensors` are in the order of their names; `kind` is npy, safetensors, gguf or folder.

    `carried` are the other files of a folder that go along unchanged, by their path within it; `left` those that do
    not, with the reason. `config` is the folder's config.json, None without one. `texts` are small files that a
    structured cut has changed, by name. `index` is the name of the file that tells loaders which shard holds what,
    "" where there is one file of weights; `index_metadata` what else it said, `own_index` it itself, where it is of
    safetensors. `notes`: what of the folder is otherwise than it should be, and how it was read. `linked`: where
    links lead that nobody follows. `inside`: of a pipeline the folder of the component that is read, with a slash;
    names begin with it. `others` open what `left` names of weights in other formats, which an archive of the folder
    takes along. `fields` is the metadata of a GGUF model, or what it will be in one that is written.
    """

    path: str
    kind: str
    files: tuple[SourceFile, ...]
    tensors: Mapping[str, StoredTensor]
    file_of: Mapping[str, int]
    config: Mapping[str, Any] | None = None
    carried: Mapping[str, InputFile] = field(default_factory=dict)
    left: Mapping[str, str] = field(default_factory=dict)
    others: Mapping[str, Callable[[], InputFile]] = field(default_factory=dict)
    index: str = ""
    index_metadata: Mapping[str, Any] = field(default_factory=dict)
    own_index: InputFile | None = None
    texts: Mapping[str, bytes] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    linked: tuple[str, ...] = ()
    inside: str = ""
    fields: Mapping[str, Value] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """Bytes of the container files, headers included."""
        return sum(part.file.size for part in self.files)

    @property
    def opened(self) -> tuple[InputFile, ...]:
        """Every file that is read, wherever links in the folder lead."""
        return (*(part.file for part in self.files), *self.carried.values())

    @property
    def fetched(self) -> bool:
        """Whether any file of it is on no disk of this machine."""
        return any(file.origin is not None for file in self.opened)

    @property
    def config_name(self) -> str:
        """What the config is called among the files of the folder."""
        return f"{self.inside}config.json"

    @property
    def guarded(self) -> tuple[str, ...]:
        """Paths that no output may replace: of what is read, and of what links in the folder lead to."""
        return (*(file.path for file in self.opened), *self.linked)

    def check_unchanged(self) -> None:
        """InputError if any file was changed since it was opened."""
        for file in self.opened:
            file.check_unchanged()


def assemble(path: str, kind: str, files: tuple[SourceFile, ...], **more: Any) -> Source:
    """Join the tensors of several files into one source; InputError when a name occurs twice."""
    found: dict[str, tuple[int, StoredTensor]] = {}
    for index, part in enumerate(files):
        for placed in part.header.tensors:
            name = placed.spec.name
            if name in found:
                first = files[found[name][0]].name
                raise InputError(f"is in two shards, {first} and {part.name}", file=path, tensor=name)
            found[name] = (index, StoredTensor(part.file, placed))
    names = sorted(found)
    return Source(
        path,
        kind,
        files,
        {name: found[name][1] for name in names},
        {name: found[name][0] for name in names},
        **more,
    )
