"""A matrix of symbols in the smallest form found: raw, by zstd's entropy stage, or by ANS with a model.

Which models are tried depends on the plane's size and the effort; their sizes are estimated from exact counts, and
the smallest is taken and recorded.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, Literal

from compressor.core import bitpacking as bitstream
from compressor.core.elementary import log2
from compressor.core.lazy import np
from compressor.core.sums import dot
from compressor.core.workspace import Array, Workspace
from compressor.files.entropy.account import Account, Role
from compressor.files.entropy.ans import AnsReader, AnsWriter
from compressor.files.entropy.bitio import BitReader, BitWriter
from compressor.files.entropy.contexts import CLASSES, Feature, Model, classed, likely_lag
from compressor.files.entropy.damage import Damaged, NeedsPackage
from compressor.files.entropy.tables import COARSE, FINE, Table, read_tables, table_of, write_tables

Effort = Literal["fast", "small"]
_RAW, _ZSTD, _ANS = range(3)
_LARGE = 1 << 18  # symbols of a plane that is worth finer tables, and too large to try everything fast
_SAMPLE = 15  # log2 of the symbols that are counted where all would be too many
_ENTRY = 5  # bits of a table's entry, about
_STEPS = {"spread": (0.75, 1.5), "level": (0.5, 1.0)}  # octaves of a class


@dataclass
class Output:
    """A chunk while it is coded: the bits of its head, and its bodies."""

    effort: Effort
    head: BitWriter = field(default_factory=BitWriter)
    bodies: list[bytes] = field(default_factory=list)
    ans: AnsWriter = field(default_factory=AnsWriter)


@dataclass
class Input:
    """A coded chunk while it is read: the bits of its head, and its bodies."""

    head: BitReader
    rest: memoryview  # the bodies that are left
    words: AnsReader
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
    flat = np.bincount(symbols.reshape(-1), minlength=alphabet)
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
    quick: bool = False,
    plain: bool = False,
    chosen: Chosen | None = None,
) -> None:
    """Add a plane [rows, columns] of symbols below `alphabet` (2 to 2^12). `quick` is for planes for which zstd may
    stand in, `plain` for those that are like noise; `chosen` is what `choose` has found, if it was asked before."""
    width = (alphabet - 1).bit_length()
    if chosen is None and quick and out.effort == "fast" and symbols.size > _LARGE and alphabet <= 256:
        flat = np.ascontiguousarray(symbols, np.uint8).reshape(-1)
        some = flat[:: flat.size >> _SAMPLE]  # counting all of them would take longer than coding them
        share = _entropy(np.bincount(some)) / some.size
        if share > 0.98 * width:
            out.head.bits(_RAW, 2)
            out.bodies.append(_packed(symbols, width))
            return
        frame = _zstd()[0].compress(flat.data)
        if len(frame) * 8 < 1.08 * share * flat.size:
            out.head.bits(_ZSTD, 2)
            out.head.number(len(frame), 16)
            out.bodies.append(frame)
            return
    if chosen is None and plain:
        counts = np.bincount(symbols.reshape(-1), minlength=alphabet).reshape(1, -1)
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
            table = table_of(np.bincount(classes, minlength=CLASSES), COARSE)
            write_tables(out.head, [table], CLASSES)
            out.ans.put(classes, table)
    out.head.bits(model.neighbours, 2)
    if model.neighbours:
        out.head.bits(model.mode, width)
    if model.neighbours == 2:
        out.head.number(model.lag, 5)
    octave = FINE if symbols.size > _LARGE else COARSE
    tables = [table_of(counts, octave) for counts in chosen.counts]
    write_tables(out.head, tables, alphabet)
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


def read_plane(source: Input, shape: tuple[int, int], alphabet: int, role: Role = "values") -> Array:
    """The next plane, which tells its `role`. Raises Damaged."""
    head = source.head
    width = (alphabet - 1).bit_length()
    rows, columns = shape
    coder = head.bits(2)
    if coder == _ANS:
        return _from_ans(source, shape, alphabet, role)
    if coder == _ZSTD:
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


def _from_ans(source: Input, shape: tuple[int, int], alphabet: int, role: Role) -> Array:
    head = source.head
    width = (alphabet - 1).bit_length()
    rows, columns = shape
    classes: list[Array | None] = []
    for length in shape:
        there = head.bits(1)
        classes.append(_take(source, read_tables(head, 1, CLASSES)[0], length) if there else None)
    neighbours = head.bits(2)
    mode = head.bits(width) if neighbours else 0
    lag = head.number(5) if neighbours == 2 else 0
    if neighbours == 3 or mode >= alphabet or (neighbours == 2 and not 0 < lag < columns):
        raise Damaged("it names a model that is not known")
    model = Model(alphabet, mode, classes[0], classes[1], neighbours, lag)
    tables = read_tables(head, model.contexts, alphabet)
    dtype = np.uint8 if alphabet <= 256 else np.uint16
    out = np.zeros(rows * columns, dtype)
    if len(tables) == 1:
        out[:] = _take(source, tables[0], rows * columns)
    elif not neighbours:
        _fill(source, out, model.classes(shape).reshape(-1), tables)
    else:
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


def _take(source: Input, table: Table, count: int) -> Array:
    if count and not len(table.symbols):
        raise Damaged("it uses a context without a table")
    return source.words.take(table, count) if count else np.zeros(0, np.int64)


# ---- raw and zstd --------------------------------------------------------------------------------------


def _packed_size(count: int, width: int) -> int:
    return bitstream.row_bytes(count, width) if width <= 8 else 2 * count


def _packed(symbols: Array, width: int) -> bytes:
    if width > 8:
        return np.ascontiguousarray(symbols, "<u2").tobytes()
    row = np.ascontiguousarray(symbols, np.uint8).reshape(1, -1)
    if width == 8:
        return row.tobytes()
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
        return np.frombuffer(_zstd()[1].decompress(frame), np.uint8)
    except module.ZstdError as error:
        raise Damaged("its frame does not unpack") from error


def _zstd() -> tuple[Any, Any]:
    """A compressor that hardly looks for repetitions, and a decompressor. They serve one thread at a time."""
    module = _zstandard()
    settings = {"strategy": module.STRATEGY_FAST, "window_log": 17, "hash_log": 6, "min_match": 7}
    parameters = module.ZstdCompressionParameters(**settings)
    return module.ZstdCompressor(compression_params=parameters), module.ZstdDecompressor()


@cache
def _zstandard() -> Any:
    try:
        return importlib.import_module("zstandard")
    except ImportError as error:
        raise NeedsPackage("zstandard") from error
