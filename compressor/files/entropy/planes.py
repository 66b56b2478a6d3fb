"""A matrix of symbols in the smallest form found: raw, or by ANS with a model. (Version 1 had zstd frames too.)

Which models are tried depends on the plane's size and the effort; their sizes are estimated from exact counts, and
the smallest is taken and recorded.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, Literal

from compressor.core import bitpacking as bitstream
from compressor.core import kernels
from compressor.core.elementary import log2
from compressor.core.lazy import np
from compressor.core.sums import dot
from compressor.core.workspace import Array, Workspace
from compressor.files.entropy.account import Account, Role
from compressor.files.entropy.ans import AnsReader
from compressor.files.entropy.bitio import BitReader, BitWriter
from compressor.files.entropy.contexts import CLASSES, Feature, Model, classed, likely_lag
from compressor.files.entropy.damage import Damaged, NeedsPackage
from compressor.files.entropy.rans import RansReader, RansWriter
from compressor.files.entropy.tables import (
    COARSE,
    FINE,
    LEAST_BITS,
    LOSS,
    Table,
    fitted,
    read_tables,
    table_of,
    write_tables,
)

Effort = Literal["fast", "small"]
_RAW, _ZSTD, _ANS = range(3)
_LARGE = 1 << 18  # symbols of a plane that is worth finer tables, and too large to try everything fast
_SAMPLE = 15  # log2 of the symbols that are counted where all would be too many
_NOISE = 0.98  # share of its width that a plane like noise takes at least to be left as it is
_FAST_LOSS = 2e-3  # share of a stream that is given for the fastest decoding, which wants the fewest bits
_ENTRY = 5  # bits of a table's entry, about
_STEPS = {"spread": (0.75, 1.5), "level": (0.5, 1.0)}  # octaves of a class


@dataclass
class Output:
    """A chunk while it is coded: the bits of its head, and its bodies. `work` has what of it is not given away."""

    effort: Effort
    work: Workspace
    head: BitWriter = field(default_factory=BitWriter)
    bodies: list[bytes | memoryview] = field(default_factory=list)
    ans: RansWriter = field(init=False)

    def __post_init__(self) -> None:
        self.ans = RansWriter(self.work)


@dataclass
class Input:
    """A coded chunk of a version while it is read: the bits of its head, and its bodies."""

    version: int
    head: BitReader
    rest: memoryview  # the bodies that are left
    words: AnsReader | RansReader
    work: Workspace
    account: Account | None = None  # of what is read, where that is wanted

    def body(self, size: int) -> memoryview:
        """The next bytes of the chunk's bodies."""
        if size > len(self.rest):
            raise Damaged("its bodies are too short")
        found, self.rest = self.rest[:size], self.rest[size:]
        return found


@dataclass(frozen=True)
class Chosen:
    """A model of a plane, the counts of its contexts' symbols [contexts, alphabet], and its size in bits, about."""

    model: Model
    counts: Array
    bits: float


# ---- which model ---------------------------------------------------------------------------------------


def choose(symbols: Array, alphabet: int, feature: Feature, effort: Effort) -> Chosen:
    """The model that makes a plane [rows, columns] smallest, of those that the effort allows."""
    flat = counts_of(symbols, alphabet)
    mode = int(flat.argmax())
    best = _estimated(Model(alphabet, mode), flat.reshape(1, -1), 0)
    rows, columns = symbols.shape
    if int(flat.max()) == symbols.size or min(rows, columns) < 2 or best.bits < 256:
        return best
    thorough = effort == "small" or symbols.size <= _LARGE
    if not thorough and alphabet > 2:
        return best
    found = best
    for step in _STEPS[feature] if thorough else _STEPS[feature][1:]:
        by_row = classed(symbols, 1, alphabet, mode, feature, step)
        by_column = classed(symbols, 0, alphabet, mode, feature, step)
        for row in (None, by_row):
            for column in (None, by_column):
                if row is not None or column is not None:
                    found = _better(found, replace(best.model, rows=row, columns=column), symbols)
    if thorough and columns > 2:
        lag = likely_lag(symbols, mode) if symbols.size <= _LARGE else 0
        plain = found.model
        found = _better(found, replace(plain, neighbours=1), symbols)
        if lag:
            found = _better(found, replace(plain, neighbours=2, lag=lag), symbols)
    # what is slower by far must be worth it
    return found if found.bits < best.bits * (0.99 if symbols.size > _LARGE else 1) else best


def counts_of(symbols: Array, alphabet: int) -> Array:
    """How often each symbol below `alphabet` occurs, int64 [alphabet]."""
    found = kernels.byte_counts(symbols.reshape(-1)) if symbols.dtype == np.uint8 else None
    return np.bincount(symbols.reshape(-1), minlength=alphabet) if found is None else found[:alphabet]


