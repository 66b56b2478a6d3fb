"""Weight sharing: every weight becomes one of a few centroids, found by k-means (Deep Compression).

    minimise Σ (w − c[code])²,   code = the nearest centroid, the lower of two as near

Han, Mao, Dally, arXiv 1510.00149. On a line the best clustering can be had: `init = optimal`, the default, finds it
by dynamic programming, and Lloyd's iteration over all the weights finishes it. What is exact:

* a tensor, or a group of rows, of at most 2^16 weights, and every bfloat16, float16 and FP8 tensor, is clustered by
  the numbers that it holds; a larger float32 or float64 tensor by classes of weights that agree to 2^-9 (2^-7), the
  mean and number of each class being exact (`bit_patterns.py`);
* up to 2^18 / entries different numbers or classes (at least 4096; of a group of rows: 16 an entry, at least 256)
  the result is the optimum. Beyond that close ones are put together for the dynamic programming, and the result is
  the local optimum next to the best partition of those. For 16 entries and rows of 4096 weights that was within
  0.1 % of the optimum's error, whatever was tried;
* codes are always the nearest centroid's, of the centroids as they are stored.

`linear`, `density` (equal shares of the weights) and `kmeans++` are where Lloyd's iteration (at most 300 rounds)
begins instead; the last draws by the seed and the tensor's name. Where there are zeros, one centroid is zero,
exactly: what was pruned stays so.

Stored, for `NAME` [rows, columns] and b = ⌈log2 entries⌉: `NAME.codes` U8 [rows, ⌈columns·b/8⌉], rows as
little-endian bit streams, and `NAME.codebook` [entries], or [⌈rows/r⌉, entries] where r rows share one, ascending,
in the weights' dtype.
Error: k-means bounds the sum of the squares and no single one; a weight is off by at most twice the largest.

    entries = 2: [[0, 0, 3, 5]] becomes the codes [[0, 0, 1, 1]] of the centroids [0, 4]
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from compressor.core import bitpacking as bitstream
from compressor.core.errors import InputError
from compressor.core.floats import epsilon, narrow, smallest, widen
from compressor.core.floats import largest as limit
from compressor.core.lazy import np
from compressor.core.tensor import DTYPES, TensorSpec
from compressor.core.workspace import Array, Workspace
from compressor.methods.contract import Block, Encoder, ReadableScheme, Survey
from compressor.methods.levels import Levels
from compressor.methods.numerics.bit_patterns import FEW, Patterns
from compressor.methods.numerics.kmeans import Points, centroids, sort_points
from compressor.methods.numerics.nearest import nearest
from compressor.methods.options import option
from compressor.methods.parts import Part


@dataclass(frozen=True)
class Codebook(ReadableScheme):
    """A few shared values, fitted by k-means, for a tensor or for every so many rows."""

    verb: ClassVar[str] = "quantize"
    id: ClassVar[str] = "codebook"

    entries: int = option(16, help="centroids of a codebook", low=2, high=256)
    rows: int | None = option(None, help="rows that share a codebook; unset: all of the tensor", low=1, high=2**31)
    init: Literal["optimal", "linear", "kmeans++", "density"] = option(
        "optimal", help="the best clustering, or where Lloyd's iteration begins"
    )
    seed: int = option(0, help="of what kmeans++ draws", low=0, high=2**63)

    @property
    def bits(self) -> int:
        """Bits that a code takes as it is stored."""
        return (self.entries - 1).bit_length()

    @property
    def label(self) -> str:
        return f"codebook{self.entries}"

    def parts(self, spec: TensorSpec) -> tuple[Part, ...]:
        rows, columns = spec.matrix
        codes = Part(".codes", "U8", (rows, bitstream.row_bytes(columns, self.bits)))
        if self.rows is None:
            return codes, Part(".codebook", spec.dtype, (self.entries,), every=0)
        return codes, Part(".codebook", spec.dtype, (-(-rows // self.rows), self.entries), every=self.rows)

    def prepare(self, specs: Sequence[TensorSpec]) -> Clustering | Encoder:
        return Clustering(self, specs[0]) if self.rows is None else OwnBooks(self, self.rows)

    def for_block(self, spec: TensorSpec, largest: float) -> OwnBooks:
        """By centroids of the block itself: those of a whole tensor fit it a little worse."""
        return OwnBooks(self, self.rows or max(spec.matrix[0], 1))

    def bound(self, largest: float, spec: TensorSpec) -> float:
        """A centroid lies between the least and the largest weight."""
        return 2 * largest * (1 + 2 * epsilon(spec.dtype)) + smallest(spec.dtype)

    def decode(self, parts: Mapping[str, Array], spec: TensorSpec, out: Array, start: int, work: Workspace) -> None:
        """Raises InputError when a code is none of the codebook's."""
        codes = work.array("codebook.codes", out.shape, "|u1")
        bitstream.unpack(parts[".codes"], self.bits, codes, work)
        if self.entries < 1 << self.bits and codes.size and int(codes.max()) >= self.entries:
            raise InputError(f"has a code beyond its codebook of {self.entries}", tensor=spec.name)
        books = widen(parts[".codebook"], spec.dtype, work, "codebook.books").reshape(-1, self.entries)
        step = self.rows or max(len(out), 1)
        for number, first in enumerate(range(0, len(out), step)):
            books[number].take(codes[first : first + step], out=out[first : first + step], mode="clip")

    def has_levels(self, spec: TensorSpec) -> bool:
        return True

    def levels(self, spec: TensorSpec, parts: Mapping[str, Array]) -> BookLevels:
        (rows, columns), work = spec.matrix, Workspace()
        codes = np.empty((rows, columns), np.uint8)
        bitstream.unpack(parts[".codes"], self.bits, codes, work)
        books = widen(np.array(parts[".codebook"]).reshape(-1, self.entries), spec.dtype, work, "levels")
        which = np.arange(rows) // (self.rows or max(rows, 1))
        places = codes + self.entries * which[:, None]
        numbers = books.astype(np.float32).reshape(-1)
        moving = (numbers != 0).astype(np.float32)
        return BookLevels(places.reshape(-1), numbers, moving, None, self, spec)

    def fit(self, points: Points, spec: TensorSpec, pinned: bool, numbers: Array | int, buckets: int) -> Array:
        """Centroids of problems that have these numbers in the tensor."""
        which = np.atleast_1d(numbers)

        def draws(problem: int) -> Callable[[int], float]:
            key = f"{self.seed}:{int(which[problem])}:{spec.name}:"
            return lambda draw: int.from_bytes(hashlib.sha256(f"{key}{draw}".encode()).digest()[:6]) / 2.0**48

        return centroids(points, self.entries, self.init, pinned, buckets, draws)


