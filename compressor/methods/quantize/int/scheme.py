"""Integers of 2 to 8 bits with one scale (and zero point) for a tensor, a row, or a group of a row.

    q = clip(round(w/s) + z, −2^(b−1), 2^(b−1) − 1), halves to even;  w ≈ (q − z)·s;  symmetric: z = 0

`method` chooses s and z. From the range (absmax, the rule of compressed-tensors):

    symmetric:   s = max|w| / ((2^b − 1)/2)
    asymmetric:  s = (max − min)/(2^b − 1), the range extended to 0;  z = −2^(b−1) − round(min/s)

or from there on for the least squared error (`ways/search.py`), half-quadratic (`ways/hqq.py`), or, with the codes,
for the least error of the layer's outputs (`ways/gptq.py`); awq searches with errors weighed by the inputs
(`ways/awq.py`), in a model whose inputs were scaled for it (`workflows/awq.py`). We divide in float32
(float64 for float64 weights) whatever the source's dtype, and by the scale as it is stored, which loses less than
compressed-tensors' own arithmetic in the same bytes. A zero weight has code z and comes back as exactly zero.

Stored, for `NAME` [rows, columns] (codes offset to unsigned, rows packed as little-endian bit streams):

* `pack-quantized` (4, 8 bits; others where it is asked for, asymmetric of 2): `NAME_packed` I32
  [rows, ⌈columns·b/32⌉], `NAME_scale` [rows, groups] or [1], `NAME_shape` I64 [2]; asymmetric:
  `NAME_zero_point` I32 [⌈rows·b/32⌉, groups], packed along the rows (I8 [1] by tensor);
* `int-quantized` (8 bits, symmetric, by tensor or channel; W8A8 for loaders): `NAME` I8 [rows, columns],
  `NAME_scale` [rows, 1] or [1];
* `compressor` (any): `NAME.codes` U8 [rows, ⌈columns·b/8⌉], `NAME.scale` [rows, groups] or [1]; asymmetric:
  `NAME.zero_point` U8 like the scale;
* `mlx` (2, 3, 4, 5, 6, 8 bits; groups of 32, 64, 128): `NAME` U32 [rows, columns·b/32], and without `.weight` in
  the name `.scales`, `.biases` [rows, groups]; w ≈ s·q + β as MLX rounds it, β = −z·s;
* `gptq` (4, 8 bits, symmetric, by channel or group): without `.weight` in the name, `.qweight` I32
  [columns·b/32, rows], `.qzeros` I32 [groups, rows·b/32], `.scales` F16 [groups, rows], `.g_idx` I32 [columns];
* `plain` (any; what `--store codes` takes): as `compressor`, with `NAME.codes` I8 (asymmetric: U8), one code an
  element.

The first two are compressed-tensors' own. A scale has the weight's dtype, F32 for FP8 weights; that of a row or
group of F32 weights is BF16 unless `scale_bits` says otherwise or the layout is `plain` or `mlx`; `mlx` has F32 for
float64, `gptq` always F16, and weights beyond its range are clipped. Scales are positive unless `signed_scales`
says otherwise.
Error: about half a scale; what a search clips more, but never more in the sum of squares (gptq: see `bound`).

`ways/` choose scales and codes, `layouts/` store them.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from math import sqrt
from typing import Any, ClassVar, Literal, Self

from compressor.core import kernels
from compressor.core.errors import UsageError
from compressor.core.floats import epsilon, smallest
from compressor.core.floats import largest as limit
from compressor.core.lazy import np
from compressor.core.sums import dots
from compressor.core.tensor import DTYPES, TensorSpec
from compressor.core.workspace import Array, Workspace
from compressor.methods.contract import Block, Encoder, Method, Survey
from compressor.methods.levels import Levels
from compressor.methods.numerics import scales
from compressor.methods.numerics.scales import Chosen
from compressor.methods.options import option
from compressor.methods.parts import Part
from compressor.methods.quantize._compensating import ACT_ORDER_HELP, DAMP_HELP, Compensating
from compressor.methods.quantize.int.group_units import LEAST, MOST, Rule
from compressor.methods.quantize.int.layouts import LAYOUTS, CodeLayout, Scaled
from compressor.methods.quantize.int.tensor_range import Extent
from compressor.methods.quantize.int.ways import CHOOSES_CODES, WAYS, Grid

_GROUP = 128  # weights that share a scale, where the user names no number
_PREFERRED = (64, 32)  # what kernels of loaders are made for, where that does not divide the row
_IN_GGUF = {8: "q8_0", 6: "q6_k", 5: "q5_k_m", 4: "q4_k_m", 3: "q3_k_m", 2: "q2_k"}  # what llama.cpp's users take


@dataclass(frozen=True)
class Int(Compensating):
    """Scaled integers, as most runtimes take them."""

    verb: ClassVar[str] = "quantize"
    id: ClassVar[str] = "int"

    bits: int = option(8, help="bits of a code", low=2, high=8)
    symmetric: bool = option(True, help="codes centred on zero, or with a zero point", off="asymmetric")
    granularity: Literal["tensor", "channel", "group"] | None = option(
        None,
        help="what shares a scale; unset: group; at 8 bits where 128 does not divide the row, and in layouts "
        "int-quantized and gptq, channel",
    )
    group_size: int | None = option(
        None, help="weights of a row that share a scale; unset: 128, or the nearest that fits", low=1, high=2**31
    )
    method: Literal["absmax", "search", "hqq", "gptq", "awq"] = option(
        "search",
        help="how scales are chosen: by the range, for least squared error, half-quadratic; by inputs: gptq, or "
        "awq, which scales those",
    )
    damp: float | None = option(None, help=DAMP_HELP, low=0)
    act_order: bool = option(False, help=ACT_ORDER_HELP, off="plain-order")
    signed_scales: bool = option(False, help="a search may choose negative scales too", off="positive-scales")
    scale_bits: Literal[16, 32] | None = option(None, help="bits of the scales of float32 weights; unset: 16")
    layout: Literal["auto", "pack-quantized", "int-quantized", "mlx", "gptq", "compressor", "plain"] = option(
        "auto", help="stored layout; auto takes compressed-tensors' where it has one"
    )

    informed: bool = False  # a search weighs errors by the layer's inputs

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.group_size is not None and self.granularity in ("tensor", "channel"):
            raise UsageError(f"group_size has no meaning with granularity {self.granularity}")
        if self.signed_scales and (not self.symmetric or self.method not in ("search", "awq")):
            raise UsageError("signed_scales holds for methods search and awq with symmetric codes only")
        if self.method in ("hqq", "gptq", "awq") and self.grain == "tensor":
            raise UsageError(f"method {self.method} works on channels and groups; for a whole tensor take search")
        if self.method == "gptq" and self.layout in ("mlx", "gptq"):
            raise UsageError("method gptq works with layouts pack-quantized, int-quantized, compressor and plain")
        if self.scale_bits is not None and LAYOUTS.get(self.layout, CodeLayout).own_scales:
            raise UsageError(f"scale_bits has no meaning in layout {self.layout}, whose scales have one dtype")
        if self.layout != "auto":
            LAYOUTS[self.layout].check(self.bits, self.symmetric, self.grain, self.group)

    @property
    def in_gguf(self) -> str:
        return _IN_GGUF.get(self.bits, "") if self == Int(bits=self.bits) else ""

    def completed_by(self, stage: Method) -> Method:
        """A rule that changes the bits alone keeps the stage's granularity, if it has one before rows are known."""
        if self.granularity is not None or self.group_size is not None or not isinstance(stage, Int) or stage.open:
            return self
        return replace(self, granularity=stage.grain, group_size=stage.group_size)

    @property
    def grain(self) -> Literal["tensor", "channel", "group"]:
        """The granularity that holds when it was left unset and `settled` chose none: as files record it."""
        if self.granularity is not None:
            return self.granularity
        grouped = self.bits < 8 or self.group_size is not None or self.layout == "mlx"
        return "group" if grouped else "channel"

    @property
    def group(self) -> int:
        """Weights of a row that share a scale, where groups do."""
        return self.group_size or _GROUP

    @property
    def open(self) -> bool:
        """Whether the rows decide what shares a scale of 8 bits."""
        asked = self.granularity is not None or self.group_size is not None
        return self.bits == 8 and not asked and self.layout not in ("int-quantized", "gptq", "mlx")

    def settled(self, spec: TensorSpec) -> tuple[Int, str]:
        """Groups of 128 or, where they do not divide the row, at 8 bits one scale a row, below the nearest group.
        Loaders of what comes of it leave activations alone. Scales of float32 weights have 16 bits."""
        narrow = spec.dtype == "F32" and self.grain != "tensor" and not LAYOUTS[self.layout_of(spec)].own_scales
        if self.scale_bits is None and narrow:
            return replace(self, scale_bits=16).settled(spec)
        if self.open:
            columns = spec.matrix[1]
            if columns and columns % _GROUP == 0:
                return replace(self, granularity="group"), ""
            w8a8 = self.layout_of(spec) == "int-quantized"
            return replace(self, layout="pack-quantized") if w8a8 else self, ""
        if self.group_size is not None:
            return self, ""
        return self._nearest(spec, _PREFERRED) or (self, "")

    @property
    def half(self) -> int:  # 2^(b−1): codes run from −half to half − 1, and are handled with half added
        return 1 << (self.bits - 1)

    # ---- what is stored ----------------------------------------------------------------------------

    def layout_of(self, spec: TensorSpec) -> str:
        """The layout that `auto` stands for: compressed-tensors' where it has one, for linear weights."""
        if self.layout != "auto":
            return self.layout
        if len(spec.shape) != 2 or self.bits not in (4, 8):
            return "compressor"
        w8a8 = self.bits == 8 and self.symmetric and self.grain != "group"
        return "int-quantized" if w8a8 else "pack-quantized"

    def parts(self, spec: TensorSpec) -> tuple[Part, ...]:
        """Raises UsageError when the group size does not divide the row, naming sizes that do."""
        rows, columns = spec.matrix
        layout = self.layout_of(spec)
        if LAYOUTS[layout].matrices and len(spec.shape) != 2:
            raise UsageError(
                f"layout {layout} holds matrices, and this has shape {list(spec.shape)}",
                tensor=spec.name,
                remedy="Use --layout compressor, or --exclude it",
            )
        if self.grain == "group" and columns % self.group:
            fits = [size for size in self._sizes(columns) if size <= 4 * self.group]
            raise UsageError(
                f"group size {self.group} does not divide the row of {columns}",
                tensor=spec.name,
                remedy=f"These would: {', '.join(map(str, fits[:8])) or 'none from 8 up'}; "
                "or use --fallback for the nearest, or --granularity channel, or --exclude it",
            )
        groups = columns // self.group if self.grain == "group" else 1
        shape = (1,) if self.grain == "tensor" else (rows, groups)
        return self.form(spec).parts(spec, self.scale_dtype(spec), shape)

    def fallback(self, spec: TensorSpec) -> tuple[Int, str] | None:
        """The largest smaller group that divides the row, of those that the layout holds; else one scale a row."""
        return self._nearest(spec, ())

    def _nearest(self, spec: TensorSpec, preferred: Sequence[int]) -> tuple[Int, str] | None:
        """What `fallback` gives, but these sizes first where they divide the row."""
        columns = spec.matrix[1]
        if self.grain != "group" or columns % self.group == 0:
            return None
        smaller = [size for size in self._sizes(columns) if size < self.group]
        sizes: list[int | None] = [*(size for size in preferred if size in smaller), *smaller]
        # a row shorter than the group is the nearest there is
        sizes = [None, *sizes] if columns < self.group else [*sizes, None]
        for size in sizes:
            with suppress(UsageError):
                grain: Literal["channel", "group"] = "channel" if size is None else "group"
                nearest = replace(self, granularity=grain, group_size=size)
                nearest.parts(spec)
                return nearest, f"{nearest.shares}, since groups of {self.group} do not divide the row of {columns}"
        return None

    @property
    def shares(self) -> str:
        """What has one scale, in words."""
        return {"tensor": "one scale", "channel": "one scale a row", "group": f"groups of {self.group}"}[self.grain]

    @staticmethod
    def _sizes(columns: int) -> list[int]:  # from 8 up that divide a row, the largest first
        return [size for size in range(min(columns, 1 << 16), 7, -1) if columns % size == 0]

    def config(self, spec: TensorSpec) -> dict[str, Any] | None:
        return self.form(spec).config(self.grain, self.group)

    def dialect(self, spec: TensorSpec) -> str:
        return LAYOUTS[self.layout_of(spec)].dialect or super().dialect(spec)

    def describe(self) -> dict[str, Any]:
        """Without what is off by default: as records of files before it was an option. Those whose scales are as
        wide as the weights say nothing of them."""
        later = ("signed_scales", "scale_bits")
        return {key: said for key, said in super().describe().items() if key not in later or said}

    @property
    def named_layout(self) -> str:
        return "" if self.layout == "auto" else self.layout

    @property
    def zero_points(self) -> bool:
        return not self.symmetric

    @property
    def statistics(self) -> Literal["", "square", "gram"]:  # type: ignore[override]
        return "square" if self.balances else super().statistics

    def with_statistics(self) -> Int | None:
        return super().with_statistics() if self.grain != "tensor" else None

    @property
    def linear_algebra(self) -> bool:  # type: ignore[override]
        return self.by_inputs or self.balances

    @property
    def balances(self) -> bool:  # type: ignore[override]
        return self.method == "awq"

    @property
    def label(self) -> str:
        return f"int{self.bits}"

    @property
    def stored_name(self) -> str:
        return self.label

    def codes(self, spec: TensorSpec) -> Int:
        return replace(self, layout="plain", scale_bits=None)  # NumPy has no bfloat16

    def codes_in_bits(self, spec: TensorSpec) -> Int:
        if self.bits == 8 or self.layout == "plain":
            return self.codes(spec)
        return replace(self, layout="compressor", scale_bits=None)

    @property
    def code_bits_used(self) -> int | None:
        return self.bits if self.symmetric else None

    def prepare(self, specs: Sequence[TensorSpec]) -> Survey[Any] | Encoder:
        """The range of the tensor, where it has one scale; a search goes on to a histogram."""
        if self.grain == "tensor":
            return Extent(partial(OneScale, self), self.rule(specs[0]), self.method != "absmax")
        return OwnScales(self)

    def bound(self, largest: float, spec: TensorSpec) -> float:
        """From the range: half a scale, and what storing the scale and the result in their dtypes adds at the
        range's end. A search may clip, but Σ (w − w')² of a group is at most what it would be then: so no weight
        loses more than √(weights of the group) as much, nor more than the least scale leaves of the largest."""
        dtype = self.scale_dtype(spec)
        scale = max(largest / (self.half - 0.5), smallest(dtype))
        # near the end of the dtype's range the scale is held back, so that no code leaves it
        held_back = largest * (1 + 1 / self.half) >= limit(spec.dtype)
        slack = 2 * self.half * (epsilon(dtype) * scale + smallest(dtype))
        rounding = 2 * epsilon(spec.dtype) * largest + smallest(spec.dtype)
        nearest = scale * (1.5 if held_back else 0.5) + slack
        if self.by_inputs:
            return nearest + self.further * largest
        if self.method == "absmax":
            return nearest + rounding + self.form(spec).slack(largest, spec)
        clipped = largest
        if self.symmetric:
            cut = 1 - LEAST * (self.half - 1) / (self.half - 0.5)  # of the largest, whose multiples could overflow
            clipped = max(cut * largest, MOST * scale / 2) + slack
        size = spec.size if self.grain == "tensor" else self.group if self.grain == "group" else spec.matrix[1]
        alike = 1.001 * nearest * sqrt(size) if self.method == "search" and not self.informed else clipped
        return max(nearest, min(clipped, alike)) + rounding + MOST * self.form(spec).slack(largest, spec)

    def decode(self, parts: Mapping[str, Array], spec: TensorSpec, out: Array, start: int, work: Workspace) -> None:
        self.form(spec).decode(parts, self.grouped(out), self.scale_dtype(spec), work)

    def form(self, spec: TensorSpec) -> CodeLayout:
        """The layout of this tensor, for codes of this width."""
        return LAYOUTS[self.layout_of(spec)](self.bits, self.symmetric, self.grain == "tensor")

    def scaled_form(self, spec: TensorSpec) -> Scaled:
        """The layout, whose numbers are s·(q − z). UsageError where it is one that rounds otherwise."""
        form = self.form(spec)
        if not isinstance(form, Scaled):
            raise UsageError(f"layout {form.name} holds other numbers than scaled codes", tensor=spec.name)
        return form

    def scale_dtype(self, spec: TensorSpec) -> str:
        """bfloat16 has the range of float32, so that no scale is lost in it; and codes are chosen for the scale as
        it is stored, whatever its digits."""
        if self.scale_bits == 16 and spec.dtype == "F32":
            return "BF16"
        return LAYOUTS[self.layout_of(spec)].scale_dtype(spec)

    def remark(self, spec: TensorSpec) -> str:
        dtype = self.scale_dtype(spec)
        if self.scale_bits in (None, DTYPES[dtype].bits):
            return ""
        return f"scales of so many bits are for float32 weights: those of {spec.dtype} weights stay {dtype}"

    def has_levels(self, spec: TensorSpec) -> bool:
        return LAYOUTS[self.layout_of(spec)].trains

    def levels(self, spec: TensorSpec, parts: Mapping[str, Array]) -> ScaleLevels | None:
        if not self.has_levels(spec):
            return None
        layout = self.scaled_form(spec)
        codes = np.empty(spec.matrix, np.uint8)
        zero = layout.unpack(parts, codes, Workspace())
        units = self.grouped(codes).astype(np.float32)
        units -= self.half if zero is None else zero.astype(np.float32)[..., None]
        scale = self.rule(spec).numbers(np.array(layout.scales(parts))).reshape(-1)
        shape = (1, 1, 1) if self.grain == "tensor" else (*units.shape[:2], 1)
        units *= scale.astype(np.float32).reshape(shape)
        places = np.broadcast_to(np.arange(len(scale)).reshape(shape), units.shape)
        factors, moving = np.ones((2, len(scale)), np.float32)
        return ScaleLevels(places.reshape(-1), factors, moving, units.reshape(-1), self, spec, scale, zero)

    def grouped(self, matrix: Array) -> Array:
        """[rows, columns] as [rows, groups, size]."""
        rows = len(matrix)
        return matrix.reshape(rows, -1, self.group) if self.grain == "group" else matrix[:, None, :]

    def rule(self, spec: TensorSpec) -> Rule:
        """What codes and scales of this tensor can be."""
        return Rule(self.bits, self.symmetric, self.signed_scales, self.scale_dtype(spec), spec.dtype)

    def grid(self, spec: TensorSpec) -> Grid:
        """What a way chooses scales by."""
        return Grid(self.rule(spec), self.form(spec), self.damp, self.act_order)

    def column(self, scale: Array) -> Array:
        """Scales in a shape that broadcasts over [rows, groups, size]."""
        return scale.reshape((1, 1, 1) if self.grain == "tensor" else (*scale.shape, 1))


