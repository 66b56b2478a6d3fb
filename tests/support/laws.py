"""The laws that every method obeys, and what is needed to run a method on an array without any file.

A method is run as the engine runs it: surveys first, then block by block with one workspace, parts in buffers
full of garbage. `OPTIONS` is the table of the option combinations under which the laws are tested; a method that
is missing from it fails `test_laws.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from compressor.core.errors import CompressorError, InputError, UsageError
from compressor.core.floats import largest, narrow, smallest, widen
from compressor.core.layer_inputs import Layer
from compressor.core.tensor import DTYPES, TensorSpec
from compressor.core.workspace import Workspace
from compressor.methods.contract import (
    Block,
    ByTensor,
    Coded,
    Decoder,
    Encoder,
    Method,
    Scheme,
    Survey,
    Transform,
    Treatment,
)
from compressor.methods.options import VERBS
from compressor.methods.parts import Part
from compressor.methods.quantize.codebook import Codebook
from compressor.methods.quantize.int import Int
from compressor.methods.registry import methods_of

Array = npt.NDArray[Any]
FLOATS = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")

_INTS: tuple[dict[str, Any], ...] = (
    *({"bits": bits, "granularity": "channel", "layout": "compressor"} for bits in range(2, 9)),
    *({"bits": bits, "symmetric": False, "granularity": "channel", "layout": "compressor"} for bits in (2, 3, 8)),
    *({"bits": bits, "symmetric": True, "granularity": "tensor"} for bits in (3, 4, 8)),
    *({"bits": bits, "symmetric": False, "granularity": "tensor"} for bits in (4, 5, 8)),
    *({"bits": bits, "symmetric": False, "granularity": "channel"} for bits in (4, 8)),
    *({"bits": bits, "group_size": 8} for bits in (3, 4, 8)),
    *({"bits": bits, "group_size": 8, "symmetric": False} for bits in (4, 6, 8)),
    {"bits": 4, "granularity": "channel", "layout": "pack-quantized"},
    {"bits": 8, "granularity": "channel", "layout": "int-quantized"},
    {"bits": 8, "granularity": "channel", "layout": "plain"},
    {"bits": 5, "symmetric": False, "group_size": 8, "layout": "plain"},
)
# ggml's schemes of blocks, and how many weights these have
GGML_BLOCKS = {
    **dict.fromkeys(("q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "iq4_nl", "ggml-mxfp4"), 32),
    **dict.fromkeys(("q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "iq4_xs", "tq1_0", "tq2_0"), 256),
}
OPTIONS: dict[tuple[str, str], tuple[dict[str, Any], ...]] = {
    ("prune", "threshold"): ({"threshold": 0.01}, {"threshold": 0.0}, {"threshold": 1e300}),
    ("prune", "magnitude"): (
        {"sparsity": 0.0},
        {"sparsity": 0.5},
        {"sparsity": 0.9, "scope": "global"},
        {"sparsity": 0.999},
        {"sparsity": 0.7, "scope": "global", "min_keep": 0.2},
        {"sparsity": 0.5, "granularity": "row"},
        {"sparsity": 0.5, "granularity": "block", "block_size": 8},
        {"sparsity": 0.5, "scored": True},
        {"sparsity": 0.5, "granularity": "block", "block_size": 8, "scored": True},
    ),
    ("prune", "layer-adaptive"): ({"sparsity": 0.6}, {"sparsity": 0.9, "min_keep": 0.1}),
    ("prune", "random"): ({"sparsity": 0.5}, {"sparsity": 0.3, "seed": 7, "respect_zeros": True}),
    ("prune", "wanda"): ({"sparsity": 0.0}, {"sparsity": 0.5}, {"pattern": "2:4"}, {"pattern": "5:20"}),
    ("prune", "sparsegpt"): ({"sparsity": 0.0}, {"sparsity": 0.5}, {"pattern": "2:4"}, {"pattern": "5:20"}),
    ("prune", "nm"): ({"pattern": "2:4"}, {"pattern": "1:3"}, {"pattern": "5:20"}),
    ("distill", "blend"): ({"alpha": 0.0}, {"alpha": 0.3}, {"alpha": 1.0}),
    ("distill", "reweight"): ({},),
    ("distill", "low-rank"): (
        {"rank": 1},
        {"rank": 3},
        {"rank": 2, "svd": "randomized"},
        {"energy": 0.5},
        {"energy": 1.0},
        {"ratio": 0.7},
        {"rank": 2, "informed": True},
        {"ratio": 0.7, "informed": True, "svd": "randomized"},
    ),
    ("distill", "residual"): (
        {"rank": 2},
        {"error": 0.1},
        {"energy": 0.5, "svd": "randomized"},
        {"error": 0.1, "informed": True},
    ),
    ("distill", "refit"): (
        {},
        {"damp": 0.1},
        {"stored": Int(bits=4, group_size=8)},
        {"stored": Int(bits=3, symmetric=False, granularity="channel")},
        {"stored": Int(bits=4, symmetric=False, group_size=8), "zero_points": True},
        {"stored": Int(bits=4, granularity="tensor")},
        {"stored": Int(bits=8, group_size=16, layout="gptq")},
        {"stored": Codebook(entries=5)},
        {"stored": Codebook(entries=4, rows=3)},
    ),
    # whole models: their laws are in test_students.py
    ("distill", "depth"): (),
    ("distill", "subclone"): (),
    ("quantize", "factor"): ({"factor": 64}, {"factor": 3, "code_bits": 32}, {"factor": 10, "code_bits": 8}),
    ("quantize", "step"): ({"bits": 1}, {"bits": 3}, {"bits": 32, "code_bits": 8}),
    ("quantize", "uniform"): (
        {},
        {"bits": 0.5},
        {"bits": 2.0, "rounding": "nearest"},
        {"bits": 9.0, "scope": "model"},
        {"bits": 3.0, "step_rows": 1},
        {"step_rows": 3, "rounding": "nearest"},
        {"bits": 12.0, "code_bytes": 2},
        {"bits": 2.0, "sparsity": 0.6},
        {"bits": 4.0, "sparsity": 0.3, "step_rows": 2},
        {"step": 0.01},
        {"bits": 3.0, "factors": "both"},
        {"bits": 3.0, "factors": "both", "scope": "model"},
        {"bits": 5.0, "factors": "both", "informed": True},
    ),
    ("quantize", "trellis"): (
        {},
        {"bits": 1.0},
        {"bits": 9.0, "factors": "both"},
        {"bits": 3.0, "factors": "none", "code_bytes": 2},
        {"bits": 2.5, "factors": "both", "informed": True},
    ),
    ("quantize", "binary"): ({}, {"group_size": 8}),
    ("quantize", "ternary"): ({}, {"layout": "2bit"}, {"group_size": 8}),
    ("quantize", "codebook"): (
        *({"entries": entries} for entries in (2, 5, 16, 256)),
        *({"entries": 4, "rows": rows} for rows in (1, 3)),
        {"entries": 40, "rows": 2},
        *({"entries": 4, "init": init} for init in ("linear", "kmeans++", "density")),
        {"entries": 3, "rows": 2, "init": "kmeans++", "seed": 7},
    ),
    ("quantize", "int"): (
        *({**chosen, "method": method} for chosen in _INTS for method in ("absmax", "search")),
        *({"bits": bits, "granularity": "channel", "signed_scales": True} for bits in (2, 4)),
        *({"bits": bits, "group_size": 8, "signed_scales": True} for bits in (3, 8)),
        {"bits": 4, "granularity": "tensor", "signed_scales": True},
        *({"bits": bits, "group_size": 8, "method": "hqq"} for bits in (2, 8)),
        *({"bits": bits, "granularity": "channel", "symmetric": False, "method": "hqq"} for bits in (3, 4)),
        *(
            {"bits": bits, "symmetric": symmetric, "group_size": 32, "layout": "mlx", "method": method}
            for bits in (2, 3, 4, 5, 6, 8)
            for symmetric in (True, False)
            for method in ("absmax", "search")
        ),
        *({"bits": 4, "group_size": 16, "layout": "gptq", "method": method} for method in ("absmax", "search")),
        {"bits": 8, "granularity": "channel", "layout": "gptq"},
        *(
            {"bits": bits, "symmetric": symmetric, **grain, "method": "gptq", "act_order": act_order}
            for bits in (3, 4, 8)
            for symmetric in (True, False)
            for grain in ({"group_size": 8}, {"granularity": "channel"})
            for act_order in (False, True)
        ),
        *(
            {"bits": bits, "symmetric": symmetric, **grain, "method": "awq"}
            for bits in (2, 4, 8)
            for symmetric in (True, False)
            for grain in ({"group_size": 8}, {"granularity": "channel"})
        ),
        {"bits": 4, "group_size": 32, "layout": "mlx", "method": "awq"},
        {"bits": 4, "group_size": 16, "layout": "gptq", "method": "awq"},
    ),
    ("quantize", "nf4"): (
        *(
            {"method": method, "double_quant": double}
            for method in ("absmax", "search")
            for double in (False, True)
        ),
        {"group_size": 32},
        {"group_size": 128, "double_quant": True},
        {"group_size": 32, "method": "gptq"},
        {"group_size": 32, "method": "gptq", "act_order": True},
        {"group_size": 32, "method": "gptq", "double_quant": True},
    ),
    ("quantize", "fp8"): tuple(
        {"element": element, "granularity": grain, "method": method}
        for element in ("e4m3", "e5m2")
        for grain in ("tensor", "channel", "block")
        for method in ("absmax", "search")
        if (grain, method) != ("tensor", "absmax")
    ),
    **{
        ("quantize", name): (
            {"method": "absmax"},
            {},
            {"method": "gptq"},
            {"method": "gptq", "act_order": True},
        )
        for name in ("nvfp4", "mxfp4", "mxfp8")
    },
    **{("quantize", name): ({}, {"informed": True}) for name in GGML_BLOCKS},
    ("quantize", "f16"): ({},),
    ("quantize", "f32"): ({},),
    ("quantize", "bf16"): ({},),
    **{
        ("store", layout): (
            {},
            {"inner": Int(bits=8, granularity="channel", layout="plain")},
            {"inner": Int(bits=3, granularity="tensor", layout="plain")},
            {"inner": Int(bits=2, group_size=None if layout == "nm" else 8, granularity=grain, layout="plain")},
        )
        for layout, grain in (("bitmask", "group"), ("csr", "group"), ("nm", "channel"))
    },
    ("store", "scipy"): ({},),
    ("store", "mask"): ({},),
    ("prune", "mask"): ({},),
}
# What may say no to an array: a code that does not fit, a sum that is zero, a result out of the dtype's range.
# More than two values in four neighbours.
MAY_REFUSE = {("quantize", "factor"), ("quantize", "step"), ("distill", "reweight"), ("store", "nm")}
# An even step that was given, and codes that two bytes do not hold.
GIVEN_STEP = ("quantize", "uniform")
# float16 scales, and float16 itself.
IN_FLOAT16 = {("quantize", name) for name in (*GGML_BLOCKS, "f16", "bf16")}
# What keeps float32 scales, as its layout wants them, may say no to a float64 beyond their range.
IN_FLOAT32 = {("quantize", name) for name in ("nf4", "nvfp4", "mxfp4", "mxfp8", "f32")}


def every_method() -> dict[tuple[str, str], type[Method]]:
    """All methods that the package finds, by verb and id; and the layouts of what pruning and quantizing leave."""
    return {(verb, name): method for verb in (*VERBS, "store") for name, method in methods_of(verb).items()}


def combinations() -> Iterator[tuple[str, Method]]:
    """Every method under every option combination of the table, with a name for the test."""
    for key, method in every_method().items():
        for given in OPTIONS.get(key, ()):
            said = ",".join(f"{name}={getattr(value, 'label', value)}" for name, value in given.items())
            yield f"{key[0]}-{key[1]}-{said}", method(**given)


# ---- arrays --------------------------------------------------------------------------------------------


def store(values: npt.ArrayLike, dtype: str) -> Array:
    """Numbers rounded to a dtype, as a file holds them."""
    array = np.asarray(values, DTYPES[dtype].compute, order="C")
    raw = np.empty(array.shape, DTYPES[dtype].storage)
    narrow(array, dtype, raw)
    return raw


def numbers(raw: Array, dtype: str) -> Array:
    """The numbers that stored elements stand for, in the type that methods compute in."""
    return np.array(widen(np.asarray(raw, order="C"), dtype, Workspace()))


@cache
def edges(dtype: str) -> dict[str, Array]:
    """Stored arrays that methods have tripped over: extremes of the dtype in shapes of all kinds. Not to be written
    to: all tests get the same."""
    top, tiny = largest(dtype), smallest(dtype)
    random = np.random.default_rng(7)
    usual = random.standard_normal((9, 16)) * 0.02
    holes = np.where(random.random((9, 16)) < 0.5, 0, random.standard_normal((9, 16)))
    holes[3], holes[:, 5] = 0, 0
    outlier = usual.copy()
    outlier[4, 7] = top
    found: dict[str, Array] = {
        "zeros": np.zeros((4, 32)),
        "negative zeros": np.full((3, 8), -0.0),
        "constant": np.full((5, 32), 0.1),
        "negative constant": np.full((5, 32), -0.1),
        "all largest": np.full((2, 8), top),
        "both ends": np.tile([top, -top, 0, tiny], (9, 4)),
        "lowest and tiny": np.tile([-top, tiny, -tiny, -0.0], (2, 2)),
        "subnormals": tiny * random.integers(-3, 4, (8, 8)),
        "one subnormal": np.where(np.arange(8) == 3, tiny, 0.0)[None, :],
        "outlier": outlier,
        "zeros among weights": holes,
        "only positive": np.abs(np.concatenate([usual, usual * 3], axis=1)) + 0.01,
        "rows of 32": np.concatenate([usual, holes], axis=1),
        "ends in rows of 32": np.tile([top, -top, 0, tiny, -tiny, top / 3, -0.0, 1e-3], (5, 4)),
        "outlier in rows of 32": np.concatenate([outlier, usual], axis=1),
        "subnormals in rows of 32": tiny * random.integers(-9, 10, (8, 32)),
        "blocks of 128": random.standard_normal((130, 144)),
        "one element": np.full((1, 1), 0.3),
        "one zero": np.zeros((1, 1)),
        "wide": random.standard_normal((1, 384)),
        "tall": random.standard_normal((65, 1)),
        "odd columns": random.standard_normal((10, 13)),
        "two of four": np.tile([0.5, 0, 0, -2, 0, 0, 1, 0, 0, 0, 0, 0, 3, 4, 0, 0], (7, 1)),
        "two of four and a tail": np.tile([0, -0.25, 0, 0, 0.5, 0.75, 3], (5, 1)),
        "many rows": random.standard_normal((41, 8)),
        "vector": random.standard_normal(24),
        "scalar": np.array(0.7),
        "three axes": random.standard_normal((5, 2, 8)),
        "four axes": random.standard_normal((3, 2, 3, 5)),
    }
    stored = {name: store(values, dtype) for name, values in found.items()}
    for raw in stored.values():
        raw.setflags(write=False)
    return stored


def fitting(method: Method, raw: Array) -> Array:
    """The array repeated, the last time in part, to a matrix of whole groups and words, for layouts that hold
    nothing else. As few as there can be: grams of inputs grow with the square of the width."""
    if method.id in GGML_BLOCKS:
        sizes = (1, GGML_BLOCKS[method.id])
    elif getattr(getattr(method, "stored", None) or method, "layout", "") in ("mlx", "gptq"):
        sizes = (8, 32)
    else:
        return raw
    matrix = raw.reshape(TensorSpec("", "F32", raw.shape).matrix)
    rows, columns = (
        np.arange(-(-length // size) * size) % length for size, length in zip(sizes, matrix.shape, strict=True)
    )
    return matrix[np.ix_(rows, columns)]


# ---- running a method ----------------------------------------------------------------------------------


@dataclass
class Outcome:
    """What a method made of an array: `parts` (None of a transform), the numbers `restored` [rows, columns], and
    `settled`, those numbers rounded to the tensor's dtype. `treatment` is what the `asked` method came to."""

    asked: Method
    treatment: Treatment
    parts: dict[str, Array] | None
    restored: Array
    settled: Array