@dataclass(frozen=True, eq=False)
class BookLevels(Levels):
    """The entries of a tensor's codebooks, one book after the other; an entry that is zero stays so."""

    scheme: Codebook
    spec: TensorSpec

    def stored(self, numbers: Array) -> Mapping[str, Array]:
        spec, scheme = self.spec, self.scheme
        books = numbers.reshape(-1, scheme.entries)
        order = np.argsort(books, axis=1, kind="stable")  # books ascend
        stored = np.empty(books.shape, DTYPES[spec.dtype].storage)
        ascending = np.take_along_axis(books, order, axis=1)
        narrow(ascending.astype(DTYPES[spec.dtype].compute, copy=False), spec.dtype, stored)
        # each code becomes its entry's new place
        ranks = np.argsort(order, axis=1, kind="stable").astype(np.uint8).reshape(-1)
        codes = ranks[self.places].reshape(spec.matrix)
        packed = np.empty((len(codes), bitstream.row_bytes(codes.shape[1], scheme.bits)), np.uint8)
        bitstream.pack(codes, scheme.bits, packed, Workspace())
        return {".codes": packed, ".codebook": stored}


@dataclass(frozen=True)
class OneBook(Encoder):
    """A tensor whose centroids are known."""

    scheme: Codebook
    book: tuple[float, ...]

    @property
    def decoder(self) -> Codebook:
        return self.scheme

    def encode(self, block: Block, parts: Mapping[str, Array] | None, restored: Array) -> None:
        values, work = block.values, block.work
        codes = work.array("codebook.codes", values.shape, "|u1")
        stored, numbers = rounded(np.array([self.book]), block.spec)
        nearest(values.reshape(1, -1), numbers, codes.reshape(1, -1), work)
        numbers[0].take(codes, out=restored, mode="clip")
        if parts is not None:
            if block.start == 0:
                parts[".codebook"][...] = stored[0]
            bitstream.pack(codes, self.scheme.bits, parts[".codes"], work)


