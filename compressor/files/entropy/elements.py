"""Stored elements as planes of symbols: floats by exponent and mantissa, codes one by one, integers by bytes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from compressor.core import bitpacking as bitstream
from compressor.core import kernels
from compressor.core.elementary import log2
from compressor.core.lazy import np
from compressor.core.sums import dot
from compressor.core.tensor import DTYPES
from compressor.core.workspace import Array, Workspace
from compressor.files.entropy.damage import Damaged
from compressor.files.entropy.planes import Effort, Input, Output, read_plane, write_plane
from compressor.files.entropy.symbols import read_positions, read_symbols, write_positions, write_symbols

if TYPE_CHECKING:
    import numpy

# Bits of a float and of its exponent.
FLOATS = {"F64": (64, 11), "F32": (32, 8), "F16": (16, 5), "BF16": (16, 8), "C64": (32, 8)}
_EXPONENTS = {"F8_E4M3": 4, "F8_E5M2": 5} | {dtype: exponent for dtype, (_, exponent) in FLOATS.items()}
_WIDEST = 12  # bits of a symbol of exponent and leading mantissa
_PALETTE = 256  # different floats that become codes
_SAMPLE = 1 << 12
_LARGE = 1 << 18
_ENTRY = 5  # bits of a table's entry, about


@dataclass(frozen=True)
class Form:
    """How a tensor's bytes are seen: `floats` of `width` bits and an `exponent` of so many, `codes` of `width` bits
    as one stream of bits a row, or `bytes` of integers of `width` bits; or as a `delta`, what numbers of `width`
    bits differ in from those of a base (`deltas`)."""

    kind: str
    width: int
    exponent: int = 0

    @property
    def text(self) -> str:
        """As an archive names it: `f32.8`, `c5`, `b64`, `d16.8`."""
        return f"{self.kind[0]}{self.width}" + (f".{self.exponent}" if self.exponent else "")


def form_named(text: str, dtype: str) -> Form:
    """The form of a tensor of this dtype that an archive names so. Raises ValueError."""
    for form in (*possible(dtype), delta_form(dtype)):
        if form.text == text:
            return form
    raise ValueError(text)


def delta_form(dtype: str) -> Form:
    """How a tensor of this dtype is coded against a base: as a `delta` of numbers of so many bits."""
    bits = FLOATS[dtype][0] if dtype in FLOATS else DTYPES[dtype].bits
    return Form("delta", bits if bits in (16, 32, 64) else 8, _EXPONENTS.get(dtype, 0))


def possible(dtype: str) -> list[Form]:
    """The forms that a dtype can have."""
    if dtype in FLOATS:
        return [Form("floats", *FLOATS[dtype])]
    codes = [Form("codes", width) for width in range(8, 0, -1)]
    bits = DTYPES[dtype].bits
    return codes if bits <= 8 else [Form("bytes", bits), *codes]


def likely_form(sample: Array, dtype: str) -> Form:
    """The form in which some rows of a tensor, uint8 [rows, bytes], have the least entropy."""
    forms = possible(dtype)
    return forms[0] if len(forms) == 1 or not sample.size else min(forms, key=lambda form: _cost(sample, form))


def _cost(sample: Array, form: Form) -> float:
    """Bits, about."""
    if form.kind == "codes":
        return _order0(_unpacked(sample, form.width), 1 << form.width)
    planes = sample.reshape(-1, form.width // 8).T
    return sum(_order0(plane, 256) for plane in planes)


def _order0(symbols: Array, alphabet: int) -> float:
    counts = np.bincount(symbols.reshape(-1), minlength=alphabet)
    seen = counts[counts > 0].astype(np.float64)
    return symbols.size * float(log2(max(symbols.size, 1))) - dot(seen, log2(seen)) + _ENTRY * len(seen)


def write_elements(out: Output, data: Array, form: Form) -> None:
    """Add some rows of a tensor, uint8 [rows, bytes]."""
    if form.kind == "codes":
        write_symbols(out, _unpacked(data, form.width), 1 << form.width)
    elif form.kind == "bytes":
        size = form.width // 8
        for place in range(size):
            write_plane(out, data[:, place::size], 256)
    else:
        _write_floats(out, data.view(f"<u{form.width // 8}"), form)


def read_elements(source: Input, shape: tuple[int, int], form: Form, out: Array | None = None) -> Array:
    """Undo `write_elements`: uint8 [rows, bytes] of this shape, perhaps in `out`. Raises Damaged."""
    rows, nbytes = shape
    if form.kind == "codes":
        columns = -(-nbytes * 8 // form.width)
        codes = read_symbols(source, (rows, columns), 1 << form.width)
        if form.width == 8:
            return codes
        packed = np.empty((rows, bitstream.row_bytes(columns, form.width)), np.uint8)
        bitstream.pack(np.ascontiguousarray(codes), form.width, packed, Workspace())
        return packed[:, :nbytes]
    size = form.width // 8
    if form.kind == "bytes":
        found = np.empty(shape, np.uint8)
        for place in range(size):
            found[:, place::size] = read_plane(source, (rows, nbytes // size), 256)
        return found
    return _read_floats(source, (rows, nbytes // size), form, out).view(np.uint8)


def _unpacked(data: Array, width: int) -> Array:
    """Codes of so many bits [rows, columns]; a row's last one may be cut off by its end."""
    if width == 8:
        return data
    codes = np.empty((len(data), -(-data.shape[1] * 8 // width)), np.uint8)
    short = bitstream.row_bytes(codes.shape[1], width) - data.shape[1]
    bitstream.unpack(np.pad(data, ((0, 0), (0, short))) if short else data, width, codes, Workspace())
    return codes


# ---- floats --------------------------------------------------------------------------------------------


def _write_floats(out: Output, bits: Array, form: Form) -> None:
    """Patterns [rows, columns] as unsigned integers."""
    palette = _palette(bits)
    out.head.bits(palette is not None, 1)
    if palette is not None:
        out.head.bits(len(palette) - 1, 8)
        out.bodies.append(palette.tobytes())
        write_symbols(out, np.searchsorted(palette, bits).astype(np.uint8), max(len(palette), 2))
        return
    kept = np.count_nonzero(bits)
    zeros = 1 - kept / max(bits.size, 1)
    sparse = zeros > 0 and zeros * (form.width - form.exponent) > _binary(zeros)
    out.head.bits(bool(sparse), 1)
    if sparse:
        there = bits != 0
        write_positions(out, there)
        bits = bits[there].reshape(1, -1)
    lead = _lead(bits, form, out.effort)
    out.head.bits(lead, 4)
    low = form.width - 1 - form.exponent - lead  # bits that stay under the symbol, without the sign
    symbols, pieces = _split(np.ascontiguousarray(bits), low, form.exponent + lead, out.work)
    write_plane(out, symbols, 1 << (form.exponent + lead), "level")
    for (_, width), piece in zip(_pieces(low + 1), pieces, strict=True):
        write_plane(out, piece, 1 << width, plain=True)


def _read_floats(source: Input, shape: tuple[int, int], form: Form, into: Array | None) -> Array:
    kind = np.dtype(f"<u{form.width // 8}")
    if source.head.bits(1):
        count = source.head.bits(8) + 1
        palette = np.frombuffer(source.body(count * kind.itemsize), kind)
        places = read_symbols(source, shape, max(count, 2))
        if places.size and int(places.max()) >= count:
            raise Damaged("it has a code beyond its palette")
        return palette[places]
    there = read_positions(source, shape) if source.head.bits(1) else None
    inner = shape if there is None else (1, int(np.count_nonzero(there)))
    lead = source.head.bits(4)
    low = form.width - 1 - form.exponent - lead
    if low < 0 or form.exponent + lead > _WIDEST:
        raise Damaged("its symbols are wider than its floats")
    symbols = read_plane(source, inner, 1 << (form.exponent + lead), scratch="floats.symbols")
    pieces = [read_plane(source, inner, 1 << width, scratch=f"floats.{place}") for place, width in _pieces(low + 1)]
    plain = there is None and into is not None and into.ctypes.data % kind.itemsize == 0
    bits = _joined(symbols, pieces, low, kind, into.view(kind) if plain and into is not None else None)
    if there is None:
        return bits
    out = np.zeros(shape, kind)
    out[there] = bits[0]
    return out


def _split(bits: Array, low: int, width: int, work: Workspace) -> tuple[Array, Array]:
    """Patterns [rows, columns] as symbols of `width` bits above the `low` lowest, uint8 or uint16, and these lowest
    with the sign on top of them as bytes, the lowest first [bytes, rows, columns]."""
    symbols = work.array("floats.symbols", bits.shape, "|u1" if width <= 8 else "=u2")
    planes = work.array("floats.planes", (low // 8 + 1, *bits.shape), "|u1")
    if kernels.split_floats(bits, low, symbols, planes):
        return symbols, planes
    np.copyto(symbols, np.right_shift(bits, low) & bits.dtype.type((1 << width) - 1), casting="unsafe")
    rest = np.right_shift(bits, 8 * bits.itemsize - 1 - low)  # the sign goes on top of them
    rest &= rest.dtype.type(1 << low)
    rest |= bits & bits.dtype.type((1 << low) - 1)
    for number, plane in enumerate(planes):
        np.copyto(plane, np.right_shift(rest, 8 * number), casting="unsafe")
    return symbols, planes


def _joined(
    symbols: Array, pieces: list[Array], low: int, kind: numpy.dtype[Any], out: Array | None = None
) -> Array:
    """Undo `_split`: patterns of this type."""
    out = np.empty(symbols.shape, kind) if out is None else out
    planes = pieces[0] if len(pieces) == 1 else np.stack(pieces)
    if kernels.join_floats(symbols, planes, low, out):
        return out
    np.copyto(out, symbols)
    out <<= kind.type(low)
    rest = np.zeros(symbols.shape, kind)
    for number, piece in enumerate(pieces):
        rest |= piece.astype(kind) << kind.type(8 * number)
    out |= rest & kind.type((1 << low) - 1)
    out |= np.right_shift(rest, low) << kind.type(8 * kind.itemsize - 1)
    return out


def _pieces(count: int) -> list[tuple[int, int]]:
    """Bits under the symbol, by bytes: the place of each and how many bits it has."""
    return [(place, min(8, count - 8 * place)) for place in range(-(-count // 8))]


def _lead(bits: Array, form: Form, effort: Effort) -> int:
    """How many leading bits of the mantissa the symbol has: so many that whole bytes are left, or, where there is
    time, what makes it smallest."""
    rest = form.width - form.exponent
    most = min(_WIDEST - form.exponent, rest - 1)
    whole = rest % 8 if rest % 8 <= most else 0
    if effort == "fast" and bits.size > _LARGE:
        return whole
    costs = []
    for lead in range(min(most, 3) + 1):
        symbol = np.right_shift(bits, rest - 1 - lead) & bits.dtype.type((1 << (form.exponent + lead)) - 1)
        costs.append(_order0(symbol.astype(np.int64), 1 << (form.exponent + lead)) + (rest - lead) * bits.size)
    return int(np.argmin(costs))


def _palette(bits: Array) -> Array | None:
    """The different patterns of a chunk, ascending, where they are few; None where they are not."""
    flat = bits.reshape(-1)
    if not flat.size:
        return None
    some = flat[:: max(1, flat.size // _SAMPLE)]
    if any(len(np.unique(part)) > _PALETTE for part in (some[: 2 * _PALETTE], some)):
        return None
    found: Array = np.unique(flat)
    return found if len(found) <= _PALETTE and len(found) * 4 <= flat.size else None


def _binary(share: float) -> float:
    """The entropy of a bit that is set with this probability."""
    return -share * float(log2(share)) - (1 - share) * float(log2(1 - share)) if 0 < share < 1 else 0.0
