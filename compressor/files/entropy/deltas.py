"""A chunk of a tensor that is coded against the same rows of a base: what its numbers differ in from the base's.

Patterns of b bits are put in the order of the numbers that they are, integers as they are (two's complement) and
floats with the bits below the sign of negative ones turned. Differences modulo 2^b are folded, 0, −1, 1, −2, … to
0, 1, 2, 3, …, and a folded difference z becomes a symbol:

    z < 16:             z
    2^(n−1) ≤ z < 2^n:  16 + 2 (n − 5) + the bit below the highest, and the n − 2 bits below that as they are

What an update changes of a float depends on how wide its last bit is, which the base's exponent tells: a symbol's
context is how far the exponent is below `top`, from 0 to 30 (an exponent of zeros has the context 31). The symbols
are coded context by context, in their order within each. Neighbouring contexts share a table until it has 512
symbols (`_groups`), which the decoder can tell as well, for it has the base.

    CRC-32 of the rows (4, little-endian) · kind (1) · what the kind has

Kind 0 is a chunk without a base behind its checksum (`chunk`). Kind 1 has nothing: the rows are the base's. Kind 2
is the length of the head (2 bytes), head, extra bits, and states and words of the coder. Its head is the coder's
lanes (3 bits), `top` (as wide as an exponent), the bits of frequencies less 12 (2 bits), the tables, and the count
of extra bits (order 8).
"""

from __future__ import annotations

from compressor.core import kernels
from compressor.core.lazy import np
from compressor.core.workspace import Array
from compressor.files.entropy.account import Account
from compressor.files.entropy.bitio import BitReader, BitWriter
from compressor.files.entropy.checksum import crc32
from compressor.files.entropy.chunk import decode_chunk, encode_chunk
from compressor.files.entropy.damage import Damaged
from compressor.files.entropy.elements import Form
from compressor.files.entropy.planes import Effort, counts_of
from compressor.files.entropy.rans import RansReader, RansWriter
from compressor.files.entropy.tables import (
    COARSE,
    LEAST_BITS,
    LOSS,
    Table,
    fitted,
    read_tables,
    table_of,
    write_tables,
)

_WHOLE, _SAME, _DIFFERENT = range(3)
_PLAIN = 16  # folded differences below are symbols themselves
_CONTEXTS = 32  # of floats
_SAMPLE = 4096  # numbers that tell the highest exponent, and bytes that tell whether there is any difference
_LEAST = 512  # symbols of a table
_FAST_LOSS = 2e-3  # share of a stream that is given for the fastest decoding
_DOUBTFUL = 0.5  # bits of a difference for each of the number's own, from which on no base may be better


def encode_delta(data: Array, base: Array, form: Form, whole: Form, effort: Effort) -> bytes:
    """Some rows of a tensor, uint8 [rows, bytes], as a chunk beside those of the base; `whole` is the form that the
    tensor has without one."""
    check = crc32(data).to_bytes(4, "little")
    if data.reshape(-1)[:_SAMPLE].tobytes() == base.reshape(-1)[:_SAMPLE].tobytes() and np.array_equal(data, base):
        return check + bytes([_SAME])
    found = check + bytes([_DIFFERENT]) + _encoded(_numbers(data, form), _numbers(base, form), form, effort)
    if len(found) < _DOUBTFUL * data.size:
        return found
    alone = check + bytes([_WHOLE]) + encode_chunk(data, whole, effort)[4:]
    return min(found, alone, key=len)


def decode_delta(
    chunk: memoryview, base: Array, form: Form, whole: Form, account: Account | None = None, version: int = 3
) -> Array:
    """Undo `encode_delta`: uint8 [rows, bytes], as many as the base has. Raises Damaged, also where the base is
    another."""
    if len(chunk) < 5:
        raise Damaged("it is too short")
    kind, rest = chunk[4], chunk[5:]
    if kind == _WHOLE:
        return decode_chunk(memoryview(bytes(chunk[:4]) + bytes(rest)), base.shape, whole, account, version)
    if kind == _SAME:
        if len(rest):
            raise Damaged("it has more than its base")
        found = base
    elif kind == _DIFFERENT:
        found = _decoded(rest, _numbers(base, form), form, account).view(np.uint8).reshape(base.shape)
    else:
        raise Damaged("it is coded against its base in a way that is not known")
    if crc32(found) != int.from_bytes(chunk[:4], "little"):
        raise Damaged("its checksum does not match")
    return found


