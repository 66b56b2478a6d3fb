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
from compressor.methods.contract import Block, Encoder, Method, Survey
from compressor.methods.parts import Part
from compressor.methods.store._ragged_rows import pack_rows, unpack_rows
from compressor.methods.store._two_of_four import fours

if TYPE_CHECKING:
    from compressor.core.metrics import Change

CODES = ".codes"


@dataclass(frozen=True)
class Sparse(Encoder):
    """Non-zero elements only. `offsets` [rows + 1] counts the values before each row, once that is known."""

    verb: ClassVar[str] = "store"
    counts: ClassVar[bool] = True  # whether the sizes of parts depend on the data

    inner: Encoder | None = None
    settled: bool = field(default=False, compare=False, repr=False)  # nothing is left that `inner` must find out
    offsets: Array | None = field(default=None, compare=False, repr=False)
    pairs: bool = field(default=False, compare=False, repr=False)  # no four neighbours hold more than two values

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
    def counted(self) -> bool:
        return not self.counts or self.offsets is not None

    @property
    def exact(self) -> bool:
        return self.inner is None

    @property
    def rounded_by(self) -> Method:
        return self if self.inner is None else self.inner

    @property
    def label(self) -> str:
        return self.id if self.inner is None else f"{self.inner.label} {self.id}"

    @property
    def stored_name(self) -> str:
        return self.label

    def describe(self) -> dict[str, Any]:
        return {"layout": self.id, **({"of": self._inner_described} if self.inner is not None else {})}

    @property
    def _inner_described(self) -> dict[str, Any]:
        assert self.inner is not None  # noqa: S101 - who calls looked
        return {"kind": self.inner.verb, **self.inner.describe()}

    def coded(self, spec: TensorSpec) -> Encoder | None:
        """The inner encoder with one integer to a weight."""
        return self.inner

    def check(self, spec: TensorSpec) -> None:
        coded = self.coded(spec)
        if coded is not None:
            if coded.code_bits_used is None:
                raise UsageError(
                    f"scheme {coded.id} as it is set has no code that always means zero, so none can be left out",
                    tensor=spec.name,
                    remedy="Use --symmetric, or --store packed",
                )
            coded.check(spec)

    def parts(self, spec: TensorSpec) -> tuple[Part, ...]:
        coded = self.coded(spec)
        beside = () if coded is None else tuple(part for part in coded.parts(spec) if part.suffix != CODES)
        return (*self.layout(spec), *beside)

    def align(self, spec: TensorSpec) -> int:
        coded = self.coded(spec)
        return 1 if coded is None else coded.align(spec)

    def bound(self, largest: float, spec: TensorSpec) -> float:
        """Of floats: nothing, where they are of the tensor's dtype already; else one rounding."""
        if self.inner is not None:
            return self.inner.bound(largest, spec)
        return 2 * epsilon(spec.dtype) * largest + smallest(spec.dtype)

    def warning(self, change: Change) -> str | None:
        return None if self.inner is None else self.inner.warning(change)

    def encode(self, block: Block, parts: Mapping[str, Array] | None, restored: Array) -> None:
        if parts is None and self.inner is not None:
            self.inner.encode(block, None, restored)
            return
        elements = self.elements(block, parts or {}, restored)
        if parts is not None:
            self.store(elements, parts, block)

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

    # ---- counting before the plan --------------------------------------------------------------------

    @property
    def reach(self) -> Literal["tensor", "model"]:
        return "tensor" if self.inner is None or self.settled else self.inner.reach

    def survey(self, specs: Sequence[TensorSpec]) -> Survey[Any] | None:
        if self.inner is not None and not self.settled:
            first = self.inner.survey(specs)
            if self.inner.reach == "model":
                return Within(self, first)
            if first is not None:
                return Within(self, first, specs[0])
        return None if self.counted else Count(self, specs[0])

    def count(self, block: Block) -> tuple[Array, bool]:
        """How many values each row of the block has, and whether no four neighbours hold more than two."""
        coded, work, spec = self.coded(block.spec), block.work, block.spec
        beside = {}
        if coded is not None:
            rows = block.start, block.start + len(block.values)
            for part in coded.parts(spec):
                if part.suffix != CODES:
                    shape, storage = part.held(spec, *rows), DTYPES[part.dtype].storage
                    beside[part.suffix] = work.array(f"store{part.suffix}", shape, storage)
        restored = work.array("store.restored", block.values.shape, block.values.dtype.str)
        mask = self.mask(self.elements(block, beside, restored), work)
        mask = np.packbits(mask, axis=1, bitorder="little")
        counts = np.add.reduce(np.bitwise_count(mask), axis=1, dtype=np.int64)
        whole = block.values.shape[1] // 4
        full = mask[:, : whole // 2]
        pairs = bool(fours().fits[full].all())
        if whole % 2:
            pairs = pairs and bool(fours().fits[mask[:, whole // 2] & 15].all())
        return counts, pairs

    # ---- elements ------------------------------------------------------------------------------------

    def elements(self, block: Block, parts: Mapping[str, Array], restored: Array) -> Array:
        """The elements of a block [rows, columns] as unsigned integers. Fills the parts beside, and `restored`."""
        spec, work = block.spec, block.work
        dtype = self.element_dtype(spec)
        coded = self.coded(spec)
        if coded is not None:
            held = work.array("store.codes", restored.shape, DTYPES[dtype].storage)
            coded.encode(block, {**parts, CODES: held}, restored)
        elif dtype in ("F32", "F64"):
            held = block.values
            np.copyto(restored, held)
        else:
            held = work.array("store.raw", restored.shape, DTYPES[dtype].storage)
            narrow(block.values, dtype, held)
            np.copyto(restored, widen(held, dtype, work, "store.wide"))
        return held.view(f"<u{held.itemsize}")

    def element_dtype(self, spec: TensorSpec) -> str:
        """The dtype of the stored floats, or of the codes before they are packed."""
        coded = self.coded(spec)
        if coded is None:
            return spec.dtype
        return next(part.dtype for part in coded.parts(spec) if part.suffix == CODES)

    @property
    def bits(self) -> int | None:
        """Bits of a code where codes are packed."""
        used = None if self.inner is None else self.inner.code_bits_used
        return used if used is not None and used < 8 else None

    def mask(self, elements: Array, work: Workspace) -> Array:
        """Which elements are not zero, bool."""
        mask = work.array("store.mask", elements.shape, "|b1")
        np.not_equal(elements, 0, out=mask)
        return mask

    # ---- rows of unequal length ----------------------------------------------------------------------

    def starts(self) -> Array:
        """`offsets`, or TypeError before they are known."""
        if self.offsets is None:
            raise TypeError("a survey has to count the values first")
        return self.offsets

    @cached_property
    def _byte_starts(self) -> Array:
        """Where the packed codes of each row begin: on a byte."""
        starts = np.zeros(len(self.starts()), np.int64)
        np.cumsum((np.diff(self.starts()) * (self.bits or 8) + 7) // 8, out=starts[1:])
        return starts

    def ragged(self, suffix: str, spec: TensorSpec) -> Part:
        """The part with the values, row after row."""
        if self.bits is not None:
            return Part(suffix, "U8", (int(self._byte_starts[-1]),), bounds=self._byte_starts)
        return Part(suffix, self.element_dtype(spec), (int(self.starts()[-1]),), bounds=self.starts())

    def put(self, values: Array, part: Array, block: Block) -> None:
        """Store the values (unsigned, row after row) of a block's rows."""
        starts = self.starts()[block.start : block.start + len(block.values) + 1]
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
        starts = self.starts()[start : start + rows + 1]
        return self.signed(unpack_rows(part, starts, self.bits, work), spec)

    def signed(self, codes: Array, spec: TensorSpec) -> Array:
        """Unpacked codes as they are one to an element: two's complement again where those are signed."""
        if self.bits is not None and self.element_dtype(spec) == "I8":
            half = np.uint8(1 << (self.bits - 1))
            np.bitwise_xor(codes, half, out=codes)
            np.subtract(codes, half, out=codes)
        return codes

    def counts_part(self, spec: TensorSpec) -> Part | None:
        if not self.counts or self.offsets is not None:
            return None
        rows, columns = spec.matrix
        return Part(self.index_suffix, index_dtype(rows, columns), (rows + 1,), every=0)

    index_suffix: ClassVar[str] = ".rows"

    def index_part(self, spec: TensorSpec) -> Part:
        """The row offsets, as they are stored."""
        rows, columns = spec.matrix
        return Part(self.index_suffix, index_dtype(rows, columns), (rows + 1,), every=0, value=self.starts())

    def counted_by(self, spec: TensorSpec, content: Array) -> Sparse:
        offsets = content.astype(np.int64)
        counts = np.diff(offsets)
        if offsets[0] != 0 or np.any(counts < 0) or np.any(counts > spec.matrix[1]):
            raise UsageError(f"its part {self.index_suffix} tells no numbers of values that rows can have")
        return replace(self, offsets=offsets, settled=True)


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
    spec: TensorSpec

    def start(self) -> Rows:
        return [], True

    def observe(self, block: Block, stats: Rows) -> Rows:
        counts, pairs = self.method.count(block)
        return [*stats[0], (block.start, counts)], stats[1] and pairs

    def merge(self, stats: Rows, more: Rows) -> Rows:
        return stats[0] + more[0], stats[1] and more[1]

    def conclude(self, stats: Rows) -> Sparse:
        offsets = np.zeros(self.spec.matrix[0] + 1, np.int64)
        for start, counts in stats[0]:
            offsets[start + 1 : start + 1 + len(counts)] = counts
        np.cumsum(offsets, out=offsets)
        return replace(self.method, offsets=offsets, pairs=stats[1], settled=True)


@dataclass(frozen=True)
class Within(Survey[Any]):
    """A pass that the inner encoder needs over the tensor of this `spec`, or over the model; without `inner` there
    is none left, and nothing is read."""

    method: Sparse
    inner: Survey[Any] | None
    spec: TensorSpec | None = None

    @property
    def sample(self) -> int:  # type: ignore[override]
        return 1 if self.inner is None else self.inner.sample

    def start(self) -> Any:
        return None if self.inner is None else self.inner.start()

    def wants(self, spec: TensorSpec) -> bool:
        return self.inner is not None and self.inner.wants(spec)

    def observe(self, block: Block, stats: Any) -> Any:
        return None if self.inner is None else self.inner.observe(block, stats)

    def merge(self, stats: Any, more: Any) -> Any:
        return None if self.inner is None else self.inner.merge(stats, more)

    def conclude(self, stats: Any) -> Survey[Any] | Method:
        found = self.method.inner if self.inner is None else self.inner.conclude(stats)
        if isinstance(found, Survey):
            return replace(self, inner=found)
        assert isinstance(found, Encoder)  # noqa: S101 - it is what was asked for, knowing more
        if self.spec is None:  # what a whole model told may need one more look at each tensor
            return replace(self.method, inner=found, settled=found.reach == "model" or self.inner is None)
        known = replace(self.method, inner=found, settled=True)
        return known.survey([self.spec]) or known
