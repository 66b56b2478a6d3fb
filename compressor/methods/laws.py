"""The laws that every method obeys, and what is needed to run a method on an array without any file; the way in is
`compressor.testing`.

A method is run as the engine runs it: surveys first, then block by block with one workspace, parts in buffers
full of garbage.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, TypedDict, Unpack

import numpy as np
import numpy.typing as npt

from compressor.core.errors import CompressorError, InputError, UsageError
from compressor.core.floats import add_base, largest, narrow, smallest, widen
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
    TensorMethod,
    Transform,
    Treatment,
)
from compressor.methods.parts import Part

Array = npt.NDArray[Any]
FLOATS = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")
_RANDOM = 8  # arrays of any bits that a method is tried on


def check_method(method: Method, dtype: str = "F32", *, may_refuse: bool = False, seed: int = 0) -> int:
    """All laws of a method on tensors of a dtype: extremes of it in shapes of all kinds, and random bits. How many
    of them the method takes; AssertionError where a law does not hold, or where it takes none.

    `may_refuse`: the method may raise InputError for numbers that it cannot hold.
    """
    arrays = {**edges(dtype), **{f"random bits {n}": random_bits(dtype, seed + n) for n in range(_RANDOM)}}
    held = [check_laws(method, name, dtype, raw, may_refuse=may_refuse) for name, raw in arrays.items()]
    assert any(held), f"{method} takes none of {len(held)} tensors of {dtype}: every law would hold"
    return sum(held)


def check_laws(method: Method, name: str, dtype: str, raw: Array, *, may_refuse: bool = False) -> bool:
    """All laws on one array `raw` that is stored as a dtype; False where the method says no to it, by the name of
    the tensor and with a reason. AssertionError, which names the law, where one does not hold."""
    spec = TensorSpec(name, dtype, raw.shape)
    if isinstance(method, Scheme):
        no = refusal(lambda: method.check(spec))
        if no is not None:
            assert isinstance(no, UsageError)
            planned = method.settled(spec)[0] is not method  # a plan takes another scheme, and refuses nothing
            assert no.remedy or planned, "a refusal must say what to do instead"
            return False
    elif refusal(lambda: method.skip(spec)) is not None:
        return False
    outcomes: list[Outcome] = []
    no = refusal(lambda: outcomes.append(run(method, spec, raw)))
    if no is not None:
        assert may_refuse, f"{method} refuses {name} in {dtype}: {no}"
        assert isinstance(no, InputError)
        assert no.tensor == name
        return False
    for law in LAWS:
        try:
            law(replace(outcomes[0], may_refuse=may_refuse), spec, raw)
        except AssertionError as error:
            raise AssertionError(f"{method} breaks {law.__name__} on {name} in {dtype}: {error}") from error
    return True


def refusal(law: Callable[[], object]) -> CompressorError | None:
    """What a call refuses, if it does."""
    try:
        law()
    except CompressorError as error:
        return error
    return None


def random_bits(dtype: str, seed: int) -> Array:
    """An array as a file holds it: any bits that stand for finite numbers, up to 20 rows of up to 32 columns."""
    random = np.random.default_rng(seed)
    rows, columns = int(random.integers(1, 21)), int(random.choice([1, 2, 7, 8, 16, 32]))
    storage = np.dtype(DTYPES[dtype].storage)
    raw = np.frombuffer(random.bytes(rows * columns * storage.itemsize), storage).reshape(rows, columns).copy()
    with np.errstate(invalid="ignore"):
        raw[~(np.abs(numbers(raw, dtype)) <= largest(dtype) / 4)] = 0
    return raw


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


# ---- running a method ----------------------------------------------------------------------------------


@dataclass
class Outcome:
    """What a method made of an array: `parts` (None of a transform), the numbers `restored` [rows, columns], and
    `settled`, those numbers rounded to the tensor's dtype. `treatment` is what the `asked` method came to;
    `may_refuse`: where a result is beyond what a dtype holds, the method says so."""

    asked: Method
    treatment: Treatment
    parts: dict[str, Array] | None
    restored: Array
    settled: Array
    may_refuse: bool = False
    base: Array | None = None


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
    if not isinstance(method, TensorMethod):
        raise UsageError(f"{method.id} treats models, not tensors")
    found: Any = method.prepare([spec])
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
    assert isinstance(found, Transform | Encoder)
    return found


class How(TypedDict, total=False):
    """How a method is run: `size` rows a block, or about; a `teacher` [rows, columns], else the tensor itself;
    `inputs`, else some where the method goes by them; the byte that buffers are full of; `flat`: cut anywhere, as
    columns of one; whether parts are stored."""

    size: int
    teacher: Array | None
    inputs: Layer | None
    garbage: int
    flat: bool
    store_parts: bool


def run(method: Method, spec: TensorSpec, raw: Array, **how: Unpack[How]) -> Outcome:
    """Run a method on a stored tensor, by default in one block."""
    size, garbage, flat = how.get("size", 1 << 30), how.get("garbage", 0xA5), how.get("flat", False)
    teacher, inputs = how.get("teacher"), how.get("inputs")
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
    if isinstance(treatment, Encoder) and how.get("store_parts", True):
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
    return Outcome(method, treatment, parts, restored, settled, base=next(iter(partners.values()), None))


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
        if decoder.on_base:
            assert outcome.base is not None
            add_base(out, outcome.base[start:stop], spec.dtype)
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


def law_cuts_and_what_memory_held_do_not_matter(whole: Outcome, spec: TensorSpec, raw: Array) -> None:
    small, large = portions(spec.matrix[0])
    for size in (small,) if spec.matrix[0] <= small else (small, large):
        pieces = run(whole.asked, spec, raw, size=size, garbage=0x5A)
        assert same_bits(pieces.restored, whole.restored)
        for suffix, content in (whole.parts or {}).items():
            assert same_bits(content, (pieces.parts or {})[suffix]), suffix
    if whole.asked.elementwise:
        flat = run(whole.asked, spec, raw, size=5 + spec.size // 4, flat=True, store_parts=False)
        assert same_bits(flat.restored.reshape(whole.restored.shape), whole.restored)


def law_the_same_again_gives_the_same(whole: Outcome, spec: TensorSpec, raw: Array) -> None:
    again = run(whole.asked, spec, raw, store_parts=False)  # nor does it matter whether parts are stored
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
    if not whole.may_refuse:
        assert np.isfinite(whole.restored).all()
        assert np.isfinite(whole.settled).all()


LAWS: tuple[Callable[[Outcome, TensorSpec, Array], None], ...] = tuple(
    law for name, law in sorted(globals().items()) if name.startswith("law_")
)
