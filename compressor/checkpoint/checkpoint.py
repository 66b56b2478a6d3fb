"""An input as its user thinks of it: tensors by their own names, whether a file stores them as numbers or as
the parts of an encoder.

Stored parts are recognised by our own metadata, or in a folder by compressed-tensors' `quantization_config`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import lcm

from compressor.architectures.groups import Coupled
from compressor.architectures.roles import Role
from compressor.architectures.roles_by_model import roles_by_model
from compressor.checkpoint import dialects, record
from compressor.core.errors import InputError, UsageError
from compressor.core.tensor import TensorSpec
from compressor.core.workspace import Workspace
from compressor.files.growth import FREE, GROWTH, most
from compressor.files.identity import Identity, unknown
from compressor.files.opening import open_source
from compressor.files.source import Source, StoredTensor
from compressor.methods.contract import Decoder, Indexed
from compressor.methods.parts import Part


@dataclass(frozen=True)
class Tensor:
    """A tensor of the input. `parts` by suffix, which its `encoder` decodes; without one there is one part, the
    tensor itself. `base` is the tensor to whose numbers those that are decoded are added, where they are
    differences."""

    spec: TensorSpec
    parts: Mapping[str, StoredTensor]
    file: int
    encoder: Decoder | None = None
    kept: bool = False  # whether its parts go into the output as they are, where nothing is done to it
    base: Tensor | None = None

    @property
    def whole(self) -> StoredTensor:
        """The tensor as it lies in the file, where it is stored as numbers."""
        return self.parts[""]

    @property
    def nbytes(self) -> int:
        """Bytes of its parts in the input."""
        return sum(part.spec.nbytes for part in self.parts.values())

    @property
    def seekable(self) -> bool:
        """Whether elements can be read from anywhere, and not only whole rows."""
        return self.encoder is None and self.whole.contiguous

    @property
    def align(self) -> int:
        """Blocks of the tensor begin at multiples of this many rows."""
        own = 1 if self.encoder is None else max(part.every or 1 for part in self.encoder.parts(self.spec))
        return own if self.base is None else lcm(own, self.base.align)


@dataclass(frozen=True)
class Checkpoint:
    """An opened input: `tensors` by name, in order; `compression` says in words how parts are stored, `cuts` what
    structured cuts have left out of it.

    `fused`: tensors of the file in whose place parts of them stand here (see `experts`), and the names of these;
    `notes`: what the user should know about it.
    """

    source: Source
    tensors: Mapping[str, Tensor]
    records: tuple[record.Record, ...]
    compression: str = ""
    cuts: tuple[Coupled, ...] = ()
    fused: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    verbatim: bool = False  # whether its files come back from archives as they were, byte for byte
    stored: bool = False  # whether tensors are taken as they lie there, whatever they are parts of
    identity: Identity = ("sha256", "0" * 64)  # what the input is known by; zeros as long as nobody has looked
    upright: frozenset[str] = frozenset()  # Conv1D weights that are [out, in] here and [in, out] in the file
    dropped: tuple[str, ...] = ()  # tensors of the source that mean nothing once its weights are numbers
    lossy: bool = False  # whether numbers here are what codes of the source stand for, by tensors of other names
    base: Source | None = None  # the input that tensors here are differences from

    @property
    def path(self) -> str:
        """The path that the user gave."""
        return self.source.path

    @cached_property
    def roles(self) -> Mapping[str, Role]:
        """What tensors are by the model that they are in, where their names alone do not tell."""
        return roles_by_model(self.source.config, self.tensors.keys())


def open_checkpoint(path: str | os.PathLike[str], component: str = "", *, base: str | None = None) -> Checkpoint:
    """Open an input (of a pipeline of diffusers one component) and recognise what it stores; `base` is the path of
    the checkpoint that its archives are coded against. InputError when parts contradict what is said of them."""
    source = open_source(path, component)
    if base is not None:
        from compressor.files.archive_base import with_base  # here because few inputs have one

        source = with_base(source, base)
    records = tuple(record.from_metadata(part.header.metadata, part.file.path) for part in source.files)
    stored: Sequence[tuple[TensorSpec, Decoder | Indexed]] = [pair for each in records for pair in each.tensors]
    own = bool(stored)
    compression, left = "packed by compressor" if own else "", frozenset[str]()
    if not own:
        compression, stored, left = dialects.read(source)
    tensors = {
        name: Tensor(tensor.spec, {"": tensor}, source.file_of[name]) for name, tensor in source.tensors.items()
    }
    used = set(left)
    found: dict[str, Tensor] = {}
    total = 0
    for spec, reader in stored:
        tensor = _stored_tensor(source, spec, reader)
        total += spec.nbytes
        _check_growth(source, spec, total)
        used |= {part.spec.name for part in tensor.parts.values()}
        if spec.name in found or (spec.name in source.tensors and "" not in tensor.parts):
            raise InputError("is there twice, as numbers and as codes", file=source.path, tensor=spec.name)
        found[spec.name] = tensor
    dialects.check_read(source, used)
    tensors = {name: tensor for name, tensor in tensors.items() if name not in used} | found
    ordered = {name: tensors[name] for name in sorted(tensors)}
    return Checkpoint(
        source,
        ordered,
        records,
        compression,
        notes=source.notes,
        dropped=tuple(sorted(left)),
        identity=unknown(source),
    )


def open_as_stored(path: str | os.PathLike[str]) -> Checkpoint:
    """Open an input with its tensors as they lie in the file, whatever they are parts of: to be looked at only."""
    source = open_source(path)
    tensors = {
        name: Tensor(tensor.spec, {"": tensor}, source.file_of[name]) for name, tensor in source.tensors.items()
    }
    return Checkpoint(source, tensors, (), notes=source.notes, stored=True, identity=unknown(source))


def _check_growth(source: Source, spec: TensorSpec, total: int) -> None:
    """InputError where tensors of `total` bytes, of which this is the last, are more than a file can stand for."""
    if total > most(source.nbytes):
        raise InputError(
            f"is said to be {spec.dtype} {list(spec.shape)}: no file stands for more than {FREE >> 20} MiB and "
            f"{GROWTH} times its own size",
            file=source.path,
            tensor=spec.name,
            remedy="Make or download it again",
        )


def _stored_tensor(source: Source, spec: TensorSpec, reader: Decoder | Indexed) -> Tensor:
    try:
        decoder = _indexed(source, spec, reader) if isinstance(reader, Indexed) else reader
        declared = decoder.parts(spec)
    except UsageError as error:
        raise InputError(error.reason, file=source.path, tensor=spec.name) from error
    parts = {part.suffix: _stored_part(source, spec, part) for part in declared}
    first = next(iter(parts.values()))
    return Tensor(spec, parts, source.file_of[first.spec.name], decoder)


def _indexed(source: Source, spec: TensorSpec, reader: Indexed) -> Decoder:
    """What reads the tensor, now that its index is read. UsageError where that makes no sense."""
    reader.check(spec)
    index = reader.index(spec)
    if index is None:
        return reader.indexed(spec, None)
    stored = _stored_part(source, spec, index)
    return reader.indexed(spec, stored.read_rows(index.size, 0, 1, Workspace(), "index").reshape(index.shape))


def _stored_part(source: Source, spec: TensorSpec, part: Part) -> StoredTensor:
    stored = source.tensors.get(part.name(spec.name))
    if stored is None:
        raise InputError(f"its part {part.suffix or 'codes'} is missing", file=source.path, tensor=spec.name)
    if (stored.spec.dtype, stored.spec.shape) != (part.dtype, part.shape):
        raise InputError(
            f"its part {part.suffix or 'codes'} is {stored.spec.dtype} {list(stored.spec.shape)}, "
            f"where {part.dtype} {list(part.shape)} belongs",
            file=source.path,
            tensor=spec.name,
        )
    return stored