def align_of(method: Method, spec: TensorSpec) -> int:
    """Rows at whose multiples blocks may begin."""
    if method.whole:
        return max(spec.matrix[0], 1)
    return method.align(spec) if isinstance(method, Scheme) else 1


def portions(rows: int) -> tuple[int, int]:
    """Two sizes of blocks, an odd and an even one: small, but not so small that many rows are many blocks."""
    return max(rows // 7 | 1, 3), max(rows // 8 * 2, 8)


def cut(rows: int, size: int, align: int = 1) -> list[tuple[int, int]]:
    """Row ranges of about `size` rows."""
    step = max(size // align, 1) * align
    return [(start, min(start + step, rows)) for start in range(0, rows, step)]


def inputs_of(spec: TensorSpec) -> Layer:
    """Statistics of as many inputs as the tensor has columns, the same for the same width: correlated, of very
    different sizes, some never active."""
    return _inputs(spec.matrix[1])


@cache
def _inputs(width: int) -> Layer:
    random = np.random.default_rng(width)
    size = np.exp(random.standard_normal(width) * 2)
    size[1::5] = 0
    rows = random.standard_normal((2 * width + 3, width)) * size
    rows[:, 0] += rows[:, width // 2]
    sums = rows.mean(axis=0), (rows**2).mean(axis=0), rows.T @ rows / len(rows)
    for array in sums:
        array.setflags(write=False)
    return Layer(len(rows), *sums)


def blocks(
    spec: TensorSpec,
    matrix: Array,
    partners: Mapping[str, Array],
    ranges: list[tuple[int, int]],
    work: Workspace,
    inputs: Layer | None = None,
    codes: Outcome | None = None,
) -> Iterator[Block]:
    for start, stop in ranges:
        values = matrix[start:stop].copy()
        values.setflags(write=False)
        beside = {role: other[start:stop] for role, other in partners.items()}
        coded = None
        if codes is not None:
            assert isinstance(codes.treatment, Encoder)
            assert codes.parts is not None
            decoder = codes.treatment.decoder
            coded = Coded(decoder, views_of(decoder, spec, codes.parts, slice(start, stop)))
        yield Block(values, start, spec, work, beside, inputs, coded)


def resolve(
    method: Method,
    spec: TensorSpec,
    matrix: Array,
    partners: Mapping[str, Array],
    ranges: list[tuple[int, int]],
    work: Workspace,
    inputs: Layer | None = None,
) -> Treatment:
    """What treats the tensor, with everything that surveys find out."""
    found = method.prepare([spec])
    while isinstance(found, Survey | ByTensor):
        if isinstance(found, ByTensor):
            if isinstance(found, Transform) and method.reach == "tensor":
                break
            found = found.of(spec, method)
            if isinstance(found, Transform):
                break
            continue
        stats = found.start()
        for block in blocks(spec, matrix, partners, ranges, work, inputs):
            stats = found.merge(stats, found.observe(block, found.start()))
        found = found.conclude(stats)
    return found


def run(
    method: Method,
    spec: TensorSpec,
    raw: Array,
    *,
    size: int = 1 << 30,
    teacher: Array | None = None,
    inputs: Layer | None = None,
    garbage: int = 0xA5,
    flat: bool = False,
    store_parts: bool = True,
) -> Outcome:
    """Run a method on a stored tensor in blocks of about `size` rows; `flat`: cut anywhere, as columns of one. One
    that goes by statistics of layer inputs gets `inputs`, or some."""
    work = Workspace()
    matrix = numbers(raw, spec.dtype).reshape((-1, 1) if flat else spec.matrix)
    partners = {}
    if method.partners:
        partners[method.partners[0]] = (matrix if teacher is None else teacher).reshape(matrix.shape)
    if method.statistics and inputs is None:
        inputs = inputs_of(spec)
    codes = None
    if isinstance(getattr(method, "stored", None), Scheme):  # it works on what that has stored
        codes = run(method.stored, spec, raw)  # type: ignore[attr-defined]
        matrix = codes.settled
    ranges = cut(len(matrix), size, align_of(method, spec))
    treatment = resolve(method, spec, matrix, partners, ranges, work, inputs)
    if isinstance(treatment, Transform) and treatment.flat_alone:  # a small tensor is a single block
        ranges = [(0, len(matrix))]
    restored = np.full(matrix.shape, np.nan, matrix.dtype)
    parts = None
    if isinstance(treatment, Encoder) and store_parts:
        parts = {part.suffix: fresh(part, garbage) for part in treatment.decoder.parts(spec)}
    for block in blocks(spec, matrix, partners, ranges, work, inputs, codes):
        rows = slice(block.start, block.start + len(block.values))
        out = np.full(block.values.shape, np.nan, matrix.dtype)
        if isinstance(treatment, Encoder):
            views = None if parts is None else views_of(treatment.decoder, spec, parts, rows)
            treatment.encode(block, views, out)
        else:
            treatment.apply(block, out)
        restored[rows] = out
    settled = numbers(store(restored, spec.dtype), spec.dtype)
    return Outcome(method, treatment, parts, restored, settled)


def fresh(part: Part, garbage: int) -> Array:
    """A part's buffer as the engine hands it out: whatever memory held before, fixed contents filled in."""
    buffer = np.empty(part.shape, DTYPES[part.dtype].storage)
    buffer.reshape(-1).view(np.uint8)[...] = garbage
    if part.value is not None:
        buffer[...] = np.reshape(part.value, part.shape)
    return buffer


def views_of(decoder: Decoder, spec: TensorSpec, parts: dict[str, Array], rows: slice) -> dict[str, Array]:
    """The rows of each part that belong to a block; a part that is not cut is only the first block's to write."""
    views = {}
    for part in decoder.parts(spec):
        buffer = parts[part.suffix]
        if part.every == 0:
            views[part.suffix] = buffer if rows.start == 0 else buffer.copy()
        else:
            whole = part.across or part.bounds is not None
            runs = part.rows(0, spec.matrix[0])[1]
            matrix = buffer if whole else buffer.reshape(runs, part.width(spec))
            views[part.suffix] = part.view(matrix, rows.start, rows.stop)
    return views


def decode(outcome: Outcome, spec: TensorSpec, size: int = 1 << 30) -> Array:
    """Restore all rows from the parts, some at a time."""
    treatment, parts, work = outcome.treatment, outcome.parts, Workspace()
    assert isinstance(treatment, Encoder)
    decoder = treatment.decoder
    assert parts is not None
    rows, columns = spec.matrix
    found = np.full((rows, columns), np.nan, DTYPES[spec.dtype].compute)
    for start, stop in cut(rows, size, align_of(outcome.asked, spec)):
        out = np.full((stop - start, columns), np.nan, found.dtype)
        decoder.decode(views_of(decoder, spec, parts, slice(start, stop)), spec, out, start, work)
        found[start:stop] = out
    return found


def same_bits(a: Array, b: Array) -> bool:
    """Equal to the last bit, the signs of zeros included."""
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


# ---- the laws ------------------------------------------------------------------------------------------
# Each is given what the method made of the whole array at once.


def law_decoding_gives_what_encoding_promised(whole: Outcome, spec: TensorSpec, raw: Array) -> None:
    if isinstance(whole.treatment, Encoder):
        assert same_bits(decode(whole, spec), whole.restored)
        assert same_bits(decode(whole, spec, portions(spec.matrix[0])[0]), whole.restored)
        unstored = run(whole.asked, spec, raw, store_parts=False)
        assert same_bits(unstored.restored, whole.restored)


def law_cuts_and_what_memory_held_do_not_matter(whole: Outcome, spec: TensorSpec, raw: Array) -> None:
    for size in portions(spec.matrix[0]):
        pieces = run(whole.asked, spec, raw, size=size, garbage=0x5A)
        assert same_bits(pieces.restored, whole.restored)
        for suffix, content in (whole.parts or {}).items():
            assert same_bits(content, (pieces.parts or {})[suffix]), suffix
    if whole.asked.elementwise:
        flat = run(whole.asked, spec, raw, size=5 + spec.size // 4, flat=True, store_parts=False)
        assert same_bits(flat.restored.reshape(whole.restored.shape), whole.restored)


def law_the_same_again_gives_the_same(whole: Outcome, spec: TensorSpec, raw: Array) -> None:
    again = run(whole.asked, spec, raw)
    assert again.treatment == whole.treatment
    assert same_bits(again.restored, whole.restored)


def law_error_is_within_the_bound(whole: Outcome, spec: TensorSpec, raw: Array) -> None:
    if isinstance(whole.treatment, Encoder) and np.isfinite(whole.settled).all():
        weights = numbers(raw, spec.dtype).reshape(spec.matrix).astype(np.longdouble)
        error = np.max(np.abs(whole.settled - weights))
        bound = whole.treatment.bound(float(np.max(np.abs(weights))), spec)
        assert error <= bound, f"error {error} above the bound {bound}"


def law_zeros_stay_exactly_zero(whole: Outcome, spec: TensorSpec, raw: Array) -> None:
    if whole.asked.keeps_zeros:
        zero = numbers(raw, spec.dtype).reshape(spec.matrix) == 0
        assert np.all(whole.restored[zero] == 0)
        assert np.all(whole.settled[zero] == 0)


def law_scales_are_positive_and_finite(whole: Outcome, spec: TensorSpec, raw: Array) -> None:
    """Positive unless signed ones were asked for; never 0."""
    if isinstance(whole.treatment, Encoder):
        signed = getattr(whole.asked, "signed_scales", False)
        declared = {part.suffix: part for part in whole.treatment.decoder.parts(spec)}
        for suffix, content in (whole.parts or {}).items():
            if suffix.endswith(("scale", "scales")):
                if declared[suffix].dtype == "U8":  # a power of two by its exponent
                    assert np.all(content != 255), suffix
                    continue
                scales = numbers(content, declared[suffix].dtype)
                assert np.all(np.isfinite(scales) & ((np.abs(scales) if signed else scales) > 0)), suffix


def law_finite_in_finite_out(whole: Outcome, spec: TensorSpec, raw: Array) -> None:
    if (whole.asked.verb, whole.asked.id) not in MAY_REFUSE:
        assert np.isfinite(whole.restored).all()
        assert np.isfinite(whole.settled).all()


LAWS: tuple[Callable[[Outcome, TensorSpec, Array], None], ...] = tuple(
    law for name, law in sorted(globals().items()) if name.startswith("law_")
)


def refusal(law: Callable[[], object]) -> CompressorError | None:
    """What a call refuses, if it does."""
    try:
        law()
    except CompressorError as error:
        return error
    return None


def check_laws(method: Method, name: str, dtype: str, raw: Array) -> bool:
    """All laws on one stored array; False where the method says no to it, by name and with a reason."""
    spec = TensorSpec(name, dtype, raw.shape)
    if isinstance(method, Scheme):
        no = refusal(lambda: method.check(spec))
        if no is not None:
            assert isinstance(no, UsageError)
            assert no.remedy, "a refusal must say what to do instead"
            return False
    elif refusal(lambda: method.skip(spec)) is not None:
        return False
    outcomes: list[Outcome] = []
    no = refusal(lambda: outcomes.append(run(method, spec, raw)))
    if no is not None:
        high = np.max(np.abs(numbers(raw, dtype)))
        beyond = dtype == "F64" and largest("F32") < high
        may = MAY_REFUSE | (IN_FLOAT32 if beyond else set())
        may |= IN_FLOAT16 if high > 0.9 * min(largest(dtype), largest("F16")) else set()
        may |= {GIVEN_STEP} if getattr(method, "step", None) is not None else set()
        assert (method.verb, method.id) in may, f"{name}: {no}"
        assert isinstance(no, InputError)
        assert no.tensor == name
        return False
    for law in LAWS:
        try:
            law(outcomes[0], spec, raw)
        except AssertionError as error:
            raise AssertionError(f"{method} breaks {law.__name__} on {name} in {dtype}: {error}") from error
    return True