@dataclass(frozen=True, eq=False)
class ScaleLevels(Levels):
    """A tensor's scales, as factors of what they were: `scale` [levels]; zero points `zero` stay."""

    scheme: Int
    spec: TensorSpec
    scale: Array
    zero: Array | None

    def settled(self, numbers: Array) -> Array:
        rule = self.scheme.rule(self.spec)
        if rule.dtype in ("F32", "F64"):
            return numbers
        found = rule.numbers(self._rounded(numbers)).reshape(-1) / self.scale
        return found.astype(np.float32)

    def stored(self, numbers: Array) -> Mapping[str, Array]:
        return {self.scheme.form(self.spec).scale: self._rounded(numbers)}

    def _rounded(self, numbers: Array) -> Array:
        """The scales [rows, groups] in their storage type."""
        kind = DTYPES[self.spec.dtype].compute
        zero = None if self.zero is None else self.zero.astype(kind)
        rows = 1 if self.scheme.grain == "tensor" else self.spec.matrix[0]
        wide = (numbers.astype(kind) * self.scale).reshape(rows, -1)
        return self.scheme.rule(self.spec).store(wide, zero)[0]


@dataclass(frozen=True)
class _Encoder(Encoder):
    """Codes by the scales that subclasses choose."""

    scheme: Int

    @property
    def decoder(self) -> Int:
        return self.scheme

    def as_codes(self, spec: TensorSpec) -> Self:
        return replace(self, scheme=self.scheme.codes(spec))

    @property
    def _chooses_codes(self) -> bool:
        """Whether `_choose` leaves codes, and not only scales."""
        return False

    @abstractmethod
    def _choose(self, grouped: Array, block: Block, scratch: Array) -> Chosen:
        """Scales and zero points of weights [rows, groups, size]; `scratch`, alike, is overwritten."""

    def encode(self, block: Block, parts: Mapping[str, Array] | None, restored: Array) -> None:
        scheme = self.scheme
        target = scheme.grouped(restored)
        codes = None if parts is None else block.work.array("int.codes", restored.shape, "|u1")
        grouped = scheme.grouped(block.values)
        chosen = self._choose(grouped, block, target)
        if not self._chooses_codes:
            scales.apply(np.divide, grouped, chosen.column, target)
        _round(scheme.half, target, target, chosen.zero, codes)
        if parts is not None and codes is not None:
            self._store(codes, chosen, parts, block)
        if chosen.zero is None:
            np.add(target, 0.0, out=target)  # decoding knows no −0
        layout, dtype = scheme.form(block.spec), scheme.scale_dtype(block.spec)
        layout.numbers(target, chosen.column, chosen.zero, dtype, block.work)

    def measured(self, block: Block, parts: Mapping[str, Array]) -> tuple[float, int]:
        """In units of the scale: Σ (q − z − w/s)² of each group, times s²."""
        scheme = self.scheme
        if self._chooses_codes or not scheme.form(block.spec).plain:
            return super().measured(block, parts)
        grouped, work = scheme.grouped(block.values), block.work
        codes = scheme.grouped(work.array("int.codes", block.values.shape, "|u1"))
        rounded = scheme.grouped(work.array("int.rounded", block.values.shape, block.values.dtype.str))
        chosen = self._choose(grouped, block, rounded)
        zero = np.full_like(chosen.stored, scheme.half, grouped.dtype) if chosen.zero is None else chosen.zero
        zero = zero.astype(grouped.dtype, copy=False)
        counted = kernels.round_codes(grouped, chosen.column, zero, 2 * scheme.half, codes)
        if counted is None:
            ratio = scheme.grouped(work.array("int.ratio", block.values.shape, block.values.dtype.str))
            scales.apply(np.divide, grouped, chosen.column, ratio)
            _round(scheme.half, ratio, rounded, chosen.zero, codes.reshape(block.values.shape))
            np.subtract(rounded, ratio, out=rounded)
            mask = scheme.grouped(work.array("int.mask", block.values.shape, "|b1"))
            np.equal(codes, zero.astype(np.uint8).reshape(chosen.column.shape), out=mask)
            flat = rounded.reshape(-1, rounded.shape[2])
            counted = dots(flat, flat), int(np.count_nonzero(mask))
        units, zeros = counted
        lost = float(np.sum(units.reshape(grouped.shape[:2]) * np.square(chosen.column[..., 0], dtype=np.float64)))
        if not (1e-250 < lost < 1e250 and units.max() > 1e-9 * grouped.shape[-1]):
            # squares that leave the range; or codes so close that w/s has lost what is to be measured
            return super().measured(block, parts)
        self._store(codes.reshape(block.values.shape), chosen, parts, block)
        return lost, zeros

    def _store(self, codes: Array, chosen: Chosen, parts: Mapping[str, Array], block: Block) -> None:
        points = None if chosen.zero is None else chosen.zero.astype(np.uint8)
        self.scheme.form(block.spec).pack(codes, chosen.stored, points, parts, block.start == 0, block.work)


