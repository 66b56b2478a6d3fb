"""What the sparse layouts share: which elements are stored, how many a row has, and how codes are packed.

An element is a float as its file holds it, or the integer code of an `inner` encoder, whose other parts (scales)
are stored beside. An element is left out when all its bits are zero: so a −0 is a value, and what is restored is to
the bit what dense output would hold. How many values a row has only the data tell: a survey counts them before
the plan is made (`Count`), and a reader takes them from the stored row offsets.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from compressor.core.errors import InputError, UsageError
from compressor.core.floats import epsilon, narrow, smallest, widen
from compressor.core.lazy import np
from compressor.core.tensor import DTYPES, TensorSpec
from compressor.core.workspace import Array, Workspace
from compressor.methods.contract import (
    Block,
    ByTensor,
    Decoder,
    Encoder,
    Indexed,
    Method,
    Prepared,
    Scheme,
    Survey,
    Treatment,
)
from compressor.methods.parts import Part
from compressor.methods.store._ragged_rows import pack_rows, unpack_rows
from compressor.methods.store._two_of_four import fours

if TYPE_CHECKING:
    from compressor.core.metrics import Change

CODES = ".codes"


@dataclass(frozen=True)
class SparseParts(Decoder):
    """The non-zero elements of a tensor of floats, or of the codes that `inner` reads. `offsets` [rows + 1] counts
    the values before each row; a layout whose sizes the spec tells has none."""

    verb: ClassVar[str] = "store"
    index_suffix: ClassVar[str] = ".rows"

    inner: Decoder | None
    offsets: Array = field(compare=False, repr=False)

    # ---- what a layout says --------------------------------------------------------------------------

    @abstractmethod
    def layout(self, spec: TensorSpec) -> tuple[Part, ...]:
        """The parts that hold the elements."""

    @abstractmethod
    def store(self, elements: Array, parts: Mapping[str, Array], block: Block) -> None:
        """Fill the rows of the parts from `elements` [rows, columns], bits as unsigned integers."""

    @abstractmethod
    def load(
        self, parts: Mapping[str, Array], elements: Array, spec: TensorSpec, start: int, work: Workspace
    ) -> None:
        """Write the values to `elements` [rows, columns], which are zero."""

    # ---- the contract --------------------------------------------------------------------------------

    @property
    def scheme(self) -> None:
        """A layout alone is no scheme."""
        return None

    @property
    def exact(self) -> bool:
        return self.inner is None

    @property
    def label(self) -> str:
        return self.id if self.inner is None else f"{self.inner.label} {self.id}"

    @property
    def stored_name(self) -> str:
        return self.label

    def describe(self) -> dict[str, Any]:
        return described(self.id, self.inner)

    def parts(self, spec: TensorSpec) -> tuple[Part, ...]:
        beside = () if self.inner is None else (part for part in self.inner.parts(spec) if part.suffix != CODES)
        return (*self.layout(spec), *beside)

    def bound(self, largest: float, spec: TensorSpec) -> float:
        """Of floats: nothing, where they are of the tensor's dtype already; else one rounding."""
        if self.inner is not None:
            return self.inner.bound(largest, spec)
        return 2 * epsilon(spec.dtype) * largest + smallest(spec.dtype)

    def decode(self, parts: Mapping[str, Array], spec: TensorSpec, out: Array, start: int, work: Workspace) -> None:
        dtype = self.element_dtype(spec)
        direct = self.inner is None and dtype in ("F32", "F64")
        held = out if direct else work.array("store.elements", out.shape, DTYPES[dtype].storage)
        elements = held.view(f"<u{held.itemsize}")
        elements[...] = 0
        self.load(parts, elements, spec, start, work)
        if self.inner is not None:
            self.inner.decode({**parts, CODES: held}, spec, out, start, work)
        elif not direct:
            np.copyto(out, widen(held, dtype, work, "store.wide"))

    # ---- elements ------------------------------------------------------------------------------------

    def element_dtype(self, spec: TensorSpec) -> str:
        """The dtype of the stored floats, or of the codes before they are packed."""
        return element_dtype(self.inner, spec)

    @property
    def bits(self) -> int | None:
        """Bits of a code where codes are packed."""
        used = None if self.inner is None else self.inner.code_bits_used
        return used if used is not None and used < 8 else None

    # ---- rows of unequal length ----------------------------------------------------------------------

    @cached_property
    def _byte_starts(self) -> Array:
        """Where the packed codes of each row begin: on a byte."""
        starts = np.zeros(len(self.offsets), np.int64)
        np.cumsum((np.diff(self.offsets) * (self.bits or 8) + 7) // 8, out=starts[1:])
        return starts

    def ragged(self, suffix: str, spec: TensorSpec) -> Part:
        """The part with the values, row after row."""
        if self.bits is not None:
            return Part(suffix, "U8", (int(self._byte_starts[-1]),), bounds=self._byte_starts)
        return Part(suffix, self.element_dtype(spec), (int(self.offsets[-1]),), bounds=self.offsets)

    def put(self, values: Array, part: Array, block: Block) -> None:
        """Store the values (unsigned, row after row) of a block's rows."""
        starts = self.offsets[block.start : block.start + len(block.values) + 1]
        if len(values) != starts[-1] - starts[0]:
            raise InputError("has other values than when they were counted", tensor=block.spec.name)
        if self.bits is None:
            part.view(values.dtype)[...] = values
        else:
            pack_rows(values, starts, self.bits, part, block.work)

    def take(self, part: Array, spec: TensorSpec, start: int, rows: int, work: Workspace) -> Array:
        """What `put` stored of these rows."""
        if self.bits is None:
            return part.view(f"<u{part.itemsize}")
        starts = self.offsets[start : start + rows + 1]
        return self.signed(unpack_rows(part, starts, self.bits, work), spec)

    def signed(self, codes: Array, spec: TensorSpec) -> Array:
        """Unpacked codes as they are one to an element: two's complement again where those are signed."""
        if self.bits is not None and self.element_dtype(spec) == "I8":
            half = np.uint8(1 << (self.bits - 1))
            np.bitwise_xor(codes, half, out=codes)
            np.subtract(codes, half, out=codes)
        return codes

    def index_part(self, spec: TensorSpec) -> Part:
        """The offsets, which this decoder knows already."""
        rows, columns = spec.matrix
        return Part(self.index_suffix, index_dtype(rows, columns), (rows + 1,), every=0, value=self.offsets)

    @classmethod
    def offsets_of(cls, spec: TensorSpec, content: Array) -> Array:
        """What is stored as the offsets [rows + 1]. UsageError where rows cannot have such numbers of values."""
        offsets = content.astype(np.int64)
        counts = np.diff(offsets)
        if offsets[0] != 0 or np.any(counts < 0) or np.any(counts > spec.matrix[1]):
            raise UsageError(f"its part {cls.index_suffix} tells no numbers of values that rows can have")
        return offsets


@dataclass(frozen=True)
class Storing(Encoder):
    """Stores what is not zero as `read_by` says; of codes, those of `inner`."""

    read_by: SparseParts
    inner: Encoder | None

    @property
    def decoder(self) -> SparseParts:
        return self.read_by

    def encode(self, block: Block, parts: Mapping[str, Array] | None, restored: Array) -> None:
        if parts is None and self.inner is not None:
            self.inner.encode(block, None, restored)
            return
        elements = elements_of(self.inner, block, parts or {}, restored)
        if parts is not None:
            self.read_by.store(elements, parts, block)

    def bound(self, largest: float, spec: TensorSpec) -> float:
        return self.read_by.bound(largest, spec) if self.inner is None else self.inner.bound(largest, spec)


# ---- what is asked for -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sparse(Scheme, Indexed):
    """A layout of the non-zero elements only, of floats or of the codes of an `inner` scheme."""

    verb: ClassVar[str] = "store"
    read_by: ClassVar[type[SparseParts]]
    counts: ClassVar[bool] = True  # whether the sizes of parts depend on the data

    inner: Scheme | None = None

    @property
    def rounded_by(self) -> Scheme:
        return self if self.inner is None else self.inner

    def describe(self) -> dict[str, Any]:
        return described(self.id, self.inner)

    def coded(self, spec: TensorSpec) -> Scheme | None:
        """The inner scheme with one integer to a weight."""
        return self.inner

    def check(self, spec: TensorSpec) -> None:
        coded = self.coded(spec)
        if coded is not None:
            decoder = coded.decoder_for(spec)
            if decoder is None or decoder.code_bits_used is None:
                raise UsageError(
                    f"scheme {coded.id} as it is set has no code that always means zero, so none can be left out",
                    tensor=spec.name,
                    remedy="Use --symmetric, or --store packed",
                )
            coded.check(spec)

    def align(self, spec: TensorSpec) -> int:
        coded = self.coded(spec)
        return 1 if coded is None else coded.align(spec)

    def warning(self, change: Change) -> str | None:
        return None if self.inner is None else self.inner.warning(change)

    def decoder_for(self, spec: TensorSpec) -> Decoder | None:
        return None if self.counts else self.indexed(spec, None)

    def index(self, spec: TensorSpec) -> Part | None:
        rows, columns = spec.matrix
        return Part(self.read_by.index_suffix, index_dtype(rows, columns), (rows + 1,), 0) if self.counts else None

    def indexed(self, spec: TensorSpec, content: Array | None) -> Decoder:
        offsets = np.zeros(0, np.int64) if content is None else self.read_by.offsets_of(spec, content)
        return self.read_by(None if self.inner is None else self.inner.decoder_for(spec), offsets)

    # ---- counting before the plan --------------------------------------------------------------------

    @property
    def reach(self) -> Literal["tensor", "model"]:
        return "tensor" if self.inner is None else self.inner.reach

    def prepare(self, specs: Sequence[TensorSpec]) -> Prepared:
        if self.inner is None:
            return self.over(None, specs[0])
        found = self.inner.prepare(specs)
        if self.reach == "tensor":
            return self.over(found, specs[0])
        return Within(self, found) if isinstance(found, Survey) else OverEach(self, found)

    def over(self, found: Prepared | None, spec: TensorSpec) -> Survey[Any] | Encoder:
        """What comes next for a tensor, once this is known of the inner scheme; None without one."""
        if isinstance(found, Survey):
            return Within(self, found, spec)
        assert found is None or isinstance(found, Encoder)  # noqa: S101 - a scheme ends in one
        return (
            Count(self, found, spec)
            if self.counts
            else Storing(self.read_by_of(found, np.zeros(0, np.int64)), found)
        )

    def read_by_of(self, inner: Encoder | None, offsets: Array) -> SparseParts:
        """What reads the parts, for an inner encoder."""
        return self.read_by(None if inner is None else inner.decoder, offsets)

    def as_codes(self, inner: Encoder | None, spec: TensorSpec) -> Encoder | None:
        """The inner encoder with one integer to a weight."""
        return inner

    def counted(self, inner: Encoder | None, spec: TensorSpec, offsets: Array, *, pairs: bool) -> Encoder:
        """What stores a tensor whose values were counted; `pairs`: no four neighbours hold more than two."""
        return Storing(self.read_by_of(inner, offsets), inner)


def described(layout: str, inner: Method | Decoder | None) -> dict[str, Any]:
    """What a record says of a sparse layout, and of what it holds the codes of."""
    return {"layout": layout, **({} if inner is None else {"of": {"kind": inner.verb, **inner.describe()}})}


def element_dtype(inner: Decoder | None, spec: TensorSpec) -> str:
    """The dtype of the stored floats, or of the inner codes before they are packed."""
    if inner is None:
        return spec.dtype
    return next(part.dtype for part in inner.parts(spec) if part.suffix == CODES)


def elements_of(inner: Encoder | None, block: Block, parts: Mapping[str, Array], restored: Array) -> Array:
    """The elements of a block [rows, columns] as unsigned integers. Fills the parts beside, and `restored`."""
    spec, work = block.spec, block.work
    dtype = element_dtype(None if inner is None else inner.decoder, spec)
    if inner is not None:
        held = work.array("store.codes", restored.shape, DTYPES[dtype].storage)
        inner.encode(block, {**parts, CODES: held}, restored)
    elif dtype in ("F32", "F64"):
        held = block.values
        np.copyto(restored, held)
    else:
        held = work.array("store.raw", restored.shape, DTYPES[dtype].storage)
        narrow(block.values, dtype, held)
        np.copyto(restored, widen(held, dtype, work, "store.wide"))
    return held.view(f"<u{held.itemsize}")


def occupied(elements: Array, work: Workspace) -> Array:
    """Which elements are not zero, bool."""
    mask = work.array("store.mask", elements.shape, "|b1")
    np.not_equal(elements, 0, out=mask)
    return mask


def index_dtype(rows: int, columns: int) -> str:
    """The dtype of row offsets: 64 bits where there could be 2^31 values."""
    return "I32" if rows * columns < 2**31 else "I64"


def damaged(spec: TensorSpec, what: str) -> InputError:
    """The refusal of stored parts that contradict each other."""
    return InputError(f"is damaged: {what}", tensor=spec.name)


# ---- surveys -------------------------------------------------------------------------------------------


# Of blocks of a tensor: first row and values of each row; and whether no four neighbours hold more than two.
Rows = tuple[list[tuple[int, Any]], bool]


@dataclass(frozen=True)
class Count(Survey[Rows]):
    """How many values each row of one tensor has."""

    method: Sparse
    inner: Encoder | None
    spec: TensorSpec

    def start(self) -> Rows:
        return [], True

    def observe(self, block: Block, stats: Rows) -> Rows:
        coded, work, spec = self.method.as_codes(self.inner, block.spec), block.work, block.spec
        beside = {}
        if coded is not None:
            rows = block.start, block.start + len(block.values)
            for part in coded.decoder.parts(spec):
                if part.suffix != CODES:
                    shape, storage = part.held(spec, *rows), DTYPES[part.dtype].storage
                    beside[part.suffix] = work.array(f"store{part.suffix}", shape, storage)
        restored = work.array("store.restored", block.values.shape, block.values.dtype.str)
        mask = occupied(elements_of(coded, block, beside, restored), work)
        mask = np.packbits(mask, axis=1, bitorder="little")
        counts = np.add.reduce(np.bitwise_count(mask), axis=1, dtype=np.int64)
        whole = block.values.shape[1] // 4
        full = mask[:, : whole // 2]
        pairs = bool(fours().fits[full].all())
        if whole % 2:
            pairs = pairs and bool(fours().fits[mask[:, whole // 2] & 15].all())
        return [*stats[0], (block.start, counts)], stats[1] and pairs

    def merge(self, stats: Rows, more: Rows) -> Rows:
        return stats[0] + more[0], stats[1] and more[1]

    def conclude(self, stats: Rows) -> Encoder:
        offsets = np.zeros(self.spec.matrix[0] + 1, np.int64)
        for start, counts in stats[0]:
            offsets[start + 1 : start + 1 + len(counts)] = counts
        np.cumsum(offsets, out=offsets)
        return self.method.counted(self.inner, self.spec, offsets, pairs=stats[1])


@dataclass(frozen=True)
class Within(Survey[Any]):
    """A pass that the inner scheme needs over the tensor of this `spec`, or over the model."""

    method: Sparse
    inner: Survey[Any]
    spec: TensorSpec | None = None

    @property
    def sample(self) -> int:  # type: ignore[override]
        return self.inner.sample

    def start(self) -> Any:
        return self.inner.start()

    def wants(self, spec: TensorSpec) -> bool:
        return self.inner.wants(spec)

    def observe(self, block: Block, stats: Any) -> Any:
        return self.inner.observe(block, stats)

    def merge(self, stats: Any, more: Any) -> Any:
        return self.inner.merge(stats, more)

    def conclude(self, stats: Any) -> Prepared:
        found = self.inner.conclude(stats)
        if isinstance(found, Survey):
            return replace(self, inner=found)
        return OverEach(self.method, found) if self.spec is None else self.method.over(found, self.spec)


@dataclass(frozen=True)
class OverEach(ByTensor):
    """Over what the inner scheme found out of a whole model each tensor is counted by itself."""

    method: Sparse
    found: ByTensor | Treatment

    def of(self, spec: TensorSpec, own: Method) -> Survey[Any] | Treatment:
        found: Prepared = self.found
        if isinstance(found, ByTensor):
            assert isinstance(own, Sparse) and own.inner is not None  # noqa: S101, PT018 - it equals the method
            found = found.of(spec, own.inner)
        return self.method.over(found, spec)
