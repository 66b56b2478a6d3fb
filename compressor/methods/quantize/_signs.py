"""What `binary` and `ternary` share: one positive scale for a row or a group of a row, and signs as codes."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from compressor.core.errors import UsageError
from compressor.core.floats import epsilon, largest, narrow, smallest, widen
from compressor.core.lazy import np
from compressor.core.tensor import DTYPES, TensorSpec
from compressor.core.workspace import Array, Workspace
from compressor.methods.contract import Block, PlainEncoder
from compressor.methods.options import option
from compressor.methods.parts import Part

_PIECE = 1 << 17  # weights whose scales are fitted at a time, in float64


@dataclass(frozen=True)
class Signs(PlainEncoder):
    """Each weight becomes its sign, or nothing, times a scale."""

    verb: ClassVar[str] = "quantize"
    rows_alone: ClassVar[bool] = True

    granularity: Literal["channel", "group"] | None = option(
        None, help="what shares a scale; unset: group with a group size, else channel"
    )
    group_size: int | None = option(None, help="weights of a row that share a scale; unset: 128", low=1, high=2**31)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.group_size is not None and self.granularity == "channel":
            raise UsageError("group_size has no meaning with granularity channel")

    @abstractmethod
    def row_bytes(self, columns: int) -> int:
        """Bytes of a row of codes."""

    @abstractmethod
    def fit(self, grouped: Array, work: Workspace) -> Array:
        """The scale of each group of weights [rows, groups, size], float64 [rows, groups]; 0 where all are zero."""

    @abstractmethod
    def to_codes(self, grouped: Array, scale: Array, codes: Array, signs: Array, work: Workspace) -> None:
        """Fill `codes` (uint8) and `signs` (floats: −1, 0 or 1), both shaped like `grouped` [rows, groups, size],
        for scales [rows, groups, 1]."""

    @abstractmethod
    def store_codes(self, codes: Array, packed: Array, work: Workspace) -> None:
        """Pack codes [rows, columns] into bytes [rows, row_bytes]."""

    @abstractmethod
    def load_signs(self, packed: Array, signs: Array, spec: TensorSpec, work: Workspace) -> None:
        """Undo `store_codes`: the signs, as floats [rows, columns]. InputError where a code is none."""

    def group(self, spec: TensorSpec) -> int:
        """Weights of a row that share a scale. Raises UsageError when they do not divide the row."""
        columns = spec.matrix[1]
        if self.granularity == "channel" or (self.granularity is None and self.group_size is None):
            return columns
        group = self.group_size or 128
        if columns % group:
            fits = [size for size in range(min(columns, 4 * group, 1 << 16), 0, -1) if columns % size == 0]
            raise UsageError(
                f"group size {group} does not divide the row of {columns}",
                tensor=spec.name,
                remedy=f"These would: {', '.join(map(str, fits[:8]))}; "
                "or use --granularity channel, or --exclude it",
            )
        return group

    def parts(self, spec: TensorSpec) -> tuple[Part, ...]:
        rows, columns = spec.matrix
        groups = columns // self.group(spec) if columns else 1
        return (
            Part(".codes", "U8", (rows, self.row_bytes(columns))),
            Part(".scale", _scale_dtype(spec), (rows, groups)),
        )

    def bound(self, largest: float, spec: TensorSpec) -> float:
        """A scale is a mean of magnitudes, so neither it nor a weight is further from zero than the largest."""
        return largest * (1 + 4 * epsilon(spec.dtype)) + 2 * smallest(spec.dtype)

    def encode(self, block: Block, parts: Mapping[str, Array] | None, restored: Array) -> None:
        values, spec, work = block.values, block.spec, block.work
        shape = (len(values), -1, max(self.group(spec), 1)) if values.size else (*values.shape, 1)
        grouped = values.reshape(shape)
        step = max(_PIECE // max(values.shape[1], 1), 1)
        pieces = [self.fit(grouped[start : start + step], work) for start in range(0, len(values), step)]
        stored = _store_scale(np.concatenate(pieces), spec)
        scale = widen(stored, _scale_dtype(spec), Workspace()).astype(values.dtype, copy=False)[..., None]
        codes = work.array("signs.codes", values.shape, "|u1")
        self.to_codes(grouped, scale, codes.reshape(grouped.shape), restored.reshape(grouped.shape), work)
        if parts is not None:
            self.store_codes(codes, parts[".codes"], work)
            parts[".scale"][...] = stored
        np.multiply(restored.reshape(grouped.shape), scale, out=restored.reshape(grouped.shape))

    def decode(self, parts: Mapping[str, Array], spec: TensorSpec, out: Array, start: int, work: Workspace) -> None:
        self.load_signs(parts[".codes"], out, spec, work)
        scale = widen(parts[".scale"], _scale_dtype(spec), work, "signs.scale").astype(out.dtype, copy=False)
        grouped = out.reshape(*scale.shape, -1) if out.size else out[..., None]
        np.multiply(grouped, scale[..., None], out=grouped)


def _store_scale(scale: Array, spec: TensorSpec) -> Array:
    """Rounded to the type that it is stored in, and never zero."""
    dtype = _scale_dtype(spec)
    wanted = np.clip(scale, smallest(dtype), largest(spec.dtype)).astype(DTYPES[dtype].compute)
    stored = np.empty(scale.shape, DTYPES[dtype].storage)
    narrow(np.maximum(wanted, smallest(dtype)), dtype, stored)
    return stored


def _scale_dtype(spec: TensorSpec) -> str:
    return "F32" if spec.dtype.startswith("F8") else spec.dtype
