"""Integers of 2 to 8 bits with one scale (and zero point) for a tensor, a row, or a group of a row.

    symmetric:   s = max|w| / ((2^b − 1)/2);                          w ≈ q·s
    asymmetric:  s = (max − min)/(2^b − 1), the range extended to 0;  z = −2^(b−1) − round(min/s);  w ≈ (q − z)·s
    q = clip(round(w/s) + z, −2^(b−1), 2^(b−1) − 1), halves to even

These are the rules of compressed-tensors. Ours differs in two ways that the bytes allow and that lose less: we
divide in float32 (float64 for float64 weights) whatever the source's dtype, and by the scale as it is stored.
A zero weight has code z and comes back as exactly zero.

Stored, for `NAME` [rows, columns] (codes offset to unsigned, rows packed as little-endian bit streams):

* `pack-quantized` (4, 8 bits): `NAME_packed` I32 [rows, ⌈columns·b/32⌉], `NAME_scale` [rows, groups] or [1],
  `NAME_shape` I64 [2]; asymmetric: `NAME_zero_point` I32 [⌈rows·b/32⌉, groups], packed along the rows
  (I8 [1] by tensor);
* `int-quantized` (8 bits, symmetric, by tensor or channel): `NAME` I8 [rows, columns], `NAME_scale` [rows, 1]
  or [1];
* `compressor` (any): `NAME.codes` U8 [rows, ⌈columns·b/8⌉], `NAME.scale` [rows, groups] or [1]; asymmetric:
  `NAME.zero_point` U8 like the scale;
* `mlx` (2, 3, 4, 5, 6, 8 bits; groups of 32, 64, 128): `NAME` U32 [rows, columns·b/32], and without `.weight` in
  the name `.scales`, `.biases` [rows, groups]; w ≈ s·q + β as MLX rounds it, β = −z·s;
* `gptq` (4, 8 bits, symmetric, by channel or group): without `.weight` in the name, `.qweight` I32
  [columns·b/32, rows], `.qzeros` I32 [groups, rows·b/32], `.scales` F16 [groups, rows], `.g_idx` I32 [columns];
* `plain` (any; what `--store codes` takes): as `compressor`, with `NAME.codes` I8 (asymmetric: U8), one code an
  element.

The first two are compressed-tensors' own. A scale has the weight's dtype (F32 for FP8 weights; `mlx`: and for
float64; `gptq`: always F16, and weights beyond its range are clipped).
Error: about half a scale, see `bound`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from compressor.errors import UsageError
from compressor.floats import epsilon, smallest, widen
from compressor.floats import largest as limit
from compressor.lazy import np
from compressor.method import Block, Encoder, Method, Part, Survey, option
from compressor.methods.quantize import _layouts, _layouts_foreign, _scales
from compressor.tensor import TensorSpec
from compressor.workspace import Array, Workspace

_LAYOUTS: dict[str, type[_layouts.CodeLayout]] = {**_layouts.LAYOUTS, **_layouts_foreign.LAYOUTS}


@dataclass(frozen=True)
class Int(Encoder):
    """Scaled integers, as most runtimes take them."""

    verb: ClassVar[str] = "quantize"
    id: ClassVar[str] = "int"
    nameless: ClassVar[bool] = True

    bits: int = option(8, help="bits of a code", low=2, high=8)
    symmetric: bool = option(True, help="codes centred on zero, or with a zero point", off="asymmetric")
    granularity: Literal["tensor", "channel", "group"] | None = option(
        None, help="what shares a scale; unset: group below 8 bits or with a group size, else channel"
    )
    group_size: int | None = option(None, help="weights of a row that share a scale; unset: 128", low=1, high=2**31)
    method: Literal["absmax"] = option("absmax", help="how scales are chosen")
    layout: Literal["auto", "pack-quantized", "int-quantized", "mlx", "gptq", "compressor", "plain"] = option(
        "auto", help="stored layout; auto takes compressed-tensors' where it has one"
    )

    extent: tuple[float, float] | None = None  # least and largest weight of the tensor, once surveyed

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.group_size is not None and self.granularity in ("tensor", "channel"):
            raise UsageError(f"group_size has no meaning with granularity {self.granularity}")
        if self.layout == "pack-quantized" and self.bits not in (4, 8):
            raise UsageError(f"layout pack-quantized holds 4 or 8 bits here, not {self.bits}")
        if self.layout == "int-quantized" and (self.bits != 8 or not self.symmetric or self.grain == "group"):
            raise UsageError("layout int-quantized holds symmetric 8-bit codes by tensor or channel only")
        if self.layout != "auto":
            _LAYOUTS[self.layout].check(self.bits, self.symmetric, self.grain, self.group)

    def within(self, stage: Method) -> Method:
        """A rule that changes the bits alone keeps the stage's granularity."""
        if self.granularity is not None or self.group_size is not None or not isinstance(stage, Int):
            return self
        return replace(self, granularity=stage.grain, group_size=stage.group_size)

    @property
    def grain(self) -> Literal["tensor", "channel", "group"]:
        """The granularity that holds when it was left unset."""
        if self.granularity is not None:
            return self.granularity
        grouped = self.bits < 8 or self.group_size is not None or self.layout == "mlx"
        return "group" if grouped else "channel"

    @property
    def group(self) -> int:
        return self.group_size or 128

    @property
    def half(self) -> int:
        """2^(b−1): codes run from −half to half − 1, and are handled with half added."""
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
        if layout not in ("compressor", "plain") and len(spec.shape) != 2:
            raise UsageError(
                f"layout {layout} holds matrices, and this has shape {list(spec.shape)}",
                tensor=spec.name,
                remedy="Use --layout compressor, --store dense, or --exclude it",
            )
        if self.grain == "group" and columns % self.group:
            fits = [g for g in range(min(columns, 4 * self.group, 1 << 16), 7, -1) if columns % g == 0]
            raise UsageError(
                f"group size {self.group} does not divide the row of {columns}",
                tensor=spec.name,
                remedy=f"These would: {', '.join(map(str, fits[:8])) or 'none from 8 up'}; "
                "or use --granularity channel, or --exclude it",
            )
        groups = columns // self.group if self.grain == "group" else 1
        shape = (1,) if self.grain == "tensor" else (rows, groups)
        return self._layout(spec).parts(spec, self._scale_dtype(spec), shape)

    def config(self, spec: TensorSpec) -> dict[str, Any] | None:
        layout = self.layout_of(spec)
        if layout not in ("pack-quantized", "int-quantized"):
            return None
        common = {"num_bits": self.bits, "type": "int", "symmetric": self.symmetric}
        weights = {
            **common,
            "group_size": self.group if self.grain == "group" else None,
            "strategy": self.grain,
            "dynamic": False,
        }
        # int-quantized means W8A8: loaders quantize activations too, token by token
        activations = {**common, "group_size": None, "strategy": "token", "dynamic": True}
        return {
            "format": layout,
            "weights": weights,
            "input_activations": activations if layout == "int-quantized" else None,
            "output_activations": None,
        }

    def dialect(self, spec: TensorSpec) -> str:
        return _LAYOUTS[self.layout_of(spec)].dialect or super().dialect(spec)

    @property
    def label(self) -> str:
        return f"int{self.bits}"

    def codes(self, spec: TensorSpec) -> Int:
        return replace(self, layout="plain")

    @property
    def code_bits_used(self) -> int | None:
        return self.bits if self.symmetric else None

    def survey(self, specs: Sequence[TensorSpec]) -> Extent | None:
        return Extent(self) if self.grain == "tensor" and self.extent is None else None

    def bound(self, largest: float, spec: TensorSpec) -> float:
        """Half a scale, and what storing the scale and the result in their dtypes adds at the range's end."""
        dtype = self._scale_dtype(spec)
        scale = max(largest / (self.half - 0.5), smallest(dtype))
        # near the end of the dtype's range the scale is held back, so that no code leaves it
        held_back = largest * (1 + 1 / self.half) >= limit(spec.dtype)
        slack = 2 * self.half * (epsilon(dtype) * scale + smallest(dtype))
        rounding = 2 * epsilon(spec.dtype) * largest + smallest(spec.dtype)
        return scale * (1.5 if held_back else 0.5) + slack + rounding + self._layout(spec).slack(largest, spec)

    # ---- the kernels -------------------------------------------------------------------------------

    def encode(self, block: Block, parts: Mapping[str, Array] | None, restored: Array) -> None:
        values, spec, work = block.values, block.spec, block.work
        grouped, target = self._grouped(values), self._grouped(restored)
        layout, dtype = self._layout(spec), self._scale_dtype(spec)
        stored, zero = layout.settle(grouped, *self._scales(grouped, target, spec), dtype)
        scale = self._scale_column(stored, spec, values.dtype)
        # A float beyond 2^23 (2^52) has no fraction: adding the anchor rounds halves to even and leaves the
        # code in the lowest bits, in one pass where rounding and converting would take three.
        anchor = values.dtype.type(1.5 * 2.0 ** (23 if values.itemsize == 4 else 52))
        offset = zero.astype(values.dtype)[..., None] if zero is not None else values.dtype.type(self.half)
        offset += anchor
        _scales.apply(np.divide, grouped, scale, target)
        np.add(target, offset, out=target)
        np.clip(target, anchor, anchor + (2 * self.half - 1), out=target)
        if parts is not None:
            codes = work.array("int.codes", values.shape, "|u1")
            np.copyto(codes, restored.view(f"<u{restored.itemsize}"), casting="unsafe")
            points = None if zero is None else zero.astype(np.uint8)
            layout.store(codes, stored, points, parts, block.start == 0, work)
        np.subtract(target, offset, out=target)
        layout.numbers(target, scale, zero, dtype, work)

    def decode(self, parts: Mapping[str, Array], spec: TensorSpec, out: Array, start: int, work: Workspace) -> None:
        layout = self._layout(spec)
        if layout.decode(parts, self._grouped(out), work):
            return
        codes = work.array("int.codes", out.shape, "|u1")
        zero = layout.load(parts, codes, work)
        offset = zero.astype(out.dtype)[..., None] if zero is not None else out.dtype.type(self.half)
        target = self._grouped(out)
        np.copyto(target, self._grouped(codes))
        np.subtract(target, offset, out=target)
        _scales.apply(np.multiply, target, self._scale_column(layout.scales(parts), spec, out.dtype), target)

    def _layout(self, spec: TensorSpec) -> _layouts.CodeLayout:
        return _LAYOUTS[self.layout_of(spec)](self.bits, self.symmetric, self.grain == "tensor")

    def _scale_dtype(self, spec: TensorSpec) -> str:
        return _LAYOUTS[self.layout_of(spec)].scale_dtype(spec)

    def _grouped(self, matrix: Array) -> Array:
        """[rows, columns] as [rows, groups, size]."""
        rows = len(matrix)
        return matrix.reshape(rows, -1, self.group) if self.grain == "group" else matrix[:, None, :]

    def _scales(self, grouped: Array, scratch: Array, spec: TensorSpec) -> tuple[Array, Array | None]:
        """Stored scales and unsigned zero points, [rows or 1, groups]."""
        if self.grain == "tensor":
            if self.extent is None:
                raise TypeError("a survey has to find the tensor's range first")
            low, high = np.array([[self.extent[0]]]), np.array([[self.extent[1]]])
        else:
            low, high = _scales.extent(grouped, self.symmetric, scratch)
        dtype = self._scale_dtype(spec)
        if self.symmetric:
            scale, reach = _scales.symmetric_scale(np.maximum(high, -low), self.half)
            return _scales.store_scale(scale, reach, dtype, spec.dtype), None
        scale, zero, reaches = _scales.asymmetric_scale(low, high, self.half)
        return _scales.store_scale(scale, reaches, dtype, spec.dtype), zero

    def _scale_column(self, stored: Array, spec: TensorSpec, dtype: np.dtype[Any]) -> Array:
        """Stored scales as numbers that broadcast over [rows, groups, size]."""
        wide = widen(stored, self._scale_dtype(spec), Workspace()).astype(dtype, copy=False)
        return wide.reshape((1, 1, 1) if self.grain == "tensor" else (*stored.shape, 1))


@dataclass(frozen=True)
class Extent(Survey[tuple[float, float]]):
    """The least and the largest weight of a tensor, and 0."""

    method: Int

    def start(self) -> tuple[float, float]:
        return 0.0, 0.0

    def observe(self, block: Block, stats: tuple[float, float]) -> tuple[float, float]:
        return self.merge(stats, (float(block.values.min()), float(block.values.max())))

    def merge(self, stats: tuple[float, float], more: tuple[float, float]) -> tuple[float, float]:
        return min(stats[0], more[0]), max(stats[1], more[1])

    def conclude(self, stats: tuple[float, float]) -> Int:
        return replace(self.method, extent=stats)


METHOD = Int
