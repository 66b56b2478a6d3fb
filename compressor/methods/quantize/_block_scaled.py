"""What the formats of small floats with a narrow scale for every few weights of a row have in common.

A scale is one of at most 256 numbers, the *ladder*: codes of float8 over a tensor's global scale (nvfp4), or
powers of two (mxfp4, mxfp8). So the best one for a block is found by trying a few rungs of the ladder about the one
that the block's largest magnitude suggests.

The trials run on blocks that stand side by side as columns, where a compiled loop, or NumPy, adds up and compares
many blocks at a time without any strides.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from compressor.core import bitpacking as bitstream
from compressor.core import kernels
from compressor.core.errors import InputError, UsageError
from compressor.core.floats import largest as limit
from compressor.core.lazy import np
from compressor.core.tensor import TensorSpec
from compressor.core.workspace import Array, Workspace
from compressor.methods.contract import Block, Scheme
from compressor.methods.numerics import scales
from compressor.methods.numerics.compensated import by_columns
from compressor.methods.numerics.minifloat import Minifloat
from compressor.methods.options import option
from compressor.methods.parts import Part
from compressor.methods.quantize._compensating import ACT_ORDER_HELP, DAMP_HELP, METHOD_HELP, Compensating
from compressor.methods.quantize._importance import importance
from compressor.methods.quantize.int import Int


@dataclass(frozen=True)
class BlockScaled(Compensating):
    """`size` weights of a row share a scale; `element` is what a code is."""

    verb: ClassVar[str] = "quantize"
    size: ClassVar[int]
    scale_dtype: ClassVar[str]
    tried: ClassVar[tuple[int, ...]]  # rungs that the search tries, counted from the one suggested

    method: Literal["search", "absmax", "gptq"] = option("search", help=METHOD_HELP)
    damp: float | None = option(None, help=DAMP_HELP, low=0)
    act_order: bool = option(False, help=ACT_ORDER_HELP, off="plain-order")

    informed: bool = False  # a search weighs errors by the layer's inputs

    @property
    @abstractmethod
    def element(self) -> Minifloat: ...

    @abstractmethod
    def stored_scale(self, parts: Mapping[str, Array], spec: TensorSpec) -> Array:
        """The float32 number that each code of a stored scale stands for [256]."""

    first: ClassVar[int] = 0
    weights: ClassVar[Mapping[str, Any]]  # how compressed-tensors describes the scheme
    format: ClassVar[str]

    # ---- what is stored ----------------------------------------------------------------------------

    @property
    def packed(self) -> bool:
        """Whether two codes share a byte."""
        return self.element.bits == 4

    def parts(self, spec: TensorSpec) -> tuple[Part, ...]:
        """Raises UsageError when the block does not divide the row, naming what would work."""
        rows, columns = spec.matrix
        if columns % self.size:
            raise UsageError(
                f"{self.id} has blocks of {self.size}, which do not divide the row of {columns}",
                tensor=spec.name,
            )
        codes = Part("_packed", "U8", (rows, columns // 2)) if self.packed else Part("", "F8_E4M3", spec.shape)
        return codes, Part("_scale", self.scale_dtype, (rows, columns // self.size))

    def settled(self, spec: TensorSpec) -> tuple[Scheme, str]:
        """Integers of as many bits where the block does not divide the row."""
        columns = spec.matrix[1]
        if columns % self.size == 0:
            return self, ""
        nearest, _ = Int(bits=self.element.bits, informed=self.informed).settled(spec)
        why = f"since blocks of {self.size} do not divide the row of {columns}"
        return nearest, f"{nearest.label} with {nearest.shares}, {why}"

    def remark(self, spec: TensorSpec) -> str:
        if spec.dtype == "BF16" or not self.dialect(spec):
            return ""
        return (
            f"{self.id}: compressed-tensors decompresses it to bfloat16 whatever the weights were "
            "(seen with 0.20): load such a model in bfloat16"
        )

    def config(self, spec: TensorSpec) -> dict[str, Any] | None:
        if len(spec.shape) != 2:
            return None
        weights = {"type": "float", "symmetric": True, "group_size": self.size, "dynamic": False, **self.weights}
        return {
            "format": self.format,
            "weights": {"num_bits": self.element.bits, **weights},
            "input_activations": None,
            "output_activations": None,
        }

    # ---- the kernels -------------------------------------------------------------------------------

    def encode_on(
        self,
        ladder: Array,
        suggested: Callable[[Array, Workspace], Array],
        block: Block,
        parts: Mapping[str, Array] | None,
        restored: Array,
    ) -> None:
        """Encode a block by the positive scales of a `ladder`, float32 in rising order, the stored code of the
        first being `first`. `suggested` gives the rungs to begin with, for blocks of these largest magnitudes
        (float32); they may lie off the ladder."""
        values, spec, work = block.values, block.spec, block.work
        blocks = values.reshape(-1, self.size)
        high = scales.extent(blocks[None], True, restored.reshape(1, *blocks.shape))[1].reshape(-1)
        if float(high.max(initial=0)) > limit("F32"):
            raise InputError(
                f"holds weights beyond float32's range, which {self.id} cannot hold",
                tensor=spec.name,
                remedy="Use --scheme int or --scheme fp8, or --exclude it",
            )
        # no code times a scale may leave the range of the weight's dtype
        top = int(np.count_nonzero(ladder.astype(np.float64) * self.element.largest <= limit(spec.dtype))) - 1
        codes = None if parts is None else self._codes(parts, values.shape, work)
        ladder = ladder.astype(values.dtype)
        heed = importance(block, self.size, values.dtype.str) if self.informed else None

        def chosen(blocks: Array, high: Array) -> Array:
            rungs: Array = np.clip(suggested(high.astype(np.float32), work), 0, top)
            if self.method == "absmax":
                return rungs
            return self._search(blocks, rungs.astype(np.int64), ladder, top, heed, work)

        with np.errstate(all="ignore"):
            if self.by_inputs:
                rungs = self._compensated(block, ladder, chosen, codes, restored)
            else:
                rungs = chosen(blocks, high)
                scale = ladder.take(rungs)[:, None]
                flat = None if codes is None else codes.reshape(blocks.shape)
                self.element.quantize(blocks, scale, self.size, flat, restored.reshape(blocks.shape), work)
        if parts is not None and codes is not None:
            if self.packed:
                bitstream.pack(codes, 4, parts["_packed"], work)
            np.copyto(parts["_scale"], (rungs + self.first).reshape(parts["_scale"].shape), casting="unsafe")

    def _compensated(
        self,
        block: Block,
        ladder: Array,
        chosen: Callable[[Array, Array], Array],
        codes: Array | None,
        restored: Array,
    ) -> Array:
        """The rungs of all blocks [rows, blocks]; `codes` (unless None) and `restored` [rows, columns] are those of
        least error of the layer's outputs. InputError where the gram of its inputs cannot be used."""
        values, work = block.values, block.work
        kept = work.array("blocks.kept", values.shape, "|u1") if codes is None else codes

        def choose(weights: Array, first: int) -> _Columns:
            blocks = weights.reshape(-1, self.size)
            rungs = chosen(blocks, np.abs(blocks).max(axis=1)).reshape(weights.shape[:2])
            scale = ladder.take(rungs).astype(np.float64)
            return _Columns(self.element, rungs, scale, self.size, first, kept, work)

        groups = by_columns(block, values, self.size, choose, damp=self.damp, act_order=self.act_order)
        rungs = np.concatenate([group.rungs for group in groups], axis=1)
        self.element.table(restored.dtype.str).take(kept, out=restored, mode="wrap")
        grouped = restored.reshape(len(restored), -1, self.size)
        np.multiply(grouped, ladder.take(rungs)[..., None], out=grouped)
        return rungs

    def _codes(self, parts: Mapping[str, Array], shape: tuple[int, ...], work: Workspace) -> Array:
        return work.array("blocks.codes", shape, "|u1") if self.packed else parts[""].reshape(shape)

    def _search(
        self, blocks: Array, rungs: Array, ladder: Array, top: int, heed: Array | None, work: Workspace
    ) -> Array:
        """The rungs with the least squared error, each counted by `heed` [blocks, size]; of equals the lowest."""
        if heed is None and kernels.best_rungs(blocks, ladder, top, self.tried, self.element.limits, rungs):
            return rungs
        columns = work.array("blocks.columns", blocks.shape[::-1], blocks.dtype.str)
        np.abs(blocks.T, out=columns)
        quotient, rounded = (
            work.array(f"blocks.{name}", columns.shape, columns.dtype.str) for name in ("quotient", "rounded")
        )
        best, least = rungs, np.full(rungs.shape, np.inf)
        unit = ladder.take(rungs)
        for offset in self.tried:
            trial = np.clip(rungs + offset, 0, top)
            scale = ladder.take(trial)
            np.divide(columns, scale, out=quotient)
            self.element.nearest(quotient, rounded, work)
            np.subtract(quotient, rounded, out=quotient)
            np.multiply(quotient, quotient, out=quotient)
            if heed is not None:
                np.multiply(quotient, heed.T, out=quotient)
            # by halves: a fixed order, whatever the number of blocks
            rows = self.size
            while rows > 1:
                rows //= 2
                np.add(quotient[:rows], quotient[rows : 2 * rows], out=quotient[:rows])
            error = quotient[0] * np.square(scale / unit)
            better = error < least
            best, least = np.where(better, trial, best), np.where(better, error, least)
        return best

    def decode(self, parts: Mapping[str, Array], spec: TensorSpec, out: Array, start: int, work: Workspace) -> None:
        kind = out.dtype.str
        if self.packed:
            pairs = self.element.pairs(kind)
            pairs.take(parts["_packed"], out=out.view(pairs.dtype), mode="wrap")
        else:
            self.element.table(kind).take(parts[""].reshape(out.shape), out=out, mode="wrap")
        scale = self.stored_scale(parts, spec).astype(kind).take(parts["_scale"])
        grouped = out.reshape(len(out), -1, self.size)
        np.multiply(grouped, scale[..., None], out=grouped)


@dataclass(frozen=True)
class _Columns:
    """Blocks of `size` from the column `first` on, of these `rungs` and scales [rows, blocks]; their codes go to
    `codes` [rows, columns]."""

    element: Minifloat
    rungs: Array
    scale: Array
    size: int
    first: int
    codes: Array
    work: Workspace

    def round(self, target: Array, place: int) -> Array:
        scale = self.scale[:, (place - self.first) // self.size, None]
        codes, restored = np.empty((len(target), 1), np.uint8), np.empty((len(target), 1))
        self.element.quantize(target[:, None], scale, 1, codes, restored, self.work)
        self.codes[:, place] = codes[:, 0]
        return restored[:, 0]
