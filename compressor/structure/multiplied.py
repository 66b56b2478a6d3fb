"""Tensors that are read times something: what a model's weights become before they are treated."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

from compressor.errors import InputError
from compressor.files.source import StoredTensor
from compressor.floats import settle, widen
from compressor.lazy import np
from compressor.tensor import DTYPES
from compressor.workspace import Array, Workspace


@dataclass(frozen=True, eq=False)
class Multiplied(StoredTensor):
    """`origin`, which need not be stored so, with other numbers, rounded to its dtype."""

    origin: StoredTensor

    @abstractmethod
    def multiply(self, held: Array, start: int, out: Array) -> None:
        """The numbers of rows from `start` on, into `out`, of the same float type."""

    @abstractmethod
    def refusal(self) -> tuple[str, str]:
        """What numbers beyond the dtype's range are called, and what to do about them."""

    @property
    def contiguous(self) -> bool:
        return False

    def read_rows(self, columns: int, start: int, stop: int, work: Workspace, key: str) -> Array:
        dtype = self.spec.dtype
        raw = self.origin.read_rows(columns, start, stop, work, f"{key}.unscaled")
        held = widen(raw, dtype, work, f"{key}.wide")
        scaled = work.array(f"{key}.scaled", held.shape, held.dtype.str)
        out = work.array(key, held.shape, DTYPES[dtype].storage)
        with np.errstate(over="ignore", invalid="ignore"):
            self.multiply(held, start, scaled)
        if not np.isfinite(settle(scaled, dtype, out, work)).all() and np.isfinite(held).all():
            reason, remedy = self.refusal()
            raise InputError(f"leaves the range of {dtype} {reason}", tensor=self.spec.name, remedy=remedy)
        return out

    def read_bytes(self, start: int, stop: int, work: Workspace, key: str) -> Array:
        raise NotImplementedError  # nothing that is not contiguous is read so

    def read_columns(self, start: int, stop: int, work: Workspace, key: str) -> Array:
        raise NotImplementedError  # parts of encoders are never multiplied