def _better(found: Chosen, model: Model, symbols: Array) -> Chosen:
    size = model.contexts * model.alphabet
    joint = np.bincount((model.all(symbols) * model.alphabet + symbols).reshape(-1), minlength=size)
    side = sum(
        _entropy(np.bincount(classes)) + 24 for classes in (model.rows, model.columns) if classes is not None
    )
    other = _estimated(model, joint.reshape(model.contexts, model.alphabet), side)
    return other if other.bits < found.bits else found


def _estimated(model: Model, counts: Array, side: float) -> Chosen:
    table = _ENTRY * int(np.count_nonzero(counts)) + len(counts)
    return Chosen(model, counts, _entropy(counts) + table + side)


def _entropy(counts: Array) -> float:
    """Bits of the symbols with these counts, each row by its own frequencies."""
    counts = np.atleast_2d(counts).astype(np.float64)
    totals = counts.sum(axis=1)
    seen, rows = counts[counts > 0], totals[totals > 0]
    return dot(rows, log2(rows)) - dot(seen, log2(seen))


# ---- writing and reading -------------------------------------------------------------------------------


def write_plane(
    out: Output,
    symbols: Array,
    alphabet: int,
    feature: Feature = "spread",
    *,
    plain: bool = False,
    chosen: Chosen | None = None,
) -> None:
    """Add a plane [rows, columns] of symbols below `alphabet` (2 to 2^12). `plain` is for what is like noise;
    `chosen` is what `choose` has found, if it was asked before."""
    width = (alphabet - 1).bit_length()
    if chosen is None and plain:
        if out.effort == "fast" and symbols.size > _LARGE:
            some = symbols.reshape(-1)[:: symbols.size >> _SAMPLE]  # counting all takes as long as coding them
            if _entropy(np.bincount(some)) > _NOISE * width * some.size:
                out.head.bits(_RAW, 2)
                out.bodies.append(_packed(symbols, width))
                return
        counts = counts_of(symbols, alphabet).reshape(1, -1)
        chosen = _estimated(Model(alphabet, int(counts.argmax())), counts, 0)
    chosen = chosen or choose(symbols, alphabet, feature, out.effort)
    if chosen.bits >= symbols.size * width:
        out.head.bits(_RAW, 2)
        out.bodies.append(_packed(symbols, width))
        return
    out.head.bits(_ANS, 2)
    model = chosen.model
    for classes in (model.rows, model.columns):
        out.head.bits(classes is not None, 1)
        if classes is not None:
            counts = np.bincount(classes, minlength=CLASSES)
            (table,) = fitted([table_of(counts, COARSE)], counts[None, :])
            _write_tables(out, [table], CLASSES)
            out.ans.put(classes, table)
    out.head.bits(model.neighbours, 2)
    if model.neighbours:
        out.head.bits(model.mode, width)
    if model.neighbours == 2:
        out.head.number(model.lag, 5)
    large = symbols.size > _LARGE
    loss = _FAST_LOSS if large and feature == "level" and out.effort == "fast" else LOSS
    octave = FINE if large else COARSE
    tables = fitted([table_of(counts, octave) for counts in chosen.counts], chosen.counts, loss)
    _write_tables(out, tables, alphabet)
    out.ans.expected += chosen.bits
    if len(tables) == 1:
        out.ans.put(symbols.reshape(-1), tables[0])
        return
    contexts = model.all(symbols)
    if model.neighbours:  # column by column, as they can be decoded
        symbols, contexts = symbols.T, contexts.T
        contexts = contexts + np.arange(len(contexts))[:, None] * len(tables)
    contexts = contexts.reshape(-1)
    order = np.argsort(contexts, kind="stable")
    sorted_contexts = contexts[order]
    runs = np.flatnonzero(np.diff(sorted_contexts, prepend=-1))
    pieces = np.split(symbols.reshape(-1)[order], runs[1:])
    for context, piece in zip((sorted_contexts[runs] % len(tables)).tolist(), pieces, strict=True):
        out.ans.put(piece, tables[context])


def _write_tables(out: Output, tables: list[Table], alphabet: int) -> None:
    out.head.bits(tables[0].bits - LEAST_BITS, 2)
    write_tables(out.head, tables, alphabet)


def _read_tables(source: Input, count: int, alphabet: int) -> list[Table]:
    bits = LEAST_BITS if source.version == 1 else LEAST_BITS + source.head.bits(2)
    return read_tables(source.head, count, alphabet, bits)


