"""Rows of a tensor: read, decoded or computed block by block."""

from __future__ import annotations

from compressor.checkpoint.checkpoint import Tensor
from compressor.core.errors import InputError
from compressor.core.floats import add_base, is_float, settle_counted, widen_counted
from compressor.core.tensor import DTYPES
from compressor.core.workspace import Array, Workspace
from compressor.files.source import StoredTensor
from compressor.methods.parts import Part


class Rows:
    """Some consecutive rows of a tensor, read from disk and turned into numbers block by block.

    Numbers are read when their block is wanted, into memory that is still in cache; what lies otherwise (parts,
    Fortran order) is read at once.
    """

    def __init__(self, tensor: Tensor, columns: int, start: int, stop: int, work: Workspace, key: str) -> None:
        self.tensor, self.columns, self.start, self.work, self.key = tensor, columns, start, work, key
        self.counted: tuple[float, int] | None = None  # Σ w² and zeros of the last block, where known
        self.settled: Array | None = None  # the last block's numbers as the tensor's dtype has them, if made so
        if tensor.encoder is None:
            if not tensor.seekable:
                self.raw, self.first = self._raw(start, stop), start
            return
        self.base = None if tensor.base is None else Rows(tensor.base, columns, start, stop, work, f"{key}.base")
        self.declared = tensor.encoder.parts(tensor.spec)
        rows = tensor.spec.size // max(columns, 1)
        self.read = {
            part.suffix: _read_part(tensor, part, rows, (start, stop), work, f"{key}.raw{part.suffix}")
            for part in self.declared
        }

    def stored(self, start: int, stop: int) -> Array | None:
        """Rows of the last block as they lie in the file; None where they are parts of an encoder."""
        return None if self.tensor.encoder is not None else self.raw[start - self.first : stop - self.first]

    def views(self, start: int, stop: int) -> dict[str, Array]:
        """Rows [start, stop) of the parts of an encoder, by suffix."""
        return {
            part.suffix: part.view(self.read[part.suffix], start - self.start, stop - self.start, self.start)
            for part in self.declared
        }

    def _raw(self, start: int, stop: int) -> Array:
        return self.tensor.whole.read_rows(self.columns, start, stop, self.work, f"{self.key}.raw")

    def block(self, start: int, stop: int) -> Array:
        """Rows [start, stop) as numbers; read-only, valid until the next block."""
        spec, work = self.tensor.spec, self.work
        if self.tensor.encoder is None:
            check_computable(self.tensor.whole)
            if self.tensor.seekable:
                self.raw, self.first = self._raw(start, stop), start
            raw = self.raw[start - self.first : stop - self.first]
            numbers, self.counted = widen_counted(raw, spec.dtype, work, self.key)
            return numbers
        parts = self.views(start, stop)
        numbers = work.array(f"{self.key}.decoded", (stop - start, self.columns), DTYPES[spec.dtype].compute)
        try:
            self.tensor.encoder.decode(parts, spec, numbers, start, work)
        except InputError as error:
            error.file = error.file or next(iter(self.tensor.parts.values())).file.path
            raise
        if self.tensor.encoder.on_base:
            self._add_base(numbers, start, stop)
        if self.tensor.encoder.exact:
            return numbers
        # a loader gives numbers of the tensor's own dtype; so do we
        self.settled = work.array(f"{self.key}.settled", numbers.shape, DTYPES[spec.dtype].storage)
        numbers, self.counted = settle_counted(numbers, spec.dtype, self.settled, work, self.key)
        return numbers

    def _add_base(self, numbers: Array, start: int, stop: int) -> None:
        """Make numbers of differences. InputError where the base is not given."""
        if self.base is None:
            raise InputError(
                "is a difference from a base, which is not given",
                file=next(iter(self.tensor.parts.values())).file.path,
                tensor=self.tensor.spec.name,
                remedy="Give it: compressor restore DELTA --base BASE -o OUTPUT",
            )
        add_base(numbers, self.base.block(start, stop), self.tensor.spec.dtype)


def check_computable(stored: StoredTensor) -> None:
    """InputError for a tensor in whose place there should be floats."""
    if not is_float(stored.spec.dtype):
        raise InputError(
            f"is {stored.spec.dtype}, where floats belong", file=stored.file.path, tensor=stored.spec.name
        )


def read_whole(tensor: Tensor) -> Array:
    """All numbers of a tensor, in the type that is computed in and in its own shape."""
    rows, columns = tensor.spec.matrix
    found: Array = Rows(tensor, columns, 0, rows, Workspace(), "whole").block(0, rows)
    return found.reshape(tensor.spec.shape)


def _read_part(tensor: Tensor, part: Part, count: int, rows: tuple[int, int], work: Workspace, key: str) -> Array:
    """What some of the `count` rows of the tensor have of a part."""
    start, stop = rows
    stored = tensor.parts[part.suffix]
    if part.every == 0:
        return stored.read_rows(part.size, 0, 1, work, key).reshape(part.shape)
    first, last = part.rows(start, stop)
    if part.bounds is not None:
        return stored.read_rows(1, int(part.bounds[first]), int(part.bounds[last]), work, key).reshape(-1)
    if part.across:
        return stored.read_columns(first, last, work, key)
    return stored.read_rows(part.size // max(part.rows(0, count)[1], 1), first, last, work, key)


CHUNK = 1 << 22  # elements written at a time: disks like long writes


BLOCK = 1 << 18  # elements read and computed on at a time: small enough for cache, large enough to be worth a call