@dataclass(frozen=True)
class OwnBooks(Encoder):
    """Every so many `rows` have centroids of their own, and are fitted when they come."""

    scheme: Codebook
    rows: int

    @property
    def decoder(self) -> Codebook:
        return self.scheme

    def encode(self, block: Block, parts: Mapping[str, Array] | None, restored: Array) -> None:
        values, spec, work = block.values, block.spec, block.work
        codes = work.array("codebook.codes", values.shape, "|u1")
        for start, stop in self._pieces(values):
            stored, numbers = rounded(self._fitted(values[start:stop], spec, block.start + start), spec)
            if parts is not None:
                first = start // self.rows
                parts[".codebook"][first : first + len(stored)] = stored
            shape = (len(stored), -1)
            nearest(values[start:stop].reshape(shape), numbers, codes[start:stop].reshape(shape), work)
            for number, book in enumerate(numbers):
                held = slice(start + number * self.rows, min(start + (number + 1) * self.rows, stop))
                book.take(codes[held], out=restored[held], mode="clip")
        if parts is not None:
            bitstream.pack(codes, self.scheme.bits, parts[".codes"], work)

    def _pieces(self, values: Array) -> Iterator[tuple[int, int]]:
        """Row ranges that are fitted at once: some whole groups of rows, or the last that is not whole."""
        rows, columns = values.shape
        group = self.rows * max(columns, 1)
        whole = rows // self.rows * self.rows
        step = max(2 * FEW // group, 1) * self.rows  # a group that is too large to sort is alone
        for start in range(0, whole, step):
            yield start, min(start + step, whole)
        if whole < rows:
            yield whole, rows

    def _fitted(self, values: Array, spec: TensorSpec, start: int) -> Array:
        """The centroids [groups, entries] of the groups of rows in `values`."""
        number = start // self.rows
        groups = max(len(values) // self.rows, 1)
        buckets = max(16 * self.scheme.entries, 256)
        if values.size == 0:
            return np.zeros((groups, self.scheme.entries))
        if values.size > groups * FEW:  # too many to sort
            patterns = Patterns.of(spec)
            patterns.add(values, Workspace())
            return self.scheme.fit(patterns.points(values.dtype.str), spec, patterns.zeros > 0, number, buckets)
        flat = values.reshape(groups, -1)
        found = np.empty((groups, self.scheme.entries))
        pinned = (flat == 0).any(axis=1)
        for held in (pinned, ~pinned):
            if held.any():
                which = np.flatnonzero(held)
                found[which] = self.scheme.fit(
                    sort_points(flat[which]), spec, bool(pinned[which[0]]), which + number, buckets
                )
        return found


@dataclass(frozen=True)
class Clustering(Survey[Patterns]):
    """Count what a tensor holds and cluster it."""

    method: Codebook
    spec: TensorSpec

    def start(self) -> Patterns:
        return Patterns.of(self.spec)

    def observe(self, block: Block, stats: Patterns) -> Patterns:
        if block.values.size:
            stats.add(block.values, block.work)
        return stats

    def merge(self, stats: Patterns, more: Patterns) -> Patterns:
        stats.merge(more)
        return stats

    def conclude(self, stats: Patterns) -> OneBook:
        book = np.zeros((1, self.method.entries))
        if stats.tables:
            points = stats.points(DTYPES[self.spec.dtype].compute)
            buckets = max((1 << 18) // self.method.entries, 4096)
            book = self.method.fit(points, self.spec, stats.zeros > 0, 0, buckets)
        return OneBook(self.method, tuple(book[0].tolist()))


def rounded(book: Array, spec: TensorSpec) -> tuple[Array, Array]:
    """Centroids in the type they are stored in, and the numbers that those are; zero is positive."""
    compute = DTYPES[spec.dtype].compute
    stored = np.empty(book.shape, DTYPES[spec.dtype].storage)
    narrow(np.clip(book, -limit(spec.dtype), limit(spec.dtype)).astype(compute), spec.dtype, stored)
    stored[widen(stored, spec.dtype, Workspace()) == 0] = 0
    return stored, widen(stored, spec.dtype, Workspace())


METHOD = Codebook