@dataclass(frozen=True)
class OwnScales(_Encoder):
    """Each row or group has a scale of its own, chosen by the scheme's method."""

    rows_alone: ClassVar[bool] = True

    @property
    def _chooses_codes(self) -> bool:
        return self.scheme.method in CHOOSES_CODES

    def _choose(self, grouped: Array, block: Block, scratch: Array) -> Chosen:
        way = "awq" if self.scheme.informed else self.scheme.method
        return WAYS[way](grouped, block, self.scheme.grid(block.spec), scratch)


@dataclass(frozen=True)
class OneScale(_Encoder):
    """A tensor whose scale, as a number, and zero point are known."""

    scale: float
    zero: float | None

    def _choose(self, grouped: Array, block: Block, scratch: Array) -> Chosen:
        grid, zero = self.scheme.grid(block.spec), None if self.zero is None else np.array([[self.zero]])
        return grid.settled(grouped, grid.rule.store(np.array([[self.scale]]), zero)[0], zero)


def _round(half: int, ratio: Array, rounded: Array, zero: Array | None, codes: Array | None) -> None:
    """From w/s the codes: as floats q − z [rows, groups, size] (maybe the same memory), and as unsigned bytes q
    [rows, columns]. Floats are −0 where a small negative weight became zero."""
    kind, flat = rounded.dtype.type, rounded.reshape(len(rounded), -1)
    if zero is None:
        np.rint(ratio, out=rounded)
        rounded.clip(kind(-half), kind(half - 1), out=rounded)
        if codes is not None:
            np.copyto(codes.view("|i1"), flat, casting="unsafe")
            np.add(codes, half, out=codes)  # bytes wrap around, as two's complement does
        return
    # A float beyond 2^23 (2^52) has no fraction: adding the anchor rounds halves to even and leaves the
    # code in the lowest bits, in one pass where rounding and converting would take three.
    anchor = kind(1.5 * 2.0 ** (23 if rounded.itemsize == 4 else 52))
    offset = zero.astype(rounded.dtype)[..., None] + anchor
    np.add(ratio, offset, out=rounded)
    rounded.clip(anchor, anchor + kind(2 * half - 1), out=rounded)
    if codes is not None:
        np.copyto(codes, flat.view(f"<u{rounded.itemsize}"), casting="unsafe")
    np.subtract(rounded, offset, out=rounded)


METHOD = Int