def read_plane(
    source: Input, shape: tuple[int, int], alphabet: int, role: Role = "values", scratch: str = ""
) -> Array:
    """The next plane, which tells its `role`; where `scratch` is named, perhaps in such memory. Raises Damaged."""
    head = source.head
    width = (alphabet - 1).bit_length()
    rows, columns = shape
    coder = head.bits(2)
    if coder == _ANS:
        return _from_ans(source, shape, alphabet, role, scratch)
    if coder == _ZSTD and source.version == 1:
        raw = source.body(head.number(16))
        out = _from_zstd(raw, rows * columns).reshape(shape)
    elif coder == _RAW:
        raw = source.body(_packed_size(rows * columns, width))
        out = _unpacked(raw, rows * columns, width).reshape(shape)
    else:
        raise Damaged("it names a coder that is not known")
    if source.account is not None:
        source.account.add(role, out.size * width, 8 * len(raw))
    return out


def _from_ans(source: Input, shape: tuple[int, int], alphabet: int, role: Role, scratch: str) -> Array:
    head = source.head
    width = (alphabet - 1).bit_length()
    rows, columns = shape
    classes: list[Array | None] = []
    for length in shape:
        there = head.bits(1)
        classes.append(_take(source, _read_tables(source, 1, CLASSES)[0], length) if there else None)
    neighbours = head.bits(2)
    mode = head.bits(width) if neighbours else 0
    lag = head.number(5) if neighbours == 2 else 0
    if neighbours == 3 or mode >= alphabet or (neighbours == 2 and not 0 < lag < columns):
        raise Damaged("it names a model that is not known")
    model = Model(alphabet, mode, classes[0], classes[1], neighbours, lag)
    tables = _read_tables(source, model.contexts, alphabet)
    dtype = np.uint8 if alphabet <= 256 else np.uint16
    if len(tables) == 1:
        out = _take(source, tables[0], rows * columns, scratch).astype(dtype, copy=False)
    elif not neighbours:
        out = np.zeros(rows * columns, dtype)
        _fill(source, out, model.classes(shape).reshape(-1), tables)
    else:
        out = np.zeros(rows * columns, dtype)
        whole, sums = out.reshape(shape), model.classes(shape)
        for number in range(columns):
            column = np.empty(rows, dtype)
            _fill(source, column, model.column(number, sums, whole), tables)
            whole[:, number] = column
    out = out.reshape(shape)
    if source.account is not None and out.size:
        contexts = model.all(out) if len(tables) > 1 else np.zeros(shape, np.int64)
        shares = np.stack([table.shares(alphabet) for table in tables])
        source.account.charge(role, out, width, contexts, shares)
    return out


def _fill(source: Input, out: Array, contexts: Array, tables: list[Table]) -> None:
    """Symbols of these contexts, context by context."""
    order = np.argsort(contexts, kind="stable")
    counts = np.bincount(contexts, minlength=len(tables)).tolist()
    start = 0
    for context, count in enumerate(counts):
        if count:
            out[order[start : start + count]] = _take(source, tables[context], count)
            start += count


def _take(source: Input, table: Table, count: int, scratch: str = "") -> Array:
    if count and not len(table.symbols):
        raise Damaged("it uses a context without a table")
    return source.words.take(table, count, scratch) if count else np.zeros(0, np.int64)


# ---- raw and zstd --------------------------------------------------------------------------------------


def _packed_size(count: int, width: int) -> int:
    return bitstream.row_bytes(count, width) if width <= 8 else 2 * count


def _packed(symbols: Array, width: int) -> bytes | memoryview:
    if width > 8:
        return np.ascontiguousarray(symbols, "<u2").tobytes()
    row = np.ascontiguousarray(symbols, np.uint8).reshape(1, -1)
    if width == 8:
        return row.reshape(-1).data
    out = np.empty((1, bitstream.row_bytes(row.shape[1], width)), np.uint8)
    bitstream.pack(row, width, out, Workspace())
    return out.tobytes()


def _unpacked(raw: memoryview, count: int, width: int) -> Array:
    if width >= 8:
        return np.frombuffer(raw, np.uint8 if width == 8 else "<u2")
    out = np.empty((1, count), np.uint8)
    bitstream.unpack(np.frombuffer(raw, np.uint8).reshape(1, -1), width, out, Workspace())
    found: Array = out[0]
    return found


def _from_zstd(frame: memoryview, size: int) -> Array:
    module = _zstandard()
    try:
        if module.frame_content_size(frame) != size:  # a stranger's frame could unpack to anything
            raise Damaged("its frame has another size than its plane")
        return np.frombuffer(module.ZstdDecompressor().decompress(frame), np.uint8)
    except module.ZstdError as error:
        raise Damaged("its frame does not unpack") from error


@cache
def _zstandard() -> Any:
    try:
        return importlib.import_module("zstandard")
    except ImportError as error:
        raise NeedsPackage("zstandard") from error