def _numbers(data: Array, form: Form) -> Array:
    """Rows as unsigned numbers, one after the other."""
    found: Array = data.reshape(-1).view(f"<u{form.width // 8}")
    return found


def _alphabet(form: Form) -> int:
    return _PLAIN + 2 * (form.width - 4)


def _encoded(now: Array, base: Array, form: Form, effort: Effort) -> bytes:
    top = _top(base, form)
    contexts = _contexts(base, form, top)
    counts = _counts(contexts, form)
    symbols, extra, bits = _sorted(now, base, form, contexts, counts)
    alphabet = _alphabet(form)
    runs = np.split(symbols, np.cumsum(_groups(counts))[:-1])
    seen = np.stack([counts_of(run, alphabet) for run in runs])
    tables = [table_of(own, COARSE) for own in seen]
    tables = fitted(tables, seen, _FAST_LOSS if effort == "fast" else LOSS)
    words = RansWriter()
    for run, table, own in zip(runs, tables, seen, strict=True):
        words.expected += table.cost(own)
        words.put(run, table)
    head = BitWriter()
    head.bits(words.lanes, 3)
    head.bits(top, form.exponent)
    head.bits(tables[0].bits - LEAST_BITS, 2)
    write_tables(head, tables, alphabet)
    head.number(bits, 8)
    raw = head.to_bytes()
    pieces = (one.data for one in words.to_bytes())
    return b"".join((len(raw).to_bytes(2, "little"), raw, extra[: -(-bits // 8)].data, *pieces))


def _decoded(body: memoryview, base: Array, form: Form, account: Account | None) -> Array:
    if len(body) < 2:
        raise Damaged("it is too short")
    start = 2 + int.from_bytes(body[:2], "little")
    head = BitReader(bytes(body[2:start]))
    lanes, top = head.bits(3), head.bits(form.exponent)
    contexts = _contexts(base, form, top)
    counts = _counts(contexts, form)
    alphabet = _alphabet(form)
    precision = LEAST_BITS + head.bits(2)
    groups = _groups(counts)
    tables = read_tables(head, len(groups), alphabet, precision)
    bits = head.number(8)
    coded = start + -(-bits // 8)
    if coded > len(body):
        raise Damaged("it is too short")
    extra = np.zeros(coded - start + 8, np.uint8)
    extra[: coded - start] = np.frombuffer(body[start:coded], np.uint8)
    words = RansReader(body[coded:], lanes)
    symbols, done = np.empty(base.size, np.uint8), 0
    for table, count in zip(tables, groups, strict=True):
        if not len(table.symbols):
            raise Damaged("it uses a context without a table")
        symbols[done : done + count] = words.take(table, count)
        done += count
    words.finish()
    if account is not None:
        _charge(account, form, symbols, groups, tables, bits)
    return _joined(base, form, contexts, counts, symbols, extra, bits)


def _charge(
    account: Account, form: Form, symbols: Array, groups: list[int], tables: list[Table], bits: int
) -> None:
    """Tell an account of the symbols, table by table, and of the extra bits."""
    shares = np.stack([table.shares(_alphabet(form)) for table in tables])
    account.charge("mixed", symbols, form.width, np.repeat(np.arange(len(groups)), groups), shares)
    account.add("values", 0, bits)


def _top(base: Array, form: Form) -> int:
    """The highest exponent of some of the base's numbers, Inf and NaN aside."""
    if not form.exponent:
        return 0
    some = base[:: max(1, base.size // _SAMPLE)]
    exponents = np.right_shift(some, form.width - 1 - form.exponent) & base.dtype.type((1 << form.exponent) - 1)
    finite = exponents[exponents < (1 << form.exponent) - 1]
    return int(finite.max()) if finite.size else 0


def _contexts(base: Array, form: Form, top: int) -> Array:
    """The context of each number of the base, uint8."""
    found = np.zeros(base.size, np.uint8)
    if not form.exponent or kernels.delta_contexts(base, form.exponent, top, found):
        return found
    exponents = np.right_shift(base, form.width - 1 - form.exponent) & base.dtype.type((1 << form.exponent) - 1)
    below = np.clip(top - exponents.astype(np.int64), 0, _CONTEXTS - 2)
    np.copyto(found, below, casting="unsafe")
    found[exponents == 0] = _CONTEXTS - 1
    return found


def _counts(contexts: Array, form: Form) -> Array:
    """How many numbers there are of each context."""
    return counts_of(contexts, _CONTEXTS) if form.exponent else np.array([contexts.size], np.int64)


def _groups(counts: Array) -> list[int]:
    """How many symbols each table has: those of contexts that follow each other, until they are enough. What is too
    few before a context of enough, or at the end, goes to the table before."""
    groups: list[int] = []
    held = 0
    for count in counts.tolist():
        if held and count >= _LEAST:
            groups, held = ([*groups[:-1], groups[-1] + held] if groups else [held]), 0
        held += count
        if held >= _LEAST:
            groups, held = [*groups, held], 0
    if held and groups:
        groups[-1] += held
    return groups or [held]


def _ordered(patterns: Array, form: Form) -> Array:
    """Patterns of floats in the order of the numbers that they are; the same once more undoes it."""
    if not form.exponent:
        return patterns
    kind = patterns.dtype.type
    negative = np.right_shift(patterns, form.width - 1).astype(patterns.dtype, copy=False)
    found: Array = patterns ^ negative * kind((1 << (form.width - 1)) - 1)
    return found


def _sorted(now: Array, base: Array, form: Form, contexts: Array, counts: Array) -> tuple[Array, Array, int]:
    """Symbols of the differences, context by context; what they leave open, as bytes, and of how many bits."""
    symbols = np.empty(now.size, np.uint8)
    extra = np.empty(now.nbytes + 8, np.uint8)
    places = np.cumsum(counts) - counts
    bits = kernels.delta_sorted(base, now, form.exponent, contexts, places, symbols, extra)
    if bits is not None:
        return symbols, extra, bits
    kind = now.dtype.type
    step = _ordered(now, form) - _ordered(base, form)
    folded = (step << kind(1)) ^ (np.right_shift(step, form.width - 1) * kind(2**form.width - 1))
    own = np.minimum(folded, kind(_PLAIN)).astype(np.uint8)
    large = np.flatnonzero(folded >= _PLAIN)
    values = folded[large].astype(np.uint64)
    lengths = _lengths(values)
    second = np.right_shift(values, (lengths - 2).astype(np.uint64)) & np.uint64(1)
    own[large] = _PLAIN + 2 * (lengths - 5) + second.astype(np.int64)
    widths = lengths - 2
    places, total = np.cumsum(widths) - widths, int(widths.sum())
    stream = np.zeros(total, np.uint8)
    for bit in range(int(widths.max(initial=0))):
        there = widths > bit
        stream[places[there] + bit] = np.right_shift(values[there], np.uint64(bit)) & np.uint64(1)
    return own[np.argsort(contexts, kind="stable")], np.packbits(stream, bitorder="little"), total


def _joined(
    base: Array, form: Form, contexts: Array, counts: Array, symbols: Array, extra: Array, bits: int
) -> Array:
    """Undo `_sorted`. Raises Damaged."""
    places = np.cumsum(counts) - counts
    found = kernels.delta_joined(base, form.exponent, contexts, places, symbols, extra, bits)
    if found is not None:
        out, used = found
    else:
        folded, used = _unsorted(symbols[np.argsort(np.argsort(contexts, kind="stable"))], form, extra, bits)
        kind = base.dtype.type
        step = np.right_shift(folded, 1) ^ ((folded & kind(1)) * kind(2**form.width - 1))
        out = _ordered(_ordered(base, form) + step, form)
    if used != bits:
        raise Damaged("its extra bits are not as many as its symbols want")
    return out


def _unsorted(symbols: Array, form: Form, extra: Array, bits: int) -> tuple[Array, int]:
    """Folded differences by their symbols, and how many extra bits these took, −1 where they are too few."""
    folded = symbols.astype(f"<u{form.width // 8}")
    large = np.flatnonzero(symbols >= _PLAIN)
    own = symbols[large].astype(np.int64) - _PLAIN
    widths = 3 + own // 2
    total = int(widths.sum())
    if total > bits:
        return folded, -1
    stream = np.unpackbits(extra, bitorder="little")
    places = np.cumsum(widths) - widths
    values = (2 | own & 1).astype(np.uint64) << widths.astype(np.uint64)
    for bit in range(int(widths.max(initial=0))):
        there = widths > bit
        values[there] |= stream[places[there] + bit].astype(np.uint64) << np.uint64(bit)
    folded[large] = values.astype(folded.dtype)
    return folded, total


def _lengths(values: Array) -> Array:
    """Bits of whole numbers from their highest one on, int64."""
    high = np.right_shift(values, np.uint64(32)).astype(np.float64)
    low = (values & np.uint64(0xFFFFFFFF)).astype(np.float64)
    return np.where(high > 0, 32 + np.frexp(high)[1], np.frexp(low)[1]).astype(np.int64)
